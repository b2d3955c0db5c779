"""Status endpoints of a vLLM engine: `vllm serve MODEL --middleware draftpick.engines.vllm.middleware.VLLMPages`.

The load comes from `engines/vllm/stat_logger.py`, a vLLM plugin; the profile from the profile cache. With a secret for
reports (`engines/reporting/ticket.py`), the outcomes of requests with a router's ticket are reported to it.
"""

from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from starlette.datastructures import State
from starlette.types import ASGIApp

from draftpick.engines import load_report as load
from draftpick.engines.http.status_pages import Endpoint, EndpointTable
from draftpick.engines.load_report import LoadReport
from draftpick.engines.profile import cache as profile_cache
from draftpick.engines.profile import identity, profile, step_log
from draftpick.engines.profile.identity import EngineIdentity, described, digest, machine_name
from draftpick.engines.profile.profile import Profile
from draftpick.engines.profile.step_log import StepLog
from draftpick.engines.reporting.middleware import ReportedRequests
from draftpick.engines.reporting.reporter import Reporter
from draftpick.engines.vllm.finished_requests import MEASUREMENTS
from draftpick.engines.vllm.pool_options import PoolOptions

_NOT_OF_A_BUILD = frozenset({"served_model_name", "tokenizer", "disable_log_stats", "enable_log_requests"})
"""Arguments without influence on step times."""


class VLLMPages(EndpointTable):
    """vLLM's application with the status endpoints of an engine; vLLM constructs it from the application alone."""

    def __init__(self, app: ASGIApp) -> None:
        if (reporter := Reporter.from_environment()) is not None:
            app = ReportedRequests(app, MEASUREMENTS, reporter)
        super().__init__(app, _PAGES, {profile.PATH: repeat_profile})


def load_report(state: State) -> LoadReport | None:
    """Return the load of the engine behind vLLM's application; None if vLLM keeps no statistics."""
    stats = _stats(state)
    return stats.report() if stats is not None else None


def recent_steps(state: State) -> StepLog | None:
    """Return the engine's last steps; None if vLLM keeps no statistics."""
    stats = _stats(state)
    return stats.steps if stats is not None else None


def _stats(state: State) -> Any:
    from draftpick.engines.vllm.stat_logger import LoadStats

    kept = getattr(state.engine_client, "logger_manager", None)
    return next((one for one in kept.stat_loggers if isinstance(one, LoadStats)), None) if kept else None


def engine_profile(state: State) -> Profile | None:
    """Return the engine's profile on this machine, or None."""
    return profile_cache.read(engine_identity(state))


def repeat_profile(state: State) -> bool | None:
    """Measure the profile again when the node is idle; None if this engine does not measure itself."""
    keeper = getattr(state, "profile_keeper", None)
    return None if keeper is None else bool(keeper.repeat())


@lru_cache(maxsize=4)
def engine_identity(state: State) -> EngineIdentity:
    """Return the identity of this engine: its arguments and machine."""
    import torch
    import vllm
    from vllm.platforms import current_platform

    config = state.engine_client.vllm_config
    build = {
        # vLLM's own hash covers models and compilation, but hardly drafters and scheduling.
        "compiled": config.compute_hash(),
        "arguments": _arguments(state.args),
        "versions": [vllm.__version__, torch.__version__, own_code()],
    }
    parallel = config.parallel_config
    of_one = [] if current_platform.is_cpu() else [current_platform.get_device_name()]
    machine = machine_name([f"{parallel.world_size}x", *of_one] if of_one else [])
    most = config.scheduler_config.max_num_seqs * parallel.data_parallel_size
    pool = PoolOptions.from_config(config)
    return EngineIdentity(digest(build), machine, most, tuple(one.name for one in pool.drafters) if pool else ())


@lru_cache(maxsize=1)
def own_code() -> str:
    """Return a hash of Draftpick's code that runs within a decoding step."""
    folder = Path(__file__).parent
    files = [*folder.glob("*.py"), *(folder.parent / "drafters").glob("*.py"), *(folder.parent / "pool").glob("*.py")]
    return digest([[file.name, file.read_text()] for file in sorted(files)])


def _arguments(args: Any) -> dict[str, Any]:
    """Return vLLM's engine arguments that differ from the defaults, as plain values."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    given = {one.name: _plain(getattr(args, one.name, None), one.name) for one in fields(AsyncEngineArgs)}
    defaults = {one.name: one.default for one in fields(AsyncEngineArgs)}
    return {name: v for name, v in given.items() if v not in (None, defaults[name]) and name not in _NOT_OF_A_BUILD}


def _plain(value: Any, name: str = "") -> Any:
    """Convert to plain values: without objects, with models replaced by their shapes."""
    match value:
        case dict():
            inner = {str(key): _plain(one, str(key)) for key, one in value.items()}
            return {key: one for key, one in inner.items() if one is not None}
        case list() | tuple():
            return [_plain(one) for one in value]
        case str():
            return described(value) if name == "model" else value
        case bool() | int() | float():
            return value
        case _:
            return None


_PAGES: dict[str, Endpoint] = {
    load.PATH: load_report,
    step_log.PATH: recent_steps,
    profile.PATH: engine_profile,
    identity.PATH: engine_identity,
}
