"""Ports that nobody has, of the loopback address."""

import random
import socket
from contextlib import suppress

_CANDIDATES = range(20_000, 32_000)
"""Between the ports of Ray's workers and those that kernels give to outgoing connections."""


def free_port() -> int:
    """Return a free port, which no outgoing connection takes until it is used. Raises OSError."""
    for port in random.SystemRandom().sample(_CANDIDATES, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port among 100")
