"""A pool on vLLM's V1 model runner: several EAGLE-3 heads, model-free drafters and none beside one target.

`PoolProposer` takes the place of vLLM's `EagleProposer` for method `eagle3` and `additional_config["draftpick_pool"]`.
What to draft is decided by `engines/pool/`; here are batches, caches and clocks. All heads share the target's KV group.
"""

import copy
import logging
import time
from abc import ABCMeta
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from vllm.config import SpeculativeConfig
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.spec_decode.eagle import EagleProposer

from draftpick.engines.pool.acceptance import level_of_probability, level_of_score
from draftpick.engines.pool.controller import Controller, DrafterTraits
from draftpick.engines.pool.costs import Costs
from draftpick.engines.pool.forecast import XARG, Forecast
from draftpick.engines.pool.request import PoolRequest
from draftpick.engines.vllm.head_proposer import GREEDY, Head, Rows, draft_rows
from draftpick.engines.vllm.pool_options import PoolOptions, build_drafter
from draftpick.engines.vllm.pool_reports import attach_reports

logger = logging.getLogger(__name__)

Tensor = torch.Tensor

_WARM_UP_STEPS = 4
"""Steps that are not measured."""

RELIES_ON: dict[str, str] = {}


class PoolHead(EagleProposer):
    """One head: vLLM's proposer with layer names of its own, and with the fast passes of `Head` where they fit."""

    def __init__(self, name: str, vllm_config: Any, device: torch.device, runner: Any) -> None:
        self.name = name
        super().__init__(vllm_config, device, runner)
        self._fast: Head | None = None
        self._asked = False

    def _get_model(self) -> Any:
        from vllm.compilation.backends import set_model_tag
        from vllm.model_executor.model_loader import get_model

        with set_model_tag(f"eagle_head_{self.name}"):
            return get_model(
                vllm_config=self._create_draft_vllm_config(),
                model_config=self.speculative_config.draft_model_config,
                load_config=self.speculative_config.draft_load_config,
                prefix=f"drafter_{self.name}",
            )

    def fast(self) -> Head | None:
        """Return the passes on packed weights, None where only vLLM's own loop works; the KV cache must be bound."""
        if not self._asked:
            self._asked = True
            if Head.fits(self.model, self.vllm_config) and not self._enable_probabilistic_draft_probs:
                self._fast = Head(self.model, self.draft_attn_groups[0].get_metadata_builder())
        return self._fast


class _Row:
    """A request's row in this step. `begin`, `end`: its accepted tokens among those of the step; `came`: its new
    tokens, none while its prompt is read; `verified`: draft tokens that the step verified; `prompt`: whether it read a
    prompt."""

    __slots__ = ("begin", "came", "end", "id", "place", "prompt", "state", "verified")

    def __init__(self, place: int, req_id: str, state: "_Request", begin: int, end: int) -> None:
        self.place, self.id, self.state, self.begin, self.end = place, req_id, state, begin, end
        self.came: list[int] = []
        self.verified = 0
        self.prompt = False


class _Request:
    """What the runner keeps of a request: its text's rows that some head has not read, and the states of drafters."""

    def __init__(self, pool: PoolRequest, max_tokens: int) -> None:
        self.pool = pool
        self.max_tokens = max_tokens
        self.parts: list[Rows] = []
        self.unread: dict[str, int] = {}
        self.next_position = 0
        self.length = 0
        self.states: dict[str, Any] = {}

    def add(self, rows: Rows, heads: Sequence[str]) -> None:
        """Append the rows of a step."""
        position = int(rows.positions[0])
        if position != self.next_position:  # new, or preempted and computed again
            self.parts, self.unread = [], {}
        self.next_position = position + len(rows.ids)
        self.parts.append(rows)
        for head in heads:
            self.unread[head] = self.unread.get(head, 0) + len(rows.ids)

    def take(self, head: str) -> list[Rows]:
        """Return the rows that a head has not read, as read from now on."""
        left, taken = self.unread.pop(head, 0), []
        for part in reversed(self.parts):
            if left <= 0:
                break
            taken.append(part if len(part.ids) <= left else part.cut(len(part.ids) - left, len(part.ids)))
            left -= len(part.ids)
        return taken[::-1]

    def prune(self) -> None:
        """Forget the rows that every head has read."""
        most, kept = max(self.unread.values(), default=0), 0
        for i in range(len(self.parts) - 1, -1, -1):
            if kept >= most:
                del self.parts[: i + 1]
                return
            kept += len(self.parts[i].ids)


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
        self._requests: dict[str, _Request] = {}
        self._sampled: list[list[int]] = []
        self._scheduled: dict[str, int] = {}
        self._before: list[str] = []
        self._left = 0.0
        self._steps = 0
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

    def _may_end(self, known: Any, request: _Request, tokens: list[int]) -> bool:
        """Return whether vLLM's scheduler may end a request with these tokens, as its `check_stop` does."""
        params = known.sampling_params
        if params is None or params.repetition_detection is not None:
            return True
        stops = {params.eos_token_id, *(params.stop_token_ids or ())}
        length = known.num_prompt_tokens + len(known.output_token_ids)
        ends = len(known.output_token_ids) >= request.max_tokens or length >= self.max_model_len
        return ends or not stops.isdisjoint(tokens)

    # Requests.

    def _rows(self, step: dict[str, Any]) -> list[_Row]:
        """Return the rows of this step, their texts and new tokens noted; forget requests that ended."""
        batch, metadata = self._runner.input_batch, step["common_attn_metadata"]
        for ended in self._requests.keys() - self._runner.requests.keys():
            self._end(self._requests.pop(ended))
        starts = metadata.query_start_loc_cpu.tolist()
        last = metadata.query_start_loc[1:].long() - 1
        ids = step["target_token_ids"].roll(-1)
        ids[last] = step["next_token_ids"].to(ids.dtype)
        hidden = step["target_hidden_states"]
        text = Rows(ids, step["target_positions"].clone(), metadata.slot_mapping.clone(), hidden)
        names, rows = list(self.heads), []
        for place, req_id in enumerate(batch.req_ids):
            request = self._requests.get(req_id)
            if request is None:
                request = self._requests[req_id] = self._start(req_id)
            row = _Row(place, req_id, request, starts[place], starts[place + 1])
            request.add(text.cut(row.begin, row.end), names)
            row.came = self._sampled[place]
            extra = self._scheduled[req_id] - 1
            row.prompt = not row.came or extra > request.pool.chosen[1]
            row.verified = 0 if row.prompt else extra
            rows.append(row)
        return rows

    def _start(self, req_id: str) -> _Request:
        params = self._runner.requests[req_id].sampling_params
        forecast, sampled, most = None, False, self.max_model_len
        if params is not None:
            sampled, most = params.temperature > GREEDY, params.max_tokens or self.max_model_len
            if (text := (params.extra_args or {}).get(XARG)) is not None:
                forecast = Forecast.from_json(text)
                self.ignored_forecasts += forecast is None
        return _Request(self.controller.start(sampled, forecast), most)

    def _end(self, request: _Request) -> None:
        for name, state in request.states.items():
            self._copiers[name].end(state)

    def _room(self, row: _Row, length: int) -> int:
        """Return how many tokens may be drafted: to the model's length, and to the answer's."""
        tokens = int(self._runner.input_batch.num_tokens_no_spec[row.place])
        answered = tokens - int(self._runner.requests[row.id].num_prompt_tokens)
        return max(0, min(length, self.max_model_len - tokens - 1, row.state.max_tokens - answered - 1))

    # Drafts.

    def _offer_copies(self, rows: list[_Row]) -> None:
        """Offer the drafts of model-free drafters; they learn from all tokens."""
        batch = self._runner.input_batch
        for row in rows:
            request = row.state
            length = int(batch.num_tokens_no_spec[row.place])
            tokens = batch.token_ids_cpu[row.place, :length]
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
                    request.pool.offer(name, draft.tolist(), [level_of_score(score)] * len(draft))

    def _run_head(self, name: str, rows: list[_Row], drafting: list[_Row], step: dict[str, Any]) -> None:
        """Let a head read what it must and draft for `drafting`; leave it out if it yields no numbers."""
        prompts, due = [], []
        for row in rows:
            if row in drafting:
                continue
            unread = row.state.unread.get(name, 0)
            if row.prompt:
                prompts.append(row)
            elif row.state.pool.is_due(name, unread):
                due.append(row)
        if not (reading := [*drafting, *due, *prompts]):
            return
        for row in (*drafting, *due):
            row.state.pool.note_read(name, row in drafting)
        head = self.heads[name]
        fast = head.fast()
        if fast is None:
            fine = self._loop_of_vllm(name, head, reading, len(drafting) + len(due), step)
        else:
            fine = self._passes(name, fast, drafting, due, prompts, step["common_attn_metadata"].block_table_tensor)
        if not fine:
            self._leave_out(name, "its probabilities are no numbers")

    def _passes(
        self, name: str, head: Head, drafting: list[_Row], due: list[_Row], prompts: list[_Row], table: Tensor
    ) -> bool:
        """Read and draft by the head's own passes; return False if it yields no numbers."""
        reading = [*drafting, *due, *prompts]
        began_s = time.perf_counter()
        parts = [Rows.join(row.state.take(name)) for row in reading]
        text = Rows.join(parts)
        ends = np.cumsum([len(part.ids) for part in parts])
        # Outputs: of each request's last row; then, of the requests that are due, of all others.
        wanted, owners = (ends - 1).tolist(), list(range(len(reading)))
        for i in range(len(drafting), len(drafting) + len(due)):
            before = range(ends[i] - len(parts[i].ids), ends[i] - 1)
            wanted.extend(before)
            owners.extend([i] * len(before))
        at, places = torch.tensor(wanted), torch.tensor([row.place for row in reading])
        table = table[places]
        positions = text.positions[at]
        hidden = self.heads[name].model.combine_hidden_states(text.hidden)
        output, state = head.forward(
            text.ids, text.positions, hidden, text.slots, at, (positions + 1).int(), table[torch.tensor(owners)]
        )
        asks = len(drafting) + len(due)
        if due and not self._score(
            name, head, output[len(reading) :], text.ids[at[len(reading) :] + 1], owners, reading
        ):
            return False
        if not asks:
            return True
        draft = _Drafts(self.controller, name, [row.state.pool for row in reading[:asks]])
        limit = max(pool.room for pool in draft.pools)
        read_s = time.perf_counter()
        passes = draft_rows(head, (output[:asks], state[:asks]), positions[:asks], table[:asks], limit, draft.add)
        if not due and not prompts and self._steps > _WARM_UP_STEPS:
            taken_s = time.perf_counter() - read_s
            share = taken_s / (len(passes) + 1)
            self.controller.costs.read.add(asks, read_s - began_s + share)
            for count in passes:
                self.controller.costs.extend.add(count, share)
        return draft.offer()

    def _score(
        self, name: str, head: Head, output: Tensor, actual: Tensor, owners: list[int], reading: list[_Row]
    ) -> bool:
        """Score a head on the tokens that came while it rested."""
        if not len(output):
            return True
        probabilities, tokens = head.best(output)
        hits: dict[int, tuple[list[int], list[bool]]] = {}
        scored = zip(owners[len(reading) :], probabilities.tolist(), (tokens == actual).tolist(), strict=True)
        for owner, probability, hit in scored:
            if probability != probability:
                return False
            levels, found = hits.setdefault(owner, ([], []))
            levels.append(level_of_probability(probability))
            found.append(hit)
        for owner, (levels, found) in hits.items():
            own = reading[owner].state.pool.own.get(name)
            if own is not None:
                own.score_first(levels, found)
        return True

    def _loop_of_vllm(self, name: str, head: PoolHead, reading: list[_Row], asks: int, step: dict[str, Any]) -> bool:
        """Read and draft by vLLM's own loop, all requests that draft to the same length."""
        began_s = time.perf_counter()
        for rows, drafts in ((reading[:asks], True), (reading[asks:], False)):
            if not rows:
                continue
            pools = [row.state.pool for row in rows]
            length = self.controller.head_length(name, pools) if drafts else 0
            out = head.propose(length, **_inputs(name, rows, step))
            if not drafts:
                continue
            taken_s = time.perf_counter() - began_s
            if self._steps > _WARM_UP_STEPS and length:
                self.controller.costs.read.add(asks, taken_s / length)
                if length > 1:
                    self.controller.costs.extend.add(asks, taken_s / length)
            for pool, tokens in zip(pools, out.tolist(), strict=True):
                pool.offer(name, tokens, [0] * len(tokens))
        return True

    # Clocks, and what is left out.

    def _measure(self, rows: list[_Row], began_s: float) -> None:
        """Note the seconds of the target's step, if it only decoded and the same requests were there before."""
        if [row.id for row in rows] != self._before or any(row.prompt for row in rows):
            return
        self._steps += 1
        if self._steps <= _WARM_UP_STEPS:
            return
        counts = [self._scheduled[row.id] for row in rows]
        sampled = any(row.state.pool.sampled for row in rows)
        self.controller.costs.verify[sampled].add(sum(counts), began_s - self._left)

    def _add_head(self, name: str, model: str | None) -> None:
        self.heads[name] = PoolHead(name, _with_head(self.vllm_config, model), self.device, self._runner)

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


class _Drafts:
    """Drafts of one head in one step."""

    def __init__(self, controller: Controller, name: str, pools: list[PoolRequest]) -> None:
        self.controller, self.name, self.pools = controller, name, pools
        self.tokens: list[list[int]] = [[] for _ in pools]
        self.levels: list[list[int]] = [[] for _ in pools]
        self.fine = True

    def add(self, row: int, token: int, probability: float) -> bool:
        """Note a token; return whether to draft another."""
        if probability != probability:
            self.fine = False
        if not self.fine:
            return False
        self.tokens[row].append(token)
        self.levels[row].append(level_of_probability(probability))
        return self.controller.extends(self.pools[row], self.name, self.levels[row], len(self.pools))

    def offer(self) -> bool:
        """Offer the drafts; return False if the head yields no numbers."""
        if self.fine:
            for pool, tokens, levels in zip(self.pools, self.tokens, self.levels, strict=True):
                if self.name in pool.own:
                    pool.offer(self.name, tokens, levels)
        return self.fine


def _with_head(vllm_config: Any, model: str | None) -> Any:
    """Return vLLM's configuration with another head; target, cache and compilation are shared."""
    spec = vllm_config.speculative_config
    mine = SpeculativeConfig(
        model=model,
        method=spec.method,
        num_speculative_tokens=spec.num_speculative_tokens,
        disable_padded_drafter_batch=True,
        use_local_argmax_reduction=spec.use_local_argmax_reduction,
        target_model_config=spec.target_model_config,
        target_parallel_config=spec.target_parallel_config,
    )
    other = copy.copy(vllm_config)
    object.__setattr__(other, "speculative_config", mine)
    return other


def _inputs(name: str, rows: list[_Row], step: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of vLLM's `propose` for some requests, with all that the head has not read."""
    metadata = step["common_attn_metadata"]
    parts = [Rows.join(row.state.take(name)) for row in rows]
    text, device = Rows.join(parts), metadata.seq_lens.device
    counts = torch.tensor([len(part.ids) for part in parts], dtype=torch.int32)
    starts = torch.zeros(len(rows) + 1, dtype=torch.int32)
    starts[1:] = counts.cumsum(0)
    places = torch.tensor([row.place for row in rows])
    at = places.to(device)
    lengths = (text.positions[(starts[1:] - 1).long().to(device)] + 1).int()
    return {
        # vLLM shifts the tokens itself: those before come again, and the last of each request is given apart.
        "target_token_ids": text.ids.roll(1),
        "target_positions": text.positions,
        "target_hidden_states": text.hidden,
        "next_token_ids": step["next_token_ids"][at],
        "token_indices_to_sample": None,
        "common_attn_metadata": CommonAttentionMetadata(
            query_start_loc=starts.to(device),
            query_start_loc_cpu=starts,
            seq_lens=lengths,
            _seq_lens_cpu=lengths.cpu(),
            seq_lens_cpu_upper_bound=lengths.cpu(),
            num_reqs=len(rows),
            num_actual_tokens=len(text.ids),
            max_query_len=int(counts.max()),
            max_seq_len=int(lengths.max()),
            block_table_tensor=metadata.block_table_tensor[at],
            slot_mapping=text.slots,
            causal=True,
        ),
        "sampling_metadata": step["sampling_metadata"],
    }


class EagleFactory(metaclass=ABCMeta):
    """Stands for the class `EagleProposer` in the model runner: makes a pool's proposer, or that of one head.

    The runner also asks whether its drafter is an instance of this name.
    """

    single: ClassVar[type[EagleProposer]] = EagleProposer

    def __new__(cls, vllm_config: Any, device: Any, runner: Any = None) -> Any:
        kind = cls.single if PoolOptions.from_config(vllm_config) is None else PoolProposer
        return kind(vllm_config, device, runner)


EagleFactory.register(EagleProposer)


def install() -> None:
    """Let vLLM's V1 model runner make pools; the class that makes one head's proposer stays what it is."""
    import vllm.v1.worker.gpu_model_runner as runner

    if runner.EagleProposer is not EagleFactory:
        EagleFactory.single = runner.EagleProposer
        runner.EagleProposer = EagleFactory
