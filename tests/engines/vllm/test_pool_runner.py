"""A pool in real vLLM, on the embedded target in float32: one engine, whose findings several tests read."""

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random
from types import FunctionType
from typing import Any

import pytest

from draftpick.engines.pool.forecast import XARG, Forecast
from tests.engines.vllm.digests import changed

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

LENGTH = 160
HEADS = ("general", "code", "math", "chat")
NAMES = (*HEADS, "suffix", "ngram", "trigram", "hybrid")
TOPICS = ("a dog", "the sea", "an old clock", "two friends", "a long winter", "the last train", "a garden", "a debt")


def test_vllm_s_functions_are_those_that_the_pool_was_written_for() -> None:
    from draftpick.engines.vllm.pool_runner import RELIES_ON

    assert not changed(RELIES_ON), "compare with pool_runner.py and its neighbours, then note the new digests"


def test_all_that_the_pool_imports_or_overrides_is_among_them() -> None:
    from draftpick.engines.vllm import pool_heads, pool_runner, pool_scheduler

    for ours in (pool_runner.PoolProposer, pool_heads.PoolHead, pool_scheduler.PoolScheduler):
        for name in (name for name, value in vars(ours).items() if isinstance(value, FunctionType)):
            of_vllm = next((base for base in ours.__mro__[1:] if name in vars(base) and base is not object), None)
            if of_vllm is not None:
                wanted = f"{of_vllm.__module__}:{of_vllm.__qualname__}"
                assert {wanted, f"{wanted}.{name}"} & pool_runner.RELIES_ON.keys(), f"{wanted}.{name}"
    for module in (pool_runner, pool_heads, pool_scheduler):
        for one in vars(module).values():
            if getattr(one, "__module__", "").startswith("vllm."):
                names = [
                    name for name in pool_runner.RELIES_ON if name.startswith(f"{one.__module__}:{one.__qualname__}")
                ]
                assert names, one


@pytest.fixture(scope="module")
def found(in_vllm: ProcessPoolExecutor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `observe` found."""
    return in_vllm.submit(observe, tmp_path_factory.mktemp("pool")).result()


def test_greedy_answers_are_the_target_s_own(found: dict[str, Any]) -> None:
    same = [mixed == alone for mixed, alone in zip(found["mixed"], found["alone"], strict=True) if mixed is not None]
    assert len(same) == 15
    assert all(same)


def test_every_drafter_drafted_in_one_batch(found: dict[str, Any]) -> None:
    steps = {name: sum(report[name]["steps"] for report in found["reports"]) for name in (*NAMES, "none")}
    assert all(steps.values()), steps


def test_reports_count_the_tokens_of_each_answer(found: dict[str, Any]) -> None:
    for tokens, report in zip(found["lengths"], found["reports"], strict=True):
        steps, accepted = (sum(one[key] for one in report.values()) for key in ("steps", "accepted"))
        # The first token comes from the prompt; the last step may have had more tokens than the answer took.
        assert tokens - 1 <= steps + accepted <= tokens - 1 + 8


def test_pinned_requests_use_their_drafter_alone(found: dict[str, Any]) -> None:
    for only, report in zip(found["pins"], found["reports"], strict=True):
        used = {name for name, one in report.items() if one["steps"]}
        assert only is None or used <= {only, "none"}


def test_a_prompt_in_the_prefix_cache_costs_no_acceptance(found: dict[str, Any]) -> None:
    assert found["cached_tokens"] >= 64
    assert found["cached"] == found["uncached"]


def test_every_head_has_read_a_text_that_ends_and_may_come_again_in_a_prompt(found: dict[str, Any]) -> None:
    assert found["unread"] == {}


def test_nothing_is_kept_of_requests_that_ended_or_were_aborted_in_mid_draft(found: dict[str, Any]) -> None:
    assert found["kept"] == {"of_a_draft": 1, "after_abort": 0, "states": 0}


def test_an_id_that_comes_again_is_another_request(found: dict[str, Any]) -> None:
    assert sum(one["steps"] + one["accepted"] for one in found["again"].values()) <= 15 + 8


def test_requests_at_the_model_s_length_do_not_stop_the_others_drafts(found: dict[str, Any]) -> None:
    assert found["longest"] == LENGTH
    assert sum(one["steps"] for name, one in found["beside_longest"].items() if name != "none") > 5


def test_a_head_that_only_vllm_s_own_loop_runs_drafts_too(found: dict[str, Any]) -> None:
    assert found["loop_tokens"] == found["sound_tokens"]
    assert found["loop"]["general"]["accepted"] > 3


def test_a_head_that_yields_no_numbers_is_left_out_and_the_others_serve(found: dict[str, Any]) -> None:
    report = found["poisoned"]
    assert report["general"]["left_out"]
    assert not report["suffix"]["left_out"]
    assert report["suffix"]["steps"] > 0
    assert found["poisoned_tokens"] == found["sound_tokens"]


def test_a_head_that_yields_no_numbers_in_vllm_s_own_loop_is_left_out_too(found: dict[str, Any]) -> None:
    assert found["poisoned_loop"]["code"]["left_out"]
    assert found["poisoned_loop"]["code"]["drafted"] == 0
    assert found["poisoned_loop_tokens"] == found["sound_tokens"]


def test_a_head_that_does_not_load_is_left_out(found: dict[str, Any]) -> None:
    assert set(found["left_out"]) == {"broken"}


def test_a_pool_whose_only_head_does_not_load_serves_with_the_others(
    in_vllm: ProcessPoolExecutor, tmp_path: Path
) -> None:
    report = in_vllm.submit(observe_no_head, tmp_path).result()
    assert report["broken"]["left_out"]
    assert report["ngram"]["accepted"] > 5


def observe(folder: Path) -> dict[str, Any]:
    """Run one pool through mixed batches, prefix hits, its length and a poisoned head: what is seen."""
    from vllm import LLM, SamplingParams

    from draftpick.engines.config import PoolDrafter
    from draftpick.engines.models.embedded import prepare_target
    from draftpick.engines.vllm.pool_options import pool_arguments

    drafters = [
        *(PoolDrafter(name=one, method="eagle3", model=f"embedded:{one}", num_speculative_tokens=4) for one in HEADS),
        PoolDrafter(name="broken", method="eagle3", model=broken_head(folder), num_speculative_tokens=4),
        PoolDrafter(name="suffix", method="suffix", num_speculative_tokens=8, suffix_decoding_max_cached_requests=0),
        PoolDrafter(name="ngram", method="ngram", num_speculative_tokens=3, prompt_lookup_max=4, prompt_lookup_min=1),
        PoolDrafter(name="trigram", method="trigram", num_speculative_tokens=3),
        PoolDrafter(name="hybrid", method="hybrid", num_speculative_tokens=8),
    ]
    llm = LLM(
        model=str(prepare_target()), dtype="float32", enforce_eager=True, max_model_len=LENGTH, max_num_seqs=8,
        max_num_batched_tokens=512, block_size=32, kv_cache_memory_bytes=2**27, enable_chunked_prefill=False, seed=0,
        **pool_arguments(drafters),
    )  # fmt: skip
    return Session(llm, SamplingParams).observe()


def observe_no_head(folder: Path) -> dict[str, Any]:
    """Run a pool whose only head has broken weights: the report of a request that repeats itself."""
    from vllm import LLM, SamplingParams

    from draftpick.engines.config import PoolDrafter
    from draftpick.engines.vllm.pool_options import pool_arguments
    from draftpick.engines.vllm.pool_reports import reports_of
    from tests.engines.drafters.tiny import write_head, write_target

    target = write_target(folder / "target", layers=7, head_dim=32)
    write_head(target, folder / "head", parallel=False)
    (folder / "head" / "model.safetensors").write_bytes(b"no tensors")
    drafters = [
        PoolDrafter(name="broken", method="eagle3", model=str(folder / "head"), num_speculative_tokens=2),
        PoolDrafter(name="ngram", method="ngram", num_speculative_tokens=3, prompt_lookup_max=4, prompt_lookup_min=1),
    ]
    llm = LLM(
        model=str(target), dtype="float32", enforce_eager=True, max_model_len=64, kv_cache_memory_bytes=2**24,
        skip_tokenizer_init=True, **pool_arguments(drafters),
    )  # fmt: skip
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, detokenize=False)
    (answer,) = llm.generate([{"prompt_token_ids": [3, 9, 27]}], params, use_tqdm=False)
    return reports_of(answer)


def broken_head(folder: Path) -> str:
    """A copy of a head with weights that cannot be read."""
    from draftpick.engines.models.embedded import drafter_path

    broken = folder / "broken"
    broken.mkdir()
    (broken / "config.json").write_bytes((drafter_path("general") / "config.json").read_bytes())
    (broken / "model.safetensors").write_bytes(b"no tensors")
    return str(broken)


class Session:
    """One engine, stepped by hand."""

    def __init__(self, llm: Any, params: Any) -> None:
        self.engine, self.llm, self._params = llm.llm_engine, llm, params
        self.proposer = self.engine.model_executor.driver_worker.model_runner.drafter
        self.tokenizer = llm.get_tokenizer()
        self.answers: dict[str, Any] = {}

    def prompt(self, text: str) -> list[int]:
        messages = [{"role": "user", "content": text}]
        ids: list[int] = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return ids

    def add(self, name: str, text: str, tokens: int, only: str | None = None) -> None:
        # Even a drafter that hardly earns drafts a few times.
        extra = {XARG: Forecast({only: 4.0}, 32.0, only=only).to_json()} if only else None
        params = self._params(temperature=0.0, max_tokens=tokens, ignore_eos=True, extra_args=extra)
        self.engine.add_request(name, {"prompt_token_ids": self.prompt(text)}, params)

    def step(self) -> None:
        for output in self.engine.step():
            if output.finished:
                self.answers[output.request_id] = output

    def finish(self) -> None:
        while self.engine.has_unfinished_requests():
            self.step()

    def report(self, name: str) -> dict[str, Any]:
        from draftpick.engines.vllm.pool_reports import reports_of

        return reports_of(self.answers[name])

    def tokens(self, name: str) -> list[int]:
        return list(self.answers[name].outputs[0].token_ids)

    def observe(self) -> dict[str, Any]:
        random, seen = Random(3), dict[str, Any]()
        pins: list[str | None] = [*NAMES, "none", *[None] * 9]
        random.shuffle(pins)
        aborted = {f"mixed-{i}" for i in [i for i, only in enumerate(pins) if only is None][1::3]}
        asked = [
            (f"Repeat this line ten times: {random.choice(TOPICS)} and {random.choice(TOPICS)}, {i} of {i + 1}."
             if only else f"Write a list of {random.randint(2, 9)} facts on {random.choice(TOPICS)}, and repeat each.",
             random.randint(16 if only else 6, 26), only)
            for i, only in enumerate(pins)
        ]  # fmt: skip
        for i, (text, tokens, only) in enumerate(asked):
            self.add(f"mixed-{i}", text, tokens, only)
            for _ in range(random.randint(0, 4)):
                self.step()
            if gone := [name for name in aborted if name == f"mixed-{i - 1}"]:
                self.engine.abort_request(gone)
        self.finish()
        done = [i for i in range(len(asked)) if f"mixed-{i}" in self.answers and f"mixed-{i}" not in aborted]
        seen["mixed"] = [self.tokens(f"mixed-{i}") if i in done else None for i in range(len(asked))]
        seen["reports"] = [self.report(f"mixed-{i}") for i in done]
        seen["lengths"] = [len(self.tokens(f"mixed-{i}")) for i in done]
        seen["pins"] = [asked[i][2] for i in done]
        seen["alone"] = [self.alone(f"alone-{i}", text, tokens, "none") for i, (text, tokens, _) in enumerate(asked)]
        self.observe_abort(seen)
        self.observe_id(seen)
        self.observe_prefix(seen)
        self.observe_length(seen)
        self.observe_failure(seen, "Repeat ten times: red, green, blue.", 40)
        return seen

    def alone(self, name: str, text: str, tokens: int, only: str | None = None) -> list[int]:
        self.llm.reset_prefix_cache()
        self.add(name, text, tokens, only)
        self.finish()
        return self.tokens(name)

    def observe_abort(self, seen: dict[str, Any]) -> None:
        """A request that is aborted while its draft is verified, and nothing after it."""
        self.add("aborted", "Repeat ten times: red, green, blue.", 60)
        kept = self.proposer._requests
        while not any(request.pool.chosen[1] for request in kept.values()):
            self.step()
        seen["kept"] = {"of_a_draft": len(kept)}
        self.engine.abort_request(["aborted"])
        self.engine.step()  # vLLM's worker hears of the end in the next step
        states = self.proposer._copiers["suffix"]._cache.active_requests
        seen["kept"] |= {"after_abort": len(kept), "states": len(states)}

    def observe_id(self, seen: dict[str, Any]) -> None:
        """A request under the id of the one before."""
        for tokens in (32, 16):
            self.alone("again", "Repeat: red, green, blue, red, green, blue.", tokens, "ngram")
        seen["again"] = self.report("again")

    def observe_prefix(self, seen: dict[str, Any]) -> None:
        """A prompt that others read while another drafter drafted, and the same without a cache."""
        text = "Explain step by step how to compute 12 * 17, then 23 * 19, and give both products at the end. " * 4
        self.alone("uncached", text, 24, "general")
        self.alone("first", text, 12, "suffix")
        (ended,) = self.proposer._requests.values()
        seen["unread"] = ended.unread
        self.add("cached", text, 24, "general")
        self.finish()
        seen["cached_tokens"] = self.answers["cached"].num_cached_tokens
        for name in ("cached", "uncached"):
            own = self.report(name)["general"]
            seen[name] = [own["drafted"], own["accepted"]]

    def observe_length(self, seen: dict[str, Any]) -> None:
        self.add("longest", "Count from one to two hundred.", 4 * LENGTH)
        self.add("other", "Repeat ten times: red, green, blue.", 60)
        self.finish()
        answer = self.answers["longest"]
        seen["longest"] = len(answer.prompt_token_ids) + len(self.tokens("longest"))
        seen["beside_longest"] = self.report("other")

    def observe_failure(self, seen: dict[str, Any], text: str, tokens: int) -> None:
        seen["left_out"] = dict(self.proposer.left_out)
        fast = self.proposer.heads["general"].fast()
        seen["sound_tokens"] = self.alone("sound", text, tokens, "none")
        head, code = self.proposer.heads["general"], self.proposer.heads["code"]
        head._fast = None
        seen["loop_tokens"] = self.alone("loop", text, tokens, "general")
        seen["loop"] = self.report("loop")
        head._fast = fast
        fast.norm.weight.data.fill_(float("nan"))
        seen["poisoned_tokens"] = self.alone("poisoned", text, tokens)
        seen["poisoned"] = self.report("poisoned")
        code.fast()
        code._fast = None
        code.model.model.norm.weight.data.fill_(float("nan"))
        seen["poisoned_loop_tokens"] = self.alone("poisoned_loop", text, tokens, "code")
        seen["poisoned_loop"] = self.report("poisoned_loop")
