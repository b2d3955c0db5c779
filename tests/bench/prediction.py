"""What predicted outputs gain: `python -m tests.bench.prediction --prompts FILE --split transfer --name transfer`.

Requests to edit code or text; the prediction is the text to be edited, as it stands in the prompt. Engines as in
tests/bench/pool.py, one request at a time. In random order, each request is answered with the prediction and without
it, by the pool, by suffix decoding alone, and without a prediction by the engine that drafts nothing; the pool's
forecast is the router's. Time is the processor's. Figures, ratios of speeds, brackets 95 % bootstrap over prompts:

- `NAME/with_vs_without`: the pool with the prediction to the pool without it; `NAME/suffix/with_vs_without` likewise;
- `NAME/KIND/with_vs_without`: of one kind of prompts; `NAME/with_vs_plain`, `NAME/without_vs_plain`: of the pool;
- `NAME/wrong_vs_without`: the pool with the text of another prompt as prediction;
- `NAME/accepted_share`: share of the predicted tokens that came.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import numpy as np

from draftpick.deploy.workflows.prepare_models import prepare_models
from draftpick.deploy.workflows.results import merge_into, write
from draftpick.engines.pool.forecast import Forecast
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.workloads import Prompt
from draftpick.policy_training.workloads.files import read_file
from draftpick.policy_training.workloads.splits import Split
from draftpick.router.request.predictions import Predictions
from tests.bench.figures import bootstrap_ratio
from tests.bench.pool import PLAIN, POOL, WARM_UP, Block, Engines, fleet, prompt_options

KINDS = ("code_fix", "code_refactor", "passage_rewriting", "sentence_rewriting")
SUFFIX = "suffix"
_MIN_CHARS = 20
_CODE = re.compile(r"```\w*\n(.*?)```", re.DOTALL)
_LAST_INPUT = re.compile(r".*^Input: (.*?)(?:\nOutput:|\Z)", re.DOTALL | re.MULTILINE)


def main() -> None:
    parser = prompt_options(__doc__)
    parser.set_defaults(n=20, max_tokens=192)
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()
    config = fleet(1)
    config = config.model_copy(update={"engines": tuple(one for one in config.engines if one.name != "general")})
    prepare_models(config)
    prompts = edits(args.prompts, args.split, args.n, args.max_tokens)
    with Engines(config) as engines:
        figures = judge(measure(engines, prompts), prompts)
    for name, figure in figures.items():
        print(f"{name:40} {figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]", flush=True)
    if args.json_file is None:
        return
    named = {f"{args.name}/{name}": figure for name, figure in figures.items()}
    if args.json_file.exists():
        merge_into(args.json_file, named)
    else:
        write(args.json_file, len(prompts), named, bracket="95 % bootstrap over prompts")


def edits(path: Path, split: Split, n: int, max_tokens: int) -> list[Prompt]:
    """Return `n` prompts of each kind of edit, every second one sampled, in random order."""
    random, found = Random(0), list[Prompt]()
    of_split = read_file(path, max_tokens=max_tokens).of_split(split)
    known = [one for one in of_split if one.kind in KINDS and to_be_edited(one.text)]
    for kind in KINDS:
        of_kind = [one for one in known if one.kind == kind]
        for i, prompt in enumerate(random.sample(of_kind, min(n, len(of_kind)))):
            mode = {"temperature": 0.7, "top_p": 0.9} if i % 2 else {"temperature": 0.0, "top_p": 1.0}
            found.append(dataclasses.replace(prompt, max_tokens=max_tokens, **mode))
    return random.sample(found, len(found))


def to_be_edited(text: str) -> str:
    """Return the text that a prompt asks to edit: its code block, its last input, or all but the paragraph that says
    what to do; empty if it is no text worth copying."""
    found = _edited(text).strip()
    return found if len(found) >= _MIN_CHARS else ""


def _edited(text: str) -> str:
    if code := _CODE.search(text):
        return code[1]
    if given := _LAST_INPUT.match(text):
        return given[1]
    before, _, last = text.rpartition("\n\n")
    return before if "above" in last else text.partition("\n\n")[2]


def measure(engines: Engines, prompts: Sequence[Prompt]) -> dict[str, list[Block]]:
    """Return the answers by what was asked, in the order of the prompts."""
    predictions = Predictions({POOL: frozenset({f"{POOL}/{SUFFIX}"})})
    expected = predictions.forecast(f"{POOL}/{SUFFIX}", Forecast(), "")
    texts = [to_be_edited(prompt.text) for prompt in prompts]
    for name in engines.names:
        engines.answer(name, prompts[:WARM_UP], 1)
    order, found = Random(0), defaultdict[str, list[Block]](list)
    for i, prompt in enumerate(prompts):
        asked: dict[str, tuple[str, Forecast | None, str | None]] = {
            PLAIN: (PLAIN, None, None),
            "without": (POOL, None, None),
            "with": (POOL, expected, texts[i]),
            "wrong": (POOL, expected, texts[i - 1]),
            "suffix/without": (SUFFIX, None, None),
            "suffix/with": (SUFFIX, None, texts[i]),
        }
        for name in order.sample([*asked], len(asked)):
            engine, forecast, prediction = asked[name]
            found[name].append(engines.answer(engine, [prompt], 1, forecast, prediction))
        line = " ".join(f"{name} {1e3 * found[name][-1].token_s:.1f}" for name in asked)
        print(f"{prompt.kind:20} {line}", flush=True)
    return found


def judge(answers: Mapping[str, Sequence[Block]], prompts: Sequence[Prompt]) -> dict[str, Interval]:
    """Return the figures."""
    token_s = {name: np.asarray([block.token_s for block in blocks]) for name, blocks in answers.items()}
    figures = {
        "with_vs_without": bootstrap_ratio(token_s["without"], token_s["with"]),
        "suffix/with_vs_without": bootstrap_ratio(token_s["suffix/without"], token_s["suffix/with"]),
        "wrong_vs_without": bootstrap_ratio(token_s["without"], token_s["wrong"]),
        "with_vs_plain": bootstrap_ratio(token_s[PLAIN], token_s["with"]),
        "without_vs_plain": bootstrap_ratio(token_s[PLAIN], token_s["without"]),
    }
    kinds = np.asarray([prompt.kind for prompt in prompts])
    for kind in sorted(set(kinds)):
        rows = kinds == kind
        figures[f"{kind}/with_vs_without"] = bootstrap_ratio(token_s["without"][rows], token_s["with"][rows])
    counts = [block.predicted[0] for block in answers["with"] if block.predicted]
    accepted = np.asarray([one["accepted"] for one in counts], float)
    predicted = np.asarray([one["accepted"] + one["rejected"] for one in counts], float)
    return figures | ({"accepted_share": bootstrap_ratio(accepted, predicted)} if counts else {})


if __name__ == "__main__":
    main()
