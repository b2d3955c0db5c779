"""What a decision alone takes: parse, featurize, choose, sample, queue the record, for prompts of 200 words."""

import asyncio
import json
import random
import tempfile
import time
from pathlib import Path

import numpy as np

from draftpick.engines.replicas import ReplicaTable
from draftpick.policy_training.workloads import generate
from draftpick.router.config.router_config import load_config
from draftpick.router.openai_request import parse
from draftpick.router.records import RecordWriter
from draftpick.router.request.meter import Meter
from draftpick.router.router import Router, fixed_address
from draftpick.router.types import Record
from tests.bench.overhead.contestants import config

_CHAT = "/v1/chat/completions"
_NOWHERE = "http://127.0.0.1:9"


def bodies(n: int, words: int = 200, seed: int = 0) -> list[bytes]:
    """Distinct requests of so many words, drawn from generated prompts."""
    rng = random.Random(seed)
    known = " ".join(prompt.text for prompt in generate(400, seed=77)).split()
    asked = {"model": "m", "max_tokens": 64}
    texts = [" ".join(rng.sample(known, words)) for _ in range(n)]
    return [
        json.dumps({**asked, "messages": [{"role": "user", "content": text}], "temperature": i % 2 * 0.7}).encode()
        for i, text in enumerate(texts)
    ]


def decisions(n: int, featurizer: str = "static") -> dict[str, float]:
    """`p50_ms`, `p99_ms` of `n` decisions with the policy that ships.

    `featurizer`: `static`, the policy's own, or `sentence`: the sentence encoder makes a context on top.
    """
    return asyncio.run(_decisions(n, featurizer))


async def _decisions(n: int, featurizer: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        made = load_config(config([_NOWHERE], Path(folder)))
        router = Router(made, {engine.name: fixed_address(str(engine.url)) for engine in made.engines})
        parts, table = router.parts, ReplicaTable(made.arms)
        for arm in made.arms:
            table.update(arm, [_NOWHERE])
        await router.start()
        records, other = RecordWriter(made.router.records), None
        if featurizer == "sentence":
            from draftpick.router.router import sentence_featurizer

            other = sentence_featurizer()
        times = []
        for number, body in enumerate(bodies(n + 100)):
            began = time.perf_counter()
            request = parse(_CHAT, body)
            context = await parts.dispatcher.featurize(request)
            decision = parts.decide(context)
            outcome = Meter(began).outcome("ok")
            record = Record(
                request_id="r", attempt=1, time=time.time(), path=_CHAT, stream=False, sampling=request.sampling or {},
                in_flight=table.in_flight(), context=context, decision=decision, outcome=outcome,
            )  # fmt: skip
            records.write(record)
            took_s = time.perf_counter() - began
            if other is not None:
                began = time.perf_counter()
                await other(request)
                took_s += time.perf_counter() - began
            if number >= 100:
                times.append(took_s * 1e3)
            await asyncio.sleep(0)
        await router.stop()
        records.close()
    return {"p50_ms": float(np.percentile(times, 50)), "p99_ms": float(np.percentile(times, 99))}
