"""Measures the profile of an engine over HTTP alone; the engine may be anybody's that speaks vLLM's API.

At every batch size as many requests run at once, and the gaps between their chunks are what a step takes. All points
are measured twice, far from each other in time, and the shorter step counts: where the two disagree, the machine was
not quiet.
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
"""Called with the share that is done, 0 to 1."""
_PASSES = 2
_MIN_GAPS, _STALL = 4, 3.0
_ANSWER_TOKENS = 128
_PREFILL_TOKENS, _PREFILLS = (16, 128, 512), 3
_IDLE_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class ProfilePlan:
    """What is measured: `batches` of requests, each with about `contexts` tokens before its answer.

    At each point `steps` steps are taken, or `longest_s` seconds of them, and that twice. A batch smaller than
    `min_prompts` is measured with several prompts after one another, since a drafter's steps depend on them.
    """

    batches: tuple[int, ...] = (1, 2, 4, 8)
    contexts: tuple[int, ...] = (128,)
    steps: int = 12
    longest_s: float = 3.0
    min_prompts: int = 4

    def __post_init__(self) -> None:
        for name, grid in (("batches", self.batches), ("contexts", self.contexts)):
            if not grid or list(grid) != sorted(set(grid)) or grid[0] < 1:
                raise ProfileError(f"{name} must be numbers from 1 on that rise, not {list(grid)}")
        if self.batches[0] != 1:
            raise ProfileError("batches must begin with 1")


@dataclass(frozen=True, slots=True)
class ProfileResult:
    """A profile, and by which share its two passes differ in the median point."""

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
    """Measure the engine at `url`, which must serve nobody else meanwhile.

    `prompts`: texts like those of its traffic; `model`: the first one that the engine names, where it is None. Raises
    `ProfileError`, and `EngineError` where the engine cannot be reached.
    """
    client = EngineClient(first_byte_timeout_s=180, timeout_s=180)
    try:
        target = await _target(client, url.rstrip("/"), model)
        return await _ProfileRun(target, await _identity(target), plan or ProfilePlan(), on_progress).run(prompts)
    finally:
        await client.close()


class _ProfileRun:
    """One measurement under way."""

    def __init__(
        self, target: Target, identity: EngineIdentity, plan: ProfilePlan, on_progress: ProgressCallback
    ) -> None:
        self._target, self._identity, self._plan, self._on_progress = target, identity, plan, on_progress
        self._batches = [batch for batch in plan.batches if batch <= (identity.max_running or batch)]
        self._done, self._num_points = 0, 1

    async def run(self, texts: Sequence[str]) -> ProfileResult:
        """All points in two passes, the second backwards, and a line through the times of first tokens."""
        self._check_room()
        number = max(self._plan.min_prompts, *self._batches)
        chosen = list(islice(cycle(texts), number))
        prompts = [await fitted(self._target, chosen, context) for context in self._plan.contexts]
        contexts = tuple(round(float(np.mean([len(one) for one in same]))) for same in prompts)
        if list(contexts) != sorted(set(contexts)):
            raise ProfileError(f"contexts: they come out as {contexts} tokens, which do not rise: ask for others")
        shape = (2, len(self._batches), len(prompts))
        points = list(np.ndindex(shape))
        lengths = self._prefill_lengths(prompts)
        self._num_points = _PASSES * len(points) + len(lengths)
        start_s, per_token_s = await self._prefill(lengths, prompts)
        passes = np.empty((_PASSES, *shape))
        for order, steps_s in zip((points, points[::-1]), passes, strict=True):
            for half, i, j in order:
                steps_s[half, i, j] = await self._point(prompts[j], self._batches[i], half)
        # What else the machine does makes steps longer, never shorter.
        profile = self._profile(passes.min(0), contexts, start_s, per_token_s)
        return ProfileResult(profile, float(np.median(np.abs(np.log(passes[0] / passes[1])))))

    def _check_room(self) -> None:
        most, longest = self._target.max_model_len, max(self._plan.contexts)
        if most is not None and longest + _ANSWER_TOKENS > most:
            raise ProfileError(
                f"contexts: {longest} tokens leave no room for an answer, the engine takes {most} in all: ask for "
                f"{max(1, most - _ANSWER_TOKENS)} at most"
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
        """Seconds of a step. The mean, since TPOT is one; what takes several times the usual is a stall."""
        plan = self._plan
        gaps: list[float] = []
        for first in range(0, max(plan.min_prompts, batch), batch):
            await _idle(self._target)
            held = list(islice(cycle(prompts), first, first + batch))
            gaps += await sustain_batch(self._target, held, sampled, steps=plan.steps, longest_s=plan.longest_s)
        if len(gaps) < _MIN_GAPS:
            raise ProfileError(
                f"the engine ends its answers before {batch} requests ran for some steps together: it must heed "
                "`ignore_eos`, and have room for them all"
            )
        self._report_progress()
        found = np.asarray(gaps)
        return float(found[found <= _STALL * np.median(found)].mean())

    def _prefill_lengths(self, prompts: list[list[list[int]]]) -> list[int]:
        longest = {max(map(len, same)) for same in prompts}
        most = self._target.max_model_len or math.inf
        return sorted(length for length in {*_PREFILL_TOKENS, *longest} if length < most)

    async def _prefill(self, lengths: Sequence[int], prompts: list[list[list[int]]]) -> tuple[float, float]:
        """Seconds (of any first token, more of each token of the prompt), of prompts that no cache knows."""
        known = [token for same in prompts for prompt in same for token in prompt]
        rng = random.SystemRandom()
        await first_token_s(self._target, rng.choices(known, k=lengths[0]))  # the first of all is slow
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
    """Steps [half, batch, context] that fall along neither batch nor context; where they seem to, that is noise.

    The nearest ones that rise along batches, and of these along contexts, which leaves the former as it is.
    """
    from sklearn.isotonic import isotonic_regression

    along_batches = np.apply_along_axis(isotonic_regression, 1, steps_s)
    return np.asarray(np.apply_along_axis(isotonic_regression, 2, along_batches))


async def _target(client: EngineClient, url: str, model: str | None) -> Target:
    """The engine at an address and the model that it is asked for."""
    listed = await _page(client, f"{url}/v1/models")
    cards: list[dict[str, Any]] = listed.get("data", []) if isinstance(listed, dict) else []
    card = next((card for card in cards if model in (None, card.get("id"))), None)
    if card is None:
        names = ", ".join(str(card.get("id")) for card in cards)
        raise ProfileError(f"the engine at {url} serves no model {model or ''} (it serves: {names or 'none'})")
    return Target(client, url, str(card["id"]), card.get("max_model_len"))


async def _identity(target: Target) -> EngineIdentity:
    """What the engine says that it is; of one that says nothing: its address, model and version."""
    async with target.client.send(target.url + identity.PATH, "GET", [], b"", stream=False) as answer:
        body = b"".join([part async for part in answer.chunks])
    if answer.status == 200 and (told := EngineIdentity.from_json(body)):
        return told
    version = await _page(target.client, f"{target.url}/version")
    return EngineIdentity(digest([target.url, target.model, version]), "unknown")


async def _idle(target: Target) -> None:
    """Return when the engine has nothing to do, as far as it tells. Raises `ProfileError` where others keep it busy."""
    for _ in range(round(_IDLE_WITHIN_S / 0.05)):
        async with target.client.send(target.url + load.PATH, "GET", [], b"", stream=False) as answer:
            body = b"".join([part async for part in answer.chunks])
        told = LoadReport.from_json(body) if answer.status == 200 else None
        if told is None or not (told.running or told.waiting):
            return
        await asyncio.sleep(0.05)
    raise ProfileError(f"the engine at {target.url} answers others: measure it while nobody else uses it")


async def _page(client: EngineClient, url: str) -> Any:
    """The JSON of a page; None where there is none."""
    async with client.send(url, "GET", [], b"", stream=False) as answer:
        body = b"".join([part async for part in answer.chunks])
    try:
        return orjson.loads(body) if answer.status == 200 else None
    except orjson.JSONDecodeError:
        return None
