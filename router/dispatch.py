"""One request's way through the router: featurize, decide, send, measure, record."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import orjson

from engines.client import Answer, EngineClient, Headers
from engines.errors import EngineBroken, EngineTimeout, EngineUnavailable
from engines.replicas import ReplicaTable
from router.config import RouterConfig
from router.errors import BadRequest, EngineFailed, NoEngine
from router.features import Featurizer
from router.measure import EventStream, Meter
from router.openai import TERMINATED_PATHS, Request
from router.policies.base import Policy
from router.policies.simple import FixedPolicy
from router.records import RecordWriter
from router.types import Context, Decision, Record, Status

log = logging.getLogger("draftpick.router")

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
        "content-length",
        "expect",
        "accept-encoding",
    }
)
_NOT_RETURNED = _HOP_BY_HOP | {"date", "server"}
_REFUSALS = frozenset({429})
_RETRIED: frozenset[Status] = frozenset({"engine_error", "timeout", "broken"})


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request as the ingress took it. `accepted` is `time.perf_counter()` at its first byte."""

    request: Request
    method: str
    target: str
    headers: Headers
    request_id: str
    accepted: float
    pin: str | None = None


class Reply(Protocol):
    """Where an answer goes."""

    async def start(self, status: int, headers: Headers) -> None:
        """Send status and headers, once."""

    async def write(self, data: bytes) -> None:
        """Send a part of the body."""


class Dispatcher:
    """Routes requests. Everything that it works with is passed in."""

    def __init__(
        self,
        config: RouterConfig,
        policy: Policy,
        featurizer: Featurizer | None,
        replicas: ReplicaTable,
        client: EngineClient,
        records: RecordWriter | None = None,
    ) -> None:
        self._config, self.policy, self.featurizer = config, policy, featurizer
        self._replicas, self._client, self._records = replicas, client, records
        self._default = FixedPolicy(replicas.arms, config.default_engine)
        self._rng = np.random.default_rng(config.seed)
        self.counts: Counter[str] = Counter()

    async def run(self, incoming: Incoming, reply: Reply) -> None:
        """Answer one request. Raises `RequestError` when nothing of an answer could be sent."""
        context = await self.featurize(incoming.request)
        failed: set[str] = set()
        status: Status = "engine_error"
        for number in range(1, self._config.max_attempts + 1):
            decision = self.decide(context, incoming.pin, exclude=failed)
            attempt = _Attempt(incoming, context, decision, number, last=self._is_last(number, decision, failed))
            status = await self._try(attempt, reply)
            if attempt.started or status not in _RETRIED:
                return
            failed.add(decision.arm)
            if attempt.last:
                break
        raise EngineFailed(f"no engine answered ({', '.join(sorted(failed))} tried)", timed_out=status == "timeout")

    def _is_last(self, number: int, decision: Decision, failed: set[str]) -> bool:
        """Whether no other engine can be tried after this one."""
        others = set(self._replicas.eligible()) - failed - {decision.arm}
        return number == self._config.max_attempts or decision.reason == "pinned" or not others

    async def featurize(self, request: Request) -> Context | None:
        """The context that the policy needs; None when it needs none, or when it could not be made in time."""
        if self.featurizer is None or not request.text:
            return None
        try:
            async with asyncio.timeout(self._config.featurize_timeout_s):
                return await self.featurizer(request)
        except Exception as error:  # an encoder may be anybody's code: whatever it raises, the request is served
            self.counts[f"featurizer_{type(error).__name__}"] += 1
            return None

    def decide(self, context: Context | None, pin: str | None = None, *, exclude: Iterable[str] = ()) -> Decision:
        """Choose an arm that has a replica and is not excluded. Raises `NoEngine`, `BadRequest` for an unknown pin."""
        excluded = set(exclude)
        eligible = [arm for arm in self._replicas.eligible() if arm not in excluded]
        if pin is not None:
            return self._pinned(pin, eligible)
        if not eligible:
            raise NoEngine("no engine is ready", code="no_engine")
        if context is None and self.policy.featurizer is not None:
            return self._fall_back("no_context", eligible)
        try:
            return self.policy.decide(context, eligible, self._rng)
        except Exception:  # a policy may be anybody's code: whatever it raises, the request is served
            log.exception("policy %s failed", self.policy.id)
            return self._fall_back("policy_error", eligible)

    def _pinned(self, pin: str, eligible: list[str]) -> Decision:
        if not self._config.allow_pin:
            raise BadRequest("pinning is switched off", param="x-draftpick-arm", code="pin_not_allowed")
        if pin not in self._replicas.arms:
            known = ", ".join(self._replicas.arms)
            raise BadRequest(f"no engine {pin!r} (engines: {known})", param="x-draftpick-arm", code="unknown_engine")
        if pin not in eligible:
            raise NoEngine(f"engine {pin!r} is not ready", code="no_engine")
        return Decision(pin, 1.0, {pin: 1.0}, self.policy.id, "pinned")

    def _fall_back(self, reason: str, eligible: list[str]) -> Decision:
        self.counts[f"fallback_{reason}"] += 1
        made = self._default.decide(None, eligible, self._rng)
        return Decision(made.arm, made.propensity, made.probabilities, made.policy, "fallback")

    async def _try(self, attempt: "_Attempt", reply: Reply) -> Status:
        """One attempt on one engine; leaves exactly one record, however it ends."""
        incoming, arm = attempt.incoming, attempt.decision.arm
        load = self._replicas.load()
        meter = Meter(incoming.accepted)
        status: Status = "cancelled"
        try:
            with self._replicas.lease(arm) as replica:
                meter.dispatched()
                url = replica.url + incoming.target
                headers = [(k, v) for k, v in incoming.headers if k.lower() not in _HOP_BY_HOP]
                request = incoming.request
                try:
                    async with self._client.send(
                        url, incoming.method, headers, request.body, stream=request.stream
                    ) as answer:
                        attempt.http_status = answer.status
                        status = await self._relay(attempt, answer, reply, meter)
                except EngineUnavailable:
                    self._replicas.discard(arm, replica)
                    raise
        except EngineTimeout:
            status = "timeout"
        except EngineBroken:
            status = "broken"
        except EngineUnavailable:
            status = "engine_error"
        finally:
            self._record(attempt, load, meter, status)
        if status == "broken" and attempt.started:
            await reply.write(_BROKEN_EVENT)
        return status

    async def _relay(self, attempt: "_Attempt", answer: Answer, reply: Reply, meter: Meter) -> Status:
        refused = answer.status >= 500 or answer.status in _REFUSALS
        if refused and not attempt.last:
            return "engine_error"
        headers = [(k, v) for k, v in answer.headers if k.lower() not in _NOT_RETURNED]
        headers += attempt.own_headers()
        kind = next((v for k, v in headers if k.lower() == "content-type"), "")
        if kind.startswith("text/event-stream"):
            await self._relay_events(attempt, answer, reply, meter, headers)
        else:
            body = b"".join([chunk async for chunk in answer.chunks])
            meter.whole(body)
            attempt.started = True
            await reply.start(answer.status, [*headers, ("content-length", str(len(body)))])
            await reply.write(body)
        if refused:
            return "engine_error"
        return "ok" if answer.status < 400 else "client_error"

    async def _relay_events(
        self, attempt: "_Attempt", answer: Answer, reply: Reply, meter: Meter, headers: Headers
    ) -> None:
        stream = EventStream(meter, hide_usage=attempt.incoming.request.hide_usage)
        async for chunk in answer.chunks:
            data = stream.feed(chunk)
            if not data:
                continue
            if not attempt.started:
                attempt.started = True
                await reply.start(answer.status, headers)
            await reply.write(data)
        if attempt.started and (rest := stream.end()):
            await reply.write(rest)
        if not meter.terminated and attempt.incoming.request.path in TERMINATED_PATHS:
            raise EngineBroken("the stream ended without its terminator")

    def _record(self, attempt: "_Attempt", load: dict[str, int], meter: Meter, status: Status) -> None:
        self.counts[f"attempts_{status}"] += 1
        if self._records is None:
            return
        incoming = attempt.incoming
        self._records.write(
            Record(
                request_id=incoming.request_id,
                attempt=attempt.number,
                time=time.time(),
                path=incoming.request.path,
                stream=incoming.request.stream,
                sampling=incoming.request.sampling or {},
                load=load,
                context=attempt.context,
                decision=attempt.decision,
                outcome=meter.outcome(status, attempt.http_status),
            )
        )


@dataclass(slots=True)
class _Attempt:
    """An attempt under way. `started`: bytes have gone to the client; `last`: no other engine would be tried."""

    incoming: Incoming
    context: Context | None
    decision: Decision
    number: int
    last: bool
    started: bool = False
    http_status: int | None = None

    def own_headers(self) -> Headers:
        return [
            ("x-draftpick-arm", self.decision.arm),
            ("x-draftpick-policy", self.decision.policy),
            ("x-draftpick-request-id", self.incoming.request_id),
        ]


_BROKEN_EVENT = b"data: %s\n\n" % orjson.dumps(
    {
        "error": {
            "message": "the engine stopped in the middle of its answer",
            "type": "api_connection_error",
            "param": None,
            "code": "engine_broken",
        }
    }
)
