"""The path of a request through the router: admit, featurize, decide, send, measure, notify observers."""

import asyncio
import logging
import math
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace

from draftpick.engines.arms import engine_of
from draftpick.engines.errors import EngineError, EngineUnavailable, ResourcesExhausted
from draftpick.engines.http.client import EngineClient, endpoint_of, redact_userinfo
from draftpick.engines.pool.forecast import XARG
from draftpick.engines.profile.profile import GREEDY
from draftpick.engines.replicas import Lease, ReplicaTable
from draftpick.router.config.router_config import RouterConfig
from draftpick.router.errors import BadRequest, EngineFailed, NoEngineAvailable, Overloaded, RequestError
from draftpick.router.features.featurizer import Featurizer
from draftpick.router.load.demand import Demand
from draftpick.router.online.sessions import Sessions
from draftpick.router.openai_request import Request, insert_engine_args
from draftpick.router.request.ability import Abilities
from draftpick.router.request.admission import Admission
from draftpick.router.request.api_forms import error_event
from draftpick.router.request.decision import DecisionMaker
from draftpick.router.request.meter import Meter
from draftpick.router.request.predictions import Predictions
from draftpick.router.request.prefix_index import PrefixIndex
from draftpick.router.request.relay import Relay
from draftpick.router.request.shadow import NullSink, Shadow
from draftpick.router.request.state import ClientRequest, RequestState, ResponseSink
from draftpick.router.request.stored_responses import StoredResponses
from draftpick.router.request.stream_resume import CannotResume, StreamResume
from draftpick.router.request.timeouts import Timeouts
from draftpick.router.request.verdict import CANCELLED, NO_REPLICA, RESUME_REJECTED, ROUTER_FAILED, Verdict, judge_error
from draftpick.router.telemetry.logging import REQUEST_ID, request_ended
from draftpick.router.telemetry.metrics import Metrics
from draftpick.router.telemetry.tracing import Trace, Tracing
from draftpick.router.types import Accepted, Attempt, Context, Outcome

log = logging.getLogger("draftpick.router")

_POLL_S = 0.05
_MAX_HOLDERS = 16
"""Replicas that are asked for a stored response of unknown place."""
_NO_ARGS_S = 600.0
"""For how long an engine that rejected what the router adds to `vllm_xargs` is sent none of it."""
_NOTHING: Mapping[str, Accepted] = {}


Send = Callable[[RequestState, Lease, ResponseSink, Meter, float | None], Awaitable[Verdict]]
"""Lets the leased replica answer a request, and says how that ended; the meter then has the measurements."""


class Dispatcher:
    """Routes requests. `on_attempt_end` gets every finished attempt."""

    def __init__(
        self,
        config: RouterConfig,
        *,
        replicas: ReplicaTable,
        client: EngineClient,
        decide: DecisionMaker,
        admission: Admission,
        prefixes: PrefixIndex,
        demand: Demand,
        shadow: Shadow,
        metrics: Metrics,
        abilities: Abilities,
        predictions: Predictions,
        sessions: Sessions,
        on_attempt_end: Callable[[Attempt], None],
        featurizer: Featurizer | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._config, self.featurizer, self.replicas, self._client = config, featurizer, replicas, client
        self.decide, self._admission, self.prefixes = decide, admission, prefixes
        self._demand, self._shadow, self._metrics, self._on_attempt_end = demand, shadow, metrics, on_attempt_end
        self._tracing, self._logs = tracing, config.logs.access_log
        self._abilities, self._responses, self.predictions = abilities, StoredResponses(), predictions
        self.sessions = sessions
        self.timeouts = Timeouts(replicas, client.response_timeout_s)
        self._no_args_until: dict[str, float] = {}

    async def run(self, client_request: ClientRequest, sink: ResponseSink) -> None:
        """Answer one request. Raises `RequestError` if no part of an answer was sent."""
        REQUEST_ID.set(client_request.request_id)
        state = RequestState(client_request, self._begin_trace(client_request) if self._tracing is not None else None)
        try:
            async with self._admission.slot(client_request.key, client_request.priority, client_request.deadline):
                await self._prepare(state)
                verdict = await self._run_attempt(state, sink)
                while not state.started:
                    await self._before_retry(state, verdict)
                    verdict = await self._run_attempt(state, sink)
                if verdict.status == "broken":
                    await self._resume_stream(state, sink, verdict)
                elif verdict.status == "ok" and self._config.shadow.sample_rate:
                    self._shadow.enqueue(state)
        finally:
            self._finish(state)

    async def run_leased(self, client_request: ClientRequest, send: Send, among: Collection[str] | None = None) -> None:
        """Decide for one request that somebody else sends; `send` starts the attempt, and ends when its end is told.

        `among`: the endpoints (`host:port`) that may get it. Raises `RequestError` if no engine can take the request.
        """
        REQUEST_ID.set(client_request.request_id)
        state = RequestState(client_request, self._begin_trace(client_request) if self._tracing is not None else None)
        sink = NullSink()
        try:
            if among is not None:
                self._leave_out(state, among)
            async with self._admission.slot(client_request.key, client_request.priority, client_request.deadline):
                await self._prepare(state)
                verdict = await self._run_attempt(state, sink, send)
                while not state.started:
                    await self._before_retry(state, verdict)
                    verdict = await self._run_attempt(state, sink, send)
                if verdict.status == "ok" and self._config.shadow.sample_rate:
                    self._shadow.enqueue(state)
        finally:
            self._finish(state)

    def _leave_out(self, state: RequestState, among: Collection[str]) -> None:
        """Leave only the replicas at these endpoints. Raises `NoEngineAvailable` if none of them is ready."""
        everywhere = {replica for there in self.replicas.by_arm.values() for replica in there}
        state.outside = frozenset(one for one in everywhere if endpoint_of(one.url) not in among)
        state.forget_tried()
        if not self.replicas.eligible(state.tried):
            raise NoEngineAvailable("no engine among those of the gateway is ready", code="no_engine")

    async def _prepare(self, state: RequestState) -> None:
        """Compute the input of the decision, and decide."""
        request, trace = state.client_request.request, state.trace
        if trace is not None:
            trace.decision_started()
        state.context = await self.featurize(request)
        if not self.replicas.reachable():
            await self._wait_for_engine(state.client_request)
        if self._abilities.adapters:
            state.adapter = self._abilities.adapter(request)
        if request.asks or self._abilities.differ:
            state.unable = self._abilities.unable(request)
        if request.state_id is not None:
            self._go_to_state(state, request.state_id)
        state.prefix = self.prefixes.hashes(request.body)
        if state.prefix:
            state.cached_prefix = self.prefixes.lookup(state.prefix, state.client_request.key)
        if (name := state.client_request.session or request.session) is not None and request.generates:
            begun = self.sessions.begin(name, state.client_request.key, request, state.cached_prefix)
            state.session, state.turn, state.cached_prefix = begun
        self._make_decision(state)
        if trace is not None:
            trace.decision_made(state.decision)

    def _go_to_state(self, state: RequestState, response_id: str) -> None:
        """Leave only the replica that holds a stored response, if it is known; else all are asked in turn."""
        url = self._responses.holder(response_id, state.client_request.key)
        everywhere = {replica for there in self.replicas.by_arm.values() for replica in there}
        if any(replica.url == url for replica in everywhere):
            state.tried |= {replica for replica in everywhere if replica.url != url}

    async def featurize(self, request: Request) -> Context | None:
        """The context for the policy; None if it needs none, or on a timeout or an error."""
        if self.featurizer is None or not request.generates:
            return None
        try:
            if not self.featurizer.waits:
                return await self.featurizer(request)
            async with asyncio.timeout(self._config.featurize_timeout_s):
                return await self.featurizer(request)
        except Exception as error:  # third-party encoders may raise anything; the request is served anyway
            self._metrics.failures["features", type(error).__name__] += 1
            return None

    def _make_decision(self, state: RequestState) -> None:
        """Decide for the next attempt."""
        client_request = state.client_request
        predicted = client_request.request.prediction is not None
        decision = self.decide(
            state.context,
            client_request.pin,
            failed=state.failed,
            tried=state.tried,
            explore=client_request.explore,
            cached_prefix=state.cached_prefix,
            objective=client_request.objective,
            unable=state.unable,
            generates=client_request.request.generates,
            preferred=self.predictions.engines(client_request.key) if predicted else (),
            accepted=state.session.accepted if state.session is not None else _NOTHING,
            adapter=state.adapter,
        )
        if predicted and decision.forecast is not None:
            forecast = self.predictions.forecast(decision.arm, decision.forecast, client_request.key)
            decision = replace(decision, forecast=forecast)
        if decision.reason == "policy":
            self._demand.decisions[decision.unloaded_arm or decision.arm, decision.arm] += 1
        state.decision = decision

    async def _run_attempt(self, state: RequestState, sink: ResponseSink, send: Send | None = None) -> Verdict:
        """Run one attempt on one engine, and notify observers however it ends. Raises `TimedOut` before it starts.

        `send`: how the engine gets the request and its answer is measured; absent: by `_send`, from the bytes.
        """
        client_request, decision = state.client_request, state.decision
        limited = client_request.deadline is not None or state.retry_until is not None
        within_s = self._time_left_s(state) if limited and not state.started else None
        if self._config.resume_streams and not state.started:
            state.resume = StreamResume.from_request(client_request.request)
        request = client_request.request
        in_flight, meter = self.replicas.in_flight(), Meter(client_request.accepted, request.num_answers)
        verdict = CANCELLED
        outcome: Outcome | None = None
        running: float | None = None
        tpot_s = 0.0
        try:
            context = state.context
            mode = context.sampled + context.truncated if context is not None else GREEDY
            with self.replicas.lease(decision.arm, state.tried, state.cached_prefix, mode) as lease:
                if state.session is not None and state.turn is not None:
                    state.turn = state.session.placed(state.turn, lease.replica.url, self.replicas, state.tried)
                state.tried.add(lease.replica)
                tpot_s = lease.replica.tpot_s
                if state.prefix:
                    self.prefixes.insert(state.prefix, lease.replica.url, client_request.key)
                verdict = await (send or self._send)(state, lease, sink, meter, within_s)
                if meter.response_id is not None:
                    self._responses.add(meter.response_id, lease.replica.url, client_request.key)
                outcome = meter.outcome(verdict.status, verdict.fault)
                if request.prediction is not None:
                    outcome = meter.with_prediction(outcome)
                    self.predictions.observe(outcome, client_request.key)
                if state.session is not None and verdict.status == "ok":
                    state.session.observe(request, lease.replica.url, decision.arm, outcome)
                running = self._report_health(state, lease, verdict, outcome)
        except EngineUnavailable:
            verdict = NO_REPLICA
        except Exception:  # an error of the router's own code, which nobody else is to answer for
            verdict = ROUTER_FAILED
            raise
        finally:
            outcome = outcome or meter.outcome(verdict.status, verdict.fault)
            if client_request.count_tokens is not None:
                _count_tokens(state, outcome, meter, tpot_s)
            self._end(state, outcome, in_flight, running)
        state.error_sent, state.num_events = meter.failed or meter.error_event is not None, meter.num_events
        return verdict

    def _time_left_s(self, state: RequestState) -> float | None:
        """Seconds to the client's deadline and to the end of all retries, if there is either. Raises `TimedOut`."""
        left_s = state.client_request.remaining_s()
        if state.retry_until is None:
            return left_s
        retry_s = max(state.retry_until - time.perf_counter(), 0.0)
        return retry_s if left_s is None else min(left_s, retry_s)

    async def _send(
        self, state: RequestState, lease: Lease, sink: ResponseSink, meter: Meter, within_s: float | None
    ) -> Verdict:
        """Send the request to the leased replica, and relay its answer to the client."""
        client_request, request, trace, url = (
            state.client_request,
            state.client_request.request,
            state.trace,
            lease.replica.url,
        )
        headers = client_request.headers
        if trace is not None:
            headers = trace.attempt_started(state.decision, state.number, headers, redact_userinfo(url))
        meter.sent = time.perf_counter()
        try:
            body = request.body
            if state.started and state.resume is not None:
                body = await state.resume.resume(self._client, url)
            if state.decision.forecast is not None or request.prediction is not None:
                body = insert_engine_args(request, body, self.engine_args(state))
            async with self._client.send(
                url + client_request.target,
                client_request.method,
                headers,
                body,
                stream=request.stream,
                within_s=within_s,
            ) as answer:
                meter.http_status = answer.status
                if trace is not None:
                    trace.response_started(answer.status)
                relay = Relay(
                    *(state, answer, url, sink, meter),
                    lambda verdict, body: self._try_again(state, verdict, meter, body),
                    max_bytes=self._config.max_answer_bytes,
                )
                return await relay.run()
        except CannotResume:
            return RESUME_REJECTED
        except EngineError as error:
            if isinstance(error, ResourcesExhausted):
                self._metrics.failures["connections", type(error).__name__] += 1
            circumstances = self.timeouts.circumstances(state, lease, meter, within_s)
            return judge_error(error, stream=request.stream, **circumstances)

    def engine_args(self, state: RequestState) -> dict[str, str]:
        """What the router adds to `vllm_xargs`: a pool's forecast; a prediction for an engine that drafts from it."""
        request, decision = state.client_request.request, state.decision
        if self._no_args_until.get(engine_of(decision.arm), 0.0) > time.monotonic():
            return {}
        found = {} if decision.forecast is None else {XARG: decision.forecast.to_json()}
        return (
            found
            if request.prediction is None
            else found | self.predictions.engine_args(decision.arm, request.prediction)
        )

    def _report_health(self, state: RequestState, lease: Lease, verdict: Verdict, outcome: Outcome) -> float | None:
        """Report the verdict to the replica's circuit breaker; return its concurrent requests if it answered."""
        lease.ok, lease.unreachable = verdict.healthy, verdict.unreachable
        if verdict.doubtful:
            state.doubts.append(lease)
        if verdict.status != "ok":
            return None
        if state.client_request.request.asks or state.rejections:
            engine = engine_of(state.decision.arm)
            self._abilities.record_answer(engine, state.client_request.request, state.rejections)
        if state.client_request.request.num_answers == 1 and outcome.prediction is None:
            lease.tpot_s = outcome.tpot_s
        return (lease.in_flight + lease.replica.in_flight + lease.replica.foreign_in_flight) / 2

    def _end(self, state: RequestState, outcome: Outcome, in_flight: dict[str, int], running: float | None) -> None:
        """Report a finished attempt."""
        client_request, request, decision = state.client_request, state.client_request.request, state.decision
        cluster = None if running is None else decision.cluster
        state.last = Attempt(
            client_request.request_id,
            state.number,
            request.path,
            request.stream,
            request.sampling or {},
            state.context,
            decision,
            outcome,
            in_flight,
            running,
            None if cluster is None else (decision.policy, cluster),
            id=client_request.id,
            key=client_request.key,
            turn=state.turn,
            adapter=state.adapter,
        )
        self._on_attempt_end(state.last)
        if state.trace is not None:
            state.trace.attempt_ended(outcome)

    async def _before_retry(self, state: RequestState, verdict: Verdict) -> None:
        """Choose another engine, or raise the error for the client if none is left."""
        if not (verdict.retry and self._in_time(state)):
            raise self._failure(state, verdict)
        if not self._can_retry(state) and not await self._wait_for_recovery(state, verdict):
            raise self._failure(state, verdict)
        state.failed.add(engine_of(state.decision.arm))
        self._make_decision(state)
        state.number += 1

    def _in_time(self, state: RequestState) -> bool:
        """True while all retries of a request together have taken less than one attempt may."""
        now = time.perf_counter()
        if state.retry_until is None:
            state.retry_until = now + self._client.response_timeout_s[state.client_request.request.stream]
        return now < state.retry_until

    def _failure(self, state: RequestState, verdict: Verdict) -> RequestError:
        """The error for a client that got no part of an answer."""
        if verdict.fault == "router":
            wait_s = self._admission.limits.retry_after_s
            return Overloaded("the router has no descriptors left for connections to engines", retry_after_s=wait_s)
        if verdict.status == "client_error":
            return BadRequest("the request cannot be written as HTTP", code="not_sendable")
        tried = ", ".join(sorted({*state.failed, engine_of(state.decision.arm)}))
        names = f" ({tried} tried)" if state.client_request.show_routing else ""
        timed_out = verdict.status == "timeout" or verdict.fault == "client"
        return EngineFailed(f"no engine answered{names}", timed_out=timed_out)

    def _try_again(self, state: RequestState, verdict: Verdict, meter: Meter, body: bytes) -> bool:
        """True if another engine is to answer after an error of one that sent nothing else."""
        if verdict.fault == "client" and not (
            self._rejects_args(state, body) or self._others_take(state, meter.http_status or 0, body)
        ):
            return False
        return (verdict.retry or verdict.fault == "client") and self._can_retry(state) and self._in_time(state)

    def _rejects_args(self, state: RequestState, body: bytes) -> bool:
        """True if an engine rejects `vllm_xargs`, which the router itself added: from now on it is sent none."""
        engine, own = engine_of(state.decision.arm), state.client_request.request.engine_args
        if own is not None or b"vllm_xargs" not in body or not self.engine_args(state):
            return False
        self._no_args_until[engine] = time.monotonic() + _NO_ARGS_S
        if state.decision.forecast is not None:
            self._metrics.ignored_forecasts[engine] += 1
        state.forget_tried()
        return True

    def _others_take(self, state: RequestState, status: int, body: bytes) -> bool:
        """True if other engines probably take a request that one rejects; only they are eligible from now on."""
        request, decision = state.client_request.request, state.decision
        if decision.reason in ("pinned", "shadow"):
            return False
        if request.state_id is not None and status == 404:  # the state is elsewhere
            return True
        found = self._abilities.rejection(engine_of(decision.arm), request, status, body, state.rejections)
        if found is None:
            return False
        rejection, likely = found
        state.rejections.append(rejection)
        engines = self.replicas.by_engine
        state.unable = {**state.unable, **{name: "is not asked" for name in engines if name not in likely}}
        return True

    def _can_retry(self, state: RequestState) -> bool:
        """True if another attempt is allowed and an engine is available."""
        most = self._config.max_attempts if state.client_request.request.state_id is None else _MAX_HOLDERS
        if state.number >= most:
            return False
        arms = self.replicas.eligible(state.tried)
        if state.decision.reason == "pinned":
            return state.decision.arm in arms
        return any(engine_of(arm) not in state.unable for arm in arms)

    async def _wait_for_recovery(self, state: RequestState, verdict: Verdict) -> bool:
        """After all engines were tried: back off exponentially if the last one was unreachable.

        This covers rolling updates of all engines. Returns True to try all engines again.
        """
        client_request = state.client_request
        wait_s = _POLL_S * 2**state.retry_rounds
        out_of_time = time.perf_counter() + wait_s > client_request.accepted + self._config.wait_for_engine_s
        answered = state.last is not None and state.last.outcome.http_status is not None
        if verdict.status != "engine_error" or answered or out_of_time:
            return False
        await asyncio.sleep(wait_s)
        await self._wait_for_engine(client_request)
        state.retry_rounds += 1
        state.forget_tried()
        state.failed.clear()
        return True

    async def _wait_for_engine(self, client_request: ClientRequest) -> None:
        """Wait while no engine is reachable, for a bounded time."""
        until = client_request.accepted + self._config.wait_for_engine_s
        while not self.replicas.reachable() and not self.replicas.eligible() and time.perf_counter() < until:
            client_request.remaining_s()
            await asyncio.sleep(_POLL_S)

    async def _resume_stream(self, state: RequestState, sink: ResponseSink, verdict: Verdict) -> None:
        """Resume a broken stream on another engine if possible; else send an error event."""
        while verdict.retry and self._can_resume(state):
            state.failed.add(engine_of(state.decision.arm))
            decision = self.decide(
                state.context,
                failed=state.failed,
                tried=state.tried,
                explore=False,
                unable=state.unable,
                adapter=state.adapter,
            )
            state.decision = replace(decision, reason="resumed")
            state.number += 1
            self._metrics.streams_resumed += 1
            verdict = await self._run_attempt(state, sink)
        if verdict.status != "ok" and not state.error_sent:
            too_long = verdict.fault == "client"
            stopped = "the engine stopped, or was too slow, in the middle of its answer"
            message = "the answer took too long" if too_long else stopped
            code = "engine_timeout" if too_long else "engine_broken"
            await sink.write(error_event(state.client_request.request.path, message, code, state.num_events))

    def _can_resume(self, state: RequestState) -> bool:
        resume = state.resume
        wanted = resume is not None and resume.possible and state.client_request.pin is None
        return wanted and not state.error_sent and self._can_retry(state)

    async def run_shadow(self, state: RequestState) -> None:
        """Run an attempt without a client."""
        await self._run_attempt(state, NullSink())
        state.settle_doubts(blame=True)  # another engine has answered it

    def _begin_trace(self, client_request: ClientRequest) -> Trace:
        """Start the trace of a request. Only configured paths become span names, to bound their number."""
        assert self._tracing is not None
        request = client_request.request
        path = request.path if request.path in self._config.paths else "other"
        return self._tracing.start_trace(
            client_request.request_id,
            client_request.method,
            path,
            client_request.headers,
            stream=request.stream,
            accepted=client_request.accepted,
        )

    def _finish(self, state: RequestState) -> None:
        """Count, log and trace a finished request, with its last attempt or the current error."""
        client_request, last = state.client_request, state.last
        decision, outcome = (last.decision, last.outcome) if last is not None else (None, None)
        if client_request.count_tokens is not None:
            client_request.count_tokens(state.num_tokens)
        if decision is not None and outcome is not None:
            self._metrics.requests[decision.arm, outcome.status] += 1
            # One engine alone may have failed by itself; several that fail alike do so by the request.
            if state.doubts:
                state.settle_doubts(blame=len(state.doubts) == 1 and outcome.fault != "client")
        if state.trace is not None:
            state.trace.request_ended(
                decision.arm if decision is not None else None, state.number, outcome, sys.exception()
            )
        if self._logs:
            path, stream = client_request.request.path, client_request.request.stream
            request_ended(client_request.request_id, path, stream, decision, state.number, outcome, sys.exception())


def _count_tokens(state: RequestState, outcome: Outcome, meter: Meter, tpot_s: float) -> None:
    """Count the tokens of a finished attempt for the client's limit; of one without usage, since the client left or the
    stream broke, as estimated. `tpot_s`: usual at the replica, 0 if unknown. An engine's failures cost nothing."""
    request, output = state.client_request.request, meter.output_tokens()
    if meter.terminated and (outcome.prompt_tokens is not None or outcome.output_tokens is not None):
        state.num_tokens = (outcome.prompt_tokens or 0) + output  # of the complete answer, resumed or not
        return
    if outcome.status == "cancelled" and not output and tpot_s and not request.stream:
        limit = math.inf if request.max_tokens is None else request.max_tokens
        output = int(min(meter.elapsed_s() / tpot_s, limit)) * request.num_answers
    if output or outcome.status == "cancelled":
        prompt = request.approximate_prompt_tokens if outcome.prompt_tokens is None else outcome.prompt_tokens
        state.num_tokens += prompt + output
