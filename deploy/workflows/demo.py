"""The complete workflow on a live fleet: collect, train, activate the new policy, compare it on held-out prompts."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from draftpick.deploy.config import with_router
from draftpick.deploy.plots.demo import plot_demo
from draftpick.deploy.workflows.results import write
from draftpick.engines.arms import engine_of
from draftpick.policy_training.data.collect import Task, measure, pinned_tasks
from draftpick.policy_training.data.contexts import contexts
from draftpick.policy_training.data.dataset import Dataset, Measurement, save
from draftpick.policy_training.data.matrix import Matrix, matrix
from draftpick.policy_training.data.step_costs import Costs
from draftpick.policy_training.evaluation.evaluate import Evaluation, Interval, evaluate
from draftpick.policy_training.learners import DEFAULT, learner
from draftpick.policy_training.learners.base import LearnerSetting
from draftpick.policy_training.train import train_policy
from draftpick.policy_training.workloads import Prompt, generate, interleaved
from draftpick.router.config.router_config import DraftpickConfig
from draftpick.router.features.featurizer import Featurizer

POLICY = "policy"
_MAX_TOKENS = 64
_SAMPLED_SHARE = 0.5
_TRAIN_SHARE = 0.55
_MAX_PROMPTS = 300


def run_demo(
    config: DraftpickConfig,
    *,
    minutes: float,
    folder: Path,
    json_file: Path | None,
    port: int,
    seed: int,
    console: Console,
    bars: Callable[[], Any],
) -> Evaluation:
    """Run the workflow and write `summary.json`, `plot.png`, the measurements and the policy below `folder`."""
    from draftpick.deploy.launch.ray_serve import running

    config = with_router(config, policy="uniform", featurizer="auto")
    featurizer = _featurizer(config)
    started = time.monotonic()
    with bars() as bar:
        row = bar.add_task("starting engines", total=len(config.engines) + 1)

        def ready(states: dict[str, str]) -> None:
            bar.update(row, completed=sum(state == "ready" for state in states.values()))

        with running(config, port=port, progress=ready) as url:
            story = _Story(config, url, folder, seed, featurizer, bar)
            story.collect_and_train(60 * minutes)
            story.serve_new_policy()
            result = story.compare(60 * minutes)
    story.write(result, json_file)
    show(result, console)
    console.print(f"\n{verdict(result)}\n{folder}/summary.json, {folder}/plot.png", highlight=False)
    console.print(f"{time.monotonic() - started:.0f} s in all", highlight=False)
    return result


def _featurizer(config: DraftpickConfig) -> Featurizer:
    """Lexical features for mock fleets, the sentence encoder for real ones."""
    from draftpick.router.features.featurizer import LexicalFeaturizer
    from draftpick.router.router import static_featurizer

    return LexicalFeaturizer() if all(e.kind == "mock" for e in config.engines) else static_featurizer()


class _Story:
    """The demo's steps and their shared state."""

    def __init__(
        self, config: DraftpickConfig, url: str, folder: Path, seed: int, featurizer: Featurizer, bar: Any
    ) -> None:
        self.config, self.url, self.folder, self.seed = config, url, folder, seed
        self.arms = list(config.arms)
        self.featurizer, self.bar = featurizer, bar
        self.held_out: Matrix | None = None

    def collect_and_train(self, budget_s: float) -> None:
        """Measure as many prompts as the budget allows under every arm, and train the policy on them."""
        self._measure("warming up", pinned_tasks(self._prompts(2, 90), self.arms, self.seed))
        prompts = self._prompts(_MAX_PROMPTS, 0)
        tasks = pinned_tasks(prompts, self.arms, self.seed)
        measured = self._measure("collecting", tasks, _TRAIN_SHARE * budget_s)
        seen = {m.prompt_id for m in measured}
        made = contexts([self.featurizer], [p for p in prompts if p.id in seen])
        save(self.folder / "train.parquet", measured, made)
        data = Dataset(tuple(measured), made)
        row = self.bar.add_task("training", total=1.0)

        def report_progress(done: int, total: int) -> None:
            self.bar.update(row, completed=done / total)

        setting = LearnerSetting(
            self.config.router.default_engine, Costs.fit(data, self.arms), self.seed, report_progress
        )
        provenance = {"source": "draftpick demo", "requests_sent": len(measured)}
        every = matrix(data, self.arms, featurizer=self.featurizer.id)
        train_policy(every, learner(DEFAULT), setting, self.folder / "policy", provenance)

    def serve_new_policy(self) -> None:
        """Activate the new policy on every router replica, without a restart."""
        from ray import serve

        from draftpick.deploy.app import APP_NAME

        handle = serve.get_deployment_handle("router", APP_NAME)
        handle.broadcast("use_policy", str((self.folder / "policy").resolve())).results(timeout_s=60)

    def compare(self, budget_s: float) -> Evaluation:
        """Measure held-out prompts under every arm and under the policy, in random order."""
        tasks = routed_tasks(self._prompts(_MAX_PROMPTS, 1), self.arms, self.seed)
        measured = self._measure("comparing", tasks, (1 - _TRAIN_SHARE) * budget_s)
        save(self.folder / "held-out.parquet", measured)
        result, self.held_out = judge_routed(measured, self.arms, self.config.router.default_engine, self.seed)
        return result

    def _measure(self, what: str, tasks: Sequence[Task], budget_s: float = math.inf) -> list[Measurement]:
        """Measure as many tasks as the budget allows; with a budget the bar shows seconds."""
        began = time.monotonic()
        row = self.bar.add_task(what, total=min(len(tasks), round(min(budget_s, 1e9))))

        def report_progress(done: int, total: int, last: Measurement) -> None:
            self.bar.update(row, completed=done if budget_s == math.inf else round(time.monotonic() - began))

        model = self.config.target.name
        return asyncio.run(measure(self.url, model, tasks, progress=report_progress, budget_s=budget_s))

    def _prompts(self, n: int, offset: int) -> list[Prompt]:
        """Prompts interleaved by kind, so that every prefix of the list is balanced."""
        seed = 100 * self.seed + offset
        return interleaved(generate(n, seed=seed, sampled_share=_SAMPLED_SHARE, max_tokens=_MAX_TOKENS))

    def write(self, result: Evaluation, json_file: Path | None) -> None:
        """Write `summary.json` and `plot.png`, and the figures again to `json_file`."""
        figures = {
            "policy_vs_plain": result.policy_vs_plain,
            "policy_vs_best_fixed": result.policy_vs_best_fixed,
            "oracle_vs_best_fixed": result.oracle_vs_best_fixed,
            **{f"speedup/{arm}": ratio for arm, ratio in _speedups(result, self.config.router.default_engine).items()},
        }
        assert self.held_out is not None, "compare() comes first"
        details: dict[str, Any] = {
            "verdict": verdict(result),
            "evaluation": asdict(result),
            "by_kind": _by_kind(self.held_out),
        }
        for path in filter(None, (self.folder / "summary.json", json_file)):
            write(path, result.n, figures, **details)
        plot_demo(result, self.config.router.default_engine, self.folder / "plot.png")


def routed_tasks(prompts: Sequence[Prompt], arms: Sequence[str], seed: int) -> list[Task]:
    """Every prompt under every arm and under the policy, in random order."""
    rng = np.random.default_rng(seed)
    tasks: list[Task] = []
    for prompt in prompts:
        conditions = [*(Task(prompt, arm, arm) for arm in arms), Task(prompt, None, POLICY)]
        tasks += [conditions[i] for i in rng.permutation(len(conditions))]
    return tasks


def judge_routed(
    measured: Sequence[Measurement], arms: Sequence[str], default: str, seed: int
) -> tuple[Evaluation, Matrix]:
    """Evaluate measured `routed_tasks`: the policy against every arm; also returns the matrix of the arms.

    An engine's name among `arms` stands for a pool that chooses its drafters itself.
    """
    every = matrix(Dataset(tuple(measured)), [*arms, POLICY])
    taken = {m.prompt_id: m.arm if m.arm in arms else engine_of(m.arm) for m in measured if m.label == POLICY}
    chosen = np.asarray([[float(taken[i] == arm) for arm in arms] for i in every.prompt_ids])
    held_out = every.select_arms(arms)
    return evaluate(held_out, every.time_s[:, -1], chosen, default, seed=seed), held_out


def _speedups(result: Evaluation, default: str) -> dict[str, Interval]:
    plain = result.time_s[default]
    ratios = {arm: plain / time_s for arm, time_s in result.time_s.items() if arm != default}
    return {arm: Interval(r, r, r) for arm, r in ratios.items()}


def _by_kind(data: Matrix) -> dict[str, dict[str, float]]:
    """Seconds by task and arm."""
    kinds = sorted(set(data.kinds))
    masks = {kind: np.asarray(data.kinds) == kind for kind in kinds}
    return {k: dict(zip(data.arms, data.time_s[m].sum(0).round(3).tolist(), strict=True)) for k, m in masks.items()}


def verdict(result: Evaluation) -> str:
    """State whether the policy won, in one sentence."""
    ratio = result.policy_vs_best_fixed
    text = f"the policy against always {result.best_fixed!r}: {ratio.value:.3f}x [{ratio.low:.3f}, {ratio.high:.3f}]"
    if ratio.meets(1):
        return f"The policy won: {text}."
    if ratio.high < 1:
        return f"The policy lost: {text}."
    return f"No verdict: {text}, an interval that contains 1; {result.n} prompts are too few."


def show(result: Evaluation, console: Console) -> None:
    """Print times and shares as two tables."""
    times = Table("engine", "seconds", "tokens/s", "against plain", title=f"{result.n} held-out prompts")
    rows = {**result.time_s, "policy": result.policy_time_s, "oracle": result.oracle_time_s}
    plain = result.policy_vs_plain.value * result.policy_time_s
    for name, seconds in rows.items():
        times.add_row(name, f"{seconds:.1f}", f"{result.output_tokens / seconds:.1f}", f"{plain / seconds:.2f}x")
    console.print(times)
    slices = Table(
        "kind of prompt", "prompts", "sources", "against the best engine", "against plain",
        title=f"the policy by kind, worst first; 95 % bootstrap by {result.blocks}",
    )  # fmt: skip
    for kind, one in result.slices.items():
        ratios = (
            f"{r.value:.2f}x [{r.low:.2f}, {r.high:.2f}]" for r in (one.policy_vs_best_fixed, one.policy_vs_plain)
        )
        slices.add_row(kind, str(one.n), str(one.sources), *ratios)
    console.print(slices)
    arms = list(result.time_s)
    shares = Table("kind of prompt", *arms, title="share of traffic that the policy gave each engine")
    for kind, row in result.shares.items():
        shares.add_row(kind, *(f"{row[arm]:.0%}" for arm in arms))
    console.print(shares)
