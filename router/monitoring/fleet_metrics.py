"""One Prometheus page for a fleet: samples of the routers, and of all engines with arm and replica labels.

vLLM's names are kept (`vllm:spec_decode_num_drafts_total`), so that a client which reads acceptance from an engine's
`/metrics` (`vllm bench serve`) gets that of the fleet. Samples are not summed: PromQL does that (`sum by (arm)
(rate(...))`), and a sum over changing replicas is not a counter.
"""

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from draftpick.engines.http.client import EngineClient, redact_userinfo
from draftpick.router.load.engine_page import read_page

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PATIENCE_S, _MAX_BYTES = 5.0, 2**24
_SAMPLE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})? ([^{}]+)")


async def fleet_metrics(
    client: EngineClient, urls: Mapping[str, Sequence[str]], routers: Mapping[str, str] | None = None
) -> str:
    """Build the page for engines at `urls` by arm, and for the pages of `routers` by name.

    An engine without an answer in time, or without such a page, is omitted.
    """
    places = [(arm, url) for arm, found in urls.items() for url in found]
    answers = await asyncio.gather(*(_page(client, url) for _, url in places))
    pages = [(f'router="{name}"', page) for name, page in (routers or {}).items()]
    pages += [
        (f'arm="{arm}",replica="{redact_userinfo(url)}"', p) for (arm, url), p in zip(places, answers, strict=True)
    ]
    return await asyncio.to_thread(_merged, pages)  # thousands of lines


async def page_of(collectors: Iterable[Collector]) -> str:
    """Collect in this thread and render in another one."""
    families = [family for collector in collectors for family in collector.collect()]
    return await asyncio.to_thread(_render, families)


class _Collected(Collector):
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _render(families: Sequence[Metric]) -> str:
    registry = CollectorRegistry()
    registry.register(_Collected(families))
    return generate_latest(registry).decode()


async def _page(client: EngineClient, url: str) -> str:
    page = await read_page(client, f"{url}/metrics", patience_s=_PATIENCE_S, max_bytes=_MAX_BYTES)
    return "" if page is None else page.decode(errors="replace")


def _merged(pages: Iterable[tuple[str, str]]) -> str:
    families: dict[str, list[str]] = {}
    for labels, page in pages:
        _merge(families, page, labels)
    return "".join(f"{line}\n" for lines in families.values() for line in lines)


def _merge(families: dict[str, list[str]], page: str, labels: str) -> None:
    """Merge a page into the families; all samples of one follow its HELP and TYPE lines."""
    name, known = "", True
    for line in page.splitlines():
        if line.startswith(("# HELP ", "# TYPE ")):
            said = line.split(" ", 3)[2]
            if said != name:
                name, known = said, said in families
            if not known:
                families.setdefault(name, []).append(line)
        elif sample := _SAMPLE.fullmatch(line):
            own, has, value = sample.groups()
            family = name if name and own.startswith(name.removesuffix("_total")) else own
            inside = f"{labels},{has}" if has else labels
            families.setdefault(family, []).append(f"{own}{{{inside}}} {value}")
