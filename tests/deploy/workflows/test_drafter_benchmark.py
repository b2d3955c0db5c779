"""The table's figures from measurements made by hand: ratios, spread, halves, oracles, and what is left out."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from draftpick.deploy.workflows.drafter_benchmark import read_table, report
from draftpick.engines.config import Engine
from draftpick.policy_training.data.dataset import Measurement, save
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.workloads import Prompt
from draftpick.router.types import Outcome

ENGINES = [
    Engine.model_validate(fields)
    for fields in (
        {"name": "plain"},
        {"name": "suffix", "drafter": {"method": "suffix"}},
        {"name": "head", "drafter": {"method": "eagle3", "model": "m"}},
    )
]
STEP_S = {
    "math": {"plain": 0.03, "suffix": 0.03, "head": 0.015},
    "edit": {"plain": 0.03, "suffix": 0.01, "head": 0.03},
}


def measured(kind: str, number: int, arm: str, **changes: float) -> Measurement:
    prompt = Prompt(f"{kind}-{number}", kind, "text", 0.7 if number % 2 else 0.0)
    fields = {"ttft_s": 0.0, "tpot_s": STEP_S[kind][arm], "output_tokens": 11, **changes}
    if arm != "plain":
        fields |= {"acceptance_length": 2.0, "acceptance_rate": 0.5}
    return Measurement.from_prompt(prompt, arm, arm, Outcome("ok", 200, **fields), degenerate_repetition=number == 0)  # type: ignore[arg-type]


def repeat() -> list[Measurement]:
    return [measured(kind, i, engine.name) for kind in STEP_S for i in range(4) for engine in ENGINES]


@pytest.fixture
def console() -> Iterator[Console]:
    with Path("/dev/null").open("w") as nowhere:
        yield Console(file=nowhere)


def figures(repeats: list[list[Measurement]], folder: Path, console: Console) -> dict[str, Interval]:
    return report(repeats, ENGINES, "plain", folder, None, console)


def test_what_a_step_costs_beside_one_without_a_drafter(tmp_path: Path, console: Console) -> None:
    found = figures([repeat(), repeat()], tmp_path, console)
    assert found["step_cost/plain"].value == 1
    assert found["step_cost/head"].value == pytest.approx((0.015 + 0.03) * 2 / 2 / 0.03)
    assert found["step_cost/suffix"].value == pytest.approx((0.03 + 0.01) * 2 / 2 / 0.03)


def test_a_pool_has_a_row_for_each_of_its_drafters(tmp_path: Path, console: Console) -> None:
    head = {"name": "head", "method": "eagle3", "model": "m"}
    pool = Engine.model_validate({"name": "pool", "drafters": [{"name": "suffix", "method": "suffix"}, head]})
    renamed = {"plain": "pool/none", "suffix": "pool/suffix", "head": "pool/head"}
    some = [replace(m, arm=renamed[m.arm], label=renamed[m.arm]) for m in repeat()]
    found = report([some], [pool], "pool", tmp_path, None, console)
    assert found["step_cost/pool/none"].value == 1
    assert found["speedup/pool/head/math"].value == pytest.approx(2.0, rel=0.01)
    assert found["trained_fastest_arms"].value == 1


def test_a_step_costs_what_the_prompts_say_that_every_engine_answered(tmp_path: Path, console: Console) -> None:
    broken = [
        replace(m, outcome=replace(m.outcome, status="broken", tpot_s=9.0))
        if m.arm == "head" and not m.prompt_id.endswith("-0")
        else m
        for m in repeat()
    ]
    found, whole = (figures([one], tmp_path, console)["step_cost/head"] for one in (broken, repeat()))
    assert found == whole


def test_speed_ups_and_acceptance_by_engine_and_kind(tmp_path: Path, console: Console) -> None:
    found = figures([repeat(), repeat()], tmp_path, console)
    assert found["speedup/head/math"].value == pytest.approx(2)
    assert found["speedup/suffix/edit"].value == pytest.approx(3)
    assert found["speedup/head/all"].value == pytest.approx(0.06 / 0.045)
    assert found["acceptance_length/head/math"].value == 2
    assert found["acceptance_rate/head/math"].value == 0.5
    assert "acceptance_rate/plain/math" not in found
    assert found["looping_share"].value == 0.25
    assert {"greedy/speedup/head/math", "sampled/speedup/head/math", "without_loops/speedup/head/all"} <= set(found)


def test_the_oracles_choose_by_kind_and_by_request(tmp_path: Path, console: Console) -> None:
    found = figures([repeat(), repeat()], tmp_path, console)
    # The best fixed engine is suffix, 0.04 s for both kinds; the best of each kind takes 0.025 s.
    assert found["oracle_domain_vs_best_fixed"].value == pytest.approx(0.04 / 0.025)
    assert found["oracle_request_vs_best_fixed"].value == pytest.approx(0.04 / 0.025)
    assert found["trained_fastest_arms"].value == 1
    assert found["best_home_speedup"].value == pytest.approx(2)


def test_an_oracle_does_not_choose_by_its_own_luck(tmp_path: Path, console: Console) -> None:
    lucky = [
        measured(m.task, int(m.prompt_id[-1]), m.arm, tpot_s=0.001) if (m.task, m.arm) == ("edit", "plain") else m
        for m in repeat()
    ]
    found = figures([repeat(), lucky], tmp_path, console)
    # Judged on the first repeat it believes in plain for edits, and pays for it; on the lucky one it does not know.
    oracle = found["oracle_domain_vs_best_fixed"]
    assert (oracle.low, oracle.high) == (pytest.approx(0.06 / 0.045), pytest.approx(0.04 / 0.025))


def test_the_spread_is_that_of_the_repeats(tmp_path: Path, console: Console) -> None:
    slow = [measured(m.task, int(m.prompt_id[-1]), m.arm, tpot_s=0.02) if m.arm == "head" else m for m in repeat()]
    speedup = figures([repeat(), slow], tmp_path, console)["speedup/head/math"]
    assert (speedup.low, speedup.high) == (pytest.approx(1.5), pytest.approx(2))


def test_a_prompt_that_one_repeat_lacks_is_left_out_of_all(tmp_path: Path, console: Console) -> None:
    whole, cut = repeat(), [m for m in repeat() if (m.prompt_id, m.arm) != ("math-3", "head")]
    figures([whole, cut], tmp_path, console)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["n"], summary["left_out"], summary["repeats"]) == (7, 1, 2)


def test_without_a_trained_engine_no_home_is_told(tmp_path: Path, console: Console) -> None:
    untrained = [[m for m in repeat() if m.arm != "head"]]
    found = report(untrained, ENGINES[:2], "plain", tmp_path, None, console)
    assert "best_home_speedup" not in found
    assert found["trained_fastest_arms"].value == 0
    json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)


def test_what_was_measured_is_read_again(tmp_path: Path) -> None:
    save(tmp_path / "table-0.parquet", repeat())
    save(tmp_path / "table-1.parquet", repeat())
    assert read_table(tmp_path) == [repeat(), repeat()]


def test_nothing_measured_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="measure without --report-only first"):
        read_table(tmp_path)
