"""Requests to simulate: from a file, from a dataset, from records; and when they come."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from draftpick.engines.profile.profile import Profile
from draftpick.policy_training.data.dataset import Dataset, DatasetError, Measurement
from draftpick.policy_training.data.from_records import from_records
from draftpick.policy_training.simulator.arrivals import Bursts, poisson, rotate
from draftpick.policy_training.simulator.traffic import (
    RecordedTraffic,
    SyntheticTraffic,
    dataset_traffic,
    read_spec,
    records_traffic,
)
from draftpick.router.types import Outcome
from tests.policy_training.bandit import ARMS
from tests.policy_training.data.test_from_records import record, write
from tests.policy_training.simulated import profile, requests

PROFILES: dict[str, Profile] = {name: profile(0.01) for name in ARMS}


def test_arrivals_have_the_rate_that_was_asked_for() -> None:
    gaps = np.diff(poisson(40_000, 5.0, np.random.default_rng(0)))
    assert gaps.mean() == pytest.approx(0.2, rel=0.02)
    assert gaps.std() == pytest.approx(0.2, rel=0.03)


def test_crowds_come_when_they_are_due_and_as_many_as_they_are() -> None:
    at_s = poisson(60_000, 5.0, np.random.default_rng(0), Bursts(100.0, 20.0, 4.0))
    within = at_s % 100.0
    whole = at_s[-1] // 100.0
    kept = at_s < whole * 100.0
    assert (within[kept] < 80.0).sum() / (whole * 80.0) == pytest.approx(5.0, rel=0.05)
    assert (within[kept] >= 80.0).sum() / (whole * 20.0) == pytest.approx(20.0, rel=0.05)
    with pytest.raises(ValueError, match="shorter than"):
        Bursts(10.0, 20.0, 4.0)


def test_traffic_that_begins_elsewhere_keeps_its_pauses_and_neighbours() -> None:
    some = requests([0.0, 1.0, 1.5, 6.0], {"a": [1.0, 2.0, 3.0, 4.0]})
    turned = rotate(some, 2)
    assert turned.tau[:, 0].tolist() == [3.0, 4.0, 1.0, 2.0]
    assert turned.arrival_s == pytest.approx([0.0, 4.5, 6.5, 7.5])  # the pause over the seam is a mean one


def test_recorded_traffic_comes_as_fast_as_is_asked_for() -> None:
    some = requests(list(poisson(500, 2.0, np.random.default_rng(0))), {"a": 1.0})
    faster = RecordedTraffic(some, rate=8.0)(3)
    assert len(faster) == 500
    assert 499 / faster.arrival_s[-1] == pytest.approx(8.0, rel=1e-6)
    assert len(RecordedTraffic(some, n=50)(3)) == 50
    assert RecordedTraffic(some)(3).arrival_s.tolist() == RecordedTraffic(some)(3).arrival_s.tolist()
    assert RecordedTraffic(some)(3).arrival_s.tolist() != RecordedTraffic(some)(4).arrival_s.tolist()


def test_a_file_says_kinds_lengths_and_acceptance(tmp_path: Path) -> None:
    file = tmp_path / "traffic.yaml"
    file.write_text(
        "{rate: 3, spread: 0.3, kinds: {math: {share: 3, output_tokens: 100, sampled: 0, tau: {eagle: 3.0}},"
        " chat: {prompt_tokens: 50, output_tokens: 300, sampled: 1}}}"
    )
    made = SyntheticTraffic(read_spec(str(file)).rows(["eagle", "plain"]), 20_000, 3.0)(0)
    math = made.kind == made.kinds.index("math")
    assert math.mean() == pytest.approx(0.75, abs=0.02)
    assert made.tau[math, 0].mean() == pytest.approx(3.0, rel=0.02)
    assert made.tau[math, 0].std() > 0.3
    assert (made.tau[~math] == 1).all()
    assert (made.tau[:, 1] == 1).all()
    assert made.output_tokens[~math].mean() == pytest.approx(300, rel=0.05)
    assert made.prompt_tokens[~math].mean() == pytest.approx(50, rel=0.05)
    assert (made.sampled == ~math).all()
    assert len(made) / made.arrival_s[-1] == pytest.approx(3.0, rel=0.05)


def test_the_file_that_ships_covers_the_embedded_fleet() -> None:
    spec = read_spec("six_kinds")
    assert len(spec.kinds) == 6
    assert all(set(kind.tau) == {"suffix", "hybrid", "general", "math", "code", "chat"} for kind in spec.kinds.values())


def test_a_wrong_file_is_refused_with_the_field(tmp_path: Path) -> None:
    file = tmp_path / "traffic.yaml"
    file.write_text("{kinds: {math: {tau: {eagle: 0.5}}}}")
    with pytest.raises(DatasetError, match=r"kinds\.math\.tau\.eagle"):
        read_spec(str(file))
    with pytest.raises(DatasetError, match="six_kinds"):
        read_spec("seven_kinds")


def test_a_mix_has_the_shares_that_were_asked_for() -> None:
    rows = read_spec("six_kinds").rows(["general"])
    made = rows.draw(5000, np.random.default_rng(0), {"math": 3.0, "chat": 1.0})
    counts = np.bincount(made.kind, minlength=len(made.kinds))
    assert counts[made.kinds.index("math")] / 5000 == pytest.approx(0.75, abs=0.03)
    assert counts[made.kinds.index("edit")] == 0
    with pytest.raises(DatasetError, match="no request of kind poems"):
        rows.draw(10, np.random.default_rng(0), {"poems": 1.0})


def test_a_dataset_gives_requests_with_what_every_engine_accepted_of_them() -> None:
    cells = []
    for number in range(5):
        for arm, tau in (("plain", None), ("ngram", 1.0 + number)):
            outcome = Outcome("ok", 200, prompt_tokens=20 + number, output_tokens=50, acceptance_length=tau)
            cells.append(Measurement(f"math-{number}", "math", arm, arm, 0.7, 64, outcome, source="replay"))
    made = dataset_traffic(Dataset(tuple(cells)), {name: PROFILES[name] for name in ("plain", "ngram")})
    assert made.columns == ("plain", "ngram")
    assert made.tau.tolist() == [[1.0, 1.0 + n] for n in range(5)]
    assert made.prompt_tokens.tolist() == [20, 21, 22, 23, 24]
    assert made.sampled.all()


def test_records_give_requests_as_they_came(tmp_path: Path) -> None:
    records = []
    for number in range(300):
        one = record(number)
        records.append(replace(one, time=1e6 + number, outcome=replace(one.outcome, e2e_s=0.25)))
    made = records_traffic(from_records(write(tmp_path, records)), PROFILES)
    assert len(made) == 300
    assert made.columns == ARMS
    assert made.arrival_s.tolist() == pytest.approx(list(range(300)))
    own = [max(r.outcome.acceptance_length or 1.0, 1.0) for r in records]
    arms = [ARMS.index(r.decision.arm) for r in records]
    assert made.tau[np.arange(300), arms] == pytest.approx(own)
    assert made.output_tokens.tolist() == [r.outcome.output_tokens for r in records]
