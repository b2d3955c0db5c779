"""vLLM's scheduler for pools (`--scheduler-cls`): passes the worker's reports on to the API server."""

from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from draftpick.engines.vllm.pool_reports import pass_on


class PoolScheduler(Scheduler):  # type: ignore[misc]  # vLLM has no types here
    """Reports of the requests that a step ended go with their last outputs."""

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Called by vLLM's engine after every step."""
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        pass_on(model_runner_output, outputs)
        return outputs
