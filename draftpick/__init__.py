"""Draftpick picks the right drafter for every request: `engines`, `router`, `policy_training`, `deploy`."""
