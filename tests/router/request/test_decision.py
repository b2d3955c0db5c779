"""Which arms a decision is among, what the policy is given for it, and who serves where no policy decides."""

from collections import Counter
from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from draftpick.engines.replicas import ReplicaTable
from draftpick.router.config.router_config import RouterConfig
from draftpick.router.config.sections import AdmissionConfig
from draftpick.router.errors import BadRequest, NoEngineAvailable, Overloaded
from draftpick.router.policies.base import DecisionInput
from draftpick.router.request.admission import Admission
from draftpick.router.request.decision import DecisionMaker
from draftpick.router.types import Context, Decision

ARMS = ("a", "b", "pool/x", "pool/none")
CONTEXT = Context(np.zeros(1, np.float32), "features")


class Signal:
    """Suspects some arms; one of them takes requests while fewer than two run."""

    reason = text = "suspected"

    def __init__(self, suspects: Collection[str], fallback: str | None = None, probed: str = "") -> None:
        self.suspects, self.fallback, self._probed = suspects, fallback, probed

    def admits(self, arm: str, in_flight: int) -> bool:
        return arm == self._probed and in_flight < 2


class Maker:
    """A decision maker, whose policy takes the first eligible arm and keeps what it was `given`."""

    def __init__(
        self,
        *signals: Signal,
        arms: Sequence[str] = ARMS,
        replicas: int = 1,
        gone: Collection[str] = (),
        needs: str | None = None,
        fails: bool = False,
        **config: Any,
    ) -> None:
        self.table = ReplicaTable(arms, max_in_flight=1)
        for engine in self.table.by_engine:
            self.table.update(engine, [] if engine in gone else [f"http://{engine}{i or ''}" for i in range(replicas)])
        self.given = list[DecisionInput]()
        self.fails, self.failures = fails, Counter[str]()
        self.policies = SimpleNamespace(
            policy=SimpleNamespace(id="p", featurizer=needs), explore=0.3, decide=self._decide
        )
        self.admission = Admission(AdmissionConfig(retry_after_s=7.0))
        self.load = SimpleNamespace(terms_now=lambda arms, **about: (arms, about))
        made = RouterConfig.model_validate({"default_engine": "b", **config})
        self.decide = DecisionMaker(
            made, self.policies, self.table, self.load, signals, self.admission,  # type: ignore[arg-type]
            SimpleNamespace(fallbacks=self.failures), "a", np.random.default_rng(0),  # type: ignore[arg-type]
        )  # fmt: skip

    def _decide(self, given: DecisionInput, rng: object) -> Decision:
        self.given.append(given)
        if self.fails:
            raise ZeroDivisionError
        return Decision(given.eligible[0], 1.0, {given.eligible[0]: 1.0}, "p")

    def eligible(self, context: Context | None = None, pin: str | None = None, **more: Any) -> list[str]:
        """Arms that a decision is among."""
        self.decide(context, pin, **more)
        return list(self.given.pop().eligible)


@pytest.mark.parametrize(
    ("more", "eligible"),
    [
        ({}, [*ARMS]),
        ({"failed": {"a"}}, ["b", "pool/x", "pool/none"]),
        ({"failed": {"a", "b", "pool"}}, [*ARMS]),  # there is no other
        ({"unable": {"pool"}}, ["a", "b"]),
        ({"unable": {"pool"}, "failed": {"a"}}, ["b"]),
        ({"unable": {"pool", "b"}, "failed": {"a"}}, ["a"]),
        ({"pin": "pool"}, ["pool/x", "pool/none"]),
        ({"pin": "pool", "unable": {"pool"}}, ["pool/x", "pool/none"]),  # who pins, knows
    ],
)
def test_failed_engines_are_avoided_and_those_that_cannot_are_left_out(
    more: dict[str, Any], eligible: list[str]
) -> None:
    assert Maker().eligible(**more) == eligible


def test_what_was_tried_is_not_eligible() -> None:
    maker = Maker()
    assert maker.eligible(tried={maker.table.by_arm["a"][0]}) == ["b", "pool/x", "pool/none"]


@pytest.mark.parametrize(
    ("signals", "eligible"),
    [
        ([Signal("a")], ["b", "pool/x", "pool/none"]),
        ([Signal("a"), Signal("b")], ["pool/x", "pool/none"]),
        ([Signal(ARMS)], [*ARMS]),
        ([Signal(ARMS, probed="b")], ["b"]),
        ([Signal("a"), Signal(ARMS)], ["b", "pool/x", "pool/none"]),
        ([Signal("a", fallback="stale")], ["b", "pool/x", "pool/none"]),
    ],
)
def test_suspects_are_left_out_unless_all_are(signals: list[Signal], eligible: list[str]) -> None:
    assert Maker(*signals).eligible() == eligible


def test_a_suspect_is_probed_with_few_requests() -> None:
    maker = Maker(Signal("a", probed="a"))
    assert maker.eligible() == [*ARMS]
    maker.table._in_flight["a"] = 2
    assert maker.eligible() == ["b", "pool/x", "pool/none"]


def test_where_all_are_suspected_the_baseline_may_serve() -> None:
    maker = Maker(Signal(ARMS, fallback="stale"))
    made = maker.decide(CONTEXT)
    assert (made.arm, made.reason, made.policy) == ("a", "fallback", "fixed:a")
    assert maker.failures == {"stale": 1}
    assert maker.given == []


@pytest.mark.parametrize(
    ("gone", "full", "more", "error", "code"),
    [
        ("", "", {"pin": "c"}, BadRequest, "unknown_engine"),
        ("", "", {"pin": "pool/y"}, BadRequest, "unknown_engine"),
        (["a"], "", {"pin": "a"}, NoEngineAvailable, "no_engine"),
        (["pool"], "", {"pin": "pool"}, NoEngineAvailable, "no_engine"),
        (["a", "b", "pool"], "", {}, NoEngineAvailable, "no_engine"),
        ("", "", {"unable": {"a", "b", "pool"}}, NoEngineAvailable, "no_engine"),
        (["pool"], "ab", {}, Overloaded, None),
        ("", "a", {"pin": "a"}, NoEngineAvailable, "no_engine"),
    ],
)
def test_a_request_that_no_engine_may_take_is_refused(
    gone: Collection[str], full: str, more: dict[str, Any], error: type[Any], code: str | None
) -> None:
    maker = Maker(gone=gone)
    for arm in full:
        maker.table.by_arm[arm][0].in_flight = 1
    with pytest.raises(error) as caught:
        maker.eligible(**more)
    if code is None:
        assert caught.value.retry_after_s == 7.0
    else:
        assert caught.value.code == code


def test_a_pin_decides() -> None:
    maker = Maker()
    made = maker.decide(None, "b")
    assert (made.arm, made.propensity, made.probabilities, made.reason) == ("b", 1.0, {"b": 1.0}, "pinned")
    assert (made.policy, made.forecast) == ("p", None)
    forecast = maker.decide(None, "pool/x").forecast
    assert forecast is not None
    assert (forecast.only, forecast.objective) == ("x", "throughput")
    assert maker.given == []
    pool = maker.decide(CONTEXT, "pool")
    assert (pool.arm, pool.reason) == ("pool/x", "pinned")
    assert maker.given[0].explore == 0.0
    with pytest.raises(BadRequest) as caught:
        Maker(allow_engine_pinning=False).decide(None, "b")
    assert caught.value.code == "pin_not_allowed"


@pytest.mark.parametrize(
    ("context", "generates", "reason", "counted"),
    [
        (CONTEXT, True, "policy", {}),
        (None, True, "fallback", {"no_context": 1}),
        (None, False, "fallback", {}),  # no text is generated: nothing is missing
        *((Context(CONTEXT.vector, other), True, "fallback", {"no_context": 1}) for other in ("another", "others")),
    ],
)
def test_a_policy_decides_with_the_features_that_it_needs(
    context: Context | None, generates: bool, reason: str, counted: dict[str, int]
) -> None:
    maker = Maker(needs="features")
    made = maker.decide(context, generates=generates)
    assert (made.reason, made.arm) == (reason, "a" if reason == "policy" else "b")
    assert maker.failures == counted


def test_a_policy_that_fails_costs_no_request() -> None:
    maker = Maker(fails=True, gone=["b"])
    made = maker.decide(CONTEXT)
    assert (made.reason, made.policy) == ("fallback", "fixed:b")
    assert made.propensity == made.probabilities[made.arm] == pytest.approx(1 / 3)
    assert maker.failures == {"policy_error": 1}


@pytest.mark.parametrize(
    ("limit", "in_flight", "more", "rate"),
    [
        (None, 99, {}, 0.3),
        (2, 1, {}, 0.3),
        (2, 2, {}, 0.0),
        (2, 3, {}, 0.0),
        (None, 0, {"explore": False}, 0.0),
        (2, 1, {"explore": False}, 0.0),
    ],
)
def test_exploration_pauses_under_load_and_for_who_wants_none(
    limit: int | None, in_flight: int, more: dict[str, Any], rate: float
) -> None:
    maker = Maker(exploration={"max_in_flight": limit})
    maker.admission.in_flight = in_flight
    maker.decide(CONTEXT, **more)
    assert (maker.given[0].explore, maker.given[0].may_explore_widely) == (rate, rate > 0)


def test_load_is_looked_at_for_the_request_at_hand() -> None:
    maker = Maker(load={"objective": "cost"})
    maker.decide(CONTEXT, cached_prefix={"u": 5}, objective="latency")
    maker.decide(CONTEXT)
    maker.decide(None)
    first, second, third = maker.given
    assert first.load_of is not None
    told: Any = first.load_of(ARMS)
    assert told == (ARMS, {"context": CONTEXT, "cached_prefix": {"u": 5}, "objective": "latency"})
    assert [one.objective for one in maker.given] == ["latency", "cost", "cost"]
    assert second.load_of is not None
    assert third.load_of is None
    off = Maker(load={"enabled": False})
    off.decide(CONTEXT)
    assert off.given[0].load_of is None


def fallbacks(
    most: int = 9,
    *,
    times: list[float] | None = None,
    replicas: int = 1,
    tried: str = "a",
    unable: str = "",
    suspects: str = "",
) -> list[str]:
    """Hosts of the fallbacks of a request that was sent to `a`; the replicas of `a` are `a`, `a1`, ..."""
    made = Maker(Signal(suspects), arms="abc", replicas=replicas)
    decision = Decision("a", 0.6, {"a": 0.6, "b": 0.1, "c": 0.3}, "p", predicted_tpot_s=times)
    everywhere = [replica for there in made.table.by_arm.values() for replica in there]
    sent = {one for one in everywhere if one.url.removeprefix("http://") in tried.split()}
    found = made.decide.fallbacks(decision, sent, unable, "", most)
    assert len(sent) == len(tried.split())
    hosts = [replica.url.removeprefix("http://") for _, replica in found]
    assert all(host.startswith(engine) for host, (engine, _) in zip(hosts, found, strict=True))
    return hosts


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["c", "b"]),  # by probability
        ({"times": [3.0, 1.0, 2.0]}, ["b", "c"]),  # by time, where it is predicted
        ({"most": 1}, ["c"]),
        ({"most": 0}, []),
        ({"replicas": 2}, ["a1", "c", "b"]),  # another replica of the same engine comes first
        ({"unable": "c"}, ["b"]),
        ({"suspects": "c"}, ["b"]),
        ({"tried": "a c"}, ["b"]),
        ({"tried": "a b c"}, []),
    ],
    ids=str,
)
def test_fallbacks_are_other_replicas_the_best_first(given: dict[str, Any], expected: list[str]) -> None:
    assert fallbacks(**given) == expected
