"""What health signals do to a decision, and how they are explained."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import pytest

from draftpick.engines.replicas import UNAVAILABLE_REASONS
from draftpick.router.load.health_signal import ineligible_reasons
from tests.fleet import FAST, Routed, StartRouter

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Signal:
    """Objects to `suspects`, but for one request at once of `probed`."""

    reason: ClassVar[str] = "made_up"
    text: ClassVar[str] = "is made up"
    suspects: Collection[str]
    fallback: str | None = None  # type: ignore[misc]
    probed: Collection[str] = ()

    def admits(self, arm: str, in_flight: int) -> bool:
        return arm in self.probed and in_flight == 0


async def with_signals(router_app: StartRouter, *signals: Signal) -> Routed:
    app = await router_app({"a": FAST, "b": FAST, "c": FAST})
    assert isinstance(app.parts.health_signals, list)
    app.parts.health_signals.extend(signals)
    return app


@pytest.mark.parametrize(
    ("signals", "healthy", "fallback"),
    [
        ([Signal("")], ["a", "b", "c"], None),
        ([Signal("a")], ["b", "c"], None),
        ([Signal("a"), Signal("b")], ["c"], None),
        ([Signal("ab"), Signal("c")], ["c"], None),  # the last that is left is not given up
        ([Signal("abc")], ["a", "b", "c"], None),
        ([Signal("abc", probed="b")], ["b"], None),
        ([Signal("a"), Signal("abc", fallback="stale_load")], ["b", "c"], "stale_load"),
        ([Signal("ab", fallback="stale_load")], ["c"], None),
    ],
)
async def test_suspects_get_no_request_unless_none_is_left(
    router_app: StartRouter, signals: list[Signal], healthy: list[str], fallback: str | None
) -> None:
    app = await with_signals(router_app, *signals)
    assert app.parts.decide.healthy(["a", "b", "c"]) == (healthy, fallback)


async def test_a_probe_passes_while_the_arm_has_no_request(router_app: StartRouter) -> None:
    app = await with_signals(router_app, Signal("a", probed="a"))
    assert app.parts.decide.healthy(["a", "b"]) == (["a", "b"], None)
    with app.replicas.lease("a"):
        assert app.parts.decide.healthy(["a", "b"]) == (["b"], None)


async def test_a_fallback_goes_to_the_baseline_engine_and_is_counted(router_app: StartRouter) -> None:
    app = await with_signals(router_app, Signal("abc", fallback="made_up"))
    assert (await app.post()).headers["x-draftpick-policy"] == "fixed:a"
    assert app.parts.metrics.fallbacks["made_up"] == 1


async def test_every_reason_has_words() -> None:
    assert ineligible_reasons([Signal("")]) == {
        **UNAVAILABLE_REASONS,
        "unable": "cannot take this request",
        "made_up": "is made up",
    }
