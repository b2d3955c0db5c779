"""Measures the profile of any engine with vLLM's API, over HTTP alone.

For every batch size, that many requests run concurrently; the gaps between their chunks are the step times. Each point
is measured twice, far apart in time, and the shorter step counts: a disagreement shows that the machine was busy.
"""

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from draftpick.engines import load_report as load
from draftpick.engines.http.client import EngineClient
from draftpick.engines.load_report import LoadReport
from draftpick.engines.profile import identity
from draftpick.engines.profile.concurrent_decode import Target, first_token_s, sustain_batch
from draftpick.engines.profile.identity import EngineIdentity, digest
from draftpick.engines.profile.profile import Profile, ProfileError
from draftpick.engines.profile.prompts import TEXTS, fitted

ProgressCallback = Callable[[float], None]
"""Called with the fraction done."""
_PASSES = 2
_MIN_GAPS, _STALL = 4, 3.0
_ANSWER_TOKENS = 128
_PREFILL_TOKENS, _PREFILLS = (16, 128, 512), 3
_IDLE_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class ProfilePlan:
    """Measurement points: `batches` of requests, each with about `contexts` tokens before its answer.

    Each point takes `steps` steps, or `longest_s` seconds of them, twice. A batch smaller than `min_prompts` is
    measured with several prompts in succession, since a drafter's steps depend on them.
    """

    batches: tuple[int, ...] = (1, 2, 4, 8)
    contexts: tuple[int, ...] = (128,)
    steps: int = 12
    longest_s: float = 3.0
    min_prompts: int = 4

    def __post_init__(self) -> None:
        for name, grid in (("batches", self.batches), ("contexts", self.contexts)):
            if not grid or list(grid) != sorted(set(grid)) or grid[0] < 1:
                raise ProfileError(f"{name} must be increasing numbers from 1, not {list(grid)}")
        if self.batches[0] != 1:
            raise ProfileError("batches must start with 1")


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
        target = await _target(client, url.rstrip("/"), model)
        return await _ProfileRun(target, await _identity(target), plan or ProfilePlan(), on_progress).run(prompts)
    finally:
        await client.close()


class _ProfileRun:
    """One measurement in progress."""

    def __init__(
        self, target: Target, identity: EngineIdentity, plan: ProfilePlan, on_progress: ProgressCallback
    ) -> None:
        self._target, self._identity, self._plan, self._on_progress = target, identity, plan, on_progress
        self._batches = [batch for batch in plan.batches if batch <= (identity.max_running or batch)]
        self._done, self._num_points = 0, 1

    async def run(self, texts: Sequence[str]) -> ProfileResult:
        """Measure all points in two passes, the second in reverse order, and fit a line through the times to first
        token."""
        self._check_room()
        number = max(self._plan.min_prompts, *self._batches)
        chosen = list(islice(cycle(texts), number))
        prompts = [await fitted(self._target, chosen, context) for context in self._plan.contexts]
        contexts = tuple(round(float(np.mean([len(one) for one in same]))) for same in prompts)
        if list(contexts) != sorted(set(contexts)):
            raise ProfileError(f"contexts: they yield {contexts} tokens, which do not increase: choose others")
        shape = (2, len(self._batches), len(prompts))
        points = list(np.ndindex(shape))
        lengths = self._prefill_lengths(prompts)
        self._num_points = _PASSES * len(points) + len(lengths)
        start_s, per_token_s = await self._prefill(lengths, prompts)
        passes = np.empty((_PASSES, *shape))
        for order, steps_s in zip((points, points[::-1]), passes, strict=True):
            for half, i, j in order:
                steps_s[half, i, j] = await self._point(prompts[j], self._batches[i], half)
        # Other load on the machine makes steps longer, never shorter.
        profile = self._profile(passes.min(0), contexts, start_s, per_token_s)
        return ProfileResult(profile, float(np.median(np.abs(np.log(passes[0] / passes[1])))))

    def _check_room(self) -> None:
        most, longest = self._target.max_model_len, max(self._plan.contexts)
        if most is not None and longest + _ANSWER_TOKENS > most:
            raise ProfileError(
                f"contexts: {longest} tokens leave no room for an answer, since max_model_len is {most}: use "
                f"{max(1, most - _ANSWER_TOKENS)} or fewer"
            )

    def _profile(
        self, steps_s: npt.NDArray[np.float64], contexts: tuple[int, ...], start_s: float, per_token_s: float
    ) -> Profile:
        return Profile(
            build=self._identity.build,
            machine=self._identity.machine,
            batches=tuple(self._batches),
            contexts=contexts,
            step_s=tuple(tuple(tuple(map(float, row)) for row in half) for half in check_increasing(steps_s)),
            prefill_s=start_s,
            prefill_s_per_token=per_token_s,
            max_running=self._identity.max_running or max(self._batches),
        )

    async def _point(self, prompts: Sequence[Sequence[int]], batch: int, sampled: int) -> float:
        """Return the seconds of a step: the mean, as in TPOT, without stalls of several times the median."""
        plan = self._plan
        gaps: list[float] = []
        for first in range(0, max(plan.min_prompts, batch), batch):
            await _idle(self._target)
            held = list(islice(cycle(prompts), first, first + batch))
            gaps += await sustain_batch(self._target, held, sampled, steps=plan.steps, longest_s=plan.longest_s)
        if len(gaps) < _MIN_GAPS:
            raise ProfileError(
                f"the engine ended its answers before {batch} requests decoded together: it must support "
                "`ignore_eos` and that many concurrent requests"
            )
        self._report_progress()
        found = np.asarray(gaps)
        return float(found[found <= _STALL * np.median(found)].mean())

    def _prefill_lengths(self, prompts: list[list[list[int]]]) -> list[int]:
        longest = {max(map(len, same)) for same in prompts}
        most = self._target.max_model_len or math.inf
        return sorted(length for length in {*_PREFILL_TOKENS, *longest} if length < most)

    async def _prefill(self, lengths: Sequence[int], prompts: list[list[list[int]]]) -> tuple[float, float]:
        """Return seconds (fixed time to first token, additional per prompt token), of uncached prompts."""
        known = [token for same in prompts for prompt in same for token in prompt]
        rng = random.SystemRandom()
        await first_token_s(self._target, rng.choices(known, k=lengths[0]))  # the very first is slow
        shortest: list[float] = []
        for length in lengths:
            await _idle(self._target)
            times = [await first_token_s(self._target, rng.choices(known, k=length)) for _ in range(_PREFILLS)]
            shortest.append(min(times))
            self._report_progress()
        slope, start = np.polyfit(lengths, shortest, 1) if len(lengths) > 1 else (0.0, shortest[0])
        return max(0.0, float(start)), max(0.0, float(slope))

    def _report_progress(self) -> None:
        self._done += 1
        self._on_progress(self._done / self._num_points)


def check_increasing(steps_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Make steps [sampled, batch, context] nondecreasing along batch and context; violations are noise.

    Isotonic along batches, then along contexts, which preserves the former.
    """
    from sklearn.isotonic import isotonic_regression

    along_batches = np.apply_along_axis(isotonic_regression, 1, steps_s)
    return np.asarray(np.apply_along_axis(isotonic_regression, 2, along_batches))


async def _target(client: EngineClient, url: str, model: str | None) -> Target:
    """Return the engine at an address and its model."""
    listed = await _page(client, f"{url}/v1/models")
    cards: list[dict[str, Any]] = listed.get("data", []) if isinstance(listed, dict) else []
    card = next((card for card in cards if model in (None, card.get("id"))), None)
    if card is None:
        names = ", ".join(str(card.get("id")) for card in cards)
        raise ProfileError(f"the engine at {url} does not serve model {model or ''} (it serves: {names or 'none'})")
    return Target(client, url, str(card["id"]), card.get("max_model_len"))


async def _identity(target: Target) -> EngineIdentity:
    """Return the engine's own identity, or one made of its address, model and version."""
    async with target.client.send(target.url + identity.PATH, "GET", [], b"", stream=False) as answer:
        body = b"".join([part async for part in answer.chunks])
    if answer.status == 200 and (own := EngineIdentity.from_json(body)):
        return own
    version = await _page(target.client, f"{target.url}/version")
    return EngineIdentity(digest([target.url, target.model, version]), "unknown")


async def _idle(target: Target) -> None:
    """Wait until the engine is idle, if it reports its load. Raises `ProfileError` if other requests keep it busy."""
    for _ in range(round(_IDLE_WITHIN_S / 0.05)):
        async with target.client.send(target.url + load.PATH, "GET", [], b"", stream=False) as answer:
            body = b"".join([part async for part in answer.chunks])
        report = LoadReport.from_json(body) if answer.status == 200 else None
        if report is None or not (report.running or report.waiting):
            return
        await asyncio.sleep(0.05)
    raise ProfileError(f"the engine at {target.url} serves other requests: measure it while it is idle")


async def _page(client: EngineClient, url: str) -> Any:
    """Return the JSON of a page; None if it is not available."""
    async with client.send(url, "GET", [], b"", stream=False) as answer:
        body = b"".join([part async for part in answer.chunks])
    try:
        return orjson.loads(body) if answer.status == 200 else None
    except orjson.JSONDecodeError:
        return None
