"""vLLM's load, kept by its own hook for statistics: it makes a `LoadStats` in the process of `AsyncLLM` and tells it
of every step. Imported there alone: it loads vLLM."""

from typing import Any

from vllm.v1.metrics.loggers import AggregateStatLoggerBase

from draftpick.engines.load_report import LoadReport
from draftpick.engines.vllm.rolling_stats import RecentSteps


class LoadStats(AggregateStatLoggerBase):  # type: ignore[misc]  # vLLM has no types here
    """What runs and waits on all cores of one engine, and what they did of late.

    vLLM tells of a step after it took the finished requests out; when clients leave, it runs an empty step for that. So
    the last it tells of is that nothing runs, and no report grows old.
    """

    def __init__(self, vllm_config: Any, engine_indexes: list[int]) -> None:
        self._drafts = vllm_config.speculative_config is not None
        self._recent = RecentSteps()
        self._cores: dict[int, Any] = {}

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """Called by vLLM after every step of a core; takes microseconds."""
        if scheduler_stats is not None:
            self._cores[engine_idx] = scheduler_stats
        if iteration_stats is None:
            return
        # Of each request that went on, what has passed since its last tokens, by the core's own clock. Who was
        # preempted waited longer than a step.
        gaps, first = iteration_stats.inter_token_latencies_iter, len(iteration_stats.time_to_first_tokens_iter)
        tokens = iteration_stats.num_generation_tokens
        # A step in which a request gets its first token contains a prefill.
        step_s = min(gaps) if gaps and not first else None
        self._recent.add(tokens, max(0, tokens - first), len(gaps), step_s)

    def log_engine_initialized(self) -> None:
        """Called by vLLM; nothing to say."""

    def report(self) -> LoadReport:
        """The load of all cores now; `step_s` without those steps that contain a prefill, as far as vLLM tells."""
        cores = list(self._cores.values())
        return LoadReport(
            running=sum(core.num_running_reqs for core in cores),
            waiting=sum(core.num_waiting_reqs + core.num_skipped_waiting_reqs for core in cores),
            kv_cache_usage=sum(core.kv_cache_usage for core in cores) / max(1, len(cores)),
            tokens_per_s=self._recent.tokens_per_s(),
            acceptance_length=self._recent.tokens_per_request_step() if self._drafts else None,
            step_s=self._recent.step_s(),
        )
