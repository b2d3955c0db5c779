"""vLLM's load, from its statistics hook: vLLM creates a `LoadStats` in the process of `AsyncLLM` and calls it after
every step. Imported there only: it loads vLLM.
"""

from typing import Any

from vllm.v1.metrics.loggers import AggregateStatLoggerBase

from draftpick.engines.load_report import LoadReport
from draftpick.engines.profile.step_log import StepLog
from draftpick.engines.vllm.finished_requests import note_times
from draftpick.engines.vllm.rolling_stats import RecentSteps


class LoadStats(AggregateStatLoggerBase):  # type: ignore[misc]  # vLLM has no types here
    """Running and waiting requests on all cores of one engine, and their recent statistics.

    vLLM reports a step after removing the finished requests, and runs an empty step when clients disconnect. So the
    last report is always that nothing runs, and no report becomes stale. `steps`: its last steps.
    """

    def __init__(self, vllm_config: Any, engine_indexes: list[int]) -> None:
        self._drafts = vllm_config.speculative_config is not None
        self._recent, self.steps = RecentSteps(), StepLog()
        self._cores: dict[int, Any] = {}

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """Called by vLLM after every step of a core; takes microseconds."""
        if scheduler_stats is not None:
            self._cores[engine_idx] = scheduler_stats
        if iteration_stats is None:
            return
        note_times(iteration_stats.finished_requests)
        # For each continuing request, the time since its last tokens, by the core's own clock. Preempted requests
        # waited longer than a step.
        gaps, first = iteration_stats.inter_token_latencies_iter, len(iteration_stats.time_to_first_tokens_iter)
        tokens = iteration_stats.num_generation_tokens
        # A step with a request's first token contains a prefill.
        step_s = min(gaps) if gaps and not first else None
        self._recent.add(tokens, max(0, tokens - first), len(gaps), step_s)
        if step_s is not None:
            drafts = scheduler_stats.spec_decoding_stats if scheduler_stats is not None else None
            self.steps.add(len(gaps), drafts.num_draft_tokens if drafts is not None else 0, step_s)

    def log_engine_initialized(self) -> None:
        """Called by vLLM; does nothing."""

    def report(self) -> LoadReport:
        """Return the current load of all cores; `step_s` excludes steps with a prefill, as far as vLLM reports."""
        cores = list(self._cores.values())
        return LoadReport(
            running=sum(core.num_running_reqs for core in cores),
            waiting=sum(core.num_waiting_reqs + core.num_skipped_waiting_reqs for core in cores),
            kv_cache_usage=sum(core.kv_cache_usage for core in cores) / max(1, len(cores)),
            tokens_per_s=self._recent.tokens_per_s(),
            acceptance_length=self._recent.tokens_per_request_step() if self._drafts else None,
            step_s=self._recent.step_s(),
        )
