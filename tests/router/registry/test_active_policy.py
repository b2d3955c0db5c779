"""The policies in service: who decides, what each learns, what is kept of it, and which of them a folder names."""

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from draftpick.router.config.router_config import RouterConfig, load_config
from draftpick.router.errors import PolicyRejected
from draftpick.router.features.featurizer import LexicalFeaturizer
from draftpick.router.online.events import Event, EventLog
from draftpick.router.online.online_learner import OnlineLearner
from draftpick.router.policies import artifact
from draftpick.router.policies.base import DecisionInput, Forecast, Policy, Probabilities, Shifts, one_hot_with_floor
from draftpick.router.policies.baselines import NAMES, FixedPolicy, UniformPolicy
from draftpick.router.registry.active_policy import ActivePolicies
from draftpick.router.registry.registry import Registry
from draftpick.router.registry.resolve import could_be_registry, resolve
from draftpick.router.router import Router
from draftpick.router.types import Attempt, Context, Decision, LoadTerms, Outcome
from tests.fleet import FAST, MODEL, StartRouter, until
from tests.router.registry.test_registry_service import fixed_policy

ARMS = ("plain", "ngram")
CONTEXT = Context(np.zeros(2, np.float32), "features")
OFF = {"correction": {"enabled": False}}
CONFIG = RouterConfig.model_validate({"default_engine": "plain", "seed": 0, "online": OFF})
DRAWS = 20_000


class Foresees(Policy):
    """Expects 10 ms a token of every arm, and chooses one of them; `plain` is its default."""

    arms, featurizer, default_arm = ARMS, "features", 0

    def __init__(self, id: str, arm: str = "ngram") -> None:
        self.id, self._arm = id, ARMS.index(arm)

    def probabilities(self, context: Context | None, eligible: npt.NDArray[np.bool_]) -> Probabilities:
        return one_hot_with_floor(self._arm if eligible[self._arm] else int(np.argmax(eligible)), eligible, 0.0)

    def score(
        self,
        context: Context | None,
        eligible: npt.NDArray[np.bool_],
        shifts: Shifts | None = None,
        load: LoadTerms | None = None,
    ) -> tuple[Probabilities, Forecast | None]:
        return self.probabilities(context, eligible), Forecast([0.3, 0.3], [0.01, 0.01])


def serving(policy: Policy, **router: Any) -> ActivePolicies:
    return ActivePolicies(CONFIG.model_copy(update=router), policy, EventLog())


def drawn(made: ActivePolicies, n: int = DRAWS, seed: int = 0) -> list[Decision]:
    rng = np.random.default_rng(seed)
    return [made.decide(DecisionInput(CONTEXT, ARMS), rng) for _ in range(n)]


def answered(made: ActivePolicies, arm: str, tpot_s: float, n: int, policy: str, reason: Any = "policy") -> None:
    """Let it learn from answers that an arm gave."""
    rng = np.random.default_rng(n)
    decision = Decision(arm, 1.0, dict.fromkeys(ARMS, 0.5), policy, reason, predicted_tpot_s=[0.01, 0.01])
    for _ in range(n):
        times = float(rng.lognormal(0, 0.05))
        outcome = Outcome("ok", 200, tpot_s=tpot_s * times, output_tokens=32)
        made.observe(CONTEXT, made.cluster(CONTEXT, decision), decision, outcome, 1)


def online(made: ActivePolicies, policy: str) -> OnlineLearner:
    return dict(made.learners())[policy]


# --- who decides ---


@pytest.mark.parametrize("share", [0.01, 0.2, 1.0])
def test_a_candidate_decides_its_share(share: float) -> None:
    made = serving(FixedPolicy(ARMS, "plain"))
    made.activate(FixedPolicy(ARMS, "plain"), FixedPolicy(ARMS, "ngram"), share)
    found = sum(decision.policy == "fixed:ngram" for decision in drawn(made)) / DRAWS
    assert found == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / DRAWS))


def test_a_candidate_without_a_share_decides_nothing() -> None:
    made = serving(FixedPolicy(ARMS, "plain"))
    made.activate(FixedPolicy(ARMS, "plain"), UniformPolicy(ARMS), 0.0)
    assert made.candidate is not None
    assert {decision.policy for decision in drawn(made, 500)} == {"fixed:plain"}


def test_the_propensity_is_that_of_the_policy_that_was_drawn() -> None:
    made = serving(UniformPolicy(ARMS))
    made.activate(UniformPolicy(ARMS), FixedPolicy(ARMS, "ngram"), 0.5)
    for decision in drawn(made, 500):
        assert decision.propensity == (0.5 if decision.policy == "uniform" else 1.0)


def test_what_the_other_policy_would_have_done_is_said_beside_it() -> None:
    made = serving(UniformPolicy(ARMS))
    assert all((d.policy_share, d.other_policy_probabilities) == (1.0, None) for d in drawn(made, 50))
    made.activate(UniformPolicy(ARMS), FixedPolicy(ARMS, "ngram"), 0.2)
    both = {"uniform": {"plain": 0.5, "ngram": 0.5}, "fixed:ngram": {"plain": 0.0, "ngram": 1.0}}
    found = drawn(made)
    for decision in found:
        assert {decision.policy: decision.probabilities, **(decision.other_policy_probabilities or {})} == both
        assert decision.policy_share == {"uniform": 0.8, "fixed:ngram": 0.2}[decision.policy]
    # What is on record of a decision tells how probable each arm was before the policy was drawn.
    taken = sum(decision.arm == "ngram" for decision in found) / DRAWS
    assert taken == pytest.approx(0.8 * 0.5 + 0.2, abs=4 * math.sqrt(0.6 * 0.4 / DRAWS))


def test_a_policy_that_fails_costs_no_request_that_the_other_one_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    made, broken = serving(FixedPolicy(ARMS, "plain")), UniformPolicy(ARMS)
    monkeypatch.setattr(broken, "probabilities", lambda context, eligible: np.full(2, np.nan))
    made.activate(FixedPolicy(ARMS, "plain"), broken, 0.01)
    rng, found = np.random.default_rng(1), list[Decision]()
    while len(found) < 20:
        found.append(made.decide(DecisionInput(CONTEXT, ARMS), rng))
    assert all((d.policy, d.policy_share, d.other_policy_probabilities) == ("fixed:plain", 0.99, None) for d in found)


def test_without_a_candidate_its_share_is_gone() -> None:
    made = serving(UniformPolicy(ARMS))
    made.activate(UniformPolicy(ARMS), FixedPolicy(ARMS, "ngram"), 0.5)
    made.activate(UniformPolicy(ARMS))
    assert (made.candidate, made.share) == (None, 0.0)


# --- what is kept ---


def test_what_is_learned_stays_with_a_policy_that_stays() -> None:
    made = serving(Foresees("one"))
    one = online(made, "one")
    made.activate(Foresees("one"), Foresees("two"), 0.1)
    two = online(made, "two")
    assert online(made, "one") is one
    made.activate(Foresees("two"))
    assert online(made, "two") is two
    made.activate(Foresees("one"))
    assert online(made, "one") is not one


def test_of_two_policies_that_differ_in_options_alone_the_new_one_decides() -> None:
    # Ids are of what was learned: such policies share one.
    made = serving(Foresees("one", "ngram"))
    learned = online(made, "one")
    made.activate(Foresees("one", "plain"))
    assert {decision.arm for decision in drawn(made, 20)} == {"plain"}
    assert online(made, "one") is learned


def test_the_last_events_are_kept_and_each_subscriber_gets_all() -> None:
    log, received = EventLog(), list[Event]()
    log.subscribe(received.append)
    for number in range(300):
        log.emit(Event(float(number), "arm_changed", "x"))
    assert [event.time for event in log.recent] == [float(number) for number in range(100, 300)]
    assert list(log.unwritten) == list(log.recent)
    assert len(received) == 300


# --- what each learns ---


def test_both_policies_learn_from_every_answer_whichever_decided() -> None:
    made = serving(Foresees("one"), online=CONFIG.online.model_copy(update={"correction": _enabled()}))
    made.activate(Foresees("one"), Foresees("two"), 0.1)
    answered(made, "ngram", 0.02, 40, "one")
    for policy in ("one", "two"):
        assert online(made, policy).correction.residual(0, 1) == pytest.approx(math.log(2), abs=0.1)


def test_an_answered_attempt_gets_the_cluster_of_its_request() -> None:
    made = serving(Foresees("one"))
    for policy, cluster in (("one", 0), ("another", None)):
        decision = Decision("plain", 1.0, {"plain": 1.0}, policy)
        ended = Attempt("r", 1, "/v1/completions", False, {}, CONTEXT, decision, Outcome("ok"), {"plain": 0}, 1.0)
        found = made.classify(ended)
        assert (found.cluster, found.decision.cluster) == (("one", 0), cluster)
        failed = replace(ended, running=None)
        assert made.classify(failed) is failed


def test_answers_to_contexts_of_other_features_teach_nothing() -> None:
    made = serving(Foresees("one"))
    decision = made.decide(DecisionInput(CONTEXT, ARMS), np.random.default_rng(0))
    for context in (None, Context(np.zeros(3, np.float32), "others")):
        assert made.cluster(context, decision) == 0
        made.observe(context, 0, decision, Outcome("ok", 200, tpot_s=0.02, output_tokens=32), 1)
    assert online(made, "one").correction.weight(0, 1) == 0


def loses(made: ActivePolicies) -> bool:
    return "safe_mode_entered" in {event.kind for event in made.events.recent}


def test_a_policy_that_loses_gives_way_to_the_best_engine_and_comes_back() -> None:
    made = serving(Foresees("one"))
    answered(made, "plain", 0.01, 40, "one")
    answered(made, "ngram", 0.03, 120, "one")
    assert loses(made)
    assert [mode["arm"] for mode in made.safe_modes()] == ["plain"]
    found = drawn(made)
    assert {d.policy for d in found} == {"safe_mode:plain"}
    assert sum(d.arm == "ngram" for d in found) / DRAWS == pytest.approx(0.1, abs=0.01)
    assert {(d.arm, round(d.propensity, 9)) for d in found} == {("plain", 0.9), ("ngram", 0.1)}
    for decision in drawn(made, 600, seed=1):
        tpot_s = {"plain": 0.01, "ngram": 0.005}[decision.arm]
        made.observe(CONTEXT, 0, decision, Outcome("ok", 200, tpot_s=tpot_s, output_tokens=32), 1)
    assert made.safe_modes() == []
    assert {(d.arm, d.policy) for d in drawn(made, 20)} == {("ngram", "one")}


def test_without_the_safe_engine_routing_serves() -> None:
    made = serving(Foresees("one"))
    answered(made, "plain", 0.01, 40, "one")
    answered(made, "ngram", 0.03, 120, "one")
    decision = made.decide(DecisionInput(CONTEXT, ["ngram"]), np.random.default_rng(0))
    assert (decision.arm, decision.policy, decision.propensity) == ("ngram", "one", 1.0)


def test_propensities_in_safe_mode_are_how_often_an_engine_is_drawn() -> None:
    made = serving(Foresees("one"))
    answered(made, "plain", 0.01, 40, "one")
    answered(made, "ngram", 0.03, 120, "one")
    rng = np.random.default_rng(3)
    found = [made.decide(DecisionInput(CONTEXT, ARMS, 0.2), rng) for _ in range(DRAWS)]
    assert all(d.propensity == d.probabilities[d.arm] for d in found)
    (probabilities,) = {tuple(d.probabilities.items()) for d in found}
    assert sum(p for _, p in probabilities) == pytest.approx(1)
    for arm, p in probabilities:
        assert sum(d.arm == arm for d in found) / DRAWS == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / DRAWS))


def test_what_shadows_show_of_slower_engines_is_no_loss_of_the_policy() -> None:
    made = serving(Foresees("one"))
    answered(made, "plain", 0.01, 40, "one")
    answered(made, "ngram", 0.03, 200, "one", "shadow")
    assert not loses(made)


def test_what_another_policy_chose_is_no_loss_of_this_one() -> None:
    made = serving(Foresees("one", "plain"))
    made.activate(Foresees("one", "plain"), Foresees("two"), 0.5)
    for _ in range(3):
        answered(made, "plain", 0.01, 30, "one")
        answered(made, "ngram", 0.03, 60, "two")
    assert {event.policy for event in made.events.recent if event.kind == "safe_mode_entered"} == {"two"}
    assert online(made, "one").safe_mode.arm is None


def test_shadows_tell_of_the_default_engine_that_a_policy_never_chooses() -> None:
    made = serving(Foresees("one"))
    answered(made, "ngram", 0.03, 200, "one")
    assert not loses(made)  # nobody knows what the default engine would have taken
    answered(made, "plain", 0.01, 20, "one", "shadow")
    answered(made, "ngram", 0.03, 100, "one")
    assert loses(made)


def test_a_time_that_is_none_by_the_engines_clock_is_passed_over() -> None:
    made = serving(Foresees("one"))
    for tpot_s in (-0.01, 0.0):
        answered(made, "ngram", tpot_s, 5, "one")
    assert online(made, "one").correction.weight(0, 1) == 0


def _enabled() -> Any:
    return CONFIG.online.correction.model_copy(update={"enabled": True})


# --- which policies a configuration names ---


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """`p0001` takes `plain` and serves; `p0002`, which takes `ngram`, is a canary for half of the requests."""
    made = Registry(tmp_path / "registry")
    for arm in ARMS:
        made.add(fixed_policy(tmp_path / arm, arm), {}, "test")
    made.promote("p0001", "test")
    made.set_canary_share("p0002", 0.5, "test", start=True)
    return made


def damage(registry: Registry, id: str) -> None:
    path = registry.folder(id) / artifact.MANIFEST
    path.chmod(0o644)
    path.write_text("{")


def test_a_registry_names_the_active_policy_and_its_candidate(registry: Registry) -> None:
    chosen = resolve(str(registry.path), ARMS, "plain")
    assert (chosen.policy.id, chosen.share, chosen.candidate_rejected) == ("fixed:plain", 0.5, None)
    assert chosen.candidate is not None
    assert chosen.candidate.id == "fixed:ngram"


def test_a_damaged_active_policy_is_refused(registry: Registry) -> None:
    damage(registry, "p0001")
    with pytest.raises(PolicyRejected, match="is not a readable policy"):
        resolve(str(registry.path), ARMS, "plain")


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_folder_that_is_called_like_a_policy_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert not could_be_registry(name)
    assert could_be_registry(f"./{name}")
    if name != "embedded":
        assert resolve(name, ARMS, "plain").policy.id.startswith(name)


# --- a router ---


def router_of(policy: Path | str) -> Router:
    engines = [{"name": arm, "kind": "mock"} for arm in ARMS]
    settings = {"default_engine": "plain", "policy": str(policy)}
    return Router(load_config({"target": {"name": MODEL}, "engines": engines, "router": settings}), {})


async def test_a_damaged_candidate_is_reported_and_the_next_one_is_used(registry: Registry, tmp_path: Path) -> None:
    damage(registry, "p0002")
    router = router_of(registry.path)
    assert "is not a readable policy" in str(router.state()["candidate_rejected"])
    assert (router.state()["policy"], router.state()["candidate"]) == ("fixed:plain", None)
    await router.start()
    id = registry.add(fixed_policy(tmp_path / "third", "ngram"), {}, "test")
    registry.set_canary_share(id, 0.25, "test", start=True)
    await until(lambda: router.state()["candidate"] == {"policy": "fixed:ngram", "share": 0.25})
    assert router.state()["candidate_rejected"] is None
    await router.stop()


async def test_a_change_while_the_router_is_made_is_not_missed(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_features(config: RouterConfig, policy: Policy) -> None:
        registry.promote("p0002", "test")  # as a model of features takes seconds to load

    monkeypatch.setattr("draftpick.router.router.make_featurizer", slow_features)
    router = router_of(registry.path)
    monkeypatch.undo()
    assert router.state()["policy"] == "fixed:plain"
    await router.start()
    await until(lambda: router.state()["policy"] == "fixed:ngram")
    await router.stop()


async def test_of_changes_at_once_the_last_one_stays(registry: Registry) -> None:
    router = router_of("uniform")
    names = ["uniform", str(registry.path), "fixed", str(registry.path), "uniform"] * 4
    made = await asyncio.gather(*(router.use_policy(name) for name in names))
    assert made[-1] == router.state()["policy"] == "uniform"
    await router.stop()


class NeedsLexical(FixedPolicy):
    """Chooses `b`, and was made for lexical features."""

    def __init__(self) -> None:
        super().__init__(("a", "b"), "b")
        self.id, self.featurizer = "needs-lexical", LexicalFeaturizer().id


@pytest.mark.asyncio(loop_scope="module")
class TestContexts:
    """A context may have been made before another policy came."""

    async def test_a_context_of_other_features_is_none(self, router_app: StartRouter) -> None:
        router = await router_app({"a": FAST, "b": FAST}, policy=NeedsLexical(), featurizer=LexicalFeaturizer())
        own = router.parts.decide(Context(np.zeros(2, np.float32), LexicalFeaturizer().id))
        assert (own.arm, own.reason) == ("b", "policy")
        old = router.parts.decide(Context(np.zeros(2, np.float32), "of-another-policy"))
        assert (old.arm, old.reason) == ("a", "fallback")
        assert router.parts.metrics.fallbacks["no_context"] == 1
