"""Tests of change: how often they are wrong, how soon they notice, and what they say of how far."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from draftpick.router.config.sections import DriftConfig
from draftpick.router.online.drift import (
    ArmDriftDetector,
    InputDriftDetector,
    PageHinkley,
    stability_index,
)

CONFIG = DriftConfig()
Draw = Callable[[np.random.Generator, int], npt.NDArray[np.float64]]
SEEDS = range(4)


def normal(rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
    return rng.normal(0.0, 0.3, n)


def heavy_tailed(rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
    return 0.2 * rng.standard_t(4, n)


def skewed(rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
    """As the acceptance of a drafter that copies: next to nothing, or much."""
    return np.where(rng.random(n) < 0.35, rng.normal(1.2, 0.2, n), rng.normal(0.0, 0.02, n))


def noticed(watch: PageHinkley, values: npt.NDArray[np.float64]) -> tuple[int, float] | None:
    """(how many values it took, how far it says they moved), when they are taken for a change."""
    for number, value in enumerate(values, 1):
        if (moved := watch.update(float(value))) is not None:
            return number, moved
    return None


# --- Page-Hinkley ---


@pytest.mark.parametrize("draw", [normal, heavy_tailed, skewed])
def test_a_false_alarm_comes_less_than_once_in_20000_values(draw: Draw) -> None:
    alarms = 0
    for seed in SEEDS:
        watch = PageHinkley(CONFIG)
        for value in draw(np.random.default_rng(seed), 20_000):
            if watch.update(float(value)) is not None:
                alarms, watch = alarms + 1, PageHinkley(CONFIG)
    assert alarms <= 2


@pytest.mark.parametrize("times", [2.0, 0.5])
def test_twice_or_half_as_much_is_noticed_within_twelve_answers(times: float) -> None:
    found = []
    for seed in range(100):
        rng, watch = np.random.default_rng(seed), PageHinkley(CONFIG)
        assert noticed(watch, normal(rng, 300)) is None
        found.append(noticed(watch, math.log(times) + normal(rng, 40)))
    delays, moved = np.asarray([one for one in found if one is not None]).T
    assert len(delays) == 100
    assert np.quantile(delays, 0.9) <= 12
    assert (np.sign(moved) == np.sign(math.log(times))).all()


@pytest.mark.parametrize(("times", "within"), [(2.0, 0.2), (1.6, 0.15), (1.3, 0.1)])
def test_it_says_how_far_the_values_moved(times: float, within: float) -> None:
    found = []
    for seed in range(100):
        rng, watch = np.random.default_rng(seed), PageHinkley(CONFIG)
        noticed(watch, rng.normal(0.0, 0.25, 400))
        told = noticed(watch, math.log(times) + rng.normal(0.0, 0.25, 400))
        assert told is not None
        found.append(told[1])
    assert np.median(found) == pytest.approx(math.log(times), abs=0.1)
    assert np.std(found) <= within


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_change_by_hand(sign: float) -> None:
    """Ten zeros, then twice 0.6: 4 and 3.02 standard deviations, of which half a one is tolerated each time."""
    config = DriftConfig(reference=10, page_hinkley_delta=0.5)
    for threshold, told in ((5.9, 0.6 - 0.3 / 11), (6.1, None)):
        watch = PageHinkley(config.model_copy(update={"page_hinkley_lambda": threshold}))
        assert [watch.update(0.0) for _ in range(10)] == [None] * 10
        assert watch.update(sign * 0.6) is None
        moved = watch.update(sign * 0.6)
        assert moved == (None if told is None else pytest.approx(sign * told))


def test_a_collapse_is_told_of_in_full() -> None:
    rng, watch = np.random.default_rng(0), PageHinkley(CONFIG)
    noticed(watch, rng.normal(0.0, 0.1, 200))
    told = noticed(watch, math.log(1 / 4) + rng.normal(0.0, 0.1, 20))
    assert told is not None
    assert told[1] == pytest.approx(math.log(1 / 4), abs=0.15)


def test_outliers_are_no_change() -> None:
    rng, watch = np.random.default_rng(0), PageHinkley(CONFIG)
    values = normal(rng, 2000)
    values[::50] = 1000.0
    assert noticed(watch, values) is None


def test_while_it_learns_what_is_usual_nothing_is_a_change() -> None:
    watch = PageHinkley(CONFIG)
    assert all(watch.update(float(10**i)) is None for i in range(CONFIG.reference))


def test_values_that_are_all_alike_are_usual() -> None:
    watch = PageHinkley(CONFIG)
    assert noticed(watch, np.full(500, 3.0)) is None


# --- kinds of requests ---


def kinds(rng: np.random.Generator, bins: int) -> npt.NDArray[np.float64]:
    """Shares of kinds: some frequent, some rare, and of each a few that are unusually far."""
    near = rng.dirichlet(np.ones(bins // 2))
    return np.concatenate([0.95 * near, 0.05 * near])


@pytest.mark.parametrize("bins", [16, 48])
def test_5000_draws_of_one_distribution_are_no_change(bins: int) -> None:
    alarms = 0
    for seed in SEEDS:
        rng, inputs = np.random.default_rng(seed), InputDriftDetector(CONFIG, bins)
        for bin in rng.choice(bins, 5000, p=kinds(rng, bins)):
            if inputs.update(int(bin)) is not None:
                alarms, inputs = alarms + 1, InputDriftDetector(CONFIG, bins)
    assert alarms <= 1


@pytest.mark.parametrize("bins", [16, 48])
def test_another_distribution_is_noticed_within_two_windows(bins: int) -> None:
    delays = []
    for seed in range(10):
        rng, inputs = np.random.default_rng(seed), InputDriftDetector(CONFIG, bins)
        before, after = (kinds(rng, bins) for _ in range(2))
        for bin in rng.choice(bins, 3 * CONFIG.window, p=before):
            assert inputs.update(int(bin)) is None
        found = [inputs.update(int(bin)) for bin in rng.choice(bins, 10 * CONFIG.window, p=after)]
        delays.append(next(i for i, index in enumerate(found, 1) if index is not None))
    assert np.quantile(delays, 0.8) <= 2 * CONFIG.window


def test_what_is_usual_may_be_given() -> None:
    inputs = InputDriftDetector(CONFIG, 4, baseline=np.asarray([0.7, 0.3, 0.0, 0.0]))
    found = [inputs.update(2) for _ in range(2 * CONFIG.window)]
    assert found[: CONFIG.window - 1] == [None] * (CONFIG.window - 1)
    assert found[-1] is None or found[-1] > CONFIG.psi_threshold
    assert any(index is not None for index in found)


def test_the_stability_index_grows_with_the_distance_and_is_symmetric() -> None:
    near, far = np.asarray([0.5, 0.3, 0.2]), np.asarray([0.0, 0.0, 1.0])
    usual = np.asarray([0.6, 0.3, 0.1])
    assert 0 < stability_index(usual, near) < stability_index(usual, far) < math.inf
    assert stability_index(usual, far) == pytest.approx(stability_index(far, usual))


def test_the_stability_index_is_that_of_the_books() -> None:
    usual, now = np.asarray([0.5, 0.5]), np.asarray([0.9, 0.1])
    assert stability_index(usual, now, smoothing=0.0) == pytest.approx(0.4 * math.log(1.8) - 0.4 * math.log(0.2))
    assert stability_index(usual, now) == pytest.approx(0.396 * math.log(0.896 / 0.5) - 0.396 * math.log(0.104 / 0.5))


def test_chance_is_no_part_of_a_change_of_requests() -> None:
    """Of two classes and a window of 80, an index of 2 / 80 is to be expected; every eighth request is looked at."""
    inputs = InputDriftDetector(DriftConfig(window=80, psi_threshold=0.2), 2, np.asarray([0.5, 0.5]))
    found = [inputs.update(i % 2) for i in range(80)] + [inputs.update(0) for _ in range(40)]
    told = {i: index for i, index in enumerate(found) if index is not None}
    now = np.asarray([59, 21]) / 80  # the last 80 of 119 requests
    assert told == pytest.approx({118: stability_index(np.asarray([0.5, 0.5]), now) - 0.025})


# --- an arm ---


def answers(
    watch: ArmDriftDetector, n: int, *, step_s: float = 0.01, tau: float | None = 2.0, in_flight: int = 1
) -> list[str]:
    """What is told of n answers with some noise: `costs` or `drafts`."""
    rng = np.random.default_rng(n)
    told = []
    for _ in range(n):
        accepted = None if tau is None else max(tau * float(rng.lognormal(0, 0.1)), 0.0)
        tpot_s = step_s / (accepted or 1.0) * float(rng.lognormal(0, 0.05))
        told.append(watch.update(0, in_flight, tpot_s, accepted, 0.005))
    return [one[0] for one in told if one is not None]


def test_a_step_and_what_is_accepted_are_told_apart() -> None:
    for change, expected in (({"step_s": 0.02}, "costs"), ({"tau": 1.05}, "drafts")):
        watch = ArmDriftDetector(CONFIG)
        assert answers(watch, 200) == []
        assert answers(watch, 20, **change)[:1] == [expected]  # type: ignore[arg-type]


def test_more_load_makes_a_step_dearer_and_is_no_change() -> None:
    watch = ArmDriftDetector(CONFIG)
    assert answers(watch, 100) + answers(watch, 100, step_s=0.03, in_flight=8) + answers(watch, 100) == []


def test_an_arm_without_drafts_is_watched_by_its_times() -> None:
    watch = ArmDriftDetector(CONFIG)
    assert answers(watch, 100, tau=None) == []
    assert answers(watch, 20, step_s=0.02, tau=None) == ["costs"]


def test_an_engine_that_says_it_accepts_nothing_tells_nothing_of_its_drafts() -> None:
    watch = ArmDriftDetector(CONFIG)
    assert answers(watch, 100, tau=0.0) == []
    assert watch.drafts == {}


# --- keys ---


def change_of(keys: tuple[str, ...], several: bool) -> int | None:
    """After how many answers of these keys a doubled time is a change; None: never."""
    watch, rng = PageHinkley(CONFIG), np.random.default_rng(0)
    for value in rng.normal(0.0, 0.2, 100):
        watch.update(float(value), "usual", several)
    for number, value in enumerate(rng.normal(math.log(2.0), 0.2, 200)):
        if watch.update(float(value), keys[number % len(keys)], several) is not None:
            return number
    return None


def test_one_key_alone_changes_no_arm_that_others_use() -> None:
    alone, together, only = change_of(("a",), True), change_of(("a", "b"), True), change_of(("a",), False)
    assert alone is None
    assert together is not None
    assert together <= 12
    assert only == together


def test_what_one_key_asks_more_is_no_change_of_all_requests() -> None:
    rng, told = np.random.default_rng(0), []
    for shared in (False, True):
        inputs = InputDriftDetector(CONFIG, 4, np.asarray([0.5, 0.5, 0.0, 0.0]))
        for i in range(10 * CONFIG.window):
            flood = i % 2 == 1
            new = flood or (shared and rng.random() < 0.5)
            cluster = 3 if new else int(rng.integers(2))
            told.append((shared, inputs.update(cluster, "flood" if flood else f"{i % 3}")))
    assert {shared for shared, index in told if index is not None} == {True}


# --- boundaries ---


@pytest.mark.parametrize(("others", "told"), [(11, True), (12, False)])
def test_twelve_requests_of_others_show_that_one_key_alone_asks_more(others: int, told: bool) -> None:
    config = DriftConfig(window=80)
    inputs = InputDriftDetector(config, 2, np.asarray([1.0, 0.0]))
    found = [inputs.update(0, "other") for _ in range(others)] + [inputs.update(1, "one") for _ in range(80 - others)]
    found += [inputs.update(1, "one") for _ in range(0)]
    inputs.since_check = 7
    inputs.recent.pop()
    inputs.counts[1] -= 1
    last = inputs.update(1, "one")
    assert (last is not None) is told
    assert found[:79] == [None] * 79


@pytest.mark.parametrize(("shared", "told"), [(4, False), (6, True)])
def test_others_have_a_part_in_a_change_from_a_quarter_of_it_on(shared: int, told: bool) -> None:
    """Of 100 requests, 80 of one key are all new; of the 20 of others so many."""
    inputs = InputDriftDetector(DriftConfig(window=100), 2, np.asarray([1.0, 0.0]))
    for i in range(20):
        inputs.update(int(i < shared), "other")
    for _ in range(79):
        inputs.update(1, "one")
    inputs.since_check = 7
    assert (inputs.update(1, "one") is not None) is told


def test_the_first_window_is_what_is_usual() -> None:
    inputs = InputDriftDetector(DriftConfig(window=50), 2)
    for i in range(49):
        assert inputs.update(i % 2) is None
        assert inputs.baseline is None
    inputs.update(1)
    assert inputs.baseline is not None
    assert inputs.baseline.tolist() == [0.5, 0.5]
    assert not inputs.recent
    for i in range(120):
        assert inputs.update(i % 2) is None
    assert len(inputs.recent) == 50
    assert sum(inputs.counts.values()) == 50


@pytest.mark.parametrize(("later", "noticed_"), [(0.15, True), (0.05, False)])
def test_small_changes_are_none_however_regular_the_values(later: float, noticed_: bool) -> None:
    """A change counts in standard deviations, but those are 0.15 at least, and half of one is tolerated."""
    watch = PageHinkley(CONFIG)
    assert noticed(watch, np.zeros(100)) is None
    assert (noticed(watch, np.full(40, later)) is not None) is noticed_


def test_an_outlier_counts_for_four_deviations() -> None:
    watch = PageHinkley(DriftConfig(reference=10, page_hinkley_delta=0.5, page_hinkley_lambda=100))
    for _ in range(10):
        watch.update(0.0)
    watch.update(1e9)
    assert watch.up.evidence.sum == pytest.approx(3.5)
    assert watch.down.evidence.sum == 0.0
    assert watch.mean == pytest.approx(0.6 / 11)
    watch.update(0.0)
    assert watch.up.evidence.sum == pytest.approx(3.5 - 0.5 - watch_z(watch))


def watch_z(watch: PageHinkley) -> float:
    """How many deviations below the mean after one outlier of 0.6 among eleven a value of 0 is."""
    squares = 0.6 * (0.6 - 0.6 / 11)
    return (0.6 / 11) / max(math.sqrt(squares / 10), 0.15)


def test_steps_are_compared_among_those_of_like_load() -> None:
    """1, 2 to 3, 4 to 7, ... in flight."""
    watch = ArmDriftDetector(CONFIG)
    for in_flight in (1, 2, 3, 4, 7, 8):
        watch.update(0, in_flight, 0.01, 2.0, 0.005)
    assert {load: test.count for load, test in watch.steps.items()} == {1: 1, 2: 2, 3: 2, 4: 1}
    watch.update(5, 1, None, 2.0, 0.005)
    assert {cluster: test.count for cluster, test in watch.drafts.items()} == {0: 6, 5: 1}
    assert watch.steps[1].count == 1
    assert watch.steps[1].mean == pytest.approx(math.log(0.02))
    assert watch.drafts[5].mean == pytest.approx(math.log(0.01))


def test_a_change_makes_an_arm_forget() -> None:
    watch = ArmDriftDetector(CONFIG)
    assert answers(watch, 60) == []
    told = None
    while told is None:
        told = watch.update(0, 1, 0.1, 2.0, 0.005)
    assert told[0] == "costs"
    assert (watch.drafts, watch.steps) == ({}, {})
