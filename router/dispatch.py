"""One request's way through the router: admit, featurize, decide, send, measure, record."""

import asyncio
import logging
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from engines.client import EngineClient, bare
from engines.errors import EngineBroken, EngineGone, EngineTimeout, EngineUnavailable
from engines.replicas import Lease, Replica, ReplicaTable
from router.acceptance import AcceptanceWatch
from router.admission import Admission
from router.attempt import Attempt, Incoming, Reply
from router.config import RouterConfig
from router.continuation import Continuation
from router.decider import Decider
from router.demand import Demand
from router.errors import EngineFailed
from router.events import Event
from router.features import Featurizer
from router.load import LoadModel
from router.logs import REQUEST_ID, request_ended
from router.measure import Meter
from router.metrics import Metrics
from router.openai import Request
from router.policies.base import Policy
from router.prefixes import PrefixIndex
from router.recent import Recent
from router.records import RecordWriter
from router.relay import BROKEN_EVENT, NOT_SENT, relay
from router.serving import Serving
from router.shadow import Discarded, Shadow
from router.tracing import Trace, Tracing
from router.types import Context, Decision, Outcome, Record, Status

log = logging.getLogger("draftpick.router")
events = logging.getLogger("draftpick.events")

_POLL_S = 0.05
_NOTHING: Mapping[str, int] = {}
_LEVELS = {
    "policy_taken": logging.INFO,
    "policy_tried_again": logging.INFO,
    "arm_quarantined": logging.ERROR,
    "policy_refused": logging.ERROR,
    "policy_loses": logging.ERROR,
}
"""Of events; others are warnings."""
_RETRIED: frozenset[Status] = frozenset({"engine_error", "timeout", "broken"})


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
        *,
        plain: str | None = None,
        accelerators: Mapping[str, int] | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """`plain`: the engine that serves while no load is known (the default one); `accelerators`: of a replica."""
        self._config, self.featurizer = config, featurizer
        self.serving = Serving(config, policy, self._heard)
        self.replicas, self._client, self._records = replicas, client, records
        self.load = LoadModel(config.load, replicas, accelerators)
        self.demand = Demand(replicas.arms)
        self.prefixes = PrefixIndex(config.prefixes)
        self.admission = Admission(config.limits)
        self.watch = AcceptanceWatch(replicas.arms, config.quarantine, tell=self.serving.tell_of_arm)
        self.counts: Counter[str] = Counter()
        self.plain = plain or config.default_engine
        rng = np.random.default_rng(config.seed)
        self.decide = Decider(
            config, self.serving, replicas, self.load, self.watch, self.admission, self.counts, self.plain, rng
        )
        self.objective, self.recent = config.load.objective, Recent(self.plain)
        self.metrics = Metrics(replicas.arms, self.plain)
        self._tracing, self._logs = tracing, config.logs.requests
        self.shadow = Shadow(config.shadow, lambda: self.admission.in_flight, replicas.eligible, self.again, rng)

    async def run(self, incoming: Incoming, reply: Reply) -> None:
        """Answer one request. Raises `RequestError` when nothing of an answer could be sent."""
        REQUEST_ID.set(incoming.request_id)
        trace = self._begin_trace(incoming) if self._tracing is not None else None
        attempt: Attempt | None = None
        try:
            async with self.admission.place(incoming.key, incoming.priority, incoming.deadline):
                if trace is not None:
                    trace.deciding()
                context = await self.featurize(incoming.request)
                await self._engine_comes(incoming)
                read = self.prefixes.seen(incoming.request.body)
                attempt = Attempt(incoming, context, self._choose(incoming, context, read), read=read, trace=trace)
                if trace is not None:
                    trace.decided(attempt.decision)
                status = await self._try(attempt, reply)
                while not attempt.started and status in _RETRIED:
                    if not self._may_retry(attempt) and not await self._comes_back(attempt, status):
                        tried = ", ".join(sorted({*attempt.failed, attempt.decision.arm}))
                        raise EngineFailed(f"no engine answered ({tried} tried)", timed_out=status == "timeout")
                    attempt.failed.add(attempt.decision.arm)
                    attempt.decision = self._choose(incoming, context, read, attempt.failed, attempt.tried)
                    attempt.number += 1
                    status = await self._try(attempt, reply)
                if attempt.started and status == "broken":
                    await self._mend(attempt, reply)
                elif status == "ok" and self._config.shadow.share and incoming.explore:
                    self.shadow.offer(attempt)
        finally:
            self._ended(incoming, attempt, trace)

    def _begin_trace(self, incoming: Incoming) -> Trace:
        """The trace of a request, under its path if that is one of the configured ones: span names stay bounded."""
        assert self._tracing is not None
        request = incoming.request
        path = request.path if request.path in self._config.paths else "other"
        return self._tracing.begin(
            incoming.request_id,
            incoming.method,
            path,
            incoming.headers,
            stream=request.stream,
            accepted=incoming.accepted,
        )

    def _ended(self, incoming: Incoming, attempt: Attempt | None, trace: Trace | None) -> None:
        """Count a request, and tell of it, with its last attempt or with the error that ends it now."""
        outcome = attempt.outcome if attempt is not None else None
        decision, number = (attempt.decision, attempt.number) if attempt is not None else (None, 0)
        if decision is not None and outcome is not None:
            self.metrics.request_ended(decision.arm, outcome.status)
        if trace is not None:
            trace.ended(decision.arm if decision is not None else None, number, outcome, sys.exception())
        if self._logs:
            request = incoming.request
            request_ended(incoming.request_id, request.path, request.stream, decision, number, outcome, sys.exception())

    def _heard(self, event: Event) -> None:
        """What an event means for the rest: news is worth most after a change, and what was usual is so no more."""
        self.metrics.events[event.kind] += 1
        about = {"event": event.kind, "arm": event.arm, "policy": event.policy, "figures": dict(event.figures)}
        events.log(_LEVELS.get(event.kind, logging.WARNING), event.text, extra=about)
        if event.kind in ("arm_changed", "inputs_changed"):
            self.shadow.hurry()
        if event.kind in ("inputs_changed", "policy_taken"):  # which tells other kinds apart
            self.watch.forget()

    async def again(self, attempt: Attempt) -> None:
        """Make an attempt that no client waits for; leaves a record."""
        attempt.incoming = replace(attempt.incoming, accepted=time.perf_counter())
        await self._try(attempt, Discarded())

    async def _mend(self, attempt: Attempt, reply: Reply) -> None:
        """Let another engine go on with a stream that broke, if it can be; else say that it broke."""
        status: Status = "broken"
        while status in _RETRIED and self._may_continue(attempt):
            attempt.failed.add(attempt.decision.arm)
            chosen = self.decide(attempt.context, failed=attempt.failed, tried=attempt.tried, explore=False)
            attempt.decision = replace(chosen, reason="continued")
            attempt.number += 1
            self.counts["continued"] += 1
            status = await self._try(attempt, reply)
        if status in _RETRIED and not attempt.told:
            await reply.write(BROKEN_EVENT)

    def _may_continue(self, attempt: Attempt) -> bool:
        going_on = attempt.continuation
        wanted = going_on is not None and going_on.possible and attempt.incoming.pin is None
        return wanted and not attempt.told and self._may_retry(attempt)

    async def _engine_comes(self, incoming: Incoming) -> None:
        """Wait while nobody listens at any engine, for a bounded time."""
        until = incoming.accepted + self._config.wait_for_engine_s
        while not self.replicas.listening() and not self.replicas.eligible() and time.perf_counter() < until:
            incoming.left_s()
            await asyncio.sleep(_POLL_S)

    async def _comes_back(self, attempt: Attempt, status: Status) -> bool:
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

    def _may_retry(self, attempt: Attempt) -> bool:
        """Whether a further attempt is allowed, and somebody is there for it."""
        if attempt.number >= self._config.max_attempts:
            return False
        arms = self.replicas.eligible(attempt.tried)
        return attempt.decision.arm in arms if attempt.decision.reason == "pinned" else bool(arms)

    async def featurize(self, request: Request) -> Context | None:
        """The context that the policy needs; None when it needs none, or when it could not be made in time."""
        if self.featurizer is None or not request.text:
            return None
        try:
            if not self.featurizer.waits:
                return await self.featurizer(request)
            async with asyncio.timeout(self._config.featurize_timeout_s):
                return await self.featurizer(request)
        except Exception as error:  # an encoder may be anybody's code: whatever it raises, the request is served
            self.counts[f"featurizer_{type(error).__name__}"] += 1
            return None

    def _choose(
        self,
        incoming: Incoming,
        context: Context | None,
        read: Mapping[str, int],
        failed: Collection[str] = (),
        tried: Collection[Replica] = (),
    ) -> Decision:
        """The decision for a request as it came in."""
        made = self.decide(
            context,
            incoming.pin,
            failed=failed,
            tried=tried,
            explore=incoming.explore,
            read=read,
            objective=incoming.objective,
        )
        if made.reason == "policy":
            self.demand.saw(made.alone or made.arm, made.arm)
        return made

    async def _try(self, attempt: Attempt, reply: Reply) -> Status:
        """One attempt on one engine; leaves exactly one record, however it ends. Raises `TimedOut` before it."""
        within_s = None if attempt.started else attempt.incoming.left_s()
        if self._config.continue_streams and not attempt.started:
            attempt.continuation = Continuation.of(attempt.incoming.request)
        load = self.replicas.load()
        meter = Meter(attempt.incoming.accepted)
        status: Status = "cancelled"
        attempt.http_status = None
        try:
            with self.replicas.lease(attempt.decision.arm, attempt.tried, attempt.read) as lease:
                attempt.tried.add(lease.replica)
                self.prefixes.sent(attempt.incoming.request.body, lease.replica.url)
                status = await self._ask(attempt, lease, reply, meter, within_s)
                self._judge(attempt, lease, meter, status, load)
        except EngineUnavailable:
            status = "engine_error"
        finally:
            self._record(attempt, load, meter, status)
        attempt.told = meter.failed
        return status

    async def _ask(self, attempt: Attempt, lease: Lease, reply: Reply, meter: Meter, within_s: float | None) -> Status:
        """Send the request to the leased replica and its answer to the client."""
        incoming, request = attempt.incoming, attempt.incoming.request
        sent = incoming.headers
        if attempt.trace is not None:
            sent = attempt.trace.sends(attempt.decision, attempt.number, sent, bare(lease.replica.url))
        headers = [(k, v) for k, v in sent if k.lower() not in NOT_SENT]
        url = lease.replica.url + incoming.target
        meter.dispatched()
        try:
            body = request.body
            if attempt.started and attempt.continuation is not None:
                body = await attempt.continuation.resume(self._client, lease.replica.url)
            async with self._client.send(
                url, incoming.method, headers, body, stream=request.stream, within_s=within_s
            ) as answer:
                attempt.http_status = answer.status
                if attempt.trace is not None:
                    attempt.trace.answers(answer.status)
                return await relay(attempt, answer, reply, meter, lambda: self._may_retry(attempt))
        except EngineTimeout:
            return "timeout"
        except EngineBroken:
            return "broken"
        except EngineUnavailable as error:
            lease.gone = isinstance(error, EngineGone)
            return "engine_error"

    def _judge(self, attempt: Attempt, lease: Lease, meter: Meter, status: Status, load: dict[str, int]) -> None:
        """Tell the breaker, the watch and the policy's own learning how it went."""
        patience_s = self._client.patience_s(attempt.incoming.request.stream)
        hasty = attempt.incoming.deadline is not None and meter.waited_s() < patience_s
        # That a hurried client went away says nothing of the engine.
        lease.ok = None if status == "timeout" and hasty else status in ("ok", "client_error")
        if status == "ok":
            outcome = meter.outcome(status)
            lease.tpot_s = outcome.tpot_s
            running = (lease.load + lease.replica.load) / 2
            self.load.saw(attempt.decision.arm, attempt.context, outcome, running)
            self._learn(attempt, outcome, load[attempt.decision.arm] + 1, running)

    def _learn(self, attempt: Attempt, outcome: Outcome, in_flight: int, running: float) -> None:
        """Let the watch and the policies learn from a finished answer. Its client has it already."""
        context, decision = attempt.context, attempt.decision
        shadow = decision.reason == "shadow"
        try:
            kind = self.serving.kind(context)
            attempt.kind = self.serving.policy.id, kind
            self.watch.saw(decision.arm, outcome.acceptance_length, outcome.output_tokens, kind, shadow=shadow)
            if shadow or decision.reason == "policy":
                stretch = self.load.stretch(decision.arm, context, running)
                self.serving.saw(context, kind, decision, outcome, in_flight, stretch)
        except Exception:  # a policy may be anybody's code: whatever it raises, the answer stands
            log.exception("policy %s cannot learn", self.serving.policy.id)
            self.counts["learning_failed"] += 1

    def _record(self, attempt: Attempt, load: dict[str, int], meter: Meter, status: Status) -> None:
        self.counts[f"attempts_{status}"] += 1
        incoming, outcome = attempt.incoming, meter.outcome(status, attempt.http_status)
        if incoming.charge is not None:
            incoming.charge((outcome.prompt_tokens or 0) + (outcome.output_tokens or 0))
        self.recent.saw(incoming.request_id, attempt.number, attempt.kind, attempt.decision, outcome)
        attempt.outcome = outcome
        self.metrics.attempt_ended(attempt.number, attempt.decision, outcome)
        if attempt.trace is not None:
            attempt.trace.attempted(outcome)
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
