"""Mock engines whose crossovers are the published ones, requests of four kinds, and routers over them.

`plain` decodes 8 requests at no further cost, then each one more makes its step longer. The generalist EAGLE-3 head is
that of llm-d PR #2074: time per token -27 % for a request alone, throughput -13 % at saturation. n-gram is 1.1x dearer
a step and wins where answers repeat their prompt (code 1.4x, prose 0.88x: llama.cpp #23052). `math` is a head trained
on one kind. A drafted token costs about half of what a token of its own request costs at saturation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from draftpick.engines.mock.spec import MockSpec
from draftpick.policy_training.data.contexts import contexts
from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.data.step_costs import Costs
from draftpick.policy_training.learners import learner
from draftpick.policy_training.learners.base import LearnerSetting
from draftpick.policy_training.train import train_policy
from draftpick.policy_training.workloads import Prompt, generate
from draftpick.router.config.router_config import load_config
from draftpick.router.features.featurizer import Featurizer
from draftpick.router.features.lexical import FEATURES, context_of
from draftpick.router.openai_request import Request
from draftpick.router.policies.regressors import make
from draftpick.router.policies.tau_cost import TauCostPolicy
from draftpick.router.router import Router, static_featurizer
from draftpick.router.types import Context

MODEL, TOKENS = "mock-model", 32
KINDS = ("math", "code", "edit", "chat")
_PLAIN_S, _SLOPE_S = 0.012, 0.0008

ENGINES: Mapping[str, MockSpec] = {
    "plain": MockSpec(step_s=_PLAIN_S, step_s_per_request=_SLOPE_S, free_requests=7, output_tokens=TOKENS),
    "eagle": MockSpec(
        step_s=1.46 * _PLAIN_S, step_s_per_request=2.3 * _SLOPE_S, free_requests=3, output_tokens=TOKENS,
        num_speculative_tokens=4, acceptance_length=2.0,
        acceptance_by_class={"math": 2.2, "code": 2.2, "edit": 2.0, "chat": 1.7},
    ),
    "ngram": MockSpec(
        step_s=1.1 * _PLAIN_S, step_s_per_request=2.6 * _SLOPE_S, free_requests=2, output_tokens=TOKENS,
        num_speculative_tokens=6, acceptance_length=1.0,
        acceptance_by_class={"math": 1.2, "code": 1.54, "edit": 3.6, "chat": 1.0},
    ),
    "math": MockSpec(
        step_s=1.46 * _PLAIN_S, step_s_per_request=2.3 * _SLOPE_S, free_requests=3, output_tokens=TOKENS,
        num_speculative_tokens=4, acceptance_length=1.3, acceptance_by_class={"math": 3.2},
    ),
}  # fmt: skip
ARMS = tuple(ENGINES)


def prompts(n: int, seed: int) -> list[Prompt]:
    """The kinds in turn, so that every stretch of them holds each as often."""
    made = generate(8 * n, seed=seed, sampled_share=0.0, max_tokens=TOKENS)
    by_kind = {kind: iter([prompt for prompt in made if prompt.kind == kind]) for kind in KINDS}
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(len(KINDS)), (n // len(KINDS) + 1, 1)), axis=1)
    return [next(by_kind[KINDS[kind]]) for kind in order.ravel()[:n]]


def body(prompt: Prompt) -> dict[str, Any]:
    """The request of a prompt; its kind is told to the engines beside its text."""
    messages = [{"role": "user", "content": prompt.text}]
    return {"model": MODEL, "messages": messages, "max_tokens": TOKENS, "temperature": 0, "mock_class": prompt.kind}


def train(folder: Path, n: int = 600, seed: int = 1000) -> None:
    """A policy of other prompts of the same kinds, each measured once under every engine, alone."""
    made, rng, featurizer = prompts(n, seed), np.random.default_rng(seed), static_featurizer()
    vectors = contexts([featurizer], made)
    tau = np.asarray([[spec.tau("", prompt.kind) for spec in ENGINES.values()] for prompt in made])
    tau = np.maximum(tau * rng.lognormal(0, 0.2, tau.shape), 1.0)
    tau[:, 0] = 1.0
    steps = np.asarray([[spec.step_s] * 2 for spec in ENGINES.values()])
    costs = Costs(ARMS, steps, np.full(len(ARMS), 0.001), np.zeros(len(ARMS)))
    tokens, no_sampling = np.full(n, float(TOKENS)), np.zeros(n, bool)
    data = Matrix(
        prompt_ids=tuple(p.id for p in made), kinds=tuple(p.kind for p in made), arms=ARMS,
        time_s=costs.time_s(tau, np.zeros(n), tokens, no_sampling), acceptance_length=tau,
        acceptance_rate=np.full_like(tau, np.nan), prompt_tokens=np.full(n, 60.0), output_tokens=tokens,
        temperatures=np.zeros(n), dropped={}, featurizer=featurizer.id,
        contexts=np.stack([vectors[p.id][featurizer.id] for p in made]),
    )  # fmt: skip
    train_policy(data, learner("tau_cost"), LearnerSetting("plain", costs, seed), folder, {})


class KindFeaturizer(Featurizer):
    """Reads the kind that is told to the engines."""

    id, dimension, waits = "kind", len(KINDS) + len(FEATURES), False

    async def __call__(self, request: Request) -> Context:
        kind = KINDS.index(orjson.loads(request.body)["mock_class"])
        return context_of(request, np.eye(len(KINDS), dtype=np.float32)[kind], self.id)


def oracle() -> TauCostPolicy:
    """Knows every acceptance length."""
    d = KindFeaturizer.dimension
    scale = np.full(d, 1e6, np.float32)
    scale[: len(KINDS)] = 1.0
    log_tau = np.log([[spec.tau("", kind) for spec in ENGINES.values()] for kind in KINDS])
    arrays = {
        "mean": np.zeros(d), "scale": scale, "sigma": np.zeros((2, len(ARMS))), "centroids": np.eye(len(KINDS), d),
        "values": np.stack([log_tau] * 2), "step_s": np.asarray([[spec.step_s] * 2 for spec in ENGINES.values()]),
        "start_s": np.full(len(ARMS), 0.001), "per_token_s": np.zeros(len(ARMS)),
    }  # fmt: skip
    made = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    options = {"default": "plain", "z": 0.0, "switch_cost": 0.0, "floor": 0.0, "output_tokens": float(TOKENS)}
    regressor = make("centroids", made, len(ARMS))
    return TauCostPolicy("oracle", ARMS, KindFeaturizer.id, regressor, made, options)


@dataclass(frozen=True, slots=True)
class Strategy:
    """How requests find their engine. `fixed`: this engine on all places; `turns`: round-robin; else by `policy`."""

    name: str
    policy: str = "fixed"
    fixed: str | None = None
    turns: bool = False
    load: bool = True


def strategies(policy: Path) -> list[Strategy]:
    """All that are compared."""
    return [
        *(Strategy(f"fixed/{arm}", fixed=arm) for arm in ARMS),
        Strategy("round_robin", turns=True),
        Strategy("least_loaded", fixed="any"),
        Strategy("text_only", policy=str(policy), load=False),
        Strategy("routed", policy=str(policy)),
        Strategy("oracle", policy="oracle"),
    ]


def routed(strategy: Strategy, urls: Sequence[str], seed: int) -> Router:
    """A router over these engines: one for each arm, or one arm that has all of them where the strategy is fixed."""
    if strategy.fixed is not None:
        sources = {"all": list(urls)}
    else:
        sources = {arm: [url] for arm, url in zip(ARMS, urls, strict=True)}
    settings: dict[str, Any] = {"policy": strategy.policy, "default_engine": next(iter(sources)), "seed": seed}
    settings |= {"featurizer": "static", "load": {"enabled": strategy.load}}
    if strategy.policy == "oracle":
        settings["policy"] = "fixed"
    engines = [{"name": arm, "url": urls[0]} for arm, urls in sources.items()]
    config = load_config({"target": {"name": MODEL}, "engines": engines, "router": settings})
    router = Router(config, {arm: _addresses(urls) for arm, urls in sources.items()})
    if strategy.policy == "oracle":
        router.parts.dispatcher.featurizer = KindFeaturizer()
        router.parts.active_policies.activate(oracle())
    return router


def _addresses(urls: Sequence[str]) -> Any:
    async def addresses() -> list[str]:
        return list(urls)

    return addresses
