"""Held-out sets against what training has: an overlap is named in the row of evidence.yaml that counts on it."""

import re

import pytest

from draftpick.engines.models.embedded import drafter_path
from draftpick.policy_training.workloads import KINDS
from draftpick.policy_training.workloads.rewording import synonyms
from tests.bench.evidence import Row, specification
from tests.bench.figure_references import ROOT
from tests.bench.held_out import APART, listed

_GENERATED = re.compile(r"generated:(\w+)")
_DOMAIN = re.compile(r"(\w+)=generated:(\w+)")


def trained_on(head: str) -> set[str]:
    """Generated kinds among the training texts of a head, by its card."""
    return set(_GENERATED.findall((drafter_path(head) / "README.md").read_text()))


def row(key: str) -> Row:
    """The row of evidence.yaml that shows a figure of ladder.json."""
    [found] = [
        one
        for section in specification().sections
        for one in section.rows
        if one.of == "ladder.json" and one.key == key
    ]
    return found


@pytest.fixture(scope="module")
def training_domains() -> dict[str, str]:
    """Arm and kind of the texts that the policies of ladder.json know their drafters to be made for."""
    [line] = re.findall(r"^TRAINING_DOMAINS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return dict(_DOMAIN.findall(line))


def test_a_kind_left_out_is_not_trained_on_unless_its_row_says_so(training_domains: dict[str, str]) -> None:
    told = row("tau_cost/domain/vs_best_fixed").what
    said = {name for name in re.findall(r"`(\w+)`", told) if name in KINDS}
    assert said == set(training_domains.values()) & set(KINDS), "name the kinds whose training texts stay in"
    specialists = {kind for arm in training_domains for kind in trained_on(arm) & set(KINDS)}
    assert specialists == said, "a head is trained on a kind that the row does not name"
    assert ("`general`" in told) == (trained_on("general") == set(KINDS))


def test_new_verbs_are_in_no_word_list_unless_the_row_says_so() -> None:
    overlap = {word for synonym in synonyms().values() for word in listed(synonym)}
    assert set(re.findall(r"`(\w+)`", row("tau_cost/rewording/vs_best_fixed").what)) == overlap


def test_the_verbs_apart_are_in_no_word_list() -> None:
    assert APART.keys() == synonyms().keys()
    assert not {word for synonym in APART.values() for word in listed(synonym)}
