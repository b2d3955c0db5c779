"""Starts one engine behind vLLM's own server, asks it, and prints what is wrong with each part as one line of JSON.

`python -m tests.bench.contract_engines suffix LOG`, in the environment of the vLLM that is tried.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from draftpick.deploy.doctor.probe import ask
from draftpick.engines import load_report
from draftpick.engines.config import FleetConfig
from draftpick.engines.pool.prediction import XARG
from draftpick.engines.pool.report import FIELD, parse
from draftpick.engines.profile import identity, step_log
from draftpick.engines.vllm.arguments import command_line

_SERVER = "vllm.entrypoints.launchers.api_server.entry"
_START_S = 400.0
_FLEET = {
    "engine_kwargs": {
        "enforce_eager": True,
        "max_model_len": 512,
        "max_num_batched_tokens": 512,
        "max_num_seqs": 4,
        "kv_cache_memory_bytes": 2**27,
    },
    "engines": [
        {"name": "suffix", "drafter": {"method": "suffix", "num_speculative_tokens": 8}},
        {
            "name": "pool",
            "drafters": [
                {"name": "suffix", "method": "suffix", "num_speculative_tokens": 8},
                {"name": "ngram", "method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4},
                {"name": "general", "method": "eagle3", "model": "embedded:general"},
            ],
        },
    ],
}
_METRICS = (
    *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "cache_config_info"),
    *("generation_tokens_total", "request_success_total", "num_preemptions_total"),
    *("spec_decode_num_drafts_total", "spec_decode_num_draft_tokens_total"),
    *("spec_decode_num_accepted_tokens_total", "spec_decode_num_accepted_tokens_per_pos_total"),
)
"""Names of vLLM's metrics that the doctor, the dashboard and the alerts read."""
_REPEAT = "Repeat this line eight times: one two three four five six seven eight nine ten."


@contextmanager
def served(name: str, log: Path) -> Iterator[str]:
    """Serve an engine; its address. Raises `RuntimeError` with the log's last error if it does not start."""
    from draftpick.deploy.launch.ray_serve import free_port

    fleet = FleetConfig.model_validate(_FLEET)
    engine = next(one for one in fleet.engines if one.name == name)
    port = free_port()
    words = [sys.executable, "-m", _SERVER, "--port", str(port), "--model", *command_line(fleet, engine)]
    with log.open("w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file, env=os.environ)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url, process, log)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < end:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    lines = [line.strip() for line in log.read_text().splitlines() if "Error" in line]
    raise RuntimeError(lines[-1][-200:] if lines else "it does not start")


def chat(url: str, **fields: Any) -> dict[str, Any]:
    """A greedy answer."""
    answer = httpx.post(f"{url}/v1/chat/completions", json={**_body(), **fields}, timeout=120)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def _body() -> dict[str, Any]:
    messages = [{"role": "user", "content": _REPEAT}]
    return {"model": "smollm2-135m-instruct", "messages": messages, "temperature": 0, "max_tokens": 96}


def drafts(url: str) -> None:
    """Suffix decoding accepts what repeats itself."""
    speculation = chat(url)["metrics"]["speculative_decoding"]
    assert speculation["num_accepted_draft_tokens"] > 4, speculation


def answers_say_what_they_took(url: str) -> None:
    """The times and the acceptance that the router reads, of a whole answer and of a stream."""
    whole = chat(url)["metrics"]
    streamed = ask({"one": url}, 120.0)["one"].answer
    for metrics in (whole, streamed.metrics if streamed else None):
        assert metrics, "no metrics"
        wanted = {"time_to_first_token_ms", "generation_time_ms", "queue_time_ms", "speculative_decoding"}
        assert wanted <= metrics.keys(), f"no {', '.join(wanted - metrics.keys())}"
        wanted = {"mean_acceptance_length", "draft_acceptance_rate", "num_spec_steps", "num_accepted_draft_tokens"}
        speculation = metrics["speculative_decoding"]
        assert wanted <= speculation.keys(), f"no {', '.join(wanted - speculation.keys())}"


def metrics_have_their_names(url: str) -> None:
    """Every name of vLLM's metrics that something here reads."""
    names = ask({"one": url}, 120.0)["one"].samples
    missing = [name for name in _METRICS if f"vllm:{name}" not in names]
    assert not missing, f"no {', '.join(missing)}"


def predictions_are_counted(url: str) -> None:
    """The usage of an answer and of a stream says what came of a prediction."""
    text = chat(url)["choices"][0]["message"]["content"]
    usage = chat(url, vllm_xargs={XARG: text})["usage"]
    assert (usage.get("completion_tokens_details") or {}).get("accepted_prediction_tokens", 0) > 4, usage
    body = {**_body(), "stream": True, "stream_options": {"include_usage": True}, "vllm_xargs": {XARG: text}}
    stream = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).text
    assert "accepted_prediction_tokens" in stream, "the stream's usage has no predictions"


def pages_answer(url: str) -> None:
    """The middleware's pages, behind which are the statistics hook and vLLM's configuration."""
    for path in (load_report.PATH, step_log.PATH, identity.PATH):
        answer = httpx.get(url + path, timeout=30)
        assert answer.status_code == 200, f"{path} answers {answer.status_code}"
    report = httpx.get(url + load_report.PATH).json()
    assert report["acceptance_length"] is not None, "the load has no acceptance"


def pool_drafts(url: str) -> None:
    """A pool reports of each of its drafters, and none is left out."""
    reports = parse(chat(url)["metrics"]["speculative_decoding"].get(FIELD))
    assert reports.keys() == {"suffix", "ngram", "general", "none"}, "the answer has no reports of drafters"
    left_out = [name for name, report in reports.items() if report.left_out]
    assert not left_out, f"left out: {', '.join(left_out)}"
    assert sum(report.accepted for report in reports.values()) > 4, reports


def forecasts_arrive(url: str) -> None:
    """A pinned drafter drafts alone, and the answer stays the same."""
    free = chat(url)
    for only in ("general", "none"):
        pinned = chat(url, vllm_xargs={"draftpick_forecast": json.dumps({"only": only})})
        reports = parse(pinned["metrics"]["speculative_decoding"].get(FIELD))
        used = {name for name, report in reports.items() if report.steps}
        assert used <= {only, "none"}, f"pinned to {only}: {used}"
        assert pinned["choices"][0]["message"]["content"][:40] == free["choices"][0]["message"]["content"][:40]


_PARTS: dict[str, dict[str, Callable[[str], None]]] = {
    "suffix": {
        "suffix decoding": drafts,
        "metrics of answers": answers_say_what_they_took,
        "metrics page": metrics_have_their_names,
        "status pages": pages_answer,
        "usage of predictions": predictions_are_counted,
    },
    "pool": {"pool": pool_drafts, "forecasts": forecasts_arrive},
}


def main(engine: str, log: str) -> None:
    found = {}
    try:
        with served(engine, Path(log)) as url:
            for part, observe in _PARTS[engine].items():
                try:
                    observe(url)
                    found[part] = ""
                except Exception as error:  # whatever a version changed
                    found[part] = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
    except RuntimeError as error:
        found = dict.fromkeys(_PARTS[engine], str(error))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
