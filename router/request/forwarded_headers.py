"""Which headers pass: of a request to an engine, and of an engine's answer to the client.

Headers of one connection (RFC 9110, 7.6.1) and of one hop of Draftpick stay here in both directions.
"""

from collections.abc import Collection
from urllib.parse import urlsplit, urlunsplit

from draftpick.engines.http.client import Headers
from draftpick.router.headers import CLIENT_REQUEST_ID, OWN_PREFIX

_HOP_BY_HOP = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization", "te", "trailer"),
        *("transfer-encoding", "upgrade", "http2-settings", "host", "content-length", "expect", "accept-encoding"),
    }
)
_STEERS_ENGINES = frozenset({"x-data-parallel-rank", "x-vllm-priority", "x-session-id"})
"""What vLLM does by itself with these is the router's decision."""
_OF_THE_CLIENT = frozenset({"cookie", "x-api-key", "api-key", "origin", "referer"})
"""Secrets for the router, and what only browsers say."""
_OF_PROXIES = frozenset(
    {"forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto", "x-real-ip"}
)
"""Claims about the client that an engine might believe."""
_INFLATED = frozenset({"content-encoding"})
"""Bodies are sent decompressed."""
_NOT_SENT = _HOP_BY_HOP | _STEERS_ENGINES | _OF_THE_CLIENT | _OF_PROXIES | _INFLATED | {CLIENT_REQUEST_ID}  # ours
_NOT_SENT_BY_KEY = _NOT_SENT | {"authorization"}
_NOT_RETURNED = _HOP_BY_HOP | {"date", "server", CLIENT_REQUEST_ID}
_NOT_RETURNED_PREFIXES = ("access-control-", OWN_PREFIX)


def headers_for_engine(sent: Headers, request_id: str, *, with_authorization: bool) -> Headers:
    """The client's headers that an engine gets, and the request's id. Names in `sent` are in lower case.

    `with_authorization`: false if the router itself has read it.
    """
    dropped = _NOT_SENT if with_authorization else _NOT_SENT_BY_KEY
    return [*_passing(sent, dropped, OWN_PREFIX), (CLIENT_REQUEST_ID, request_id)]


def not_for_engine(sent: Headers, *, with_authorization: bool) -> list[str]:
    """The names of the headers that a gateway, which sends the request itself, must leave out. It answers for those of
    connections and of proxies, and sets the request's id that it is given."""
    dropped = _STEERS_ENGINES | _OF_THE_CLIENT | _INFLATED | (frozenset() if with_authorization else {"authorization"})
    return sorted({name for name, _ in sent if name in dropped or name.startswith(OWN_PREFIX)})


def headers_for_client(answered: Headers, engine_url: str) -> Headers:
    """The headers of the answer of the engine at `engine_url` that the client gets.

    A redirect to the engine's own address becomes one to the same path here.
    """
    kept = _passing(answered, _NOT_RETURNED, _NOT_RETURNED_PREFIXES)
    for i, (name, value) in enumerate(kept):
        if name in ("location", "content-location"):
            kept[i] = name, _below(value, engine_url)
    return kept


def _passing(headers: Headers, dropped: Collection[str], prefixes: str | tuple[str, ...]) -> Headers:
    """The headers of neither these names nor beginnings, in lower case, nor named in `Connection`: such belong to the
    connection, too."""
    kept, named = [], list[str]()
    for name, value in headers:
        name = name.lower()
        if name not in dropped and not name.startswith(prefixes):
            kept.append((name, value))
        elif name == "connection":
            named += [token.strip().lower() for token in value.split(",")]
    return [one for one in kept if one[0] not in named] if named else kept


def _below(location: str, engine_url: str) -> str:
    """What comes after the address of an engine (host, port and path prefix) in a location there; others stay."""
    try:
        there, own = urlsplit(location), urlsplit(engine_url)
        if not there.netloc or (there.hostname, there.port or own.port) != (own.hostname, own.port):
            return location
    except ValueError:  # no address at all
        return location
    path = there.path.removeprefix(own.path)
    if len(path) + len(own.path) != len(there.path) or path[:1] not in ("", "/"):
        return location
    return urlunsplit(("", "", path or "/", there.query, there.fragment))
