"""Lexical features: each says what its name promises, and all are finite whatever is asked."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftpick.router.features.lexical import FEATURES, lexical_features
from draftpick.router.openai_request import Request
from tests.fleet import CHAT


def features(text: str = "", turns: int = 1, structured: bool = False, **sampling: float) -> dict[str, float]:
    made = lexical_features(Request(CHAT, b"", text, sampling=sampling, turns=turns, structured=structured))
    return dict(zip(FEATURES, made.tolist(), strict=True))


def test_what_is_not_said_has_defaults() -> None:
    found = features()
    assert found.pop("temperature") == 1.0
    assert found.pop("log_max_tokens") == pytest.approx(np.log1p(256) / 10)
    assert found.pop("log_turns") == pytest.approx(np.log(2))
    assert set(found.values()) == {0.0}
    assert lexical_features(Request(CHAT, b"", ""))[0] == 1.0


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_every_spelling_of_the_limit_counts(name: str) -> None:
    assert features(**{name: 10})["log_max_tokens"] == pytest.approx(np.log1p(10) / 10)


def test_shares_are_of_all_characters() -> None:
    found = features("f(x);12345 né")
    assert found["log_chars"] == pytest.approx(np.log1p(13) / 10)
    assert found["code_share"] == pytest.approx(3 / 13)
    assert found["digit_share"] == pytest.approx(5 / 13)
    assert found["non_ascii_share"] == pytest.approx(1 / 13)


def test_repetition_is_the_share_of_pairs_that_came_before() -> None:
    assert features("one two three")["repetition"] == 0
    assert features("a b a b a b")["repetition"] == pytest.approx(3 / 5)
    assert features("word")["repetition"] == 0


@pytest.mark.parametrize(
    ("text", "edit", "json"),
    [
        ("Rename the function.", 1, 0),
        ("Tell me about additional prefixes.", 0, 0),
        ("Answer in JSON.", 0, 1),
        ("x" * 1000 + "\nFix the spelling.", 1, 0),
        ("x " * 300 + "rename" + " x" * 300, 0, 0),
    ],
)
def test_what_is_asked_is_read_at_the_ends(text: str, edit: float, json: float) -> None:
    found = features(text)
    assert (found["asks_edit"], found["asks_json"]) == (edit, json)


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("Repeat this, change nothing else.", {"asks_edit", "asks_whole"}),
        ("Change it. Nothing is missing, else all is lost.", {"asks_edit"}),
        ("Please SUMMARISE the whole story.", {"asks_new", "asks_whole"}),
        ("Fill in the table.", {"asks_new", "asks_json"}),
        ("The changed rewritten completion.", set()),
    ],
)
def test_what_is_asked_is_whole_words_and_pairs_of_words(text: str, asked: set[str]) -> None:
    found = features(text)
    assert {name for name in FEATURES if name.startswith("asks_") and found[name]} == asked


def test_a_prescribed_format_and_the_turns_count() -> None:
    found = features(structured=True, turns=5)
    assert found["asks_json"] == 1
    assert found["log_turns"] == pytest.approx(np.log(6))


@given(st.floats(-1e300, 1e300), st.floats(-1e300, 1e300), st.text(max_size=50), st.integers(0, 1000))
def test_features_are_finite_whatever_is_asked(temperature: float, limit: float, text: str, turns: int) -> None:
    made = lexical_features(
        Request(CHAT, b"", text, sampling={"temperature": temperature, "max_tokens": limit}, turns=turns)
    )
    assert made.shape == (len(FEATURES),)
    assert made.dtype == np.float32
    assert np.isfinite(made).all()
    assert 0 <= made[0] <= 2
