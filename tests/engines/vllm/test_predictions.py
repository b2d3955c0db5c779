"""Predictions in real vLLM, on the embedded target in float32: what they change, and what they do not."""

import json
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from draftpick.engines.pool.prediction import XARG
from tests.engines.vllm.digests import changed

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

ENGINES: dict[str, dict[str, Any]] = {
    "suffix": {"drafter": {"method": "suffix", "num_speculative_tokens": 8, "suffix_decoding_max_cached_requests": 0}},
    "ngram": {"drafter": {"method": "ngram", "num_speculative_tokens": 6, "prompt_lookup_min": 2}},
    "pool": {
        "drafters": [
            {
                "name": "suffix",
                "method": "suffix",
                "num_speculative_tokens": 8,
                "suffix_decoding_max_cached_requests": 0,
            },
            {"name": "ngram", "method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4},
            {"name": "trigram", "method": "trigram", "num_speculative_tokens": 3},
            {"name": "hybrid", "method": "hybrid", "num_speculative_tokens": 8},
            {"name": "general", "method": "eagle3", "model": "embedded:general", "num_speculative_tokens": 3},
        ]
    },
}
QUESTION = "Write a short story about a lighthouse keeper and a lost ship."
WRONG = (
    "Subject: minutes of the meeting of 4 May. 1. Budget: 12,500 dollars were granted. 2. Any other business: none. "
    * 3
)
TOKENS = 40


def test_vllm_s_functions_are_those_that_predictions_were_written_for() -> None:
    from draftpick.engines.vllm.predictions import RELIES_ON

    assert not changed(RELIES_ON), "compare with predictions.py, then note the new digests"


@pytest.mark.parametrize("name", ENGINES)
def test_a_right_prediction_saves_steps_and_a_wrong_one_costs_few_and_neither_changes_the_answer(
    name: str, in_vllm: ProcessPoolExecutor
) -> None:
    found = in_vllm.submit(observe, name).result()
    assert found["right"]["tokens"] == found["wrong"]["tokens"] == found["without"]["tokens"]
    assert found["right"]["steps"] < 0.6 * found["without"]["steps"]
    assert found["wrong"]["drafted_in_vain"] <= found["without"]["drafted_in_vain"] + 16
    assert found["right"]["accepted"] >= 0.9 * TOKENS
    assert found["wrong"]["accepted"] <= 0.2 * TOKENS
    assert found["together"] == found["without"]["tokens"]  # beside a request with another prediction


def observe(name: str) -> dict[str, Any]:
    """Ask one engine without a prediction, and with a right and a wrong one: what came of it."""
    from vllm import LLM, SamplingParams

    from draftpick.engines.config import FleetConfig
    from draftpick.engines.models.embedded import prepare_target
    from draftpick.engines.vllm.arguments import engine_arguments
    from draftpick.engines.vllm.predictions import KEY

    fleet = FleetConfig.model_validate({"engines": [{"name": name, **ENGINES[name]}]})
    arguments = engine_arguments(fleet, fleet.engines[0])
    for of_a_server in ("middleware", "enable_per_request_metrics"):
        arguments.pop(of_a_server)
    arguments |= {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "max_num_seqs": 4}
    llm = LLM(
        model=str(prepare_target()), max_num_batched_tokens=512, block_size=32, kv_cache_memory_bytes=2**27, seed=0,
        **arguments,
    )  # fmt: skip

    def asked(*predictions: str | None) -> list[Any]:
        llm.reset_prefix_cache()
        params = [
            SamplingParams(
                temperature=0.0, max_tokens=TOKENS, ignore_eos=True, extra_args={XARG: text} if text else None
            )
            for text in predictions
        ]
        messages = [[{"role": "user", "content": QUESTION}] for _ in predictions]
        return [answer.outputs[0] for answer in llm.chat(messages, params, use_tqdm=False)]

    (without,) = asked(None)
    texts = {"without": None, "wrong": WRONG, "right": without.text}
    seen: dict[str, Any] = {}
    for which, text in texts.items():
        (answer,) = asked(text)
        metrics = answer.spec_decode_metrics
        fields = metrics.to_dict()
        accepted, drafted = fields["num_accepted_draft_tokens"], fields["num_draft_tokens"]
        seen[which] = {
            "tokens": list(answer.token_ids),
            "steps": TOKENS - accepted,
            "drafted_in_vain": drafted - accepted,
            "accepted": getattr(metrics, KEY, {"accepted": 0})["accepted"],
        }
    seen["together"] = list(asked(WRONG, None, without.text)[1].token_ids)
    return seen


class Words:
    """A tokenizer of one token a word."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [len(word) for word in text.split()]


@pytest.mark.parametrize(
    ("value", "ids"),
    [("a bb ccc", [1, 2, 3]), ("a bb ccc dddd eeeee", [1, 2, 3]), ("", None), ([1, 2], None), (7, None)],
)
def test_a_prediction_is_read_once_up_to_the_model_s_length(value: Any, ids: list[int] | None) -> None:
    from draftpick.engines.vllm.predictions import read_prediction

    params = SimpleNamespace(extra_args={XARG: value, "mine": 1})
    read_prediction(params, Words(), 3)
    assert params.extra_args == {"mine": 1, **({XARG: ids} if ids else {})}


def test_an_engine_that_does_not_copy_drops_it() -> None:
    from draftpick.engines.vllm.predictions import read_prediction

    params = SimpleNamespace(extra_args={XARG: "a bb"})
    read_prediction(params, None, 3)
    assert params.extra_args is None


def test_the_usage_of_a_stream_has_the_counts_of_its_metrics() -> None:
    from draftpick.engines.vllm.predictions import with_usage

    metrics = {"speculative_decoding": {"prediction": {"accepted": 3, "rejected": 1}}}
    event = {"choices": [], "usage": {"completion_tokens": 9}, "metrics": metrics}
    written = with_usage(f"data: {json.dumps(event)}\n\n")
    assert written.startswith("data: {")
    assert written.endswith("}\n\n")
    details = json.loads(written[6:])["usage"]["completion_tokens_details"]
    assert details == {"accepted_prediction_tokens": 3, "rejected_prediction_tokens": 1}
