"""Measures the profile of any engine with vLLM's API, over HTTP alone.

For every batch size, that many requests run concurrently; the gaps between their chunks are the step times. Each point
is measured twice, far apart in time, and the shorter step counts: a disagreement shows that the machine was busy.

A step of an engine that drafts also depends on how many tokens it verifies. The engine logs that number with the
seconds of each step (`step_log`), so a line through the steps of single requests gives the time by verified rows. Its
slope is identifiable if the engine's drafts vary in length while batch and context stay the same, as those of prompt
lookup and suffix decoding do; an engine that always drafts k tokens has no such steps, and needs none.
"""

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, cycle, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from draftpick.engines import load_report as load
from draftpick.engines.arms import NONE
from draftpick.engines.http.client import EngineClient
from draftpick.engines.load_report import LoadReport
from draftpick.engines.profile import identity, step_log
from draftpick.engines.profile.concurrent_decode import Target, first_token_s, sustain_batch
from draftpick.engines.profile.identity import EngineIdentity, digest
from draftpick.engines.profile.profile import GREEDY, MODES, Profile, ProfileError
from draftpick.engines.profile.prompts import TEXTS, fitted
from draftpick.engines.profile.step_log import Step, parse_steps

ProgressCallback = Callable[[float], None]
"""Called with the fraction done."""
Floats = npt.NDArray[np.float64]
_PASSES = 2
_MIN_GAPS, _STALL = 4, 3.0
_ANSWER_TOKENS = 128
_IDLE_WITHIN_S, _IDLE_POLL_S = 10.0, 0.01
_MIN_STEPS = 8
"""Steps of a mode from which the time by verified rows is fitted."""


@dataclass(frozen=True, slots=True)
class ProfilePlan:
    """Measurement points: `batches` of requests, each with `contexts` tokens before its answer.

    Each point takes `steps` steps, or `longest_s` seconds of them, twice. A batch smaller than `min_prompts` is
    measured with several prompts in succession, since a drafter's steps depend on them. `prefills` requests of each of
    `prefill_tokens` give the time to the first token. `all_modes`: measure every mode in every batch, twice; if not,
    the sampling modes only in the smallest batch and, once, in the largest one: sampling takes the same time for every
    row.
    """

    batches: tuple[int, ...] = (1, 2, 4, 8)
    contexts: tuple[int, ...] = (128,)
    steps: int = 12
    longest_s: float = 3.0
    min_prompts: int = 4
    prefill_tokens: tuple[int, ...] = (16, 128, 512)
    prefills: int = 3
    all_modes: bool = True

    def __post_init__(self) -> None:
        for name, grid in (("batches", self.batches), ("contexts", self.contexts)):
            if not grid or list(grid) != sorted(set(grid)) or grid[0] < 1:
                raise ProfileError(f"{name} must be increasing numbers from 1, not {list(grid)}")
        if self.batches[0] != 1:
            raise ProfileError("batches must start with 1")

    @classmethod
    def quick(cls, max_running: int | None) -> "ProfilePlan":
        """A plan of a few seconds: one request, the engine's largest batch, and one between.

        The context is a little longer than the blocks of prefix caches, so a repeated prompt has hardly any prefill.
        """
        most = max_running or 8
        return cls(
            batches=tuple(sorted({1, round(math.sqrt(most)), most})), contexts=(130,), steps=5, longest_s=0.1,
            min_prompts=2, prefill_tokens=(16, 128), prefills=2, all_modes=False,
        )  # fmt: skip

    def passes(self, mode: int, batch_index: int, num_batches: int) -> int:
        """How often a point is measured; 0: it is interpolated."""
        if self.all_modes or mode == GREEDY or batch_index == 0:
            return _PASSES
        return int(batch_index == num_batches - 1)


@dataclass(frozen=True, slots=True)
class ProfileResult:
    """A profile, and the relative difference of its two passes at the median point."""

    profile: Profile
    disagreement: float


async def measure_profile(
    url: str,
    prompts: Sequence[str] = TEXTS,
    plan: ProfilePlan | None = None,
    *,
    model: str | None = None,
    on_progress: ProgressCallback = lambda share: None,
) -> ProfileResult:
    """Measure the engine at `url`, which must not serve other requests meanwhile.

    `prompts`: texts like those of its traffic; `model`: None selects the first model that the engine lists. Raises
    `ProfileError`, and `EngineError` if the engine is unreachable.
    """
    client = EngineClient(first_byte_timeout_s=180, timeout_s=180)
    try:
        target = await find_target(client, url.rstrip("/"), model)
        return await ProfileRun(target, await find_identity(target), plan or ProfilePlan(), on_progress).run(prompts)
    finally:
        await client.close()


class ProfileRun:
    """One measurement. Its `run` may be cancelled and called again: it then measures the points that are left."""

    def __init__(
        self,
        target: Target,
        identity: EngineIdentity,
        plan: ProfilePlan,
        on_progress: ProgressCallback = lambda share: None,
    ) -> None:
        self._target = replace(target, only=NONE) if identity.drafters else target
        self._identity, self._plan, self._on_progress = identity, plan, on_progress
        self._batches = [batch for batch in plan.batches if batch <= (identity.max_running or batch)]
        self._prompts: list[list[list[int]]] = []
        self._first_s: dict[int, float] = {}
        self._found: dict[tuple[int, ...], float] = {}
        self._steps: list[list[Step]] = [[] for _ in MODES]
        self._num_points = 1

    async def run(self, texts: Sequence[str]) -> ProfileResult:
        """Measure all points in two passes, the second in reverse order, and fit a line through the times to first
        token."""
        self._check_room()
        if not self._prompts:
            chosen = list(islice(cycle(texts), max(self._plan.min_prompts, *self._batches)))
            self._prompts = [await fitted(self._target, chosen, context) for context in self._plan.contexts]
        contexts = tuple(round(float(np.mean([len(one) for one in same]))) for same in self._prompts)
        shape, sizes = (len(MODES), len(self._batches), len(contexts)), len(self._batches)
        order = [
            [at for at in np.ndindex(shape) if self._plan.passes(at[0], at[1], sizes) > number]
            for number in range(_PASSES)
        ]
        lengths = self._prefill_lengths()
        self._num_points = sum(map(len, order)) + len(lengths) + len(self._identity.drafters)
        start_s, per_token_s = await self._prefill(lengths)
        passes = np.full((_PASSES, *shape), np.nan)
        for number, points in enumerate((order[0], order[1][::-1])):
            for mode, i, j in points:
                if (number, mode, i, j) not in self._found:
                    self._found[number, mode, i, j] = await self._point(self._prompts[j], self._batches[i], mode)
                    self._report_progress()
                passes[number, mode, i, j] = self._found[number, mode, i, j]
        drafters_s = await self._drafters()
        disagreement = float(np.nanmedian(np.abs(np.log(passes[0] / passes[1]))))
        # Other load makes steps longer, never shorter.
        steps_s = check_increasing(_interpolated(np.fmin(*passes), self._batches))
        profile = Profile(
            build=self._identity.build,
            machine=self._identity.machine,
            batches=tuple(self._batches),
            contexts=contexts,
            step_s=tuple(tuple(tuple(map(float, row)) for row in table) for table in steps_s),
            prefill_s=start_s,
            prefill_s_per_token=per_token_s,
            max_running=self._identity.max_running or max(self._batches),
            verify_s=_verify_s(self._steps),
            disagreement=disagreement,
            drafter_s={name: max(step_s - float(steps_s[GREEDY, 0, 0]), 0.0) for name, step_s in drafters_s.items()},
        )
        return ProfileResult(profile, disagreement)

    async def _drafters(self) -> dict[str, float]:
        """Seconds of a greedy step of one request that only this drafter of a pool may draft, by drafter."""
        for i, name in enumerate(self._identity.drafters):
            if (key := (_PASSES, i)) not in self._found:
                target = replace(self._target, only=name)
                self._found[key] = await self._point(self._prompts[0], 1, GREEDY, target)
                self._report_progress()
        return {name: self._found[_PASSES, i] for i, name in enumerate(self._identity.drafters)}

    def _check_room(self) -> None:
        most, longest = self._target.max_model_len, max(self._plan.contexts)
        if most is not None and longest + _ANSWER_TOKENS > most:
            raise ProfileError(
                f"contexts: {longest} tokens leave no room for an answer, since max_model_len is {most}: use "
                f"{max(1, most - _ANSWER_TOKENS)} or fewer"
            )

    async def _point(
        self, prompts: Sequence[Sequence[int]], batch: int, mode: int, target: Target | None = None
    ) -> float:
        """Return the seconds of a step: the mean, as in TPOT, without stalls of several times the median."""
        plan, asked = self._plan, target or self._target
        gaps: list[float] = []
        before, _ = await _logged_steps(self._target)
        for first in range(0, max(plan.min_prompts, batch), batch):
            await _idle(self._target)
            held = list(islice(cycle(prompts), first, first + batch))
            gaps += await sustain_batch(asked, held, mode, steps=plan.steps, longest_s=plan.longest_s)
        if len(gaps) < _MIN_GAPS:
            raise ProfileError(
                f"the engine ended its answers before {batch} requests decoded together: it must support "
                "`ignore_eos` and that many concurrent requests"
            )
        if batch == 1 and target is None:
            self._steps[mode] += (await _logged_steps(self._target, before))[1]
        found = np.asarray(gaps)
        return float(found[found <= _STALL * np.median(found)].mean())

    def _prefill_lengths(self) -> list[int]:
        longest = {max(map(len, same)) for same in self._prompts} if self._plan.all_modes else set()
        most = self._target.max_model_len or math.inf
        return sorted(length for length in {*self._plan.prefill_tokens, *longest} if length < most)

    async def _prefill(self, lengths: Sequence[int]) -> tuple[float, float]:
        """Return seconds (fixed time to first token, additional per prompt token), of uncached prompts."""
        known = [token for same in self._prompts for prompt in same for token in prompt]
        rng = random.SystemRandom()
        if not self._first_s:
            await first_token_s(self._target, rng.choices(known, k=lengths[0]))  # the very first is slow
        for length in lengths:
            if length not in self._first_s:
                await _idle(self._target)
                prompts = [rng.choices(known, k=length) for _ in range(self._plan.prefills)]
                self._first_s[length] = min([await first_token_s(self._target, prompt) for prompt in prompts])
                self._report_progress()
        shortest = [self._first_s[length] for length in lengths]
        slope, start = np.polyfit(lengths, shortest, 1) if len(lengths) > 1 else (0.0, shortest[0])
        return max(0.0, float(start)), max(0.0, float(slope))

    def _report_progress(self) -> None:
        self._on_progress((len(self._first_s) + len(self._found)) / self._num_points)


def _interpolated(steps_s: Floats, batches: Sequence[int]) -> Floats:
    """Fill the missing points of steps [mode, batch, context]: greedy steps, and the linear difference of a mode."""
    filled = steps_s.copy()
    for mode, j in np.ndindex(steps_s.shape[0], steps_s.shape[2]):
        column = steps_s[mode, :, j]
        known = ~np.isnan(column)
        added = np.interp(batches, np.asarray(batches)[known], (column - steps_s[GREEDY, :, j])[known])
        filled[mode, :, j] = np.where(known, column, steps_s[GREEDY, :, j] + added)
    return filled


def _verify_s(steps: Sequence[Sequence[Step]]) -> tuple[tuple[float, ...], ...]:
    """Seconds of a step of one request by mode and verified rows, by the median line (Theil-Sen) through `steps`.

    Empty if drafts do not vary in length, or too few steps are known.
    """
    tables = []
    alone = [[step for step in same if step.running == 1] for same in steps]
    most = max((step.drafted for same in alone for step in same), default=0)
    for same in alone:
        drafted, times_s = (np.asarray([float(getattr(one, of)) for one in same]) for of in ("drafted", "step_s"))
        pairs = [(a, b) for a, b in combinations(range(len(same)), 2) if drafted[a] != drafted[b]]
        if len(same) < _MIN_STEPS or not pairs:
            return ()
        slope = max(0.0, float(np.median([(times_s[a] - times_s[b]) / (drafted[a] - drafted[b]) for a, b in pairs])))
        start = float(np.median(times_s - slope * drafted))
        tables.append(tuple(max(start + slope * n, 1e-9) for n in range(most + 1)))
    return tuple(tables)


def check_increasing(steps_s: Floats) -> Floats:
    """Make steps [mode, batch, context] nondecreasing along batch and context; violations are noise.

    Isotonic along batches, then along contexts, which preserves the former.
    """
    from sklearn.isotonic import isotonic_regression

    along_batches = np.apply_along_axis(isotonic_regression, 1, steps_s)
    return np.asarray(np.apply_along_axis(isotonic_regression, 2, along_batches))


async def _logged_steps(target: Target, since: int = 0) -> tuple[int, list[Step]]:
    """Return the number of the engine's steps so far, and those after the first `since`; none if it logs none."""
    async with target.client.send(target.url + step_log.PATH, "GET", [], b"", stream=False) as answer:
        body = b"".join([part async for part in answer.chunks])
    return parse_steps(body, since) if answer.status == 200 else (0, [])


async def find_target(client: EngineClient, url: str, model: str | None) -> Target:
    """Return the engine at an address and its model."""
    listed = await _page(client, f"{url}/v1/models")
    cards: list[dict[str, Any]] = listed.get("data", []) if isinstance(listed, dict) else []
    card = next((card for card in cards if model in (None, card.get("id"))), None)
    if card is None:
        names = ", ".join(str(card.get("id")) for card in cards)
        raise ProfileError(f"the engine at {url} does not serve model {model or ''} (it serves: {names or 'none'})")
    return Target(client, url, str(card["id"]), card.get("max_model_len"))


async def find_identity(target: Target) -> EngineIdentity:
    """Return the engine's own identity, or one made of its address, model and version."""
    async with target.client.send(target.url + identity.PATH, "GET", [], b"", stream=False) as answer:
        body = b"".join([part async for part in answer.chunks])
    if answer.status == 200 and (own := EngineIdentity.from_json(body)):
        return own
    version = await _page(target.client, f"{target.url}/version")
    return EngineIdentity(digest([target.url, target.model, version]), "unknown")


async def _idle(target: Target) -> None:
    """Wait until the engine is idle, if it reports its load. Raises `ProfileError` if other requests keep it busy."""
    for _ in range(round(_IDLE_WITHIN_S / _IDLE_POLL_S)):
        async with target.client.send(target.url + load.PATH, "GET", [], b"", stream=False) as answer:
            body = b"".join([part async for part in answer.chunks])
        report = LoadReport.from_json(body) if answer.status == 200 else None
        if report is None or not (report.running or report.waiting):
            return
        await asyncio.sleep(_IDLE_POLL_S)
    raise ProfileError(f"the engine at {target.url} serves other requests: measure it while it is idle")


async def _page(client: EngineClient, url: str) -> Any:
    """Return the JSON of a page; None if it is not available."""
    async with client.send(url, "GET", [], b"", stream=False) as answer:
        body = b"".join([part async for part in answer.chunks])
    try:
        return orjson.loads(body) if answer.status == 200 else None
    except orjson.JSONDecodeError:
        return None
