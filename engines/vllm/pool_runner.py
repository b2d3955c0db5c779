"""A pool on vLLM's V1 model runner: several EAGLE-3 heads, model-free drafters and none beside one target.

`PoolProposer` takes the place of vLLM's `EagleProposer` for method `eagle3` and `additional_config["draftpick_pool"]`.
What to draft is decided by `engines/pool/`; here are batches, caches and clocks. All heads share the target's KV group.
"""

import logging
import time
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from vllm.v1.spec_decode.eagle import EagleProposer

from draftpick.engines.pool.acceptance import level_of_score
from draftpick.engines.pool.controller import Controller, DrafterTraits
from draftpick.engines.pool.costs import Costs
from draftpick.engines.pool.forecast import XARG, Forecast
from draftpick.engines.pool.prediction import predicted_text
from draftpick.engines.vllm.head_proposer import GREEDY, Rows
from draftpick.engines.vllm.pool_heads import HeadStep, PoolHead, with_head
from draftpick.engines.vllm.pool_options import PoolOptions, build_drafter
from draftpick.engines.vllm.pool_reports import attach_reports
from draftpick.engines.vllm.pool_rows import RequestText, Row

logger = logging.getLogger(__name__)

Tensor = torch.Tensor

_WARM_UP_STEPS = 4
"""Steps that are not measured."""

RELIES_ON = {
    "vllm.compilation.backends:set_model_tag": "d0621fab59f1",
    "vllm.config.speculative:SpeculativeConfig": "fc3e333205f7",
    "vllm.entrypoints.generate.base.serving:build_spec_decoding_metrics": "5d851548cd2c",
    "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat": "9de81e2e4c5b",
    "vllm.entrypoints.openai.completion.serving:OpenAIServingCompletion": "1f363df771b3",
    "vllm.model_executor.model_loader:get_model": "3c91b8ca94f1",
    "vllm.sampling_params:SamplingParams": "7067077ac60d",
    "vllm.v1.attention.backend:CommonAttentionMetadata": "52e452b6dc2c",
    "vllm.v1.core.sched.scheduler:Scheduler.update_draft_token_ids": "d90307ccdf2a",
    "vllm.v1.core.sched.scheduler:Scheduler.update_from_output": "616e84edbb35",
    "vllm.v1.core.sched.utils:check_stop": "5149b60c92d2",
    "vllm.v1.engine.output_processor:RequestState._new_completion_output": "214655b5a0fa",
    "vllm.v1.engine.output_processor:RequestState.make_request_output": "3be2107a8a58",
    "vllm.v1.engine:EngineCoreOutput": "a46b2c672e1c",
    "vllm.v1.metrics.stats:RequestSpecDecodeMetrics": "2723ab532c4f",
    "vllm.v1.outputs:ModelRunnerOutput": "d13c754766d8",
    "vllm.v1.spec_decode.eagle:EagleProposer": "6fd6605eeef4",
    "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer.__init__": "7cf17751d7ea",
    "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer._create_draft_vllm_config": "36a4d60a8f28",
    "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer._get_model": "cf7510a7741b",
    "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer._greedy_sample": "e539abab1b22",
    "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer._sample_draft_tokens": "d1812aa8d9ad",
    "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer.dummy_run": "5e2e533fb829",
    "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer.initialize_attn_backend": "f2f51d1f24de",
    "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer.initialize_cudagraph_keys": "f35176814eb6",
    "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer.load_model": "b7e0127b106d",
    "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer.prepare_inputs": "8a00d8ed11f3",
    "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer.prepare_next_token_ids_cpu": "a8378c9cff85",
    "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer.propose": "6f93dd3c25ef",
    "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer.set_inputs_first_pass": "feb48af31cd1",
    "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer.validate_same_kv_cache_group": "f8cc2debde9d",
    "vllm.v1.worker.cpu_model_runner:CPUModelRunner.load_model": "270bdfc6670d",
    "vllm.v1.worker.gpu_input_batch:CachedRequestState": "83882bc92442",
    "vllm.v1.worker.gpu_input_batch:InputBatch.add_request": "33b3f53b9b19",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.__init__": "531bb48a14b7",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._bookkeeping_sync": "2978773e51b3",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._build_attention_metadata": "384983a7020d",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._check_and_update_cudagraph_mode": "9a0eeb72bebb",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._copy_draft_token_ids_to_cpu": "2f68963acce4",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._dummy_run": "0d4e668ea227",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._get_draft_token_ids_cpu": "48bdeff52e00",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._input_fits_in_drafter": "24d6a45dca3c",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._update_states": "2e7098333b0c",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.get_draft_model": "048519eb6848",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.initialize_kv_cache": "eb90d63e26fa",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.initialize_metadata_builders": "c204447336f5",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.load_model": "38d0d8c0716b",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.propose_draft_token_ids": "a60269aca9de",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.sample_tokens": "e764887f827c",
}
"""What the pool's files call, override or read of vLLM, with a digest of each's source in vLLM 0.29."""


class PoolProposer(EagleProposer):
    """What the model runner sees: one proposer of ragged drafts."""

    def __init__(self, vllm_config: Any, device: torch.device, runner: Any) -> None:
        super().__init__(vllm_config, device, runner)
        options = PoolOptions.from_config(vllm_config)
        assert options is not None
        if not vllm_config.speculative_config.disable_padded_drafter_batch:
            raise ValueError("a pool needs `disable_padded_drafter_batch: true` in --speculative-config")
        self._runner = runner
        attach_reports(runner, self.reports)
        self.left_out: dict[str, str] = {}
        self.heads: dict[str, PoolHead] = {}
        for name, config in options.heads.items():
            self._try(name, lambda name=name, config=config: self._add_head(name, config.model))  # type: ignore[misc]
        self._copiers = {name: build_drafter(config) for name, config in options.model_free.items()}
        traits = {
            one.name: DrafterTraits(one.num_speculative_tokens, one.name in options.heads)
            for one in options.drafters
            if one.name not in self.left_out
        }
        scheduler = vllm_config.scheduler_config
        verified = scheduler.max_num_seqs * (1 + options.length)
        self.controller = Controller(traits, Costs(verified, scheduler.max_num_seqs))
        self._requests: dict[str, RequestText] = {}
        self._sampled: list[list[int]] = []
        self._scheduled: dict[str, int] = {}
        self._before: list[str] = []
        self._left = 0.0
        self._steps = 0
        self._caches_prefixes = bool(vllm_config.cache_config.enable_prefix_caching)
        self.ignored_forecasts = 0

    # What the runner asks of a drafter with a model.

    def load_model(self, target_model: Any) -> None:
        """Load every head; those that fail are left out."""
        for name, head in list(self.heads.items()):
            self._try(name, lambda head=head: head.load_model(target_model))  # type: ignore[misc]
        for head in self.heads.values():
            self.model = head.model
        self._draft_attn_layer_names = {layer for head in self.heads.values() for layer in head._draft_attn_layer_names}
        # Each request's drafts end before the model's length; vLLM would leave a whole batch without drafts.
        self._runner.effective_drafter_max_model_len = 2**31
        tokens = np.arange(8, dtype=np.int32)
        for drafter in self._copiers.values():  # compiles before the first request
            state = drafter.start(tokens)
            drafter.draft(state, tokens, 1)
            drafter.learn(state, tokens, 1)
            drafter.end(state)

    def validate_same_kv_cache_group(self, kv_cache_config: Any) -> None:
        if self.heads:  # vLLM takes for granted that there is one
            super().validate_same_kv_cache_group(kv_cache_config)

    def initialize_attn_backend(self, kv_cache_config: Any, kernel_block_sizes: list[int] | None = None) -> None:
        self.kv_cache_gid = 0
        for head in self.heads.values():
            head.initialize_attn_backend(kv_cache_config, kernel_block_sizes)
            self.kv_cache_gid, self.block_size = head.kv_cache_gid, head.block_size

    def initialize_cudagraph_keys(self, cudagraph_mode: Any) -> None:
        for head in self.heads.values():
            head.initialize_cudagraph_keys(cudagraph_mode)

    def dummy_run(self, *args: Any, **kwargs: Any) -> None:
        for head in self.heads.values():
            head.dummy_run(*args, **kwargs)

    def prepare_next_token_ids_cpu(
        self, sampled_token_ids: list[list[int]], requests: Any, gpu_input_batch: Any, num_scheduled_tokens: Any
    ) -> Tensor:
        self._sampled, self._scheduled = sampled_token_ids, num_scheduled_tokens
        ids: Tensor = super().prepare_next_token_ids_cpu(
            sampled_token_ids, requests, gpu_input_batch, num_scheduled_tokens
        )
        return ids

    def propose(self, num_speculative_tokens: int, **step: Any) -> list[list[int]]:
        """Return the drafts, one list a request, of at most `num_speculative_tokens`."""
        began_s = time.perf_counter()
        rows = self._rows(step)
        self._measure(rows, began_s)
        active = [row for row in rows if row.came]
        for row in active:
            row.state.pool.observe(row.came, row.verified)
            row.state.pool.room = self._room(row, num_speculative_tokens)
        self._offer_copies(active)
        pools = [row.state.pool for row in active]
        chosen = self.controller.choose_heads(pools)
        began_heads_s = time.perf_counter()
        for name in list(self.heads):
            self._run_head(name, rows, [active[i] for i in chosen.get(name, ())], step)
        drafts: list[list[int]] = [[] for _ in rows]
        spent_s = time.perf_counter() - began_heads_s if chosen else 0.0
        for row, draft in zip(active, self.controller.allocate(pools, spent_s), strict=True):
            drafts[row.place] = draft
        for row in rows:
            row.state.prune()
        self._before = [row.id for row in rows]
        self._left = time.perf_counter()
        return drafts

    def reports(self, output: Any) -> dict[str, Any]:
        """Return the reports of the requests that may end with this step, by request."""
        found = {}
        for req_id, tokens in zip(output.req_ids, output.sampled_token_ids, strict=False):
            request, known = self._requests.get(req_id), self._runner.requests.get(req_id)
            if tokens and request is not None and known is not None and self._may_end(known, request, tokens):
                found[req_id] = request.pool.report(self.left_out)
        return found

    def _may_end(self, known: Any, request: RequestText, tokens: list[int]) -> bool:
        params = known.sampling_params
        unforeseen = params is None or params.repetition_detection is not None
        return unforeseen or self._ends(known, request, tokens)

    def _ends(self, known: Any, request: RequestText, tokens: list[int]) -> bool:
        """Return whether vLLM's scheduler ends a request with these tokens, as its `check_stop` does."""
        params = known.sampling_params
        if params is None:
            return False
        stops = {params.eos_token_id, *(params.stop_token_ids or ())}
        length = known.num_prompt_tokens + len(known.output_token_ids)
        ends = len(known.output_token_ids) >= request.max_tokens or length >= self.max_model_len
        return ends or not stops.isdisjoint(tokens)

    # Requests.

    def _rows(self, step: dict[str, Any]) -> list[Row]:
        """Return the rows of this step, their texts and new tokens noted."""
        batch, metadata = self._runner.input_batch, step["common_attn_metadata"]
        starts = metadata.query_start_loc_cpu.tolist()
        last = metadata.query_start_loc[1:].long() - 1
        ids = step["target_token_ids"].roll(-1)
        ids[last] = step["next_token_ids"].to(ids.dtype)
        hidden = step["target_hidden_states"]
        text = Rows(ids, step["target_positions"].clone(), metadata.slot_mapping.clone(), hidden)
        names, rows = list(self.heads), []
        for place, req_id in enumerate(batch.req_ids):
            request = self._request(req_id)
            row = Row(place, req_id, request, starts[place], starts[place + 1])
            request.add(text.cut(row.begin, row.end), names)
            row.came = self._sampled[place]
            extra = self._scheduled[req_id] - 1
            row.prompt = not row.came or extra > request.pool.chosen[1]
            row.verified = 0 if row.prompt else extra
            row.ends = bool(row.came) and self._ends(self._runner.requests[req_id], request, row.came)
            rows.append(row)
        return rows

    def _request(self, req_id: str) -> RequestText:
        """Return what is kept of a request, as long as vLLM keeps its own state of it: an id may come again at once."""
        known, request = self._runner.requests[req_id], self._requests.get(req_id)
        if request is not None and request.known() is known:
            return request
        if request is not None:
            self._forget(req_id, request)
        new = self._start(known, weakref.ref(known, lambda _: self._forget(req_id, new)))
        self._requests[req_id] = new
        return new

    def _start(self, known: Any, reference: Callable[[], Any]) -> RequestText:
        params = known.sampling_params
        forecast, sampled, most = None, False, self.max_model_len
        if params is not None:
            sampled, most = params.temperature > GREEDY, params.max_tokens or self.max_model_len
            if (text := (params.extra_args or {}).get(XARG)) is not None:
                forecast = Forecast.from_json(text)
                self.ignored_forecasts += forecast is None
        return RequestText(reference, self.controller.start(sampled, forecast), most)

    def _forget(self, req_id: str, request: RequestText) -> None:
        """End the drafters' states of a request that ended."""
        if self._requests.get(req_id) is request:
            del self._requests[req_id]
        for name, state in request.states.items():
            self._copiers[name].end(state)
        request.states = {}

    def _room(self, row: Row, length: int) -> int:
        """Return how many tokens may be drafted: to the model's length, and to the answer's."""
        tokens = int(self._runner.input_batch.num_tokens_no_spec[row.place])
        answered = tokens - int(self._runner.requests[row.id].num_prompt_tokens)
        room: int = min(length, self.max_model_len - tokens - 1, row.state.max_tokens - answered - 1)
        return 0 if row.ends else max(0, room)

    # Drafts.

    def _offer_copies(self, rows: list[Row]) -> None:
        """Offer the drafts of model-free drafters; they learn from all tokens."""
        batch = self._runner.input_batch
        for row in rows:
            request = row.state
            length = int(batch.num_tokens_no_spec[row.place])
            tokens = batch.token_ids_cpu[row.place, :length]
            if (predicted := predicted_text(self._runner.requests[row.id], tokens, self.max_model_len)) is not None:
                tokens = predicted.extend(tokens)
            new, request.length = length - request.length, length
            for name, drafter in self._copiers.items():
                if name not in request.pool.own:
                    continue
                if name not in request.states:
                    request.states[name] = drafter.start(tokens)
                elif new:
                    drafter.learn(request.states[name], tokens, new)
                if request.pool.room:
                    draft, score = drafter.draft(request.states[name], tokens, request.pool.room)
                    copied = draft.tolist()
                    if predicted is not None:
                        copied = predicted.draft(copied, min(request.pool.room, self.controller.drafters[name].length))
                        score = max(score, float(predicted.run))
                    request.pool.offer(name, copied, [level_of_score(score)] * len(copied))

    def _run_head(self, name: str, rows: list[Row], drafting: list[Row], step: dict[str, Any]) -> None:
        """Let a head read what it must and draft for `drafting`; leave it out if it yields no numbers."""
        # What may come again, in the prefix cache, is read whoever drafts.
        whole = [row for row in rows if row not in drafting and (row.prompt or (row.ends and self._caches_prefixes))]
        prompts = [row for row in whole if row.state.unread.get(name)]
        resting = [row for row in rows if row not in drafting and row not in whole]
        unread = [row.state.unread.get(name, 0) for row in resting]
        pools = [row.state.pool for row in resting]
        reads = self.controller.choose_reads(name, pools, unread, bool(drafting or prompts))
        due = [resting[i] for i in reads]
        if not (drafting or due or prompts):
            return
        step_of_head = HeadStep(self.controller, self.heads[name], drafting, due, prompts)
        if not step_of_head.run(step, measures=self._steps > _WARM_UP_STEPS):
            self._leave_out(name, "its probabilities are no numbers")

    # Clocks, and what is left out.

    def _measure(self, rows: list[Row], began_s: float) -> None:
        """Note the seconds of the target's step, if it only decoded and the same requests were there before."""
        if [row.id for row in rows] != self._before or any(row.prompt for row in rows):
            return
        self._steps += 1
        if self._steps <= _WARM_UP_STEPS:
            return
        counts = [self._scheduled[row.id] for row in rows]
        sampled = any(row.state.pool.sampled for row in rows)
        self.controller.costs.verify(len(rows), sampled).add(sum(counts), began_s - self._left)

    def _add_head(self, name: str, model: str | None) -> None:
        self.heads[name] = PoolHead(name, with_head(self.vllm_config, model), self.device, self._runner)

    def _try(self, name: str, build: Callable[[], None]) -> None:
        """Build or load a head; leave it out if that fails."""
        layers = self.vllm_config.compilation_config.static_forward_context
        known = set(layers)
        try:
            build()
        except Exception as error:  # a broken checkpoint fails in as many ways as there are lines that read it
            for layer in set(layers) - known:
                del layers[layer]
            self._leave_out(name, f"it does not load: {error}")

    def _leave_out(self, name: str, reason: str) -> None:
        logger.error("drafter %s is left out: %s", name, reason)
        self.left_out[name] = reason
        self.heads.pop(name, None)
        if hasattr(self, "controller"):
            self.controller.leave_out(name)
            for request in self._requests.values():
                request.pool.drop(name)
                request.unread.pop(name, None)


class _AnyEagle(type):
    """Every proposer of EAGLE heads is an instance of its classes: the model runner asks."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, EagleProposer)


class EagleFactory(metaclass=_AnyEagle):
    """Stands for the class `EagleProposer` in the model runner: makes a pool's proposer, or that of one head."""

    single: ClassVar[type[EagleProposer]] = EagleProposer

    def __new__(cls, vllm_config: Any, device: Any, runner: Any = None) -> Any:
        kind = cls.single if PoolOptions.from_config(vllm_config) is None else PoolProposer
        return kind(vllm_config, device, runner)


def install() -> None:
    """Let vLLM's V1 model runner make pools; the class that makes one head's proposer stays what it is."""
    import vllm.v1.worker.gpu_model_runner as runner

    if runner.EagleProposer is not EagleFactory:
        EagleFactory.single = runner.EagleProposer
        runner.EagleProposer = EagleFactory
