"""One request's way through the router: admit, featurize, decide, send, measure, record."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import orjson

from engines.client import Answer, EngineClient, Headers
from engines.errors import EngineBroken, EngineGone, EngineTimeout, EngineUnavailable
from engines.replicas import Lease, Replica, ReplicaTable
from router.acceptance import AcceptanceWatch
from router.admission import Admission
from router.config import RouterConfig
from router.errors import BadRequest, EngineFailed, NoEngine, Overloaded, TimedOut
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
_NOT_SENT = _HOP_BY_HOP | {"origin"}
_NOT_RETURNED = _HOP_BY_HOP | {"date", "server"}
_CORS = "access-control-"
_HELD_BYTES = 2**16
_POLL_S = 0.05
_REFUSALS = frozenset({429})
_RETRIED: frozenset[Status] = frozenset({"engine_error", "timeout", "broken"})


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request as the ingress took it. Times are of `time.perf_counter()`.

    `accepted`: its first byte; `deadline`: the client waits no longer for the first byte of the answer. `key`: who
    asks; `charge` is told of the tokens of its answers.
    """

    request: Request
    method: str
    target: str
    headers: Headers
    request_id: str
    accepted: float
    pin: str | None = None
    key: str = ""
    priority: int = 0
    deadline: float | None = None
    charge: Callable[[int], None] | None = None

    def left_s(self) -> float | None:
        """Seconds to the deadline, if there is one. Raises `TimedOut` when it has passed."""
        if self.deadline is None:
            return None
        left_s = self.deadline - time.perf_counter()
        if left_s <= 0:
            raise TimedOut("the deadline passed before an engine answered")
        return left_s


class Reply(Protocol):
    """Where an answer goes."""

    async def start(self, status: int, headers: Headers) -> None:
        """Send status and headers, once."""

    async def write(self, data: bytes) -> None:
        """Send a part of the body."""

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send all of an answer, with its content-length."""


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
        self.admission = Admission(config.limits)
        self.watch = AcceptanceWatch(replicas.arms, config.quarantine)
        self.explore = config.explore
        self.counts: Counter[str] = Counter()

    async def explain(self, request: Request) -> dict[str, object]:
        """Which engine a request would go to, and with which probability every engine. Nothing is sent."""
        decision = self.decide(await self.featurize(request))
        return {
            "arm": decision.arm,
            "propensity": decision.propensity,
            "probabilities": decision.probabilities,
            "policy": decision.policy,
            "reason": decision.reason,
        }

    async def run(self, incoming: Incoming, reply: Reply) -> None:
        """Answer one request. Raises `RequestError` when nothing of an answer could be sent."""
        async with self.admission.place(incoming.key, incoming.priority, incoming.deadline):
            context = await self.featurize(incoming.request)
            await self._engine_comes(incoming)
            attempt = _Attempt(incoming, context, self.decide(context, incoming.pin))
            status = await self._try(attempt, reply)
            while not attempt.started and status in _RETRIED:
                if not self._may_retry(attempt) and not await self._comes_back(attempt, status):
                    tried = ", ".join(sorted({*attempt.failed, attempt.decision.arm}))
                    raise EngineFailed(f"no engine answered ({tried} tried)", timed_out=status == "timeout")
                attempt.failed.add(attempt.decision.arm)
                attempt.decision = self.decide(context, incoming.pin, failed=attempt.failed, tried=attempt.tried)
                attempt.number += 1
                status = await self._try(attempt, reply)

    async def _engine_comes(self, incoming: Incoming) -> None:
        """Wait while nobody listens at any engine, for a bounded time."""
        until = incoming.accepted + self._config.wait_for_engine_s
        while not self._replicas.listening() and not self._replicas.eligible() and time.perf_counter() < until:
            incoming.left_s()
            await asyncio.sleep(_POLL_S)

    async def _comes_back(self, attempt: "_Attempt", status: Status) -> bool:
        """After all were tried: wait, twice as long each time, if the last one could not even be reached.

        So it is while all engines are being replaced. Whether to begin anew.
        """
        incoming = attempt.incoming
        wait_s = _POLL_S * 2**attempt.rounds
        out_of_time = time.perf_counter() + wait_s > incoming.accepted + self._config.wait_for_engine_s
        if status != "engine_error" or attempt.http_status is not None or out_of_time:
            return False
        await asyncio.sleep(wait_s)
        await self._engine_comes(incoming)
        attempt.rounds += 1
        attempt.tried.clear()
        attempt.failed.clear()
        return True

    def _may_retry(self, attempt: "_Attempt") -> bool:
        """Whether a further attempt is allowed, and somebody is there for it."""
        if attempt.number >= self._config.max_attempts:
            return False
        arms = self._replicas.eligible(attempt.tried)
        return attempt.decision.arm in arms if attempt.decision.reason == "pinned" else bool(arms)

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

    def decide(
        self,
        context: Context | None,
        pin: str | None = None,
        *,
        failed: Collection[str] = (),
        tried: Collection[Replica] = (),
    ) -> Decision:
        """Choose an arm with a replica that may take a request, if possible none of `failed`, never one of `tried`.

        Raises `NoEngine`, `Overloaded` when all are full, `BadRequest` for an unknown pin.
        """
        arms = self._replicas.eligible(tried)
        if pin is not None:
            return self._pinned(pin, arms)
        if not arms:
            if self._replicas.listening():
                raise Overloaded("every engine is full", retry_after_s=self.admission.limits.retry_after_s)
            raise NoEngine("no engine is ready", code="no_engine")
        eligible = [arm for arm in arms if arm not in failed] or arms
        if self.watch.quarantined:
            load = self._replicas.load()
            eligible = [arm for arm in eligible if self.watch.admits(arm, load[arm])] or eligible
        if context is None and self.policy.featurizer is not None:
            return self._fall_back("no_context", eligible)
        try:
            return self.policy.decide(context, eligible, self._rng, self.explore)
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
        """One attempt on one engine; leaves exactly one record, however it ends. Raises `TimedOut` before it."""
        within_s = attempt.incoming.left_s()
        load = self._replicas.load()
        meter = Meter(attempt.incoming.accepted)
        status: Status = "cancelled"
        attempt.http_status = None
        try:
            with self._replicas.lease(attempt.decision.arm, attempt.tried) as lease:
                attempt.tried.add(lease.replica)
                status = await self._ask(attempt, lease, reply, meter, within_s)
                self._judge(attempt, lease, meter, status)
        except EngineUnavailable:
            status = "engine_error"
        finally:
            self._record(attempt, load, meter, status)
        if status == "broken" and attempt.started and not meter.failed:
            await reply.write(_BROKEN_EVENT)
        return status

    async def _ask(
        self, attempt: "_Attempt", lease: Lease, reply: Reply, meter: Meter, within_s: float | None
    ) -> Status:
        """Send the request to the leased replica and its answer to the client."""
        incoming, request = attempt.incoming, attempt.incoming.request
        headers = [(k, v) for k, v in incoming.headers if k.lower() not in _NOT_SENT]
        url = lease.replica.url + incoming.target
        meter.dispatched()
        try:
            async with self._client.send(
                url, incoming.method, headers, request.body, stream=request.stream, within_s=within_s
            ) as answer:
                attempt.http_status = answer.status
                return await self._relay(attempt, answer, reply, meter)
        except EngineTimeout:
            return "timeout"
        except EngineBroken:
            return "broken"
        except EngineUnavailable as error:
            lease.gone = isinstance(error, EngineGone)
            return "engine_error"

    def _judge(self, attempt: "_Attempt", lease: Lease, meter: Meter, status: Status) -> None:
        """Tell the breaker and the watch how it went."""
        patience_s = self._client.patience_s(attempt.incoming.request.stream)
        hasty = attempt.incoming.deadline is not None and meter.waited_s() < patience_s
        # That a hurried client went away says nothing of the engine.
        lease.ok = None if status == "timeout" and hasty else status in ("ok", "client_error")
        if status == "ok":
            outcome = meter.outcome(status)
            lease.tpot_s = outcome.tpot_s
            self.watch.saw(attempt.decision.arm, outcome.acceptance_length, outcome.output_tokens)

    async def _relay(self, attempt: "_Attempt", answer: Answer, reply: Reply, meter: Meter) -> Status:
        """Send an answer to the client. Raises `EngineBroken` for one that is none."""
        refused = answer.status >= 500 or answer.status in _REFUSALS
        if refused and self._may_retry(attempt):
            return "engine_error"
        headers = [(k, v) for k, v in answer.headers if not _is_dropped(k.lower())]
        headers += attempt.own_headers()
        kind = next((v for k, v in headers if k.lower() == "content-type"), "")
        generated = answer.status < 400 and attempt.incoming.request.path in TERMINATED_PATHS
        if kind.startswith("text/event-stream"):
            await self._relay_events(attempt, answer, reply, meter, headers)
            if meter.failed:
                return "broken"
        else:
            body = b"".join([chunk async for chunk in answer.chunks])
            is_json = meter.whole(body)
            if generated and (not is_json or attempt.incoming.request.stream):
                raise EngineBroken("the answer is not what was asked for")
            attempt.started = True
            await reply.whole(answer.status, headers, body)
        if refused:
            return "engine_error"
        return "ok" if answer.status < 400 else "client_error"

    async def _relay_events(
        self, attempt: "_Attempt", answer: Answer, reply: Reply, meter: Meter, headers: Headers
    ) -> None:
        stream = EventStream(meter, hide_usage=attempt.incoming.request.hide_usage)
        generated = attempt.incoming.request.path in TERMINATED_PATHS
        held = b""
        async for chunk in answer.chunks:
            data = stream.feed(chunk)
            if not data:
                continue
            if not attempt.started:
                # Until content comes, another engine can still answer: what comes before it waits.
                held, data = b"", held + data
                if generated and not meter.has_content and len(data) < _HELD_BYTES:
                    if meter.failed:
                        raise EngineBroken("the stream began with an error")
                    if not meter.terminated:
                        held = data
                        continue
                attempt.started = True
                await reply.start(answer.status, headers)
            await reply.write(data)
        if not meter.terminated and generated:
            raise EngineBroken("the stream ended without its terminator")
        if rest := held + stream.end():
            if not attempt.started:
                attempt.started = True
                await reply.start(answer.status, headers)
            await reply.write(rest)

    def _record(self, attempt: "_Attempt", load: dict[str, int], meter: Meter, status: Status) -> None:
        self.counts[f"attempts_{status}"] += 1
        incoming, outcome = attempt.incoming, meter.outcome(status, attempt.http_status)
        if incoming.charge is not None:
            incoming.charge((outcome.prompt_tokens or 0) + (outcome.output_tokens or 0))
        if self._records is None:
            return
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
                outcome=outcome,
            )
        )


@dataclass(slots=True)
class _Attempt:
    """An attempt under way, and what failed before it.

    `started`: bytes have gone to the client. `rounds`: how often all engines were tried in vain.
    """

    incoming: Incoming
    context: Context | None
    decision: Decision
    number: int = 1
    started: bool = False
    rounds: int = 0
    http_status: int | None = None
    failed: set[str] = field(default_factory=set)
    tried: set[Replica] = field(default_factory=set)

    def own_headers(self) -> Headers:
        return [
            ("x-draftpick-arm", self.decision.arm),
            ("x-draftpick-policy", self.decision.policy),
            ("x-draftpick-request-id", self.incoming.request_id),
            ("x-draftpick-attempts", str(self.number)),
        ]


def _is_dropped(name: str) -> bool:
    """Headers of an engine's answer that stay here: of its connection, and what it would allow other origins."""
    return name in _NOT_RETURNED or name.startswith(_CORS)


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
