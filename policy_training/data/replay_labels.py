"""Labels by counterfactual replay: one answer of the target gives the acceptance of every drafter.

Exact for drafters with deterministic drafts, such as ours, also for sampled answers: the target's sample is accepted if
and only if it equals the drafted token (Leviathan, Kalman, Matias 2023).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson

from draftpick.engines.config import Drafter, Engine
from draftpick.engines.drafters.replay import LENGTHS, compute_dtype, replayer
from draftpick.engines.drafters.request_tracking import Tokens
from draftpick.engines.drafters.standalone_generation import StandaloneGenerator, standalone_generator
from draftpick.engines.drafters.training.responses import GenerationRequest, ResponseGenerator
from draftpick.policy_training.data.collect import has_degenerate_repetition
from draftpick.policy_training.data.contexts import contexts
from draftpick.policy_training.data.dataset import Contexts, DatasetParts, Measurement
from draftpick.policy_training.data.text_similarity import alignment
from draftpick.policy_training.workloads import Prompt
from draftpick.router.features.featurizer import Featurizer
from draftpick.router.types import Outcome

PART = 128
"""Answers per generated batch and written part, the maximum loss of an interrupted run."""

_ENGINE = {"enforce_eager": True, "kv_cache_memory_bytes": 2 * 2**30, "max_num_seqs": PART}
ProgressCallback = Callable[[int], None]
"""Called with the number of prompts just labelled."""


class Labeller:
    """Labels prompts of the target at a path for replayable engines.

    `answers`: samples per sampled prompt; acceptance varies by sample, and only its mean is predictable.
    `standalone_tokens`: length of each drafter's standalone answer, which is compared with the target's greedy answer;
    0: none. `lengths`: also replay draft lengths other than the engines' own.
    """

    def __init__(
        self,
        target: str,
        engines: Sequence[Engine],
        featurizers: Sequence[Featurizer],
        *,
        seed: int,
        answers: int = 1,
        standalone_tokens: int = 0,
        lengths: bool = True,
    ) -> None:
        dtype = str(compute_dtype()).removeprefix("torch.")
        self._generator = ResponseGenerator(Path(target), seed=seed, dtype=dtype, **_ENGINE)
        self._decode = _decoder(target)
        self._featurizers, self._answers, self._standalone_tokens = featurizers, answers, standalone_tokens
        more = LENGTHS if lengths else ()
        drafters = {arm: drafter for engine in engines for arm, drafter in engine.drafter_of_arm().items()}
        self._arms = {arm: _ReplayedDrafter(drafter, target, more) for arm, drafter in drafters.items()}

    def label(
        self, prompts: Sequence[Prompt], on_progress: ProgressCallback = lambda n: None
    ) -> tuple[list[Measurement], Contexts]:
        """Return measurements and contexts of a part. Prompts too long for the target are skipped."""
        each = [prompt for prompt in prompts for _ in range(self._answers if prompt.temperature > 0 else 1)]
        places, answers = self._generator(
            [GenerationRequest(p.messages, p.temperature, p.max_tokens, p.top_p) for p in each]
        )
        kept = [each[place] for place in places]
        measurements = []
        for prompt, tokens, answer in zip(kept, answers.prompt_tokens(), answers.answer_tokens(), strict=True):
            loops = has_degenerate_repetition(self._decode(answer))
            for arm, replayed in self._arms.items():
                outcome, lengths = replayed(tokens, answer)
                more: dict[str, Any] = {"source": "replay", "degenerate_repetition": loops, "tau_by_length": lengths}
                if self._standalone_tokens and prompt.temperature == 0 and replayed.drafter is not None:
                    more["alignment"] = self._alignment(replayed.generate(tokens, self._standalone_tokens), answer)
                measurements.append(Measurement.from_prompt(prompt, arm, arm, outcome, **more))
        on_progress(len(prompts))
        return measurements, contexts(self._featurizers, list(dict.fromkeys(kept)))

    def _alignment(self, own: Tokens, answer: Tokens) -> dict[str, float]:
        beginning = answer[: self._standalone_tokens]
        return alignment(self._decode(beginning), self._decode(own), beginning.tolist(), own.tolist())


class _ReplayedDrafter:
    """One replayed drafter, or none: from (prompt, answer) to the outcome and the acceptance length by draft length."""

    def __init__(self, drafter: Drafter | None, target: str, lengths: Sequence[int]) -> None:
        self.drafter, self._target = drafter, target
        if drafter is not None:
            self._own = drafter.num_speculative_tokens
            self._replay = replayer(drafter, sorted({self._own, *lengths}), target)

    def __call__(self, tokens: Tokens, answer: Tokens) -> tuple[Outcome, dict[int, float]]:
        told = Outcome("ok", prompt_tokens=len(tokens), output_tokens=len(answer))
        if self.drafter is None:
            return told, {}
        replays = self._replay(tokens, answer)
        own = replays[self._own]
        outcome = replace(told, acceptance_length=own.acceptance_length, acceptance_rate=own.acceptance_rate)
        return outcome, {k: one.acceptance_length for k, one in replays.items()}

    @cached_property
    def generate(self) -> StandaloneGenerator:
        assert self.drafter is not None
        return standalone_generator(self.drafter, self._target)


def on_ray(
    target: str,
    engines: Sequence[Engine],
    parts: Sequence[Sequence[Prompt]],
    folder: Path,
    workers: int,
    **options: int,
) -> int:
    """Label the parts on `workers` workers of the Ray cluster, which share `folder`; return the number of prompts."""
    import ray.data

    if not parts:
        return 0
    rows = [{"prompts": orjson.dumps(list(part))} for part in parts]
    engine_fields = [engine.model_dump(mode="json") for engine in engines]
    arguments = {"target": target, "engines": engine_fields, "folder": folder, "options": options}
    made = ray.data.from_items(rows).map(_Worker, fn_constructor_kwargs=arguments, concurrency=workers, num_cpus=1)
    return sum(int(row["labelled"]) for row in made.iter_rows())


class _Worker:
    """One process of `on_ray`; it loads the models once."""

    def __init__(self, target: str, engines: list[dict[str, Any]], folder: Path, options: dict[str, Any]) -> None:
        from draftpick.router.router import sentence_featurizer, static_featurizer

        made = [Engine.model_validate(engine) for engine in engines]
        self._labeller = Labeller(target, made, (sentence_featurizer(), static_featurizer()), **options)
        self._parts = DatasetParts(folder)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        prompts = [Prompt.from_fields(fields) for fields in orjson.loads(row["prompts"])]
        self._parts.add(*self._labeller.label(prompts))
        return {"labelled": len(prompts)}


def _decoder(target: str) -> Callable[[Tokens], str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(target)
    return lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=True))
