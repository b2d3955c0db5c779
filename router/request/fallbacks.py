"""Where a request may be sent next by a gateway that sends it itself, if the chosen engine fails."""

from draftpick.engines.arms import engine_of
from draftpick.engines.replicas import Replica, ReplicaTable
from draftpick.router.request.decision import DecisionMaker
from draftpick.router.request.state import RequestState


def fallbacks(
    state: RequestState, replicas: ReplicaTable, decide: DecisionMaker, most: int
) -> list[tuple[str, Replica]]:
    """Other replicas for a request, the best first, each with its engine."""
    decision, tried, found = state.decision, set(state.tried), list[tuple[str, Replica]]()
    predicted = decision.predicted_tpot_s
    cost = [-p for p in decision.probabilities.values()] if predicted is None else predicted
    others = [arm for _, arm in sorted(zip(cost, decision.probabilities, strict=True))]
    eligible, _ = decide.healthy(replicas.eligible(tried))
    for arm in (decision.arm, *others):
        able = arm in eligible and engine_of(arm) not in state.unable
        if len(found) < most and able and (replica := replicas.pick(arm, tried)) is not None:
            tried.add(replica)
            found.append((engine_of(arm), replica))
    return found
