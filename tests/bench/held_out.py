"""What held-out prompts share with training and with the features' word lists: `python -m tests.bench.held_out`.

`same_but_for_names_and_numbers`: share of the prompts that a prompt of the policy's training equals once capitalised
words and digits are masked. `reworded/listed`: share of the held-out rewording's verbs with
a word that a list has. `<words>/choice_changed`, `<words>/asks_changed`: share of prompts that the policy that
ships sends to another engine, and whose `asks_*` features change, after the held-out rewording or after one with verbs
that no word list has. Brackets are 95 % bootstrap intervals over prompts.
"""

import argparse
import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from draftpick.deploy.workflows.results import write
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.workloads import Prompt, generate, reword
from draftpick.policy_training.workloads.rewording import synonyms
from draftpick.router.features.lexical import TABLE, lexical_features
from draftpick.router.openai_request import Request
from draftpick.router.policies import SHIPPED, read
from draftpick.router.router import static_featurizer
from tests.bench.figures import show

APART = {
    "write": "produce",
    "explain": "clarify",
    "list": "enumerate",
    "summarise": "condense",
    "summary": "digest",
    "give": "supply",
    "complete": "round off",
    "implement": "code up",
    "fix": "repair",
    "replace": "swap",
    "change": "alter",
    "convert": "transform",
    "extract": "fish out",
    "return": "yield",
    "repeat": "echo",
    "rename": "relabel",
    "add": "append",
    "suggest": "recommend",
    "compare": "weigh up",
    "shorten": "trim",
    "solve": "crack",
    "how many": "what count of",
    "how much": "what quantity of",
    "what is": "state",
}
"""Verbs for those that the held-out rewording replaces; none is in a word list of `router/features/lexical.py`."""
_ASKED = [i for i, feature in enumerate(TABLE) if feature.words]
_TRAINING_SEED, _HELD_OUT_SEED, _LIVE_SEED = 1, 5000, 900


def reword_apart(prompt: Prompt, seed: int) -> Prompt:
    """As `draftpick.policy_training.workloads.reword`, with the verbs of `APART`."""
    return reword(prompt, seed, APART)


def listed(synonym: str) -> set[str]:
    """Words of a synonym that stand in a list of the features."""
    return {word for word in (synonym, *synonym.split()) for feature in TABLE if word in feature.words}


def mask(text: str) -> str:
    """The text without capitalised words and digits."""
    return re.sub(r"[A-Z][a-z]+|\d+", "#", text)


def choose(prompts: Sequence[Prompt]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """Of each prompt the arm that the shipped policy chooses [n], and its `asks_*` features [n, 4]."""
    featurizer, policy = static_featurizer(), read(SHIPPED)
    arms, asks = [], []
    for prompt in prompts:
        sampling = {"temperature": prompt.temperature, "max_tokens": float(prompt.max_tokens)}
        request = Request("/v1/chat/completions", b"", prompt.text, sampling=sampling)
        context = asyncio.run(featurizer(request))
        arms.append(policy.probabilities(context, np.ones(len(policy.arms), bool)).argmax())
        asks.append(lexical_features(request)[_ASKED])
    return np.asarray(arms), np.asarray(asks)


def share(hits: npt.NDArray[np.bool_]) -> Interval:
    """Of the prompts, with a bootstrap over them."""
    drawn = hits[np.random.default_rng(0).integers(0, len(hits), (2000, len(hits)))].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(hits.mean()), float(low), float(high))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=512, help="prompts that no policy or drafter was trained on")
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()
    templates = {mask(prompt.text) for prompt in generate(2048, seed=_TRAINING_SEED, sampled_share=0.5)}
    prompts = generate(args.n, seed=_HELD_OUT_SEED, sampled_share=0.5, max_tokens=64)
    live = generate(84, seed=_LIVE_SEED)
    figures = {
        "same_but_for_names_and_numbers": share(np.asarray([mask(one.text) in templates for one in prompts])),
        "live/same_but_for_names_and_numbers": share(np.asarray([mask(one.text) in templates for one in live])),
    }
    share_listed = sum(map(bool, map(listed, synonyms().values()))) / len(synonyms())
    figures["reworded/listed"] = Interval(share_listed, share_listed, share_listed)
    arms, asks = choose(prompts)
    for words, change in (("reworded", reword), ("reworded_apart", reword_apart)):
        other_arms, other_asks = choose([change(prompt, 1) for prompt in prompts])
        figures[f"{words}/choice_changed"] = share(other_arms != arms)
        figures[f"{words}/asks_changed"] = share((other_asks != asks).any(1))
    show(figures)
    if args.json_file:
        write(args.json_file, args.n, figures, bracket="95 % bootstrap over prompts")


if __name__ == "__main__":
    main()
