"""Which headers pass: of a request to an engine, and of an engine's answer to the client.

Headers of one connection (RFC 9110, 7.6.1) and of one hop of Draftpick stay here in both directions.
"""

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
_OF_THE_CLIENT = frozenset(
    {
        *("cookie", "x-api-key", "api-key", "origin", "referer", CLIENT_REQUEST_ID),
        *("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto", "x-real-ip"),
    }
)
"""Secrets for the router, and claims about the client that an engine might believe; the request id is ours."""
_NOT_SENT = _HOP_BY_HOP | _STEERS_ENGINES | _OF_THE_CLIENT | {"content-encoding"}  # bodies are sent decompressed
_NOT_RETURNED = _HOP_BY_HOP | {"date", "server", CLIENT_REQUEST_ID}
_NOT_RETURNED_PREFIXES = ("access-control-", OWN_PREFIX)


def headers_for_engine(sent: Headers, request_id: str, *, with_authorization: bool) -> Headers:
    """The client's headers that an engine gets, and the request's id. Names in `sent` are in lower case.

    `with_authorization`: false if the router itself has read it.
    """
    named = _named_by_connection(sent)
    kept = [
        (name, value)
        for name, value in sent
        if name not in _NOT_SENT and name not in named and not name.startswith(OWN_PREFIX)
    ]
    if not with_authorization:
        kept = [(name, value) for name, value in kept if name != "authorization"]
    kept.append((CLIENT_REQUEST_ID, request_id))
    return kept


def headers_for_client(answered: Headers, engine_url: str) -> Headers:
    """The headers of the answer of the engine at `engine_url` that the client gets.

    A redirect to the engine's own address becomes one to the same path here.
    """
    lower = [(name.lower(), value) for name, value in answered]
    named = _named_by_connection(lower)
    kept = [
        (name, value)
        for name, value in lower
        if name not in _NOT_RETURNED and name not in named and not name.startswith(_NOT_RETURNED_PREFIXES)
    ]
    address = engine_url.partition("://")[2]
    return [
        (name, _below(value, address)) if name in ("location", "content-location") else (name, value)
        for name, value in kept
    ]


def _named_by_connection(headers: Headers) -> frozenset[str]:
    """Names in `Connection`: these headers belong to the connection, too."""
    values = [value for name, value in headers if name == "connection"]
    return frozenset(token.strip().lower() for value in values for token in value.split(","))


def _below(location: str, address: str) -> str:
    """The path and query of a location at this address (host, port and path prefix); others stay."""
    _, separator, rest = location.partition("://")
    if not separator:
        return location
    inside = rest.removeprefix(address)
    return (inside or "/") if inside != rest and inside[:1] in ("", "/", "?") else location
