"""Engines as the simulator sees them: seconds of their steps by load, and whose acceptance lengths they have."""

from collections.abc import Sequence
from dataclasses import dataclass

from draftpick.engines.profile.profile import GREEDY, SAMPLED, Profile

PREFILL_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Mode:
    """One draft length of an engine: `profile` with it, and `column`, the acceptance lengths with it.

    `tau_ratio`: its mean tau over that of the engine's first mode, which is what policies predict.
    """

    profile: Profile
    column: str
    tau_ratio: float = 1.0


@dataclass(frozen=True, slots=True)
class Arm:
    """An engine, of which a fleet may run many replicas.

    `schedule`: the number of the mode at 1, 2, ... running requests, the last one for all above (vLLM's
    `num_speculative_tokens_per_batch_size`). `accelerators` and `price` (per second) are of one replica.
    `prefill_tokens`: of prompts that one step takes at most (vLLM's `max_num_batched_tokens`). `lock_step`: whether
    its requests share their steps and prefills, as in vLLM; those of a mock engine do not.
    """

    name: str
    modes: tuple[Mode, ...]
    schedule: tuple[int, ...] = (0,)
    accelerators: int = 1
    price: float = 1.0
    prefill_tokens: int = PREFILL_TOKENS
    lock_step: bool = True

    @classmethod
    def from_profile(cls, name: str, profile: Profile, column: str | None = None, **more: float) -> "Arm":
        """An engine of one draft length, whose acceptance lengths have its name."""
        return cls(name, (Mode(profile, column or name),), **more)  # type: ignore[arg-type]

    @property
    def max_running(self) -> int:
        """Requests that run at once on a replica."""
        return self.modes[0].profile.max_running

    def mode_at(self, running: int) -> int:
        """The number of the mode with so many requests running."""
        return self.schedule[min(max(running, 1), len(self.schedule)) - 1]

    def prefill_s(self, prompt_tokens: float) -> float:
        """Seconds of a prefill alone on a replica."""
        profile = self.modes[0].profile
        return profile.prefill_s + profile.prefill_s_per_token * prompt_tokens

    def step_s(self, running: int, context: float = 0.0, sampled: int = GREEDY) -> float:
        """Seconds of a step, in steps of the first mode: those of another mode count by the tokens they bring."""
        mode = self.modes[self.mode_at(running)]
        return mode.profile.step(running, context, sampled) / mode.tau_ratio


class Steps:
    """Seconds of a step by (running, mean context, whether any is sampled), from a table of all batch sizes.

    One sampled request sends the logits of all through the sampler: vLLM's masks of top-p and top-k are of whole
    batches (`apply_top_k_top_p`).
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
        """Where each of those that run is sampled with this probability."""
        none = (1 - share) ** running
        return none * self(running, context, False) + (1 - none) * self(running, context, True)


def _between(grid: Sequence[int], value: float) -> tuple[int, float]:
    """(index of the point below, share of the way to the next), the last line going on beyond the last point."""
    at = 0
    while at < len(grid) - 2 and value > grid[at + 1]:
        at += 1
    return at, max(value - grid[at], 0.0) / (grid[at + 1] - grid[at])
