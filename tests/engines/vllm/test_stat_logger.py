"""vLLM's load, told by vLLM's own statistics."""

import importlib.metadata
import importlib.util
import time
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from draftpick.engines.load_report import LoadReport
from draftpick.engines.profile.step_log import Step, parse_steps

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the libraries that vLLM imports
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]


def stats(cores: int = 1, drafts: bool = True) -> Any:
    from draftpick.engines.vllm.stat_logger import LoadStats

    return LoadStats(SimpleNamespace(speculative_config=object() if drafts else None), list(range(cores)))


def scheduled(running: int, waiting: int = 0, deferred: int = 0, usage: float = 0.0) -> Any:
    from vllm.v1.metrics.stats import SchedulerStats

    return SchedulerStats(
        num_running_reqs=running, num_waiting_reqs=waiting, num_skipped_waiting_reqs=deferred, kv_cache_usage=usage
    )


def stepped(tokens: int, gaps: list[float], first: int = 0) -> Any:
    from vllm.v1.metrics.stats import IterationStats

    made = IterationStats()
    made.num_generation_tokens = tokens
    made.inter_token_latencies_iter = gaps
    made.time_to_first_tokens_iter = [0.1] * first
    return made


def test_vllm_finds_and_accepts_it() -> None:
    from vllm.v1.metrics.loggers import load_stat_logger_plugin_factories

    from draftpick.engines.vllm.stat_logger import LoadStats

    (plugin,) = importlib.metadata.entry_points(group="vllm.stat_logger_plugins", name="draftpick")
    assert plugin.load() is LoadStats
    assert LoadStats in load_stat_logger_plugin_factories()


def test_before_the_first_step_nothing_is_known_to_run() -> None:
    assert stats().report() == LoadReport(0, 0)


def test_what_a_step_says() -> None:
    kept = stats()
    kept.record(scheduled(3, waiting=2, deferred=1, usage=0.5), stepped(3, [], first=3))
    kept.record(scheduled(3, waiting=2, usage=0.5), stepped(6, [0.05, 0.05, 0.2]))  # one was preempted
    kept.record(scheduled(3, waiting=2, usage=0.5), stepped(4, [0.9, 0.9, 0.9], first=1))  # with a prefill
    told = kept.report()
    assert (told.running, told.waiting, told.kv_cache_usage) == (3, 2, 0.5)
    assert told.step_s == pytest.approx(0.05)
    assert told.acceptance_length == pytest.approx((6 + 3) / 6)
    assert told.tokens_per_s == pytest.approx(13)


def test_steps_without_a_prefill_are_logged_with_what_they_verified() -> None:
    from vllm.v1.spec_decode.metrics import SpecDecodingStats

    kept, now = stats(), scheduled(2)
    now.spec_decoding_stats = SpecDecodingStats.new(8)
    for drafted, accepted in ((8, 2), (3, 3)):
        now.spec_decoding_stats.observe_draft(drafted, accepted)
    kept.record(now, stepped(7, [0.05, 0.05]))
    kept.record(scheduled(2), stepped(4, [0.9, 0.9], first=1))
    kept.record(scheduled(2), stepped(2, [0.03, 0.03]))
    assert parse_steps(orjson.dumps(kept.steps.as_json())) == (2, [Step(2, 11, 0.05), Step(2, 0, 0.03)])
    assert parse_steps(orjson.dumps(kept.steps.as_json()), since=1)[1] == [Step(2, 0, 0.03)]
    assert parse_steps(b"[]") == (0, [])


def test_an_engine_without_a_drafter_has_no_acceptance() -> None:
    kept = stats(drafts=False)
    kept.record(scheduled(1), stepped(1, [0.03]))
    assert kept.report().acceptance_length is None


def test_the_last_empty_step_says_that_nothing_runs() -> None:
    kept = stats()
    kept.record(scheduled(2, waiting=1), stepped(2, [0.03, 0.03]))
    kept.record(scheduled(0), None)
    assert (kept.report().running, kept.report().waiting) == (0, 0)
    kept.record(None, None)
    assert kept.report().running == 0


def test_cores_add_up() -> None:
    kept = stats(cores=2)
    kept.record(scheduled(3, waiting=1, usage=0.2), stepped(3, [0.03] * 3), engine_idx=0)
    kept.record(scheduled(1, usage=0.4), stepped(1, [0.05]), engine_idx=1)
    told = kept.report()
    assert (told.running, told.waiting) == (4, 1)
    assert told.kv_cache_usage == pytest.approx(0.3)
    assert told.step_s == pytest.approx(0.04)


def test_a_step_of_256_requests_takes_microseconds() -> None:
    kept, now, step = stats(), scheduled(256), stepped(512, [0.03] * 256)
    began = time.thread_time()  # what others do on this machine does not count
    for _ in range(2000):
        kept.record(now, step)
    assert (time.thread_time() - began) / 2000 < 100e-6
