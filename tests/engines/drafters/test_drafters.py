from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftpick.engines.drafter_options import HybridOptions, SuffixOptions, TrigramOptions
from draftpick.engines.drafters.acceptance import DrafterReplay
from draftpick.engines.drafters.hybrid import HybridDrafter, HybridProposer, SuffixProposer, build_parts
from draftpick.engines.drafters.prompt_lookup import NgramDrafter, longest_match
from draftpick.engines.drafters.proposer import Drafter
from draftpick.engines.drafters.replay import count_agreed, replay_drafter, replay_matches
from draftpick.engines.drafters.suffix import SuffixDrafter
from draftpick.engines.drafters.trigram.proposer import CAP, RATE, TrigramDrafter, TrigramProposer
from draftpick.engines.drafters.trigram.table import find

pytest.importorskip("arctic_inference")


def ids(*tokens: int) -> Any:
    return np.asarray(tokens, np.int32)


PHRASE = [11, 12, 13, 14, 15, 16, 17, 18]
K = 4


def drafters() -> dict[str, Drafter]:
    return {
        "ngram": NgramDrafter(K),
        "suffix": SuffixDrafter(K),
        "trigram": TrigramDrafter(TrigramOptions(), K),
        "hybrid": HybridDrafter(build_parts(HybridOptions(), K), K, 0.03),
    }


@pytest.mark.parametrize("name", drafters())
def test_text_that_repeats_itself_is_copied(name: str) -> None:
    answer = ids(*(PHRASE * 6))
    assert replay_drafter(drafters()[name], ids(1, 2, 3), answer).acceptance_length > 2


@pytest.mark.parametrize("name", drafters())
def test_text_without_repeats_gets_one_token_a_step(name: str) -> None:
    replayed = replay_drafter(drafters()[name], ids(1, 2, 3), ids(*range(100, 150)))
    assert replayed.acceptance_length == 1.0
    assert len(replayed.accepted) == 49


@pytest.mark.parametrize("name", drafters())
def test_drafts_keep_to_the_limit(name: str) -> None:
    drafter, tokens = drafters()[name], ids(*(PHRASE * 4))
    state = drafter.start(tokens)
    for limit in (0, 1, 3, 100):
        assert len(drafter.draft(state, tokens, limit)[0]) <= min(limit, K)
    drafter.end(state)


@pytest.mark.vllm
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 3), st.integers(0, 4))
def test_ngram_drafts_are_those_of_vllm(tokens: list[int], shortest: int, more: int) -> None:
    from vllm.v1.spec_decode.ngram_proposer import _find_longest_matched_ngram_and_propose_tokens as propose

    text, longest = ids(*tokens), shortest + more
    ours = NgramDrafter.as_in_vllm(K, {"prompt_lookup_min": shortest, "prompt_lookup_max": longest})
    assert ours.draft(None, text, K)[0].tolist() == propose(text, shortest, longest, 2**30, K).tolist()


def test_the_longest_and_latest_match_wins() -> None:
    assert longest_match(ids(1, 2, 3, 9, 2, 3, 7, 2, 3), 8) == (6, 2)
    assert longest_match(ids(1, 2, 3, 7, 2, 3, 8, 1, 2, 3), 8) == (3, 3)
    assert longest_match(ids(1, 2, 3), 8) == (3, 0)


def test_weights_follow_the_paper_s_rule() -> None:
    drafter = TrigramDrafter(TrigramOptions(learn_prompt=False), K)
    own = drafter.start(ids(1, 2))
    tokens = ids(1, 2, 3)
    drafter.learn(own, tokens, 1)
    slot = find(own, 1, 2)
    assert own.weights[slot, 0] == pytest.approx(RATE)
    for _ in range(200):
        drafter.learn(own, tokens, 1)
    assert own.weights[slot].max() == pytest.approx(CAP)


@pytest.mark.parametrize("shared", [False, True])
def test_one_request_s_text_reaches_another_only_where_it_is_shared(shared: bool) -> None:
    drafter = TrigramDrafter(TrigramOptions(shared=shared), K)
    replay_drafter(drafter, ids(1, 2), ids(*(PHRASE * 3)))
    other = drafter.start(ids(5, 11, 12))
    assert bool(len(drafter.draft(other, ids(5, 11, 12), K)[0])) is shared


def test_only_a_prefix_is_accepted() -> None:
    assert [count_agreed(ids(*draft), ids(1, 2, 3)) for draft in ((1, 2), (1, 9, 3), (9, 2, 3), (1, 2, 3, 4))] == [
        2,
        1,
        0,
        3,
    ]


class Scripted:
    """Drafts the answer that it was given, right or wrong."""

    def __init__(self, answer: Any, right: bool) -> None:
        self.answer, self.right = answer, right

    def start(self, tokens: Any) -> None: ...
    def learn(self, state: None, tokens: Any, new: int) -> None: ...
    def end(self, state: None) -> None: ...

    def draft(self, state: None, tokens: Any, limit: int) -> tuple[Any, float]:
        draft = self.answer[len(tokens) - 1 : len(tokens) - 1 + min(limit, K)]
        return (draft if self.right else draft + 1), 3.0


def test_the_hybrid_learns_within_an_answer_which_part_is_right() -> None:
    answer = ids(*range(100, 200))
    hybrid = HybridDrafter([Scripted(answer, False), Scripted(answer, True)], K, 0.03)
    replayed = replay_drafter(hybrid, ids(1), answer)
    assert replayed.accepted[-10:].tolist()[:9] == [K] * 9
    assert replayed.acceptance_length > 4


def test_the_hybrid_stops_drafting_when_no_part_earns_its_cost() -> None:
    answer = ids(*range(100, 200))
    hybrid = HybridDrafter([Scripted(answer, False)], K, 0.1)
    assert replay_drafter(hybrid, ids(1), answer).drafted[-20:].sum() == 0


def own_text(token_cost: float) -> SuffixOptions:
    return SuffixOptions(token_cost=token_cost, suffix_decoding_max_cached_requests=0)


def test_suffixes_keep_their_length_where_tokens_are_free_and_lose_what_fails_where_they_are_not() -> None:
    answer = np.random.default_rng(0).integers(0, 5, 300).astype(np.int32)
    full = replay_drafter(SuffixDrafter(K), ids(1, 2), answer)
    free, dear = (replay_drafter(SuffixProposer.build(own_text(cost), K), ids(1, 2), answer) for cost in (0, 0.5))
    assert free.drafted.tolist() == full.drafted.tolist()
    assert dear.drafted.sum() < full.drafted.sum() / 4


def test_suffixes_of_other_answers_are_kept_as_configured() -> None:
    for kept in (0, 5):
        drafter = SuffixProposer.build(SuffixOptions(token_cost=0, suffix_decoding_max_cached_requests=kept), K)
        replay_drafter(drafter, ids(1, 2), ids(*PHRASE))
        tokens = ids(7, *PHRASE[:4])
        assert bool(len(drafter.draft(drafter.start(tokens), tokens, K)[0])) is (kept > 0)


def vllm_config(k: int, **options: Any) -> Any:
    return SimpleNamespace(
        additional_config={"drafter": options},
        speculative_config=SimpleNamespace(num_speculative_tokens=k),
        model_config=SimpleNamespace(max_model_len=64),
    )


@pytest.mark.parametrize("proposer_class", [TrigramProposer, SuffixProposer, HybridProposer])
def test_a_batch_is_proposed_row_by_row(proposer_class: Any) -> None:
    proposer = proposer_class(vllm_config(K))
    proposer.load_model()
    rows = np.zeros((4, 64), np.int32)
    rows[0, :24] = PHRASE * 3
    rows[1, :3] = [1, 2, 3]
    drafts = proposer.propose([[18], [3], []], np.asarray([24, 3, 9, 0]), rows, slot_mappings=None)
    assert drafts == [[11, 12, 13, 14], [], []]
    rows[0, 24:26] = [11, 12]
    drafts = proposer.propose([[11, 12], []], np.asarray([26, 3, 0, 0]), rows)
    assert drafts == [[13, 14, 15, 16], []]


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="no_such"):
        TrigramProposer(vllm_config(K, no_such=1))


def test_replay_of_matches_is_the_block_simulation() -> None:
    matches = np.asarray([1, 1, 1, 0, 1, 1, 1, 1, 1, 0], np.bool_)
    replayed = replay_matches(matches, 3)
    # From place 1: two right, then the target's own; from 4: three right and one more; from 8: one right, and the last.
    assert replayed.accepted.tolist() == [2, 3, 1]
    assert replay_matches(np.zeros(5, np.bool_), 3).acceptance_length == 1.0
    assert DrafterReplay(ids(), ids()).acceptance_length == 1.0
