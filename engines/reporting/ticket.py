"""A ticket: what a request brings so that its engine reports its outcome, and to which router.

It is the header `x-draftpick-lease`: `<lease>;<address>;<HMAC-SHA256 of both, in hexadecimal>`. Routers and engines
share the secret of the HMAC: no client can make an engine call an address, or report on a lease that no router gave.
"""

import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from draftpick.engines.errors import ConfigError

HEADER = "x-draftpick-lease"
SECRET_VARIABLE, SECRET_FILE_VARIABLE = "DRAFTPICK_REPORT_SECRET", "DRAFTPICK_REPORT_SECRET_FILE"
"""Environment variables with the secret, and with the name of a file that holds it."""
_MIN_LENGTH = 16


@dataclass(frozen=True, slots=True)
class Ticket:
    """`lease`: its id, with the number of the address that was taken if that is not the first; `router`: base URL."""

    lease: str
    router: str

    def to_header(self, secret: str) -> str:
        """Return the value of the header."""
        return f"{self.lease};{self.router};{_signature(self, secret)}"

    @classmethod
    def from_header(cls, text: str, secret: str) -> "Ticket | None":
        """The ticket in a header; None for one that was not signed with this secret."""
        lease, _, rest = text.partition(";")
        router, _, signature = rest.rpartition(";")
        ticket = cls(lease, router)
        return ticket if hmac.compare_digest(signature.encode(), _signature(ticket, secret).encode()) else None

    @property
    def lease_id(self) -> str:
        """The lease's id alone: 32 hexadecimal digits."""
        return self.lease.partition(".")[0]


def _signature(ticket: Ticket, secret: str) -> str:
    return hmac.new(secret.encode(), f"{ticket.lease};{ticket.router}".encode(), hashlib.sha256).hexdigest()


def read_secret(environment: Mapping[str, str] = os.environ) -> str | None:
    """The secret of this process; None if it has none. Raises `ConfigError`."""
    secret, field = environment.get(SECRET_VARIABLE, "").strip(), SECRET_VARIABLE
    if not secret and (path := environment.get(SECRET_FILE_VARIABLE)):
        field = SECRET_FILE_VARIABLE
        try:
            secret = Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError):
            raise ConfigError(field, "is not readable", "name a file with the secret alone") from None
    elif not secret:
        return None
    if len(secret) < _MIN_LENGTH:
        raise ConfigError(field, f"is shorter than {_MIN_LENGTH} characters", "openssl rand -hex 32")
    return secret
