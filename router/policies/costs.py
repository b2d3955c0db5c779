"""Costs of a policy's arms: those of their profiles, and for arms without one those of an artefact."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from draftpick.engines.profile.profile import MODES, Profile
from draftpick.router.policies.base import Policy

Floats = npt.NDArray[np.float64]
Costs = tuple[Floats, Floats, Floats]
"""Seconds of a step [arms, modes], of a first token [arms], and additional ones per prompt token [arms]."""

_STEP_S = 0.02
MEASURED, FOREIGN = "measured on its machine", "costs of another machine"


def cost_sources(policy: Policy) -> dict[str, str]:
    """Where the costs of each arm are from: `MEASURED` or `FOREIGN`; none for a policy that predicts no times."""
    foreign = policy.foreign_costs
    return {arm: FOREIGN if arm in foreign else MEASURED for arm in policy.arms} if policy.uses_load else {}


def equal_costs(num_arms: int) -> dict[str, npt.NDArray[np.float32]]:
    """Return the costs of an artefact that holds none: the same for all arms, until there are profiles."""
    each = np.full(num_arms, _STEP_S, np.float32)
    return {"step_s": np.stack([each, each], axis=1), "start_s": each, "per_token_s": 0.0 * each}


def merge_costs(artifact: Sequence[Floats], arms: Sequence[str], profiles: Mapping[str, Profile]) -> Costs:
    """Return the costs of `arms`. `artifact`: the like, with two modes, from another machine.

    Where some arms have a profile, the costs of the others are scaled by the median ratio of those to the artefact's.
    """
    step_s, start_s, per_token_s = (one.copy() for one in artifact)
    step_s = np.concatenate([step_s, step_s[:, [-1] * (len(MODES) - step_s.shape[1])]], axis=1)
    measured = [i for i, arm in enumerate(arms) if arm in profiles]
    if not measured:
        return step_s, start_s, per_token_s
    found = [profiles[arms[i]] for i in measured]
    steps = np.asarray([[one.step(1, 0.0, mode) for mode in range(len(MODES))] for one in found])
    ratio = float(np.median(steps / np.maximum(step_s[measured], 1e-9)))
    step_s, start_s, per_token_s = step_s * ratio, start_s * ratio, per_token_s * ratio
    step_s[measured] = steps
    start_s[measured], per_token_s[measured] = np.transpose([(one.prefill_s, one.prefill_s_per_token) for one in found])
    return step_s, start_s, per_token_s
