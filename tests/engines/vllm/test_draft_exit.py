"""Draft lengths chosen by what tokens are likely to be accepted, and by what they cost."""

from collections.abc import Callable

import numpy as np

from draftpick.engines.vllm.draft_exit import DraftExit, Request

K = 4
COSTS = 0.02, 0.03, 0.05


def simulate(request: Request, probability: float, accepts: Callable[[int], bool], steps: int = 200) -> list[int]:
    """The proposed lengths of a request's steps; each token's draft has this probability."""
    lengths = []
    verified = accepted = 0
    for _ in range(steps):
        request.score(verified, accepted)
        verified = accepted = 0
        if request.drafts():
            for _ in range(K):
                if not request.add(probability):
                    break
            verified = request.length()
            while accepted < verified and accepts(accepted):
                accepted += 1
        lengths.append(verified)
    return lengths


def test_a_request_whose_drafts_are_accepted_gets_long_ones() -> None:
    lengths = simulate(DraftExit(*COSTS).start(sampled=False), 0.9, lambda _: True)
    assert np.mean(lengths[50:]) > K - 0.1


def test_a_request_that_its_head_slows_down_is_seldom_asked() -> None:
    lengths = simulate(DraftExit(*COSTS).start(sampled=False), 0.9, lambda _: False)
    assert np.mean([length > 0 for length in lengths[100:]]) < 0.1


def test_a_request_whose_text_becomes_predictable_drafts_again() -> None:
    request = DraftExit(*COSTS).start(sampled=False)
    simulate(request, 0.5, lambda _: False)
    assert np.mean(simulate(request, 0.9, lambda _: True, steps=400)[-50:]) > 3


def test_the_length_follows_the_survival_of_a_draft() -> None:
    shared, random = DraftExit(*COSTS), np.random.default_rng(0)
    sure, unsure = (
        simulate(shared.start(sampled=False), p, lambda _, p=p: bool(random.random() < p), steps=1000)  # type: ignore[misc]
        for p in (0.95, 0.4)
    )
    assert np.mean(sure) > np.mean(unsure) + 1


def test_what_costs_nothing_is_always_drafted() -> None:
    lengths = simulate(DraftExit(0.0, 0.0, 0.0).start(sampled=False), 0.2, lambda _: False)
    assert min(lengths) == K


def test_sampled_and_greedy_requests_are_learned_apart() -> None:
    shared = DraftExit(*COSTS)
    simulate(shared.start(sampled=True), 0.9, lambda _: False)
    greedy = shared.start(sampled=False)
    assert greedy.drafts()
    assert greedy.add(0.9)
