"""The gate of docs/extending.md: among the gates of a retraining, and it rejects what leaves the known arms."""

from dataclasses import replace

from draftpick.policy_training.retraining import pipeline
from tests.bench.gates import ARMS
from tests.policy_training.retraining.gates.test_offline import BETTER, judged, refused


def test_a_candidate_for_arms_without_records_is_rejected() -> None:
    assert "familiar_arms" in [gate.name for gate in pipeline.OFFLINE]
    assert "familiar_arms" not in refused(judged(BETTER))
    assert "familiar_arms" in refused(judged(replace(BETTER, candidate=(BETTER.active + 1) % ARMS), n=60))
