"""A simulated engine: drafters that are right with known probability, and a clock that knows all costs."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from draftpick.engines.arms import NONE
from draftpick.engines.pool.controller import Controller, DrafterTraits, gain_of_choice
from draftpick.engines.pool.costs import Costs
from draftpick.engines.pool.forecast import Forecast
from draftpick.engines.pool.request import PoolRequest

STEP_S, ROW_S, FREE_ROWS = 0.018, 0.0009, 4
READ_S, EXTEND_S = 0.002, 0.0008
TRAITS = {"head": DrafterTraits(4, True), "other": DrafterTraits(4, True), "copy": DrafterTraits(8, False)}


@dataclass
class World:
    """Drafter's probability of the right token, by request; `row_s`: of a verified token beyond the free ones."""

    rates: dict[str, float]
    requests: int = 1
    row_s: float = ROW_S
    read_s: float = READ_S
    length: int = 100
    forecast: Forecast | None = None
    traits: dict[str, DrafterTraits] = field(default_factory=lambda: dict(TRAITS))

    def step_s(self, tokens: int) -> float:
        return STEP_S + self.row_s * max(0, tokens - FREE_ROWS)


def run(world: World, controller: Controller | None = None, seed: int = 0) -> tuple[float, list[PoolRequest]]:
    """Decode; return (tokens per second in plain tokens per second, the requests)."""
    random = np.random.default_rng(seed)
    controller = controller or new_controller(world)
    pools = [controller.start(False, world.forecast) for _ in range(world.requests)]
    unread = [dict.fromkeys(controller.heads, 0) for _ in pools]
    came: list[list[int]] = [[0] for _ in pools]
    verified = [0] * len(pools)
    seconds = tokens = 0.0
    while tokens < world.length * world.requests:
        # The next tokens of each request are ones; a drafter is right as long as it drafts ones.
        for pool, new, count in zip(pools, came, verified, strict=True):
            pool.observe(new, count)
            pool.room = 8
        for pool, left in zip(pools, unread, strict=True):
            for name in left:
                left[name] += 1
            if "copy" in world.rates and "copy" in pool.own:
                pool.offer("copy", drawn(random, world.rates["copy"], 8), [2] * 8)
        chosen = controller.choose_heads(pools)
        drafting_s = 0.0
        for name in controller.heads:
            rows = chosen.get(name, [])
            resting = [i for i in range(len(pools)) if i not in rows]
            counts = [unread[i][name] for i in resting]
            reads = controller.choose_reads(name, [pools[i] for i in resting], counts, bool(rows))
            due = [resting[i] for i in reads if counts[i] > 1]
            for i in due:
                if name in pools[i].own:
                    hits = (random.random(unread[i][name] - 1) < world.rates[name]).tolist()
                    pools[i].own[name].score_first([level(world.rates[name])] * len(hits), hits)
            for i in [*rows, *due]:
                pools[i].note_read(name, i in rows)
                unread[i][name] = 0
            if rows or due:
                drafting_s += world.read_s
                controller.costs.read.add(len(rows) + len(due), world.read_s)
            drafting_s += draft(controller, name, [pools[i] for i in rows], world.rates[name], random)
        drafts = controller.allocate(pools, drafting_s)
        count = len(pools) + sum(map(len, drafts))
        controller.costs.verify(len(pools), False).add(count, world.step_s(count))
        seconds += drafting_s + world.step_s(count)
        came, verified = [], []
        for draft_tokens in drafts:
            hits = int(np.cumprod(draft_tokens).sum()) if draft_tokens else 0
            # Tokens beyond the draft are ones too, so that every drafter can be scored on them.
            came.append([1] * (hits + 1))
            verified.append(len(draft_tokens))
            tokens += hits + 1
    plain = world.step_s(world.requests) / world.requests
    return tokens / seconds * plain, pools


def drawn(random: np.random.Generator, rate: float, length: int) -> list[int]:
    return (random.random(length) < rate).astype(int).tolist()


def level(rate: float) -> int:
    return min(15, int(16 * rate))


def draft(
    controller: Controller, name: str, pools: list[PoolRequest], rate: float, random: np.random.Generator
) -> float:
    """Draft by a head whose confidence is its rate; return the seconds."""
    seconds, going = 0.0, [(pool, [], []) for pool in pools]
    offers: list[tuple[PoolRequest, list[int], list[int]]] = list(going)
    passes = 0
    while going:
        seconds += EXTEND_S if passes else 0.0
        if passes:
            controller.costs.extend.add(len(going), EXTEND_S)
        passes += 1
        for _, tokens, levels in going:
            tokens.append(int(random.random() < rate))
            levels.append(level(rate))
        going = [one for one in going if controller.extends(one[0], name, one[2], len(going))]
    for pool, tokens, levels in offers:
        pool.offer(name, tokens, levels)
    return seconds


def new_controller(world: World) -> Controller:
    traits = {name: traits for name, traits in world.traits.items() if name in world.rates}
    return Controller(traits, Costs(max_tokens=32 * 9, max_requests=32))


def trained(world: World, rates: list[dict[str, float]], each: int = 4) -> Controller:
    """A controller that has decoded requests of several kinds."""
    controller = new_controller(world)
    for seed, kind in enumerate(rates * each):
        run(World(kind, world.requests, world.row_s, world.read_s), controller, seed)
    return controller


def shares(pools: list[PoolRequest]) -> dict[str, float]:
    """Share of steps by drafter."""
    reports = [pool.report() for pool in pools]
    steps = {name: sum(report[name]["steps"] for report in reports) for name in reports[0]}
    return {name: count / sum(steps.values()) for name, count in steps.items()}


def test_the_drafter_that_earns_most_drafts() -> None:
    kinds = [{"head": 0.8, "other": 0.1, "copy": 0.1}, {"head": 0.1, "other": 0.8, "copy": 0.1},
             {"head": 0.1, "other": 0.1, "copy": 0.9}]  # fmt: skip
    controller = trained(World(kinds[0]), kinds)
    for kind in kinds:
        speed, pools = run(World(kind, length=300), controller, seed=9)
        best = max(kind, key=lambda name: kind[name])
        assert max(shares(pools), key=lambda name: shares(pools)[name]) == best
        assert speed > 1.6


def test_drafters_that_are_always_wrong_cost_next_to_nothing() -> None:
    hopeless = {"head": 0.02, "other": 0.02, "copy": 0.02}
    controller = trained(World(hopeless), [hopeless, {"head": 0.8, "other": 0.02, "copy": 0.3}])
    speed = np.mean([run(World(hopeless, length=150), controller, seed)[0] for seed in range(5)])
    assert speed > 0.94


def test_a_full_batch_verifies_no_guesses() -> None:
    guess = {"head": 0.3, "copy": 0.3}
    world = World(guess, requests=24, row_s=0.004, length=60)
    controller = trained(world, [guess], each=1)
    speed, pools = run(world, controller, seed=3)
    assert shares(pools)[NONE] > 0.8
    assert speed > 0.97


def test_sure_tokens_are_verified_in_a_full_batch_too() -> None:
    sure = {"head": 0.2, "copy": 0.97}
    world = World(sure, requests=24, length=60)
    speed, pools = run(world, trained(world, [sure], each=1), seed=3)
    assert shares(pools)["copy"] > 0.9
    assert speed > 1.3


def test_a_head_is_shared_by_the_requests_that_gain_from_it() -> None:
    world = World({"head": 0.75, "copy": 0.05}, requests=8, length=60)
    _, pools = run(world, trained(world, [world.rates], each=1), seed=3)
    assert shares(pools)["head"] > 0.7


@pytest.mark.parametrize("wrong", [1.0, 3.5])
def test_a_wrong_forecast_costs_little(wrong: float) -> None:
    kinds = [{"head": 0.75, "copy": 0.2}, {"head": 0.05, "copy": 0.2}]
    rates = kinds[0] if wrong == 1.0 else kinds[1]
    right = 1 + sum(rates["head"] ** i for i in range(1, 5))
    speeds = []
    for tau in (wrong, right):
        controller = trained(World(rates), kinds)
        forecast = Forecast({"head": tau}, weight=8)
        speeds.append(np.mean([run(World(rates, forecast=forecast), controller, seed)[0] for seed in range(8)]))
    assert speeds[0] > 0.95 * speeds[1]


@pytest.mark.parametrize(("kind", "tau", "read_s"), [(0, 3.36, 0.012), (1, 1.02, 0.002)])
def test_a_right_forecast_saves_the_first_steps(kind: int, tau: float, read_s: float) -> None:
    kinds = [{"head": 0.8, "other": 0.8, "copy": 0.1}, {"head": 0.02, "other": 0.02, "copy": 0.1}]
    speeds = []
    for known in (Forecast({"head": tau, "other": tau}, 16), None):
        world = World(kinds[kind], length=24, forecast=known, read_s=read_s)
        controller = trained(World(kinds[0], read_s=read_s), kinds)
        speeds.append(np.mean([run(world, controller, seed)[0] for seed in range(20)]))
    assert speeds[0] > 1.02 * speeds[1]


def test_a_pinned_drafter_is_the_only_one() -> None:
    rates = {"head": 0.5, "other": 0.9, "copy": 0.9}
    _, pools = run(World(rates, forecast=Forecast(only="head")))
    assert set(shares(pools)) >= {"head", NONE}
    assert shares(pools)["head"] + shares(pools)[NONE] == pytest.approx(1)
    _, pools = run(World(rates, forecast=Forecast(only=NONE)))
    assert shares(pools)[NONE] == 1


def test_reports_count_every_step_and_score_what_was_not_verified() -> None:
    controller = new_controller(world := World({"head": 0.6, "copy": 0.5}, length=200))
    _, [pool] = run(world, controller)
    report = pool.report()
    steps = sum(one["steps"] for one in report.values())
    accepted = sum(one["accepted"] for one in report.values())
    assert steps + accepted == pytest.approx(200, abs=9)
    assert report["copy"]["scored"] >= steps - 1
    assert report["copy"]["steps"] < steps
    assert report["copy"]["tau"] == pytest.approx(2, abs=0.4)
    assert report[NONE]["tau"] == 1


def test_a_drafter_that_is_left_out_drafts_no_more() -> None:
    controller = new_controller(world := World({"head": 0.9, "copy": 0.1}))
    run(world, controller)
    controller.leave_out("head")
    _, pools = run(world, controller)
    assert shares(pools)["head"] == 0 if "head" in shares(pools) else True


def test_no_draft_is_longer_than_the_room() -> None:
    controller = new_controller(World({"head": 0.9, "copy": 0.9}))
    pool = controller.start(False)
    for room in (0, 1, 3):
        pool.observe([0], 0)
        pool.room = room
        pool.offer("copy", [1] * 8, [9] * 8)
        controller.choose_heads([pool])
        assert len(controller.allocate([pool])[0]) <= room


def test_a_second_draft_gains_by_the_choice_between_both() -> None:
    random = np.random.default_rng(0)
    drawn_gains = random.exponential(0.9, 100_000)
    for known in (0.0, 0.6, 2.0):
        assert gain_of_choice(0.9, known) == pytest.approx(np.maximum(drawn_gains, known).mean() - known, rel=0.05)
    assert gain_of_choice(0.0, 1.0) == 0


def test_requests_wait_for_each_other_to_be_read_in_one_pass() -> None:
    controller = new_controller(World({"head": 0.5}))
    pools = [controller.start(False) for _ in range(4)]
    check = pools[0].check("head")
    half = check // 2 + 1
    assert controller.choose_reads("head", pools, [1, 1, 1, 1], False) == []
    assert controller.choose_reads("head", pools, [check, half, 1, 1], False) == []
    assert controller.choose_reads("head", pools, [check, half, 1, 1], True) == [0, 1]
    assert controller.choose_reads("head", pools, [check, check, half, 1], False) == [0, 1, 2]
    assert controller.choose_reads("head", pools, [2 * check, 1, half, 1], False) == [0, 2]
    assert controller.choose_reads("head", [], [], False) == []
