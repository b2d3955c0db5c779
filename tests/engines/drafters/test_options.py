"""The table of drafters: what it says of a method is what the code does with it."""

from typing import Any

import numpy as np
import pytest

from draftpick.engines.config import Drafter, Engine
from draftpick.engines.drafter_options import DRAFTERS
from draftpick.engines.drafters.proposer import Proposer
from draftpick.engines.drafters.replay import model_free_drafter, replay_drafter, replayer
from draftpick.engines.drafters.trigram.proposer import TrigramProposer

pytest.importorskip("arctic_inference")

OWN = [method for method, spec in DRAFTERS.items() if spec.options is not None]
TEXT = np.asarray([11, 12, 13, 14] * 8, np.int32)


def drafter(method: str, **options: Any) -> Drafter:
    model = "a/b" if DRAFTERS[method].needs_model else None
    return Drafter.model_validate({"method": method, "model": model, "num_speculative_tokens": 4, **options})


def without_shared_text(method: str) -> Drafter:
    options: dict[str, Any] = {}
    if (sharing := DRAFTERS[method].shares_text_across_requests) is not None:
        sharing.switch_off(options)
    return drafter(method, **options)


@pytest.mark.parametrize("method", OWN)
def test_a_drafter_of_our_own_has_the_class_that_vllm_loads_and_its_options(method: str) -> None:
    spec = DRAFTERS[method]
    assert spec.class_path is not None
    assert spec.class_path.startswith("draftpick.engines.drafters.")
    made = model_free_drafter(without_shared_text(method), 4)
    proposers = {f"{one.__module__}.{one.__name__}": one for one in Proposer.__subclasses__()}
    assert proposers[spec.class_path].options is spec.options
    assert type(made) is type(proposers[spec.class_path].build(spec.options(), 4))  # type: ignore[misc]


@pytest.mark.parametrize("method", [m for m, spec in DRAFTERS.items() if spec.model_free])
def test_a_drafter_without_a_model_replays_if_and_only_if_the_table_says_so(method: str) -> None:
    if not DRAFTERS[method].replayable:
        with pytest.raises(ValueError, match=f"{method}.*is not replayable"):
            replayer(drafter(method), [4], "")
        return
    found = replayer(without_shared_text(method), [4], "")(TEXT[:8], TEXT[8:])
    assert found[4].acceptance_length > 2


@pytest.mark.parametrize("method", [m for m, spec in DRAFTERS.items() if not spec.model_free and not spec.replayable])
def test_a_drafter_with_a_model_of_an_unknown_format_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match="is not replayable"):
        replayer(drafter(method), [4], "")


def test_shared_text_is_found_and_switched_off_where_the_options_hold_it() -> None:
    hybrid = DRAFTERS["hybrid"].shares_text_across_requests
    assert hybrid is not None
    options: dict[str, Any] = {"trigram": {"shared": True, "iterations": 9}}
    assert hybrid.value(options) is True
    assert hybrid.value({"trigram": None}) is False
    hybrid.switch_off(options)
    assert options == {"trigram": {"shared": False, "iterations": 9}}
    suffix = DRAFTERS["suffix"].shares_text_across_requests
    assert suffix is not None
    assert suffix.value({"suffix_decoding_max_cached_requests": 3}) == 3
    assert suffix.value({}) == 10_000


def test_packages_are_those_of_the_parts_that_are_named() -> None:
    assert DRAFTERS["hybrid"].needed_packages({}) == {"arctic-inference"}
    assert DRAFTERS["hybrid"].needed_packages({"parts": ["ngram", "trigram"]}) == set()
    assert DRAFTERS["suffix"].needed_packages({"suffix_decoding_max_tree_depth": 8}) == {"arctic-inference"}


@pytest.mark.parametrize(
    ("fields", "replays"),
    [
        ({}, True),
        ({"drafter": {"method": "ngram"}}, True),
        ({"drafter": {"method": "medusa", "model": "a/b"}}, False),
        ({"kind": "mock"}, False),
        ({"kind": "mock", "drafter": {"method": "ngram"}}, False),
        ({"url": "http://10.0.0.7:8000"}, False),
        ({"url": "http://10.0.0.7:8000", "drafter": {"method": "ngram"}}, True),
    ],
)
def test_engines_whose_acceptance_follows_from_the_target_s_answers(fields: dict[str, Any], replays: bool) -> None:
    assert Engine.model_validate({"name": "one", **fields}).can_replay is replays


def test_a_replayed_drafter_is_the_one_that_vllm_would_load() -> None:
    made = model_free_drafter(drafter("trigram", learn_prompt=False), 4)
    other = TrigramProposer.build(TrigramProposer.options(learn_prompt=False), 4)
    ours, theirs = (replay_drafter(one, TEXT[:8], TEXT[8:]) for one in (made, other))
    np.testing.assert_array_equal(ours.accepted, theirs.accepted)
