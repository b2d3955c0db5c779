"""The measurements: each gives figures of every contestant, by name, from one repeat."""

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import uvloop

from tests.bench.overhead.contestants import Contestant
from tests.bench.overhead.engine import MODEL
from tests.bench.overhead.load import Seen, flood, in_turn

Figures = dict[str, float]
_TEXT = (
    "Summarise the following report about whales, ships and the weather of the northern sea in three short sentences "
    "for a reader who has little time, keep all names and numbers, and say at the end what remains unknown. "
)
SHORT, LONG = " ".join(_TEXT.split()[:12]), " ".join((_TEXT * 10).split()[:200])


def body(text: str, tokens: int, *, pace_ms: int | None = None) -> dict[str, Any]:
    """A chat request; with `pace_ms` for a stream whose chunks come so far apart."""
    said = text if pace_ms is None else f"[pace {pace_ms}] {text}"
    asked = {"model": MODEL, "messages": [{"role": "user", "content": said}], "max_tokens": tokens, "temperature": 0}
    return asked if pace_ms is None else {**asked, "stream": True}


def one_at_a_time(direct: str, contestants: Sequence[Contestant], n: int) -> Figures:
    """What each adds to one request at a time, the contestants in turn: means and percentiles subtracted.

    Whole answers to a short and a long prompt, and streams of 32 chunks 5 ms apart: time to the first chunk, and how
    much longer a chunk is on its way.
    """
    urls = {"direct": direct, **{c.name: c.url for c in contestants}}
    figures: Figures = {}
    for kind, asked, count in (
        ("short", body(SHORT, 16), n),
        ("long", body(LONG, 16), n),
        ("stream", body(SHORT, 32, pace_ms=5), max(n // 10, 5)),
    ):
        seen = uvloop.run(in_turn(urls, asked, count, warm=max(count // 10, 3)))
        _all_answered(seen)
        if kind == "stream":
            figures |= _added(seen, "stream/ttft", lambda one: [one.ttft_s])
            figures |= _added(seen, "stream/chunk", lambda one: one.chunks_s)
        else:
            figures |= _added(seen, f"{kind}/e2e", lambda one: [one.e2e_s])
    return figures


def _added(seen: dict[str, Sequence[Seen]], what: str, of: Any) -> Figures:
    """`<contestant>/<what>/added_<mean|median|p95|p99>_ms`, against the engine itself."""
    times = {name: np.asarray([s for one in answers for s in of(one)]) * 1e3 for name, answers in seen.items()}
    direct = times.pop("direct")
    figures = {f"direct/{what}/median_ms": float(np.median(direct))}
    for name, own in times.items():
        figures[f"{name}/{what}/added_mean_ms"] = float(own.mean() - direct.mean())
        for label, q in (("median", 50), ("p95", 95), ("p99", 99)):
            figures[f"{name}/{what}/added_{label}_ms"] = float(np.percentile(own, q) - np.percentile(direct, q))
    return figures


def _all_answered(seen: dict[str, Sequence[Seen]]) -> None:
    for name, answers in seen.items():
        if failed := sum(not one.ok for one in answers):
            raise RuntimeError(f"{name} failed {failed} of {len(answers)} requests")


def many_at_once(contestant: Contestant, concurrency: int, n: int, text: str = SHORT) -> Figures:
    """Whole answers as fast as they come: requests/s, latency, CPU of the router."""
    uvloop.run(flood(contestant.url, body(text, 16), concurrency, max(n // 10, concurrency)))
    before = contestant.cpu_s()
    seen, took_s = uvloop.run(flood(contestant.url, body(text, 16), concurrency, n))
    used_s = contestant.cpu_s() - before
    times = np.asarray([one.e2e_s for one in seen]) * 1e3
    return {
        "rps": n / took_s,
        "p50_ms": float(np.percentile(times, 50)),
        "p99_ms": float(np.percentile(times, 99)),
        "cpu_s_per_1000": used_s / n * 1000,
        "rps_per_core": n / used_s,
        "failed": float(sum(not one.ok for one in seen)),
        "rss_mb": contestant.rss_mb(),
    }


def many_streams(contestant: Contestant, streams: int, chunks: int, pace_ms: int) -> Figures:
    """`streams` streams at once, each chunk on its own: chunks/s, their delay, CPU of the router a chunk, memory."""
    idle_mb, before = contestant.rss_mb(), contestant.cpu_s()
    seen, took_s = uvloop.run(flood(contestant.url, body(SHORT, chunks, pace_ms=pace_ms), streams, streams))
    used_s = contestant.cpu_s() - before
    delays = [delay for one in seen for delay in one.chunks_s]
    if not delays:
        return {"failed": float(streams), "chunks_per_s": 0.0}
    return {
        "chunks_per_s": len(delays) / took_s,
        "offered_per_s": streams * 1000 / pace_ms,
        "delay_p50_ms": statistics.median(delays) * 1e3,
        "delay_p99_ms": float(np.percentile(delays, 99)) * 1e3,
        "cpu_us_per_chunk": used_s / len(delays) * 1e6,
        "kb_per_stream": max(contestant.rss_mb() - idle_mb, 0.0) * 1000 / streams,
        "failed": float(sum(not one.ok for one in seen)),
    }
