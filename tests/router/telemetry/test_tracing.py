"""Spans of requests: which there are, what they say, whose trace they belong to."""

import asyncio
import sys
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from draftpick.router.config.sections import TracingConfig
from draftpick.router.telemetry.tracing import Tracing
from tests.fleet import BREAKS, CHAT, FAILS, FAST, REFUSING_URL, SLOW, Mock, Servers, StartRouter, asked, until
from tests.leaks import HIDDEN, PROMPT

pytestmark = pytest.mark.asyncio(loop_scope="module")

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = f"{PARENT[:-2]}00"
TRACED = {"sample_rate": 1.0}


class Kept:
    """The spans that a router left."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.processor = SimpleSpanProcessor(self._exporter)

    def named(self) -> list[str]:
        return [span.name for span in self._exporter.get_finished_spans()]

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def said(self) -> str:
        return "".join(span.to_json() for span in self._exporter.get_finished_spans())


def about(span: ReadableSpan) -> Mapping[str, Any]:
    return span.attributes or {}


def sent(engine: Mock) -> dict[str, str]:
    """The headers of the last request that an engine got."""
    headers: dict[str, str] = engine.engine.state()["last_headers"]
    return headers


def sampled(traceparent: str) -> bool:
    """Whether whoever gets it shall leave spans."""
    return bool(int(traceparent[-2:], 16) & 1)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_its_decision_its_attempts_and_the_relay(router_app: StartRouter, stream: bool) -> None:
    kept = Kept()
    app = await router_app({"a": FAILS, "b": FAST}, spans=kept.processor, tracing=TRACED)
    answer = await app.post(stream=stream, max_tokens=8, headers={"x-request-id": "one"})
    await until(lambda: bool(kept.spans(f"POST {CHAT}")))
    (root,), (decide,), (failed, went), (relay,) = (
        kept.spans(name) for name in (f"POST {CHAT}", "decide", "attempt", "relay")
    )
    assert answer.status_code == 200
    assert {span.parent.span_id for span in (decide, failed, went) if span.parent} == {root.context.span_id}
    assert relay.parent is not None
    assert relay.parent.span_id == went.context.span_id
    assert about(failed)["draftpick.status"] == "engine_error"
    assert not failed.status.is_ok
    assert about(went)["draftpick.arm"] == about(root)["draftpick.arm"] == "b"
    assert about(root)["draftpick.attempts"] == 2
    assert about(root)["draftpick.request_id"] == "one"
    assert about(root)["gen_ai.usage.output_tokens"] == 8
    assert root.start_time is not None
    assert decide.start_time is not None
    assert root.start_time <= decide.start_time
    assert len({span.context.trace_id for span in (root, decide, failed, went, relay)}) == 1


async def test_a_trace_goes_on_from_the_client_to_the_engine(router_app: StartRouter) -> None:
    kept = Kept()
    app = await router_app({"a": FAST}, spans=kept.processor, tracing={"sample_rate": 1e-9})
    await app.post(headers={"traceparent": PARENT, "tracestate": "x=1"})
    (attempt,) = kept.spans("attempt")
    assert sent(app.engines["a"])["traceparent"] == f"00-{PARENT[3:35]}-{attempt.context.span_id:016x}-01"
    assert sent(app.engines["a"])["tracestate"] == "x=1"
    await app.post(headers={"traceparent": UNSAMPLED})
    assert sent(app.engines["a"])["traceparent"][3:35] == PARENT[3:35]
    assert not sampled(sent(app.engines["a"])["traceparent"])
    await app.post()
    assert not sampled(sent(app.engines["a"])["traceparent"])  # an engine leaves no span of its own either
    assert len(kept.spans("attempt")) == 1


async def test_without_tracing_headers_pass_and_no_span_is_left(router_app: StartRouter) -> None:
    kept = Kept()
    app = await router_app({"a": FAST}, spans=kept.processor, tracing={"sample_rate": 0.0})
    await app.post(headers={"traceparent": PARENT})
    assert sent(app.engines["a"])["traceparent"] == PARENT
    await app.post()
    assert "traceparent" not in sent(app.engines["a"])
    assert kept.named() == []


@pytest.mark.parametrize("header", ["", "00-0-0-01", "nonsense", f"{PARENT}-more", "é"])
async def test_a_header_that_is_none_begins_a_trace(router_app: StartRouter, header: str) -> None:
    kept = Kept()
    app = await router_app({"a": FAST}, spans=kept.processor, tracing=TRACED)
    answer = await app.client.post(CHAT, json=asked(), headers=[(b"traceparent", header.encode("latin-1"))])
    assert answer.status_code == 200
    (root,) = kept.spans(f"POST {CHAT}")
    assert root.parent is None


async def test_every_request_leaves_one_span_however_it_ends(router_app: StartRouter) -> None:
    kept = Kept()
    specs = {"a": FAST, "broken": BREAKS, "gone": REFUSING_URL, "slow": SLOW}
    app = await router_app(specs, spans=kept.processor, tracing=TRACED, max_attempts=1, wait_for_engine_s=0)
    for arm in ("broken", "gone"):
        await app.post(stream=True, headers={"x-draftpick-arm": arm})
    with pytest.raises(httpx.ReadTimeout):
        await app.client.post(CHAT, json=asked(), headers={"x-draftpick-arm": "slow"}, timeout=0.1)
    await app.post(headers={"x-draftpick-arm": "nobody"})
    await until(lambda: len(kept.spans(f"POST {CHAT}")) == 4)
    found = [(about(s).get("draftpick.status"), about(s).get("error.type")) for s in kept.spans(f"POST {CHAT}")]
    errors = [not span.status.is_ok for span in kept.spans(f"POST {CHAT}")]
    assert errors == [True, True, False, False]  # a client that leaves, or asks wrongly, is no fault of the router
    assert found == [
        ("broken", None),
        ("engine_error", "EngineFailed"),
        ("cancelled", "CancelledError"),
        (None, "BadRequest"),
    ]
    assert len(kept.spans("attempt")) == 3
    assert len(kept.spans("decide")) == 4


async def test_spans_say_nothing_of_prompts_and_keys(router_app: StartRouter) -> None:
    kept = Kept()
    paths = (CHAT, "/v1/files/*")
    app = await router_app({"a": FAST}, spans=kept.processor, tracing=TRACED, max_attempts=1, paths=paths)
    headers = {"authorization": f"Bearer {HIDDEN[1]}"}
    await app.post(text=PROMPT, headers=headers)
    await app.client.post("/v1/files/a-name?q=a-query", json=asked(text=PROMPT), headers=headers)
    assert len(kept.spans("POST other")) == 1
    assert not any(hidden in kept.said() for hidden in (*HIDDEN, "a-name", "a-query"))


async def test_spans_go_to_a_collector_over_http(servers: Servers) -> None:
    got: list[tuple[str, str]] = []

    async def collector(scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive())["body"]
        got.append((scope["path"], body.decode("latin-1")))
        await Response()(scope, receive, send)

    url = (await servers.serve(collector)).url
    tracing = Tracing(TracingConfig(sample_rate=1.0, endpoint=url))
    tracing._tracer.start_span("one").end()
    await asyncio.to_thread(tracing.close)
    ((path, body),) = got
    assert path == "/v1/traces"
    assert "draftpick" in body


async def test_nothing_of_the_sdk_is_loaded_without_tracing() -> None:
    code = "import sys, draftpick.router.request.dispatcher; sys.exit('opentelemetry.sdk' in sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0
