"""Reads and writes the messages of Envoy's external processing; those to the gateway are bytes, as gRPC sends them."""

from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Any, Literal

from draftpick.engines.http.client import Headers
from draftpick.router.epp import ext_proc_pb2

pb: Any = ext_proc_pb2  # generated, without types
ENDPOINT = "x-gateway-destination-endpoint"
"""Header, and key of metadata, with the endpoints of a request: `ip:port,ip:port`, the first of them first."""
_METADATA = "envoy.lb"
_SUBSET, _SUBSET_KEY = "envoy.lb.subset_hint", "x-gateway-destination-endpoint-subset"
_SERVED = "x-gateway-destination-endpoint-served"
_ATTRIBUTES, _UPSTREAM, _DETAILS = "envoy.filters.http.ext_proc", "upstream.address", "response.code_details"
_PIECE = 60_000
"""Bytes of a streamed body in one message: gateways may refuse more than 64 KiB."""

Phase = Literal["request_headers", "request_body", "response_headers", "response_body"]
Trailers = Literal["request_trailers", "response_trailers"]
Request = Any
"""A `ProcessingRequest`."""


class BodyMode(IntEnum):
    """How the gateway shows a body: not, in parts without waiting for headers, whole, or as a stream both ways."""

    NONE = pb.NONE
    STREAMED = pb.STREAMED
    BUFFERED = pb.BUFFERED
    BUFFERED_PARTIAL = pb.BUFFERED_PARTIAL
    FULL_DUPLEX_STREAMED = pb.FULL_DUPLEX_STREAMED


def read(data: bytes) -> Request:
    """A message of the gateway."""
    return pb.ProcessingRequest.FromString(data)


def phase_of(request: Request) -> Phase | Trailers | None:
    """What a message brings."""
    phase: Phase | Trailers | None = request.WhichOneof("request")
    return phase


def body_modes(request: Request) -> tuple[int, int]:
    """How the bodies of request and answer are shown: `BodyMode`. Gateways that do not say it stream both ways."""
    if not request.HasField("protocol_config"):
        return BodyMode.FULL_DUPLEX_STREAMED, BodyMode.FULL_DUPLEX_STREAMED
    return request.protocol_config.request_body_mode, request.protocol_config.response_body_mode


def raw_headers(headers: Any) -> list[tuple[bytes, bytes]]:
    """Names and values of `HttpHeaders`, pseudo-headers such as `:path` among them."""
    return [(h.key.encode("latin-1", "replace"), h.raw_value or h.value.encode()) for h in headers.headers.headers]


def subset_of(request: Request) -> frozenset[str] | None:
    """The endpoints among which the gateway lets choose; None if it leaves all."""
    hints = request.metadata_context.filter_metadata
    if _SUBSET not in hints or _SUBSET_KEY not in hints[_SUBSET].fields:
        return None
    value = hints[_SUBSET].fields[_SUBSET_KEY]
    listed = value.string_value.split(",") + [one.string_value for one in value.list_value.values]
    return frozenset(filter(None, map(str.strip, listed)))


def served_by(request: Request) -> str | None:
    """The endpoint that answered, of a message with response headers; None if the gateway does not say."""
    metadata = request.metadata_context.filter_metadata
    if _METADATA in metadata and _SERVED in metadata[_METADATA].fields:
        return str(metadata[_METADATA].fields[_SERVED].string_value)
    return _attribute(request, _UPSTREAM)


def details_of(request: Request) -> str | None:
    """Why the gateway answers as it does, of a message with response headers, in Envoy's words: `via_upstream` if an
    engine did. None if the gateway does not say."""
    return _attribute(request, _DETAILS)


def _attribute(request: Request, name: str) -> str | None:
    if _ATTRIBUTES not in request.attributes or name not in request.attributes[_ATTRIBUTES].fields:
        return None
    return str(request.attributes[_ATTRIBUTES].fields[name].string_value)


def change(
    phase: Phase,
    headers: Sequence[tuple[str, str]] = (),
    removed: Sequence[str] = (),
    body: bytes | None = None,
    endpoints: str | None = None,
) -> bytes:
    """Let a message pass, with changes. `body`: replaces a buffered one."""
    response = pb.ProcessingResponse()
    common = getattr(response, phase).response
    common.SetInParent()
    _set(common.header_mutation, headers if endpoints is None else [*headers, (ENDPOINT, endpoints)])
    common.header_mutation.remove_headers.extend(removed)
    if body is not None:
        common.body_mutation.body = body
    if endpoints is not None:
        response.dynamic_metadata.fields[_METADATA].struct_value.fields[ENDPOINT].string_value = endpoints
    return bytes(response.SerializeToString())


def streamed(phase: Phase, body: bytes, *, last: bool) -> Iterator[bytes]:
    """A streamed body, or a part of it, in pieces. `last`: nothing follows it, no trailers either."""
    for start in range(0, max(len(body), 1), _PIECE):
        response = pb.ProcessingResponse()
        piece = getattr(response, phase).response.body_mutation.streamed_response
        piece.body = body[start : start + _PIECE]
        piece.end_of_stream = last and start + _PIECE >= len(body)
        yield response.SerializeToString()


def trailers(phase: Trailers) -> bytes:
    """Let trailers pass."""
    response = pb.ProcessingResponse()
    getattr(response, phase).SetInParent()
    return bytes(response.SerializeToString())


def refusal(status: int, headers: Headers, body: bytes, details: str) -> bytes:
    """Answer the client. `details`: for the gateway's own log."""
    response = pb.ProcessingResponse()
    answer = response.immediate_response
    answer.status.code, answer.body, answer.details = status, body, details
    _set(answer.headers, headers)
    return bytes(response.SerializeToString())


def _set(mutation: Any, headers: Iterable[tuple[str, str]]) -> None:
    for name, value in headers:
        option = mutation.set_headers.add(append_action=pb.OVERWRITE_IF_EXISTS_OR_ADD)
        option.header.key, option.header.raw_value = name, value.encode("latin-1", "replace")


def checked_service(data: bytes) -> str:
    """The service that a health check asks for; empty: the whole server."""
    return str(pb.HealthCheckRequest.FromString(data).service)


def health(*, serving: bool) -> bytes:
    """The answer to a health check."""
    status = pb.HealthCheckResponse.SERVING if serving else pb.HealthCheckResponse.NOT_SERVING
    return bytes(pb.HealthCheckResponse(status=status).SerializeToString())
