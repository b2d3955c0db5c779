"""Engines and requests for tests of the simulator."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from draftpick.engines.profile.profile import Profile
from draftpick.policy_training.simulator.engine import Arm, Mode, Steps
from draftpick.policy_training.simulator.requests import Requests


def profile(
    step_s: float = 0.01, rise: float = 0.0, *, prefill_s: float = 0.02, per_token: float = 0.0, most: int = 16
) -> Profile:
    """A step that rises by a line with each further request."""
    batches = tuple(sorted({1, most}))
    table = tuple((step_s + rise * (n - 1),) for n in batches)
    return Profile("build", "machine", batches, (0,), (table, table), prefill_s, per_token, most)


def arm(name: str, step_s: float = 0.01, rise: float = 0.0, **more: float) -> Arm:
    """An engine of one draft length with such steps."""
    ours = {key: more.pop(key) for key in ("prefill_s", "per_token", "most") if key in more}
    return Arm.from_profile(name, profile(step_s, rise, **ours), **more)  # type: ignore[arg-type]


def requests(
    arrival_s: npt.ArrayLike,
    tau: Mapping[str, npt.ArrayLike],
    tokens: npt.ArrayLike = 101.0,
    prompt: float = 100.0,
) -> Requests:
    """Greedy requests of one kind."""
    at_s = np.asarray(arrival_s, float)
    n = len(at_s)
    return Requests(
        kinds=("all",),
        columns=tuple(tau),
        kind=np.zeros(n, np.intp),
        prompt_tokens=np.full(n, prompt),
        output_tokens=np.broadcast_to(np.asarray(tokens, float), (n,)).copy(),
        sampled=np.zeros(n, bool),
        tau=np.stack([np.broadcast_to(np.asarray(value, float), (n,)) for value in tau.values()], 1),
        arrival_s=at_s,
    )


def with_schedule(name: str, profiles: Mapping[str, Profile], made: Requests, **more: float) -> Arm:
    """One engine that takes at each batch size the draft length with the least time for a token.

    `profiles` by column of acceptance lengths, the longest draft length first; `made`: requests that the schedule is
    made for.
    """
    context, sampled = made.mean_context, float(made.sampled.mean())
    per_token = {column: float(np.mean(1 / made.tau[:, made.column(column)])) for column in profiles}
    first = next(iter(profiles))
    modes = tuple(Mode(p, column, per_token[first] / per_token[column]) for column, p in profiles.items())
    steps = [Steps(mode.profile) for mode in modes]

    def token_s(mode: int, running: int) -> float:
        return steps[mode].expected(running, context, sampled) / modes[mode].tau_ratio

    sizes = range(1, modes[0].profile.max_running + 1)
    chosen = [min(range(len(modes)), key=lambda mode: token_s(mode, running)) for running in sizes]
    return Arm(name, modes, tuple(chosen), **more)  # type: ignore[arg-type]
