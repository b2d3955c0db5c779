"""Estimated saving of routing against the best single engine, and when routing does not pay."""
