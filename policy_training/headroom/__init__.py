"""What routing would save against the best single engine, and when it does not pay."""
