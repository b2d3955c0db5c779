"""One request's way through the router: admit, featurize, decide, send, measure, hand to those who observe."""

import asyncio
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from engines.client import EngineClient, bare
from engines.errors import EngineBroken, EngineGone, EngineTimeout, EngineUnavailable
from engines.replicas import Lease, ReplicaTable
from router.admission import Admission
from router.attempt import Incoming, Reply, RequestState
from router.config import RouterConfig
from router.continuation import Continuation
from router.decider import Decider
from router.demand import Demand
from router.errors import EngineFailed
from router.features import Featurizer
from router.logs import REQUEST_ID, request_ended
from router.measure import Meter
from router.metrics import Metrics
from router.openai import Request
from router.prefixes import PrefixIndex
from router.relay import BROKEN_EVENT, NOT_SENT, relay
from router.serving import Serving
from router.shadow import Discarded, Shadow
from router.tracing import Trace, Tracing
from router.types import Attempt, AttemptObserver, Context, Outcome, Status

log = logging.getLogger("draftpick.router")

_POLL_S = 0.05
_RETRIED: frozenset[Status] = frozenset({"engine_error", "timeout", "broken"})


class Dispatcher:
    """Routes requests. Everything that it works with is passed in; `observers` get every attempt that has ended."""

    def __init__(
        self,
        config: RouterConfig,
        *,
        replicas: ReplicaTable,
        client: EngineClient,
        serving: Serving,
        decide: Decider,
        admission: Admission,
        prefixes: PrefixIndex,
        demand: Demand,
        shadow: Shadow,
        metrics: Metrics,
        observers: Sequence[AttemptObserver],
        featurizer: Featurizer | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._config, self.featurizer, self.replicas, self._client = config, featurizer, replicas, client
        self._serving, self.decide, self._admission, self.prefixes = serving, decide, admission, prefixes
        self._demand, self._shadow, self._metrics, self._observers = demand, shadow, metrics, observers
        self._tracing, self._logs = tracing, config.logs.requests

    async def run(self, incoming: Incoming, reply: Reply) -> None:
        """Answer one request. Raises `RequestError` when nothing of an answer could be sent."""
        REQUEST_ID.set(incoming.request_id)
        state = RequestState(incoming, self._begin_trace(incoming) if self._tracing is not None else None)
        try:
            async with self._admission.place(incoming.key, incoming.priority, incoming.deadline):
                await self._prepare(state)
                status = await self._try(state, reply)
                while not state.started and status in _RETRIED:
                    await self._before_retry(state, status)
                    status = await self._try(state, reply)
                if state.started and status == "broken":
                    await self._mend(state, reply)
                elif status == "ok":
                    self._shadow.offer(state)
        finally:
            self._finish(state)

    async def _prepare(self, state: RequestState) -> None:
        """Find out what the decision needs to know, and make it."""
        request, trace = state.incoming.request, state.trace
        if trace is not None:
            trace.deciding()
        state.context = await self.featurize(request)
        if not self.replicas.listening():
            await self._engine_comes(state.incoming)
        state.prefix = self.prefixes.hashes(request.body)
        state.cached_prefix = self.prefixes.seen(state.prefix)
        self._choose(state)
        if trace is not None:
            trace.decided(state.decided)

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
            self._metrics.failures["features", type(error).__name__] += 1
            return None

    def _choose(self, state: RequestState) -> None:
        """Make the decision for the next attempt."""
        incoming = state.incoming
        made = self.decide(
            state.context,
            incoming.pin,
            failed=state.failed,
            tried=state.tried,
            explore=incoming.explore,
            read=state.cached_prefix,
            objective=incoming.objective,
        )
        if made.reason == "policy":
            self._demand.saw(made.alone or made.arm, made.arm)
        state.decision = made

    async def _try(self, state: RequestState, reply: Reply) -> Status:
        """One attempt on one engine; observers get it, however it ends. Raises `TimedOut` before it."""
        incoming, decision = state.incoming, state.decided
        within_s = None if state.started else incoming.left_s()
        if self._config.continue_streams and not state.started:
            state.continuation = Continuation.of(incoming.request)
        in_flight, meter = self.replicas.load(), Meter(incoming.accepted)
        status: Status = "cancelled"
        outcome: Outcome | None = None
        running: float | None = None
        try:
            with self.replicas.lease(decision.arm, state.tried, state.cached_prefix) as lease:
                state.tried.add(lease.replica)
                self.prefixes.sent(state.prefix, lease.replica.url)
                status = await self._ask(state, lease, reply, meter, within_s)
                outcome = meter.outcome(status)
                running = self._report_health(state, lease, meter, outcome)
        except EngineUnavailable:
            status = "engine_error"
        finally:
            self._end(state, outcome or meter.outcome(status), in_flight, running)
        state.error_sent = meter.failed
        return status

    async def _ask(
        self, state: RequestState, lease: Lease, reply: Reply, meter: Meter, within_s: float | None
    ) -> Status:
        """Send the request to the leased replica and its answer to the client."""
        incoming, request, trace, url = state.incoming, state.incoming.request, state.trace, lease.replica.url
        sent = (
            incoming.headers if trace is None else trace.sends(state.decided, state.number, incoming.headers, bare(url))
        )
        headers = [(name, value) for name, value in sent if name.lower() not in NOT_SENT]
        meter.dispatched()
        try:
            body = request.body
            if state.started and state.continuation is not None:
                body = await state.continuation.resume(self._client, url)
            async with self._client.send(
                url + incoming.target, incoming.method, headers, body, stream=request.stream, within_s=within_s
            ) as answer:
                meter.http_status = answer.status
                if trace is not None:
                    trace.answers(answer.status)
                return await relay(state, answer, reply, meter, lambda: self._may_retry(state))
        except EngineTimeout:
            return "timeout"
        except EngineBroken:
            return "broken"
        except EngineUnavailable as error:
            lease.gone = isinstance(error, EngineGone)
            return "engine_error"

    def _report_health(self, state: RequestState, lease: Lease, meter: Meter, outcome: Outcome) -> float | None:
        """Tell the replica's circuit breaker how it went; requests at the replica meanwhile, if an answer came."""
        incoming, status = state.incoming, outcome.status
        # A client-side timeout shorter than ours is not an engine failure.
        hasty = status == "timeout" and incoming.deadline is not None
        hasty = hasty and meter.waited_s() < self._client.patience_s(incoming.request.stream)
        lease.ok = None if hasty else status in ("ok", "client_error")
        if status != "ok":
            return None
        lease.tpot_s = outcome.tpot_s
        return (lease.load + lease.replica.load) / 2

    def _end(self, state: RequestState, outcome: Outcome, in_flight: dict[str, int], running: float | None) -> None:
        """Hand an attempt that has ended to all who observe."""
        incoming, request, cluster = state.incoming, state.incoming.request, None
        if running is not None:
            try:
                cluster = self._serving.policy.id, self._serving.cluster(state.context, state.decided)
            except Exception as error:  # a policy may be anybody's code: whatever it raises, the answer stands
                self._metrics.failures["learning", type(error).__name__] += 1
        state.last = Attempt(
            incoming.request_id,
            state.number,
            request.path,
            request.stream,
            request.sampling or {},
            state.context,
            state.decided,
            outcome,
            in_flight,
            running,
            cluster,
        )
        if incoming.charge is not None:
            incoming.charge((outcome.prompt_tokens or 0) + (outcome.output_tokens or 0))
        for observe in self._observers:
            observe(state.last)
        if state.trace is not None:
            state.trace.attempted(outcome)

    async def _before_retry(self, state: RequestState, status: Status) -> None:
        """Choose another engine, or raise `EngineFailed` where none may be asked any more."""
        if not self._may_retry(state) and not await self._comes_back(state, status):
            tried = ", ".join(sorted({*state.failed, state.decided.arm}))
            raise EngineFailed(f"no engine answered ({tried} tried)", timed_out=status == "timeout")
        state.failed.add(state.decided.arm)
        self._choose(state)
        state.number += 1

    def _may_retry(self, state: RequestState) -> bool:
        """Whether a further attempt is allowed, and some engine could take it."""
        if state.number >= self._config.max_attempts:
            return False
        arms = self.replicas.eligible(state.tried)
        return state.decided.arm in arms if state.decided.reason == "pinned" else bool(arms)

    async def _comes_back(self, state: RequestState, status: Status) -> bool:
        """After all were tried: wait, twice as long each time, if the last one could not even be reached.

        So it is while all engines are being replaced. Whether to begin again.
        """
        incoming = state.incoming
        wait_s = _POLL_S * 2**state.retry_rounds
        out_of_time = time.perf_counter() + wait_s > incoming.accepted + self._config.wait_for_engine_s
        answered = state.last is not None and state.last.outcome.http_status is not None
        if status != "engine_error" or answered or out_of_time:
            return False
        await asyncio.sleep(wait_s)
        await self._engine_comes(incoming)
        state.retry_rounds += 1
        state.tried.clear()
        state.failed.clear()
        return True

    async def _engine_comes(self, incoming: Incoming) -> None:
        """Wait while no engine listens, for a bounded time."""
        until = incoming.accepted + self._config.wait_for_engine_s
        while not self.replicas.listening() and not self.replicas.eligible() and time.perf_counter() < until:
            incoming.left_s()
            await asyncio.sleep(_POLL_S)

    async def _mend(self, state: RequestState, reply: Reply) -> None:
        """Let another engine go on with a stream that broke, if it can be; else say that it broke."""
        status: Status = "broken"
        while status in _RETRIED and self._may_continue(state):
            state.failed.add(state.decided.arm)
            chosen = self.decide(state.context, failed=state.failed, tried=state.tried, explore=False)
            state.decision = replace(chosen, reason="continued")
            state.number += 1
            self._metrics.streams_resumed += 1
            status = await self._try(state, reply)
        if status in _RETRIED and not state.error_sent:
            await reply.write(BROKEN_EVENT)

    def _may_continue(self, state: RequestState) -> bool:
        going_on = state.continuation
        wanted = going_on is not None and going_on.possible and state.incoming.pin is None
        return wanted and not state.error_sent and self._may_retry(state)

    async def again(self, state: RequestState) -> None:
        """Make an attempt that no client waits for."""
        await self._try(state, Discarded())

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

    def _finish(self, state: RequestState) -> None:
        """Count a request, and log and trace it, with its last attempt or with the error that ends it now."""
        incoming, last = state.incoming, state.last
        decision, outcome = (last.decision, last.outcome) if last is not None else (None, None)
        if decision is not None and outcome is not None:
            self._metrics.request_ended(decision.arm, outcome.status)
        if state.trace is not None:
            state.trace.ended(decision.arm if decision is not None else None, state.number, outcome, sys.exception())
        if self._logs:
            path, stream = incoming.request.path, incoming.request.stream
            request_ended(incoming.request_id, path, stream, decision, state.number, outcome, sys.exception())
