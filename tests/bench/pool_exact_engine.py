"""One engine of tests/bench/pool_exact.py: answers the requests of FOLDER/job.json, writes FOLDER/found.json."""

import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from draftpick.engines.arms import NONE
from draftpick.engines.models.paths import target_path
from draftpick.engines.pool.controller import Controller
from draftpick.engines.pool.request import PoolRequest


class FullLength(Controller):
    """In every step each request's drafter drafts, and all that it drafts is verified."""

    rests = False
    random = Random(0)

    def choose_heads(self, requests: Sequence[PoolRequest]) -> dict[str, list[int]]:
        super().choose_heads(requests)
        drafting = [i for i, request in enumerate(requests) if request.room and not self._rests()]
        return {head: [i for i in drafting if head in requests[i].own] for head in self.heads}

    def extends(self, request: PoolRequest, head: str, levels: Sequence[int], rows: int) -> bool:
        return len(levels) < min(request.room, self.drafters[head].length)

    def allocate(self, requests: Sequence[PoolRequest], spent_s: float = 0.0) -> list[list[int]]:
        return [self._all(request) for request in requests]

    def _all(self, request: PoolRequest) -> list[int]:
        name = next(iter(request.proposals), NONE)
        if name == NONE or self._rests():
            return request.choose(NONE, 0)
        return request.choose(name, len(request.proposals[name].tokens))

    def _rests(self) -> bool:
        return self.rests and self.random.random() < 0.5


class Rests(FullLength):
    """As above, but drafters rest in half of the steps, and drafts are verified in half of the others."""

    rests = True


def main(folder: Path) -> None:
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    from vllm import LLM, EngineArgs

    from draftpick.engines.vllm.arguments import engine_arguments
    from tests.bench.pool_exact import fleet

    job = json.loads((folder / "job.json").read_text())
    config = fleet()
    (engine,) = (one for one in config.engines if one.name == job["engine"])
    known = {field.name for field in dataclasses.fields(EngineArgs)}
    arguments = {key: value for key, value in engine_arguments(config, engine).items() if key in known}
    if cache_bytes := job.get("cache_bytes"):
        arguments["kv_cache_memory_bytes"] = cache_bytes
    llm = LLM(model=target_path(config.target), seed=0, disable_log_stats=False, **arguments)
    session = _Session(llm, job.get("controller"), job.get("logprobs", False))
    (folder / "found.json").write_text(json.dumps(session.run(job["asked"])))


class _Session:
    """Steps an engine by hand, and notes what came."""

    def __init__(self, llm: Any, controller: str | None, logprobs: bool) -> None:
        self._llm, self._engine, self._logprobs = llm, llm.llm_engine, logprobs
        self._proposer = self._engine.model_executor.driver_worker.model_runner.__dict__.get("drafter")
        self._outputs: dict[int, Any] = {}
        self._counts: Counter[int] = Counter()
        self._steps: Counter[str] = Counter()
        self._drafts: dict[int, dict[int, list[int]]] = {}
        self._tokens: Counter[int] = Counter()
        if controller:
            self._proposer.controller.__class__ = {"full": FullLength, "rests": Rests}[controller]
            self._note_drafts()

    def run(self, asked: list[dict[str, Any]]) -> dict[str, Any]:
        """Answer all requests; each comes some steps after the one before, as soon as there is room."""
        from vllm import SamplingParams

        self._asked = asked
        for i, one in enumerate(asked):
            params = SamplingParams(
                temperature=one["temperature"],
                max_tokens=one["max_tokens"],
                ignore_eos=True,
                detokenize=False,
                extra_args=one["extra_args"],
                logprobs=2 if self._logprobs else None,
            )
            for _ in range(one["after_steps"]):
                self._step()
            while self._engine.get_num_unfinished_requests() >= 12:  # some of them wait for a place in the batch
                self._step()
            self._engine.add_request(str(i), {"prompt_token_ids": one["ids"]}, params)
        while self._engine.has_unfinished_requests():
            self._step()
        self._engine.step()  # the worker hears of the last ends
        done = [self._outputs[i] for i in range(len(asked))]
        metrics = {one.name: one.value for one in self._llm.get_metrics() if hasattr(one, "value")}
        return {
            "tokens": [list(one.outputs[0].token_ids) for one in done],
            "lengths": [len(one.prompt_token_ids) + len(one.outputs[0].token_ids) for one in done],
            "cached": [one.num_cached_tokens or 0 for one in done],
            "counts": [self._counts[i] for i in range(len(asked))],
            "margins": [self._margins(one) for one in done],
            "drafts": [self._drafts.get(i, {}) for i in range(len(asked))],
            "preemptions": int(metrics.get("vllm:num_preemptions", 0)),
            "steps": dict(self._steps),
            "kept": self._kept(),
        }

    def _kept(self) -> int:
        """The number of requests of which a pool still keeps something."""
        from draftpick.engines.vllm.pool_runner import PoolProposer

        return len(self._proposer._requests) if isinstance(self._proposer, PoolProposer) else 0

    def _step(self) -> None:
        from draftpick.engines.vllm.pool_reports import reports_of

        for output in self._engine.step():
            i = int(output.request_id)
            tokens = output.outputs[0].token_ids
            self._counts[i] += bool(self._tokens[i]) and len(tokens) > self._tokens[i]
            self._tokens[i] = len(tokens)
            self._outputs[i] = output
            after = self._asked[i]["abort_after"]
            if output.finished:
                self._steps.update({name: report["steps"] for name, report in reports_of(output).items()})
            elif after and len(tokens) >= after:
                self._engine.abort_request([output.request_id])

    def _margins(self, output: Any) -> list[float]:
        """The difference of the two largest logits at each token."""
        found = []
        for likely in output.outputs[0].logprobs or ():
            first, second, *_ = sorted((one.logprob for one in likely.values()), reverse=True)
            found.append(first - second)
        return found

    def _note_drafts(self) -> None:
        """Note each draft by request and number of tokens of the text."""
        kept, allocate = self._proposer._requests, self._proposer.controller.allocate

        def noting(requests: Sequence[PoolRequest], spent_s: float = 0.0) -> list[list[int]]:
            of_pool = {id(request.pool): (name, request) for name, request in kept.items()}
            for pool in requests:
                name, request = of_pool[id(pool)]
                for proposal in pool.proposals.values():
                    found = self._drafts.setdefault(int(name.partition("-")[0]), {})
                    found[request.length] = list(proposal.tokens)
            drafts: list[list[int]] = allocate(requests, spent_s)
            return drafts

        self._proposer.controller.allocate = noting


if __name__ == "__main__":
    main(Path(sys.argv[1]))
