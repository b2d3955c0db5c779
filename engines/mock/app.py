"""A mock engine: an OpenAI-compatible HTTP server with vLLM's wire format, for scale and fault tests without a model.

`mock_app` builds the ASGI app; `MockEngine` holds its state and behaviour. `GET /mock/state` returns the counters and
the last request; `POST /mock/state` replaces fields of a running engine's `MockSpec`. Load and profile have the
endpoints of every engine (`engines/http/status_pages.py`).
"""

import random
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Literal
from uuid import uuid4
from zlib import crc32

import anyio
import orjson
import pydantic
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from draftpick.engines import load_report as load
from draftpick.engines.http.status_pages import Endpoint, EndpointTable
from draftpick.engines.load_report import LoadReport
from draftpick.engines.mock.batch import Batch
from draftpick.engines.mock.decoding import Decoding, Piece, split
from draftpick.engines.mock.metrics import MockMetrics
from draftpick.engines.mock.openai_format import ChatWire, CompletionWire, Json, ResponsesWire, Wire
from draftpick.engines.mock.spec import MockRequest, MockSpec
from draftpick.engines.profile import identity, profile, step_log
from draftpick.engines.profile.step_log import StepLog
from draftpick.engines.reporting.measurements import Measurements
from draftpick.engines.reporting.middleware import ReportedRequests
from draftpick.engines.reporting.reporter import Reporter

__all__ = ["MockEngine", "MockSpec", "mock_app"]

Outcome = Literal["finished", "aborted", "failed"]
_MAX_MODEL_LEN = 32_768
_STEPS_BEFORE_BREAK = 2
_ABORTS_KEPT = 20_000


def mock_app(spec: MockSpec, *, model: str, engine: str = "mock", reporter: Reporter | None = None) -> Starlette:
    """Build the ASGI app of a mock engine that serves `model`; its `MockEngine` is `app.state.engine`.

    `reporter`: absent, the one of this process's environment.
    """
    mock = MockEngine(spec, model, engine)
    middleware = [Middleware(EndpointTable, pages=_PAGES)]
    if (reporter := reporter or Reporter.from_environment()) is not None:
        middleware.append(Middleware(ReportedRequests, measurements=mock.measurements, reporter=reporter))
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", partial(mock.generate, wire_type=ChatWire), methods=["POST"]),
            Route("/v1/completions", partial(mock.generate, wire_type=CompletionWire), methods=["POST"]),
            Route("/v1/responses", partial(mock.generate, wire_type=ResponsesWire), methods=["POST"]),
            Route("/v1/models", mock.models),
            Route("/health", mock.health),
            Route("/version", mock.version),
            Route("/metrics", mock.show_metrics),
            Route("/tokenize", mock.tokenize, methods=["POST"]),
            Route("/mock/state", mock.show_state),
            Route("/mock/aborts", mock.show_aborts),
            Route("/mock/state", mock.change_state, methods=["POST"]),
        ],
        middleware=middleware,
    )
    app.state.engine = mock
    return app


class MockEngine:
    """State and behaviour of one mock engine.

    Each well-formed request counts once as `started` and once as one of `finished`, `aborted` (client disconnected) and
    `failed` (a fault of `MockSpec`). It is counted, and its slot released, before the last bytes of the answer are
    sent.
    """

    def __init__(self, spec: MockSpec, model: str, name: str) -> None:
        self.spec, self.model, self.name = spec, model, name
        self.metrics = MockMetrics(model)
        self.started = 0
        self.ended: dict[str, int] = {"finished": 0, "aborted": 0, "failed": 0}
        self.slots = anyio.CapacityLimiter(spec.max_running)
        self.hanging = 0
        self._faults = random.Random(f"{spec.seed}|{name}")
        self.step_log, self.measurements = StepLog(), Measurements()
        self.batch, self.profile = Batch(), spec.profile()
        self.aborts: deque[tuple[str, float]] = deque(maxlen=_ABORTS_KEPT)
        self._last_body = ""
        self._last_headers: dict[str, str] = {}

    @property
    def running(self) -> int:
        """Number of requests with a slot."""
        return self.slots.borrowed_tokens

    @property
    def waiting(self) -> int:
        """Number of requests without a slot."""
        return self.started - sum(self.ended.values()) - self.running

    def load(self) -> LoadReport:
        """Report current requests and the specified speed; the mock has no cache."""
        if not self.running:
            return LoadReport(0, self.waiting)
        tau, step_s = self.spec.acceptance_length, self.spec.mean_step_s(self.running)
        return LoadReport(
            running=self.running,
            waiting=self.waiting,
            tokens_per_s=(self.running - self.hanging) * tau / step_s if step_s else 0.0,
            acceptance_length=tau if self.spec.num_speculative_tokens else None,
            step_s=step_s,
            sampled=self.batch.sampled,
            active=self.batch.drafters() if self.spec.drafters else None,
        )

    def state(self) -> Json:
        """Return the counters, the specification and the last request as received."""
        counters: Json = {"running": self.running, "waiting": self.waiting, "started": self.started, **self.ended}
        last = {"last_body": self._last_body, "last_headers": self._last_headers}
        return {"engine": self.name, "model": self.model, **counters, **last, "spec": self.spec.model_dump()}

    def reconfigure(self, changes: Json) -> None:
        """Replace fields of the specification; running requests keep their text and acceptance.

        Raises pydantic.ValidationError and then changes nothing.
        """
        self.spec = MockSpec.model_validate({**self.spec.model_dump(), **changes})
        self.slots.total_tokens = self.spec.max_running
        self.profile = self.spec.profile()
        self._faults = random.Random(f"{self.spec.seed}|{self.name}")

    def draw_fault(self) -> str | None:
        """Draw the fault of the next request, or None."""
        at = self._faults.random()
        for fault, share in self.spec.fault_shares.items():
            if at < share:
                return fault
            at -= share
        return None

    async def advance(self, decoding: Decoding) -> list[Piece]:
        """Wait for the duration of the next step, then return its pieces."""
        if decoding.ends:
            drafted, added_s, mode = decoding.draft(), 0.0, decoding.mode
            if decoding.pool is not None:
                drafted, added_s = decoding.pool.choose(self.spec.mean_step_s(self.running, decoding.mode))
                decoding.drafted = drafted
            if self.spec.shared_steps:
                mode, added_s = self.batch.mode, self.profile.drafters_step_s(self.batch.drafters())
            duration_s = self.spec.step_duration_s(self.running, decoding.rng, mode, drafted, added_s)
            self.step_log.add(self.running, drafted, duration_s)
        else:
            duration_s = self.spec.prefill_duration_s(decoding.prompt_tokens)
        return await decoding.step(duration_s)

    async def generate(self, http: Request, *, wire_type: type[Wire]) -> "Response | _Generation":
        """POST to one of the three generating APIs."""
        body = await http.body()
        self._last_body, self._last_headers = body.decode(errors="replace"), dict(http.headers)
        try:
            request = MockRequest.model_validate(orjson.loads(body))
        except (orjson.JSONDecodeError, pydantic.ValidationError) as error:
            return _invalid(str(error))
        if getattr(request, wire_type.required) is None:
            return _invalid(f"{wire_type.required}: field required")
        if request.model not in (None, self.model, *self.spec.adapters):
            return _error(
                404, f"The model `{request.model}` does not exist.", "NotFoundError", "model_not_found", param="model"
            )
        decoding = Decoding.start(request, self.spec, self.name)
        request_id = http.headers.get("x-request-id") or uuid4().hex
        return _Generation(self, wire_type(request, decoding, self.model, request_id), self.draw_fault())

    async def models(self, http: Request) -> Response:
        """GET /v1/models."""
        card = {"id": self.model, "object": "model", "created": int(time.time()), "owned_by": "mock"}
        card |= {"root": self.model, "parent": None, "max_model_len": _MAX_MODEL_LEN, "permission": []}
        adapters = [{**card, "id": name, "root": name, "parent": self.model} for name in self.spec.adapters]
        return _json({"object": "list", "data": [card, *adapters]})

    async def health(self, http: Request) -> Response:
        """GET /health."""
        return Response()

    async def version(self, http: Request) -> Response:
        """GET /version."""
        return _json({"version": "mock"})

    async def show_metrics(self, http: Request) -> Response:
        """GET /metrics."""
        self.metrics.running, self.metrics.waiting = self.running, self.waiting
        return Response(self.metrics.page(), media_type="text/plain; version=0.0.4")

    async def tokenize(self, http: Request) -> Response:
        """POST /tokenize, for a prompt or messages."""
        try:
            request = MockRequest.model_validate(orjson.loads(await http.body()))
        except (orjson.JSONDecodeError, pydantic.ValidationError) as error:
            return _invalid(str(error))
        ids = [crc32(token.encode()) % _MAX_MODEL_LEN for prompt in request.prompts for token in split(prompt)]
        return _json({"count": len(ids), "max_model_len": _MAX_MODEL_LEN, "tokens": ids, "token_strs": None})

    async def show_state(self, http: Request) -> Response:
        """GET /mock/state."""
        return _json(self.state())

    async def show_aborts(self, http: Request) -> Response:
        """GET /mock/aborts: id and time (seconds since the epoch) of requests with disconnected clients."""
        return _json({"aborts": list(self.aborts)})

    async def change_state(self, http: Request) -> Response:
        """POST /mock/state: replace fields of `MockSpec`."""
        try:
            self.reconfigure(orjson.loads(await http.body()))
        except (orjson.JSONDecodeError, pydantic.ValidationError, TypeError) as error:
            return _invalid(str(error))
        return _json(self.state())


@dataclass(slots=True)
class _Generation:
    """The ASGI response to one well-formed request; stops immediately when the client disconnects."""

    engine: MockEngine
    wire: Wire
    fault: str | None
    _counted: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(_cancel_on_disconnect, receive, group.cancel_scope)
            self.engine.started += 1
            try:
                await self._answer(scope, receive, send)
            finally:
                self._count("aborted")
            group.cancel_scope.cancel()

    def _count(self, outcome: Outcome) -> None:
        """Count the request's end, on the first call only."""
        if not self._counted:
            self._counted = True
            self.engine.ended[outcome] += 1
            self.engine.metrics.ended(self.wire.decoding)
            if outcome == "finished":
                decoding = self.wire.decoding
                usage = {"prompt_tokens": decoding.prompt_tokens, "completion_tokens": decoding.output_tokens}
                self.engine.measurements.note(self.wire.request_id, usage, decoding.metrics())
            if outcome == "aborted":
                self.engine.aborts.append((self.wire.request_id, time.time()))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.fault in _REFUSALS:
            self._count("failed")
            await _REFUSALS[self.fault](scope, receive, send)
        elif self.fault == "hang":
            async with self.engine.slots:
                self.engine.hanging += 1
                try:
                    await anyio.sleep_forever()
                finally:
                    self.engine.hanging -= 1
        elif self.wire.request.stream:
            await self._stream(send)
        else:
            await self._send_complete(send)

    async def _stream(self, send: Send) -> None:
        # As in vLLM, the headers are sent before the request has a slot.
        await _send_start(send, {"content-type": "text/event-stream; charset=utf-8"})
        await _send_body(send, self.wire.preamble(), more=True)
        async with self.engine.slots:
            await self._decode(send)
        if self.fault == "break":
            return self._count("failed")
        self._count("finished")
        await _send_body(send, self.wire.closing(), more=False)

    async def _send_complete(self, send: Send) -> None:
        async with self.engine.slots:
            await self._decode(None)
        body = self.wire.body()
        self._count("failed" if self.fault == "break" else "finished")
        await _send_start(send, {"content-type": "application/json", "content-length": str(len(body))})
        if self.fault == "break":
            return await _send_body(send, body[: len(body) // 2], more=True)
        await _send_body(send, body, more=False)

    async def _decode(self, send: Send | None) -> None:
        """Run all steps of the request, or those before a break; with `send`, stream the tokens of each step."""
        decoding = self.wire.decoding
        decoding.schedule()
        num_steps = 0
        with self.engine.batch.joined_by(decoding):
            while not decoding.done and not (self.fault == "break" and num_steps == _STEPS_BEFORE_BREAK):
                pieces = await self.engine.advance(decoding)
                num_steps += 1
                if send:
                    await _send_body(send, b"".join(map(self.wire.frames, pieces)), more=True)


def _json(content: Json, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


def _error(status: int, message: str, kind: str, code: str, param: str | None = None, **headers: str) -> Response:
    """Build an error body in OpenAI's format."""
    return _json({"error": {"message": message, "type": kind, "param": param, "code": code}}, status, headers)


def _invalid(message: str) -> Response:
    return _error(400, message, "BadRequestError", "invalid_request")


_REFUSALS = {
    "fail": _error(500, "The mock engine failed.", "InternalServerError", "internal_error"),
    "refuse": _error(503, "The mock engine is full.", "ServiceUnavailableError", "overloaded", **{"retry-after": "1"}),
    "garbage": Response(b"\x00\xff<garbage>\n", media_type="application/json"),
}
"""Responses of the faults that end a request immediately."""


_PAGES: dict[str, Endpoint] = {
    load.PATH: lambda state: state.engine.load(),
    profile.PATH: lambda state: state.engine.profile,
    step_log.PATH: lambda state: state.engine.step_log,
    identity.PATH: lambda state: state.engine.spec.identity(),
}


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _send_start(send: Send, headers: dict[str, str]) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 200, "headers": raw})


async def _send_body(send: Send, body: bytes, *, more: bool) -> None:
    if body or not more:
        await send({"type": "http.response.body", "body": body, "more_body": more})
