"""Who may do what: by key, or without keys by where a request comes from."""

from collections.abc import Sequence
from ipaddress import ip_address

from draftpick.router.errors import Forbidden
from draftpick.router.http.asgi import HttpRequest
from draftpick.router.http.auth import ANONYMOUS, Key, Keyring, require_scope

_FORWARDED = ("forwarded", "x-forwarded-", "x-real-ip", "via", "cf-connecting-ip", "true-client-ip")
"""Beginnings of headers of proxies: the client behind one is not on this machine, whatever the connection says."""
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Access:
    """Authenticates requests by `keys`. Without any, administration is for clients on this machine that name a host of
    ours."""

    def __init__(self, keys: Keyring, hosts: Sequence[str], local_admin: bool) -> None:
        """`hosts`: further names of this router; `local_admin`: whether clients on this machine need no key."""
        self.keys, self._hosts, self._local_admin = keys, frozenset(map(str.lower, hosts)), local_admin

    def key(self, http_request: HttpRequest) -> Key:
        """The key of a request. Raises `Unauthorized`, and `Forbidden` for a foreign page in a browser."""
        if self.keys.enabled:
            return self.keys.authenticate(http_request.header_values)
        if "origin" in http_request.header_values:
            self._check_origin(http_request)
        return ANONYMOUS

    def require_admin(self, http_request: HttpRequest, purpose: str) -> Key:
        """The key of a request for administration. Raises `Unauthorized` or `Forbidden`."""
        key = self.key(http_request)
        if key is not ANONYMOUS:
            require_scope(key, "admin", purpose)
        elif not self._local_admin or not _is_local(http_request) or not self._is_ours(http_request):
            raise Forbidden(
                f"{purpose} needs a key (router.keys), or a client on this machine that names a host of `router.hosts`",
                code="keys_needed",
            )
        return key

    def _is_ours(self, http_request: HttpRequest) -> bool:
        """True if `Host` is no name by which a foreign page could reach this address (DNS rebinding).

        Such a name has a domain: addresses and single labels are safe.
        """
        name = _host_name(http_request.header_values.get("host", ""))
        return "." not in name or name.endswith(".localhost") or name in self._hosts or _is_address(name)

    def _check_origin(self, http_request: HttpRequest) -> None:
        """Raise `Forbidden` if a page of another origin would change something: browsers send such requests unasked."""
        if http_request.scope["method"] in _SAFE_METHODS:
            return
        headers = http_request.header_values
        if headers["origin"].partition("://")[2] != headers.get("host") or not self._is_ours(http_request):
            raise Forbidden("pages of other origins may not send this", code="foreign_origin")


def _is_local(http_request: HttpRequest) -> bool:
    if any(name.startswith(_FORWARDED) for name in http_request.header_values):
        return False
    client = http_request.scope.get("client")
    return client is None or (_is_address(client[0]) and ip_address(client[0]).is_loopback)


def _host_name(host: str) -> str:
    """The name or address in a `Host` header, in lower case, without its port."""
    return (host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]).lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
