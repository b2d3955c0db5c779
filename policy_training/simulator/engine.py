"""Engines in the simulator: step times by load, and their column of acceptance lengths."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from draftpick.engines.profile.profile import GREEDY, SAMPLED, Profile

Floats = npt.NDArray[np.float64]
PREFILL_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Mode:
    """One draft length of an engine: its `profile`, and `column`, its acceptance lengths.

    `tau_ratio`: its mean tau relative to the engine's first mode, which policies predict.
    """

    profile: Profile
    column: str
    tau_ratio: float = 1.0


@dataclass(frozen=True, slots=True)
class Arm:
    """An engine, of which a fleet may run many replicas.

    `schedule`: index of the mode at 1, 2, ... running requests, the last one for all above (vLLM's
    `num_speculative_tokens_per_batch_size`). `accelerators` and `price` (per second) are of one replica.
    `prefill_tokens`: maximum prompt tokens per step (vLLM's `max_num_batched_tokens`). `lock_step`: whether its
    requests share their steps and prefills, as in vLLM; those of a mock engine do not. `pool`: each request has a mode
    of its own, the one that serves the batch best, step by step; the first one drafts nothing.
    """

    name: str
    modes: tuple[Mode, ...]
    schedule: tuple[int, ...] = (0,)
    accelerators: int = 1
    price: float = 1.0
    prefill_tokens: int = PREFILL_TOKENS
    lock_step: bool = True
    pool: bool = False

    @classmethod
    def from_profile(cls, name: str, profile: Profile, column: str | None = None, **more: float) -> "Arm":
        """Create an engine of one draft length; the column of its acceptance lengths defaults to its name."""
        return cls(name, (Mode(profile, column or name),), **more)  # type: ignore[arg-type]

    @classmethod
    def as_pool(cls, name: str, modes: Mapping[str, Profile], **more: float) -> "Arm":
        """Create a pool of drafters with these profiles, by column; the first one drafts nothing."""
        return cls(name, tuple(Mode(profile, column) for column, profile in modes.items()), pool=True, **more)  # type: ignore[arg-type]

    def expected_tau(self, tau: Floats, column: Callable[[str], int]) -> Floats:
        """Acceptance lengths [n] in steps of the first mode, of requests with `tau` [n, columns]; of a pool, with the
        mode that is the fastest for a request alone."""
        if not self.pool:
            return np.asarray(tau[:, column(self.modes[0].column)])
        alone_s = self.modes[0].profile.step(1)
        found: Floats = np.max([tau[:, column(m.column)] * alone_s / m.profile.step(1) for m in self.modes], axis=0)
        return found

    @property
    def max_running(self) -> int:
        """Maximum concurrent requests of a replica."""
        return self.modes[0].profile.max_running

    def mode_at(self, running: int) -> int:
        """Index of the mode with `running` requests."""
        return self.schedule[min(max(running, 1), len(self.schedule)) - 1]

    def prefill_s(self, prompt_tokens: float) -> float:
        """Seconds of a prefill alone on a replica."""
        profile = self.modes[0].profile
        return profile.prefill_s + profile.prefill_s_per_token * prompt_tokens

    def step_s(self, running: int, context: float = 0.0, sampled: int = GREEDY) -> float:
        """Seconds of a step, in steps of the first mode: those of another mode are converted by their tokens."""
        mode = self.modes[self.mode_at(running)]
        return mode.profile.step(running, context, sampled) / mode.tau_ratio


class Steps:
    """Seconds of a step by (running, mean context, whether any is sampled), from a table of all batch sizes.

    One sampled request sends the logits of all through the sampler: vLLM applies top-p and top-k masks to whole batches
    (`apply_top_k_top_p`).
    """

    def __init__(self, profile: Profile) -> None:
        self._contexts = profile.contexts
        sizes = range(profile.max_running + 1)
        self._halves = [
            [[profile.step(n, context, half) for context in self._contexts] for n in sizes]
            for half in (GREEDY, SAMPLED)
        ]
        self._one = len(self._contexts) == 1

    def __call__(self, running: int, context: float, sampled: bool) -> float:
        row = self._halves[SAMPLED if sampled else GREEDY][running]
        if self._one:
            return row[0]
        at, share = _between(self._contexts, context)
        return row[at] + share * (row[at + 1] - row[at])

    def expected(self, running: int, context: float, share: float) -> float:
        """Expected seconds if each running request is sampled with this probability."""
        none = (1 - share) ** running
        return none * self(running, context, False) + (1 - none) * self(running, context, True)


def _between(grid: Sequence[int], value: float) -> tuple[int, float]:
    """Return (index of the point below, fraction of the way to the next); extrapolates along the last line."""
    at = 0
    while at < len(grid) - 2 and value > grid[at + 1]:
        at += 1
    return at, max(value - grid[at], 0.0) / (grid[at + 1] - grid[at])
