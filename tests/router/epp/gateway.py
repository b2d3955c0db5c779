"""A gateway that asks the picker as Envoy does, over gRPC, and shows what it was told."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import orjson

from draftpick.router.epp import ext_proc_pb2 as pb
from draftpick.router.epp.messages import BodyMode
from draftpick.router.epp.server import METHOD, SERVICE
from tests.fleet import CHAT, asked

PATH = f"/{SERVICE}/{METHOD}"


@dataclass(slots=True)
class Asked:
    """What the picker said of one request. `status`: of its own answer, or None; `metadata`: endpoints there."""

    headers: dict[str, str] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    body: bytes | None = None
    metadata: str | None = None
    status: int | None = None
    trailers: bool = False

    @property
    def endpoints(self) -> list[str]:
        """The endpoints that it named, the same in the header and in the metadata."""
        named = self.headers.get("x-gateway-destination-endpoint")
        assert named == self.metadata
        return named.split(",") if named else []

    @property
    def error(self) -> tuple[int | None, str]:
        """Status and code of its error."""
        return self.status, orjson.loads(self.body or b"{}")["error"]["code"]


class Gateway:
    """One stream to the picker at a time for each request."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._process = channel.stream_stream(
            PATH,
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=pb.ProcessingResponse.FromString,
        )
        self._check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=pb.HealthCheckResponse.FromString,
        )

    async def health(self, service: str = "") -> int:
        """The status of a health check."""
        return int((await self._check(pb.HealthCheckRequest(service=service))).status)

    @asynccontextmanager
    async def request(
        self,
        body: bytes | None = None,
        mode: BodyMode | None = BodyMode.BUFFERED,
        *,
        headers: dict[str, str] | None = None,
        path: str = CHAT,
        method: str = "POST",
        subset: Sequence[str] | None = None,
        pieces: int = 1,
        trailers: bool = False,
        **fields: Any,
    ) -> AsyncIterator[tuple[Any, Asked]]:
        """The stream of a request, open, and what was said of it."""
        data = orjson.dumps(asked(path, **fields)) if body is None else body
        call = self._process()
        first = pb.ProcessingRequest()
        pseudo = {":method": method, ":path": path, ":authority": "gateway", ":scheme": "http"}
        sent = {"content-type": "application/json", "content-length": str(len(data)), **(headers or {})}
        for name, value in filter(all, {**pseudo, **sent}.items()):
            first.request_headers.headers.headers.add(key=name, raw_value=value.encode())
        first.request_headers.end_of_stream = not data
        if mode is not None:
            first.protocol_config.request_body_mode = mode
            both_ways = mode == BodyMode.FULL_DUPLEX_STREAMED
            first.protocol_config.response_body_mode = mode if both_ways else BodyMode.NONE
        if subset is not None:
            hint = first.metadata_context.filter_metadata["envoy.lb.subset_hint"]
            for one in subset:
                hint.fields["x-gateway-destination-endpoint-subset"].list_value.values.add(string_value=one)
            hint.fields["x-gateway-destination-endpoint-subset"].list_value.SetInParent()
        await call.write(first)
        said = Asked()
        if data and mode == BodyMode.BUFFERED:
            if not note(said, await call.read()):
                await call.write(pb.ProcessingRequest(request_body=pb.HttpBody(body=data, end_of_stream=True)))
                note(said, await call.read())
        else:
            await self._stream(call, said, data, pieces, trailers)
        yield call, said
        await call.done_writing()

    async def _stream(self, call: Any, said: Asked, data: bytes, pieces: int, trailers: bool) -> None:
        step = -(-len(data) // pieces) or 1
        for start in range(0, len(data), step):
            last = start + step >= len(data) and not trailers
            part = pb.HttpBody(body=data[start : start + step], end_of_stream=last)
            await call.write(pb.ProcessingRequest(request_body=part))
        if trailers:
            await call.write(pb.ProcessingRequest(request_trailers=pb.HttpTrailers()))
        if note(said, await call.read()) or not data:
            return
        while (answer := await call.read()) is not grpc.aio.EOF:
            note(said, answer)
            if said.trailers or answer.request_body.response.body_mutation.streamed_response.end_of_stream:
                return

    async def ask(self, *args: Any, served: str | None = None, **kwargs: Any) -> Asked:
        """What is said of a request, which `served` answers at once; absent: its gateway does not say who."""
        async with self.request(*args, **kwargs) as (call, said):
            if said.status is None:
                answer = await answered(call, served)
                said.headers |= {f"answer:{k}": v for k, v in answer.items()}
            return said


async def answered(call: Any, served: str | None = None, details: str = "via_upstream") -> dict[str, str]:
    """Tell the picker of an answer, with these attributes; returns the headers that it adds for the client."""
    message = pb.ProcessingRequest()
    message.response_headers.headers.headers.add(key=":status", raw_value=b"200")
    if served is not None:
        attributes = message.attributes["envoy.filters.http.ext_proc"].fields
        attributes["upstream.address"].string_value = served
        attributes["response.code_details"].string_value = details
    await call.write(message)
    said = await call.read()
    options = said.response_headers.response.header_mutation.set_headers
    return {option.header.key: option.header.raw_value.decode() for option in options}


def note(said: Asked, message: Any) -> bool:
    """Keep what a message says; True if it is an answer to the client."""
    if message.WhichOneof("response") == "immediate_response":
        answer = message.immediate_response
        said.status, said.body = answer.status.code, answer.body
        said.headers = {o.header.key: o.header.raw_value.decode() for o in answer.headers.set_headers}
        return True
    for phase in ("request_headers", "request_body"):
        if message.HasField(phase):
            common = getattr(message, phase).response
            said.headers |= {o.header.key: o.header.raw_value.decode() for o in common.header_mutation.set_headers}
            said.removed += common.header_mutation.remove_headers
            if common.body_mutation.HasField("streamed_response"):
                said.body = (said.body or b"") + common.body_mutation.streamed_response.body
            elif common.body_mutation.HasField("body"):
                said.body = common.body_mutation.body
    said.trailers = said.trailers or message.HasField("request_trailers")
    if "envoy.lb" in message.dynamic_metadata.fields:
        inner = message.dynamic_metadata.fields["envoy.lb"].struct_value
        said.metadata = inner.fields["x-gateway-destination-endpoint"].string_value
    return False


Connect = Callable[..., Awaitable[Gateway]]
