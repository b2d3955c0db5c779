"""EAGLE-3 heads of a pool: each reads what it has not read of some requests, and drafts for some of these."""

import copy
import math
import time
from typing import Any

import numpy as np
import torch
from vllm.config import SpeculativeConfig
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.spec_decode.eagle import EagleProposer

from draftpick.engines.pool.acceptance import level_of_probability
from draftpick.engines.pool.controller import Controller
from draftpick.engines.pool.request import PoolRequest
from draftpick.engines.vllm.head_proposer import Head, Rows, draft_rows
from draftpick.engines.vllm.pool_rows import Row

Tensor = torch.Tensor


class PoolHead(EagleProposer):
    """One head: vLLM's proposer with layer names of its own, and with the fast passes of `Head` where they fit."""

    def __init__(self, name: str, vllm_config: Any, device: torch.device, runner: Any) -> None:
        self.name = name
        super().__init__(vllm_config, device, runner)
        self._fast: Head | None = None
        self._asked = False
        self._fine: Tensor | None = None

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

    def loop(self, length: int, **step: Any) -> tuple[list[list[int]], bool]:
        """Draft by vLLM's own loop; return the drafts, and whether all that it computed are numbers."""
        self._fine = None
        drafts: list[list[int]] = self.propose(length, **step).tolist()
        return drafts, self._fine is None or bool(self._fine)

    def _greedy_sample(self, hidden_states: Tensor) -> Any:
        fine = hidden_states.isfinite().all()
        self._fine = fine if self._fine is None else self._fine & fine
        return super()._greedy_sample(hidden_states)


class HeadStep:
    """One head in one step: `drafting` and `due` requests get a draft, the latter are scored on what came while the
    head rested, `prompts` are only read. Drafts are offered to the requests."""

    def __init__(
        self, controller: Controller, head: PoolHead, drafting: list[Row], due: list[Row], prompts: list[Row]
    ) -> None:
        self.controller, self.head = controller, head
        self.rows = [*drafting, *due, *prompts]
        self.asks = [*drafting, *due]
        self.scored = range(len(drafting), len(self.asks))
        self.only_drafts = not due and not prompts
        self._fine = True

    def run(self, step: dict[str, Any], measures: bool) -> bool:
        """Read and draft; return False if the head yields no numbers. `measures`: whether to note the costs."""
        for row in self.rows:
            if row in self.asks:
                row.state.pool.note_read(self.head.name, self.asks.index(row) < self.scored.start)
        fast = self.head.fast()
        if fast is None:
            self._run_loop(step, measures)
        else:
            self._run_passes(fast, step["common_attn_metadata"].block_table_tensor, measures)
        return self._fine

    def _run_passes(self, fast: Head, table: Tensor, measures: bool) -> None:
        """Read and draft by the passes of `Head`, each request as long as its tokens are worth it."""
        began_s = time.perf_counter()
        parts = [Rows.join(row.state.take(self.head.name)) for row in self.rows]
        text = Rows.join(parts)
        ends = np.cumsum([len(part.ids) for part in parts])
        # Outputs: of each request's last token; then, of the requests to score, of all others.
        wanted, owners = (ends - 1).tolist(), list(range(len(self.rows)))
        for i in self.scored:
            before = range(ends[i] - len(parts[i].ids), ends[i] - 1)
            wanted.extend(before)
            owners.extend([i] * len(before))
        at = torch.tensor(wanted)
        table = table[torch.tensor([row.place for row in self.rows])]
        positions = text.positions[at]
        hidden = self.head.model.combine_hidden_states(text.hidden)
        output, state = fast.forward(
            text.ids, text.positions, hidden, text.slots, at, (positions + 1).int(), table[torch.tensor(owners)]
        )
        last, asks = len(self.rows), len(self.asks)
        if len(at) > last:
            self._score(fast, output[last:], text.ids[at[last:] + 1], owners[last:])
        if not asks:
            return
        drafts = _Drafts(self.controller, self.head.name, [row.state.pool for row in self.asks])
        read_s = time.perf_counter()
        passes = draft_rows(
            fast, (output[:asks], state[:asks]), positions[:asks], table[:asks], drafts.limit, drafts.add
        )
        if measures and self.only_drafts:
            share_s = (time.perf_counter() - read_s) / (len(passes) + 1)
            self.controller.costs.read.add(asks, read_s - began_s + share_s)
            for count in passes:
                self.controller.costs.extend.add(count, share_s)
        self._fine = self._fine and drafts.fine
        if self._fine:
            drafts.offer()

    def _score(self, fast: Head, output: Tensor, actual: Tensor, owners: list[int]) -> None:
        """Score the head on the tokens that came while it rested."""
        probabilities, tokens = fast.best(output)
        found: dict[int, tuple[list[int], list[bool]]] = {}
        for owner, probability, hit in zip(owners, probabilities.tolist(), (tokens == actual).tolist(), strict=True):
            if math.isnan(probability):
                self._fine = False
                return
            levels, hits = found.setdefault(owner, ([], []))
            levels.append(level_of_probability(probability))
            hits.append(hit)
        for owner, (levels, hits) in found.items():
            own = self.rows[owner].state.pool.own.get(self.head.name)
            if own is not None:
                own.score_first(levels, hits)

    def _run_loop(self, step: dict[str, Any], measures: bool) -> None:
        """Read and draft by vLLM's own loop, all requests to the same length; it tells no probabilities."""
        name, asks = self.head.name, len(self.asks)
        if len(self.rows) > asks:
            self.head.propose(0, **_inputs(name, self.rows[asks:], step))
        if not asks:
            return
        began_s = time.perf_counter()
        pools = [row.state.pool for row in self.asks]
        length = self.controller.head_length(name, pools)
        drafts, self._fine = self.head.loop(length, **_inputs(name, self.asks, step))
        if not self._fine:
            return
        if measures and not self.scored:
            share_s = (time.perf_counter() - began_s) / length
            self.controller.costs.read.add(asks, share_s)
            for _ in range(length - 1):
                self.controller.costs.extend.add(asks, share_s)
        for pool, tokens in zip(pools, drafts, strict=True):
            if name in pool.own:
                pool.offer(name, tokens, [0] * len(tokens))


class _Drafts:
    """Drafts of one head in one step."""

    def __init__(self, controller: Controller, name: str, pools: list[PoolRequest]) -> None:
        self._controller, self._name, self._pools = controller, name, pools
        self._tokens: list[list[int]] = [[] for _ in pools]
        self._levels: list[list[int]] = [[] for _ in pools]
        self.limit = max(pool.room for pool in pools)
        self.fine = True

    def add(self, row: int, token: int, probability: float) -> bool:
        """Note a token; return whether to draft another."""
        self.fine = self.fine and not math.isnan(probability)
        if not self.fine:
            return False
        self._tokens[row].append(token)
        self._levels[row].append(level_of_probability(probability))
        return self._controller.extends(self._pools[row], self._name, self._levels[row], len(self._pools))

    def offer(self) -> None:
        """Offer the drafts to their requests."""
        for pool, tokens, levels in zip(self._pools, self._tokens, self._levels, strict=True):
            if self._name in pool.own:
                pool.offer(self._name, tokens, levels)


def with_head(vllm_config: Any, model: str | None) -> Any:
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


def _inputs(name: str, rows: list[Row], step: dict[str, Any]) -> dict[str, Any]:
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
