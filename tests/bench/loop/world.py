"""A world that changes: mock engines whose speeds are known, and traffic whose kinds, words and engines change.

What every engine takes for every request at every moment is known here, and nowhere else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
import numpy.typing as npt

from draftpick.engines.mock.spec import MockSpec
from draftpick.policy_training.workloads import KINDS, Prompt, generate, reword

MODEL, TOKENS = "mock-model", 24
Floats = npt.NDArray[np.float64]

ENGINES: Mapping[str, MockSpec] = {
    "plain": MockSpec(step_s=0.006, output_tokens=TOKENS),
    "copy": MockSpec(
        step_s=0.0066, num_speculative_tokens=6, acceptance_length=1.15, output_tokens=TOKENS,
        acceptance_by_class={"edit": 3.6, "json": 2.6, "summary": 1.5},
    ),
    "math": MockSpec(
        step_s=0.0075, num_speculative_tokens=4, acceptance_length=1.1, output_tokens=TOKENS,
        acceptance_by_class={"math": 3.4, "code": 1.5},
    ),
    "code": MockSpec(
        step_s=0.0075, num_speculative_tokens=4, acceptance_length=1.1, output_tokens=TOKENS,
        acceptance_by_class={"code": 3.2, "json": 1.6, "math": 1.3},
    ),
    "chat": MockSpec(
        step_s=0.0072, num_speculative_tokens=4, acceptance_length=1.2, output_tokens=TOKENS,
        acceptance_by_class={"chat": 2.8, "summary": 2.4, "edit": 1.3},
    ),
}  # fmt: skip
ARMS = tuple(ENGINES)


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happens before request `at`: another mix of kinds, other words, or an engine that changes.

    `noticed_by`: kinds of events that tell of it; of `arm`, where one changed.
    """

    name: str
    at: int
    kinds: tuple[str, ...] | None = None
    reworded: bool = False
    arm: str | None = None
    change: Mapping[str, object] = field(default_factory=dict)
    noticed_by: tuple[str, ...] = ("inputs_changed",)


def happenings(n: int) -> list[Happening]:
    """The story of `n` requests, in six parts."""
    arm_told = ("arm_changed", "arm_quarantined")
    dead: dict[str, object] = {"acceptance_length": 1.0, "acceptance_by_class": {}}
    return [
        Happening("begin", 0, kinds=("math", "code")),
        Happening("other_domains", n // 6, kinds=("edit", "json")),
        Happening("other_domains_again", 2 * n // 6, kinds=("chat", "summary", "math")),
        Happening("drafter_dies", 3 * n // 6, arm="chat", change=dead, noticed_by=arm_told),
        Happening("dearer_build", 4 * n // 6, arm="math", change={"step_s": 0.0195}, noticed_by=arm_told),
        Happening("other_words", 5 * n // 6, kinds=("edit", "code", "math"), reworded=True),
    ]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests in order, and what every engine takes for each [n, arms], in seconds."""

    prompts: Sequence[Prompt]
    seconds: Floats


def traffic(n: int, seed: int) -> Traffic:
    """The requests of the story; each part draws new prompts of its kinds."""
    story, rng = happenings(n), Random(seed)
    made = generate(len(KINDS) * n, seed=seed, sampled_share=0.0, max_tokens=TOKENS)
    pool = {kind: iter([prompt for prompt in made if prompt.kind == kind]) for kind in KINDS}
    engines, prompts, seconds = dict(ENGINES), [], []
    mix: tuple[str, ...] = ()
    reworded = False
    for i in range(n):
        for happening in story:
            if happening.at == i:
                mix, reworded = happening.kinds or mix, happening.reworded
                if happening.arm is not None:
                    engines[happening.arm] = changed(engines[happening.arm], happening.change)
        prompt = next(pool[rng.choice(mix)])
        prompts.append(reword(prompt, seed) if reworded else prompt)
        seconds.append([expected_s(spec, prompt.kind) for spec in engines.values()])
    return Traffic(prompts, np.asarray(seconds))


def changed(spec: MockSpec, change: Mapping[str, object]) -> MockSpec:
    """A mock engine after a change."""
    return MockSpec.model_validate({**spec.model_dump(), **change})


def expected_s(spec: MockSpec, kind: str) -> float:
    """Mean seconds of an answer: one token at the prefill, the others in steps of tau."""
    return spec.prefill_s + (TOKENS - 1) * spec.step_s / spec.tau("", kind)
