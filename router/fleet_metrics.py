"""What the engines say of themselves, as one Prometheus page: each engine's samples with its arm and replica as labels.

vLLM's names stay (`vllm:spec_decode_num_drafts_total`), so that a client which reads acceptance from an engine's
`/metrics` (`vllm bench serve`) reads that of the whole fleet here.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence

from engines.client import EngineClient
from engines.errors import EngineError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PATIENCE_S = 5.0
_SAMPLE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})? ([^{}]+)")


async def fleet_metrics(client: EngineClient, urls: Mapping[str, Sequence[str]]) -> str:
    """The page for engines at `urls` by arm. One that does not answer in time, or has no such page, is left out."""
    places = [(arm, url) for arm, found in urls.items() for url in found]
    pages = await asyncio.gather(*(_page(client, url) for _, url in places))
    families: dict[str, list[str]] = {}
    for (arm, url), page in zip(places, pages, strict=True):
        _merge(families, page, f'arm="{arm}",replica="{url}"')
    return "".join(f"{line}\n" for lines in families.values() for line in lines)


async def _page(client: EngineClient, url: str) -> str:
    try:
        async with client.send(f"{url}/metrics", "GET", [], b"", stream=False, within_s=_PATIENCE_S) as answer:
            body = b"".join([chunk async for chunk in answer.chunks])
            return body.decode(errors="replace") if answer.status == 200 else ""
    except EngineError:
        return ""


def _merge(families: dict[str, list[str]], page: str, labels: str) -> None:
    """Add a page to the families; all samples of one stand together, under what is said of it first."""
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
