"""Policies: distributions over the eligible arms, samples that follow them, and `load` by name."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftpick.router.errors import PolicyRejected
from draftpick.router.policies import artifact, check_features, load, make
from draftpick.router.policies.base import DecisionInput, Policy, Probabilities
from draftpick.router.policies.baselines import FixedPolicy, UniformPolicy
from draftpick.router.policies.mlp import MLPPolicy
from draftpick.router.types import Context, Vector

ARMS = ("a", "b", "c", "d")
DIMENSION, WIDTH = 3, 5
KINDS = ("fixed", "uniform", "soft", "greedy", "floor")


def weights(seed: int = 0, num_arms: int = len(ARMS)) -> dict[str, Vector]:
    """Arrays of an MLP with random weights."""
    rng = np.random.default_rng(seed)
    sizes = (DIMENSION, WIDTH, WIDTH, num_arms)
    made = {"mean": rng.normal(size=DIMENSION), "scale": rng.uniform(0.5, 2, DIMENSION)}
    for i in range(3):
        made |= {f"w{i + 1}": rng.normal(size=sizes[i : i + 2]), f"b{i + 1}": rng.normal(size=sizes[i + 1])}
    return {name: np.asarray(array, np.float32) for name, array in made.items()}


def mlp(seed: int = 0, *, greedy: bool = False, floor: float = 0.0) -> MLPPolicy:
    return MLPPolicy("mlp:test", ARMS, "lexical", weights(seed), greedy=greedy, floor=floor)


def policy(kind: str, seed: int = 0) -> Policy:
    match kind:
        case "fixed":
            return FixedPolicy(ARMS, ARMS[seed % len(ARMS)])
        case "uniform":
            return UniformPolicy(ARMS)
        case "soft":
            return mlp(seed)
        case "greedy":
            return mlp(seed, greedy=True)
        case _:
            return mlp(seed, greedy=True, floor=0.1)


def context(seed: int = 0) -> Context:
    vector = np.random.default_rng(seed).normal(0, 3, DIMENSION)
    return Context(np.asarray(vector, np.float32), "lexical")


def mask(*eligible: str) -> npt.NDArray[np.bool_]:
    return np.array([arm in eligible for arm in ARMS])


seeds = st.integers(0, 2**32 - 1)
some_arms = st.sets(st.sampled_from(ARMS), min_size=1)


# --- distributions ---


@given(st.sampled_from(KINDS), some_arms, seeds)
def test_probabilities_are_a_distribution_over_the_eligible_arms(kind: str, eligible: set[str], seed: int) -> None:
    made = policy(kind, seed).probabilities(context(seed), mask(*eligible))
    assert made.shape == (len(ARMS),)
    assert made.sum() == pytest.approx(1.0)
    assert (made >= 0).all()
    assert (made[~mask(*eligible)] == 0).all()


@given(st.sampled_from(KINDS), some_arms, seeds)
def test_a_decision_names_an_eligible_arm_and_its_propensity(kind: str, eligible: set[str], seed: int) -> None:
    chosen = policy(kind, seed)
    decision = chosen.decide(DecisionInput(context(seed), sorted(eligible)), np.random.default_rng(seed))
    assert decision.arm in eligible
    assert decision.propensity == decision.probabilities[decision.arm] > 0
    assert set(decision.probabilities) == set(ARMS)
    assert decision.policy == chosen.id
    assert decision.reason == "policy"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eligible", [ARMS, ("b", "d")])
def test_samples_follow_the_propensities(kind: str, eligible: tuple[str, ...]) -> None:
    chosen, rng, num_draws = policy(kind), np.random.default_rng(1), 1500
    expected = chosen.probabilities(context(), mask(*eligible))
    drawn = [chosen.decide(DecisionInput(context(), eligible), rng).arm for _ in range(num_draws)]
    shares = np.array([drawn.count(arm) / num_draws for arm in ARMS])
    assert shares == pytest.approx(expected, abs=4 * 0.5 / num_draws**0.5)


class Fractions(Policy):
    """Probabilities that do not quite sum to 1, as floats do not."""

    id, arms = "fractions", ARMS

    def probabilities(self, context: Context | None, eligible: npt.NDArray[np.bool_]) -> Probabilities:
        return np.array([0.0, 1 - 1e-9, 0.0, 0.0])


def test_rounding_never_gives_an_arm_without_probability() -> None:
    class Highest:
        """Draws the largest number that a generator can draw."""

        def random(self) -> float:
            return float(np.nextafter(1, 0))

    decision = Fractions().decide(DecisionInput(None, ARMS), Highest())  # type: ignore[arg-type]
    assert decision.arm == "b"


# --- the policies ---


def test_the_fixed_policy_keeps_to_its_arm() -> None:
    assert FixedPolicy(ARMS, "c").probabilities(None, mask(*ARMS)).tolist() == [0, 0, 1, 0]


def test_the_fixed_policy_takes_every_other_arm_alike_when_its_own_is_gone() -> None:
    assert FixedPolicy(ARMS, "c").probabilities(None, mask("a", "d")).tolist() == [0.5, 0, 0, 0.5]


def test_the_mlp_is_what_its_formula_says() -> None:
    w, x = weights(), context().vector
    hidden = np.maximum((x - w["mean"]) / w["scale"] @ w["w1"] + w["b1"], 0)
    hidden = np.maximum(hidden @ w["w2"] + w["b2"], 0)
    logits = hidden @ w["w3"] + w["b3"]
    expected = np.exp(logits) / np.exp(logits).sum()
    assert mlp().logits(context()) == pytest.approx(logits)
    assert mlp().probabilities(context(), mask(*ARMS)) == pytest.approx(expected, rel=1e-5)


def test_arms_that_are_gone_leave_the_ratio_of_the_others() -> None:
    whole = mlp().probabilities(context(), mask(*ARMS))
    part = mlp().probabilities(context(), mask("a", "b"))
    assert part[0] / part[1] == pytest.approx(whole[0] / whole[1])


def test_greedy_takes_the_best_eligible_arm() -> None:
    best = ARMS[int(mlp().logits(context()).argmax())]
    assert mlp(greedy=True).probabilities(context(), mask(*ARMS)).tolist() == mask(best).astype(float).tolist()
    others = mask(*(set(ARMS) - {best}))
    second = int(np.where(others, mlp().logits(context()), -np.inf).argmax())
    assert mlp(greedy=True).probabilities(context(), others)[second] == 1.0


def test_a_floor_leaves_every_eligible_arm_its_share() -> None:
    made = mlp(greedy=True, floor=0.05).probabilities(context(), mask("a", "b", "c"))
    assert sorted(made.tolist()) == pytest.approx([0.0, 0.05, 0.05, 0.9])


def test_the_mlp_needs_a_context_of_its_dimension() -> None:
    assert mlp().dimension == DIMENSION
    with pytest.raises(ValueError, match="needs a context"):
        mlp().probabilities(None, mask(*ARMS))
    with pytest.raises(ValueError, match="broadcast"):
        mlp().probabilities(Context(np.zeros(DIMENSION + 1, np.float32), "lexical"), mask(*ARMS))


# --- by name ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A policy for `ARMS`, on disk."""
    manifest = {"kind": "mlp", "arms": list(ARMS), "featurizer": "lexical", "options": {"greedy": False}}
    artifact.write(tmp_path / "policy", manifest, weights())
    return tmp_path / "policy"


def test_policies_load_by_name(folder: Path) -> None:
    assert load("fixed", ARMS, "b").id == "fixed:b"
    assert load("uniform", ARMS, "b").id == "uniform"
    assert make({"kind": "uniform", "arms": list(ARMS), "arrays_sha256": "0" * 64}, {}).arms == ARMS
    loaded = load(str(folder), ARMS, "b")
    assert isinstance(loaded, MLPPolicy)
    assert loaded.id.startswith("mlp:")


def test_a_loaded_policy_decides_as_the_one_that_was_written(folder: Path) -> None:
    loaded = load(str(folder), ARMS, "a")
    for seed in range(5):
        made = loaded.probabilities(context(seed), mask("a", "b", "d"))
        assert made.tolist() == mlp().probabilities(context(seed), mask("a", "b", "d")).tolist()


def test_the_order_of_the_fleet_does_not_matter(folder: Path) -> None:
    assert load(str(folder), ("d", "c", "b", "a"), "a").arms == ARMS


def test_a_policy_that_knows_more_engines_serves(folder: Path) -> None:
    decision = load(str(folder), ("a", "c"), "a").decide(
        DecisionInput(context(0), ["a", "c"]), np.random.default_rng(0)
    )
    assert decision.arm in {"a", "c"}
    assert decision.probabilities["b"] == decision.probabilities["d"] == 0


@pytest.mark.parametrize("arms", [("a", "b", "c", "d", "e"), ("a", "b", "c", "x")])
def test_a_policy_for_other_engines_is_refused(folder: Path, arms: tuple[str, ...]) -> None:
    with pytest.raises(PolicyRejected, match="was made for the engines"):
        load(str(folder), arms, "a")


def test_a_policy_that_needs_other_features_is_refused() -> None:
    assert check_features(mlp(), "lexical").id == "mlp:test"
    assert check_features(UniformPolicy(ARMS), None).id == "uniform"
    for other in ("sentence", None):
        with pytest.raises(PolicyRejected, match="needs the features 'lexical'"):
            check_features(mlp(), other)
