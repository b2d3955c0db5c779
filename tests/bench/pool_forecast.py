"""What a wrong forecast costs: `python -m tests.bench.pool_forecast --prompts FILE --split dev --name dev`.

The pool of tests/bench/pool.py, one request at a time. Each prompt is first answered by each drafter alone. Then, in
random order and several times: with their acceptance lengths as the forecast; with one that promises the slowest of
them drafts that are accepted to the end, and nothing of the others; and without a forecast. Both forecasts have the
greatest weight. Time is the processor's. Figures, ratios of speeds, brackets 95 % bootstrap over prompts:

- `NAME/wrong_forecast_vs_right`, and `NAME/wrong_forecast_vs_none`, `NAME/right_forecast_vs_none`.
"""

from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np

from draftpick.deploy.workflows.prepare_models import prepare_models
from draftpick.deploy.workflows.results import merge_into
from draftpick.engines.arms import NONE
from draftpick.engines.pool.forecast import MAX_WEIGHT, Forecast
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.workloads import Prompt
from tests.bench.figures import bootstrap_ratio
from tests.bench.pool import POOL, WARM_UP, Engines, fleet, prompt_options
from tests.bench.real_text import select


def main() -> None:
    parser = prompt_options(__doc__)
    parser.set_defaults(n=2, max_tokens=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json-file", type=Path, help="a result of tests.bench.pool, to which the figures are added")
    args = parser.parse_args()
    config = fleet(1)
    (pool,) = (engine for engine in config.engines if engine.name == POOL)
    prepare_models(config)
    prompts = select(args.prompts, args.split, args.kinds, args.n, args.max_tokens)
    lengths = {drafter.name: drafter.num_speculative_tokens for drafter in pool.drafters}
    with Engines(config.model_copy(update={"engines": (pool,)})) as engines:
        figures = measure(engines, prompts, lengths, args.repeats)
    for name, figure in figures.items():
        print(f"{name:36} {figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]", flush=True)
    if args.json_file:
        facts = {"n": len(prompts), "max_tokens": args.max_tokens, "repeats": args.repeats}
        source = {f"{args.name}/forecast/{key}": value for key, value in facts.items()}
        merge_into(args.json_file, {f"{args.name}/{name}": one for name, one in figures.items()}, sets=source)


def measure(engines: Engines, prompts: Sequence[Prompt], lengths: dict[str, int], repeats: int) -> dict[str, Interval]:
    """Return the figures."""
    random = Random(0)
    engines.answer(POOL, prompts[:WARM_UP], 1)
    seconds: dict[str, list[float]] = {"right": [], "wrong": [], "none": []}
    for prompt in prompts:
        forecasts = {**forecasts_of(engines, prompt, lengths), "none": None}
        asked = random.sample([*forecasts] * repeats, repeats * len(forecasts))
        found = [(name, engines.answer(POOL, [prompt], 1, forecasts[name]).token_s) for name in asked]
        for name, values in seconds.items():
            values.append(float(np.mean([token_s for one, token_s in found if one == name])))
        print(
            f"{prompt.kind:24} {' '.join(f'{name} {1e3 * one[-1]:.1f}' for name, one in seconds.items())}", flush=True
        )
    times = {name: np.asarray(values) for name, values in seconds.items()}
    return {
        "wrong_forecast_vs_right": bootstrap_ratio(times["right"], times["wrong"]),
        "wrong_forecast_vs_none": bootstrap_ratio(times["none"], times["wrong"]),
        "right_forecast_vs_none": bootstrap_ratio(times["none"], times["right"]),
    }


def forecasts_of(engines: Engines, prompt: Prompt, lengths: dict[str, int]) -> dict[str, Forecast]:
    """What each drafter does alone, as a forecast; and one that promises all of the slowest."""
    alone = {name: engines.answer(POOL, [prompt], 1, Forecast(only=name)) for name in (*lengths, NONE)}
    slowest = max(lengths, key=lambda name: alone[name].token_s)
    taus = {name: float(alone[name].reports[0][name]["tau"] or 1.0) for name in lengths}
    promised = {name: 1.0 + lengths[name] if name == slowest else 1.0 for name in lengths}
    return {"right": Forecast(taus, MAX_WEIGHT), "wrong": Forecast(promised, MAX_WEIGHT)}


if __name__ == "__main__":
    main()
