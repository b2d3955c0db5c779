"""Probes running engines: their pages, and one short greedy answer. All waits are bounded."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families
from pydantic_core import from_json

from draftpick.engines import load_report as load
from draftpick.engines.external import address_of
from draftpick.engines.http.client import EngineAccess, authorization_of
from draftpick.policy_training.data.collect import answer_text

PATIENCE_S = 5.0
_TEXT = "Write the numbers from one to twenty in words, separated by commas."
_TOKENS = 24
_MESSAGES = [{"role": "user", "content": _TEXT}]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model of an engine, from `/v1/models`."""

    id: str
    root: str | None = None
    max_model_len: int | None = None


@dataclass(frozen=True, slots=True)
class DoctorAnswer:
    """One short greedy answer: its text, number of events and tokens, and vLLM's metrics (None: missing)."""

    text: str
    events: int
    prompt_tokens: int | None
    output_tokens: int | None
    metrics: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """The pages of an engine; `error`: why it is unreachable. None and empty: no such page.

    `tokens`: of one chat under its template. `samples`: sums of its metrics by name, `positions`: accepted tokens by
    draft position, `cache`: labels of vLLM's cache configuration. `load`: whether it reports its load;
    `open_to_developers`: whether development endpoints answer.
    """

    url: str
    error: str | None = None
    version: str | None = None
    models: Sequence[ServedModel] = ()
    tokens: Sequence[int] | None = None
    samples: Mapping[str, float] = field(default_factory=dict)
    positions: Sequence[float] = ()
    cache: Mapping[str, str] = field(default_factory=dict)
    answer: DoctorAnswer | None = None
    load: bool = False
    open_to_developers: bool = False

    @property
    def drafts(self) -> bool | None:
        """True if its metrics include drafts; None without vLLM's metrics."""
        if not any(name.startswith("vllm:") for name in self.samples):
            return None
        return "vllm:spec_decode_num_drafts_total" in self.samples

    def sample(self, name: str) -> float:
        """The sum of one of vLLM's metrics; 0 if missing."""
        return self.samples.get(f"vllm:{name}", 0.0)


def ask(
    urls: Mapping[str, str], patience_s: float = PATIENCE_S, access: Mapping[str, EngineAccess] | None = None
) -> dict[str, RunningEngine]:
    """Probe the engines at `urls` by name, concurrently, each page for at most `patience_s`.

    `access`: of engines with keys or certificates of their own, by scheme and host.
    """

    async def one(url: str) -> RunningEngine:
        known = (access or {}).get("{0.scheme}://{0.netloc}".format(urlsplit(address_of(url))), EngineAccess())
        authorization = known.authorization or authorization_of(url)
        headers = {} if authorization is None else {"authorization": authorization}
        async with httpx.AsyncClient(timeout=patience_s, headers=headers, verify=known.tls or True) as client:
            return await _ask(client, address_of(url), patience_s)

    async def all_of_them() -> list[RunningEngine]:
        return await asyncio.gather(*map(one, urls.values()))

    return dict(zip(urls, asyncio.run(all_of_them()), strict=True))


async def _ask(client: httpx.AsyncClient, url: str, patience_s: float) -> RunningEngine:
    pages = _Pages(client, url, patience_s)
    try:
        listed = await pages.get("/v1/models")
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        return RunningEngine(url, error=f"does not answer: {type(error).__name__} {error}".rstrip())
    if listed.status_code != 200:
        return RunningEngine(url, error=f"/v1/models answers {listed.status_code}")
    models = _models(listed)
    samples, positions, cache = _metrics(await pages.text("/metrics"))
    return RunningEngine(
        url,
        version=_field(await pages.text("/version"), "version"),
        models=models,
        tokens=_field(await pages.post("/tokenize", messages=_MESSAGES), "tokens"),
        samples=samples,
        positions=positions,
        cache=cache,
        answer=await _answer(pages, models[0].id) if models else None,
        load=await pages.text(load.PATH) is not None,
        open_to_developers=await pages.text("/server_info") is not None,
    )


@dataclass(frozen=True, slots=True)
class _Pages:
    """The pages of one engine. Pages slower than `patience_s` count as missing."""

    client: httpx.AsyncClient
    url: str
    patience_s: float

    async def get(self, path: str) -> httpx.Response:
        async with asyncio.timeout(self.patience_s):
            return await self.client.get(self.url + path)

    async def text(self, path: str) -> str | None:
        try:
            answer = await self.get(path)
        except (httpx.HTTPError, TimeoutError):
            return None
        return answer.text if answer.status_code == 200 else None

    async def post(self, path: str, **body: Any) -> str | None:
        try:
            async with asyncio.timeout(self.patience_s):
                answer = await self.client.post(self.url + path, json=body)
        except (httpx.HTTPError, TimeoutError):
            return None
        return answer.text if answer.status_code == 200 else None


def _models(listed: httpx.Response) -> list[ServedModel]:
    rows = _field(listed.text, "data")
    rows = rows if isinstance(rows, list) else []
    return [
        ServedModel(row["id"], row.get("root"), row.get("max_model_len"))
        for row in rows
        if isinstance(row, dict) and isinstance(row.get("id"), str)
    ]


def _field(text: str | None, name: str) -> Any:
    """A field of a JSON object; None if missing."""
    try:
        found = from_json(text or "null")
    except ValueError:
        return None
    return found.get(name) if isinstance(found, dict) else None


def _metrics(page: str | None) -> tuple[dict[str, float], list[float], dict[str, str]]:
    samples: dict[str, float] = {}
    positions: dict[int, float] = {}
    cache: dict[str, str] = {}
    try:
        found = [one for family in text_string_to_metric_families(page or "") for one in family.samples]
    except ValueError:
        return {}, [], {}
    for sample in found:
        # For families with a state label, each state is a separate name.
        state = sample.labels.get("sleep_state")
        name = f"{sample.name}:{state}" if state else sample.name
        samples[name] = samples.get(name, 0.0) + sample.value
        if sample.name == "vllm:spec_decode_num_accepted_tokens_per_pos_total":
            at = int(sample.labels.get("position", 0))
            positions[at] = positions.get(at, 0.0) + sample.value
        elif sample.name == "vllm:cache_config_info":
            cache = dict(sample.labels)
    return samples, [positions[at] for at in sorted(positions)], cache


async def _answer(pages: _Pages, model: str) -> DoctorAnswer | None:
    body = {
        "model": model,
        "messages": _MESSAGES,
        "temperature": 0,
        "max_tokens": _TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    stream = await pages.post("/v1/chat/completions", **body)
    if stream is None:
        return None
    try:
        events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
        text = answer_text(stream.encode())
        with_text = sum(any(c["delta"].get("content") for c in event.get("choices", ())) for event in events)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    last: dict[str, Any] = next((event for event in reversed(events) if event.get("usage")), {})
    usage = last.get("usage") or {}
    metrics = last.get("metrics")
    return DoctorAnswer(
        text,
        with_text,
        usage.get("prompt_tokens"),
        usage.get("completion_tokens"),
        metrics if isinstance(metrics, dict) else None,
    )
