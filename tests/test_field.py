"""How scripts of reports are judged."""

import pytest

from tests.bench.field import Judgement, judgements


@pytest.mark.parametrize(
    ("fields", "output", "verdict"),
    [
        ({}, "PASS  one\nINFO  x\n", "pass"),
        ({}, "PASS  one\nFAIL  two\n", "fail: FAIL  two"),
        ({}, "Traceback (most recent call last):\n", "fail: it printed no verdict"),
        ({"outdated": ["two$"]}, "PASS  one\nFAIL  two\n", "pass"),
        ({"outdated": ["two$"]}, "FAIL  two\nFAIL  three\n", "fail: FAIL  three"),
        ({"shows": ["^a: 1$"]}, "x\na: 1\n", "pass"),
        ({"shows": ["^a: 1$"]}, "a: 10\n", "fail: not found: ^a: 1$"),
        ({"shows": ["a"], "never": ["secret.*"]}, "a secret\n", "fail: secret"),
    ],
)
def test_an_output_is_judged_by_its_lines(fields: dict[str, list[str]], output: str, verdict: str) -> None:
    assert Judgement.model_validate(fields).judge(output) == verdict


def test_what_a_script_lacks_is_said() -> None:
    assert Judgement(needs=["python3", "re"]).missing() == ""
    assert Judgement(needs=["no-such-program", "$NO_SUCH_VARIABLE"]).missing() == (
        "needs no-such-program, $NO_SUCH_VARIABLE"
    )
    assert Judgement(not_run="it reads private lists").missing() == "it reads private lists"


def test_every_judgement_says_what_is_expected() -> None:
    assert all(
        one.expected and (one.shows or one.outdated or one.missing() or one.needs) for one in judgements().values()
    )
