"""The gates of a retrained policy before live traffic: a new one is a function and a line here.

Live traffic has its own (`draftpick.policy_training.retraining.canary`).
"""

from draftpick.policy_training.retraining.gates.base import Gate
from draftpick.policy_training.retraining.gates.generalization import RefitInputs, left_out_domain, rewording
from draftpick.policy_training.retraining.gates.offline import (
    LoggedEvidence,
    dr_gain,
    effective_records,
    replay_gain,
    worst_slice,
)

OFFLINE: tuple[Gate[LoggedEvidence], ...] = (
    Gate("worst_slice", worst_slice),
    Gate("effective_records", effective_records),
    Gate("dr_gain", dr_gain),
    Gate("replay_gain", replay_gain),
)
"""Evaluate the candidate itself on later decisions of the active policy."""
REFIT: tuple[Gate[RefitInputs], ...] = (
    Gate("rewording", rewording),
    Gate("left_out_domain", left_out_domain),
)
"""Evaluate the learner: it is retrained on fewer requests, in minutes, so only after the other gates have passed."""
