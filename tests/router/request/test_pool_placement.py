"""A router chooses replica and drafter of two live pools together: requests meet those with which they share a step's
cost."""

import asyncio
import time
from typing import Any

import numpy as np
import pytest

from draftpick.engines.mock.spec import MockDrafter, MockSpec
from draftpick.router import policies
from draftpick.router.features.featurizer import LexicalFeaturizer
from draftpick.router.features.lexical import FEATURES
from draftpick.router.policies.base import Policy
from tests.fleet import Routed, Servers, StartRouter

pytestmark = pytest.mark.asyncio(loop_scope="module")

ARMS = ("pool/none", "pool/general", "pool/math")
TAU = 2.5
CLIENTS, REQUESTS = 8, 4
TEXTS = {"general": "tell me a story about an old lighthouse", "math": "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16"}


def head(name: str) -> MockDrafter:
    return MockDrafter(num_speculative_tokens=4, acceptance_by_class={name: TAU}, step_s=0.016)


POOL = MockSpec(
    step_s=0.015, step_s_sampled=0.02, step_s_truncated=0.02, prefill_s=0.002, output_tokens=24, shared_steps=True,
    max_running=16, drafters={"general": head("general"), "math": head("math")},
)  # fmt: skip
LIKES: dict[str, list[dict[str, Any]]] = {
    "sampling": [{"temperature": 0.0}, {"temperature": 0.7}],
    "heads": [{"temperature": 0.0, "mock_class": name} for name in ("general", "math")],
}
"""Two sorts of requests that do better apart."""


def policy() -> Policy:
    """Expects `math` to accept much where a prompt has many digits, and `general` where it has none."""
    made = LexicalFeaturizer()
    d, n, digits = made.dimension, len(ARMS), FEATURES.index("digit_share")
    w, b = np.zeros((2, d, n)), np.zeros((2, n))
    b[:, 1], w[:, digits, 1], w[:, digits, 2] = np.log(TAU), -5.0, 5.0
    arrays = {"mean": np.zeros(d), "scale": np.ones(d), "sigma": np.full((2, n), 0.2), "w": w, "b": b}
    arrays |= {"step_s": np.full((n, 2), 0.01), "start_s": np.zeros(n), "per_token_s": np.zeros(n)}
    options = {"regressor": "linear", "default": "pool/none", "output_tokens": 24.0}
    manifest = {"kind": "tau_cost", "arms": list(ARMS), "featurizer": made.id, "options": options}
    with_sha = {**manifest, "arrays_sha256": "0" * 64}
    return policies.make(with_sha, {name: np.asarray(a, np.float32) for name, a in arrays.items()}, ARMS)


async def seconds(app: Routed, likes: list[dict[str, Any]]) -> float:
    """Mean seconds of an answer, of clients that each send requests of one sort, without a pause."""
    taken: list[float] = []

    async def client(number: int) -> None:
        fields = likes[number // 2 % len(likes)]
        text = TEXTS[fields.get("mock_class", "general")]
        for _ in range(REQUESTS):
            began = time.perf_counter()
            answer = await app.post(messages=[{"role": "user", "content": text}], **fields)
            assert answer.status_code == 200
            taken.append(time.perf_counter() - began)

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return float(np.mean(taken))


@pytest.mark.parametrize("what", list(LIKES))
async def test_requests_that_share_a_steps_cost_meet(router_app: StartRouter, servers: Servers, what: str) -> None:
    app = await router_app(
        {"pool": POOL}, policy=policy(), featurizer=LexicalFeaturizer(), exploration={"rate": 0.0},
        online={"correction": {"enabled": False}},
    )  # fmt: skip
    app.replicas.update("pool", [app.engines["pool"].url, (await servers.mock(POOL, "pool")).url])
    app.parts.load.use_profile("pool", POOL.profile())
    placed_s = await seconds(app, LIKES[what])
    app.replicas.placement_cost = None
    least_loaded_s = await seconds(app, LIKES[what])
    assert least_loaded_s / placed_s > 1.08
