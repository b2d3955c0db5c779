"""Faults under load: `python -m tests.load.chaos` (mock engines, 5 minutes), `--real` (vLLM, shorter).

Real Ray Serve, two replicas of the router, clients that never pause, some of which read slowly, one fault after
another, and beside them a hostile client with a key of its own. Counted by the clients themselves and by the records:
what was sent, answered, failed and why, broken, answered twice, or left without a record; and whether the hostile
client's turns change which engines the others get.
"""

import argparse
import asyncio
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from draftpick.deploy.config import FLEETS, resolve, with_engines
from draftpick.deploy.console import out, progress_bar
from draftpick.deploy.launch.ray_serve import running
from draftpick.deploy.workflows.prepare_models import prepare_models
from draftpick.deploy.workflows.results import write
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.router.config.router_config import DraftpickConfig
from draftpick.router.http.auth import digest
from draftpick.router.policies import artifact
from draftpick.router.records import read
from draftpick.router.registry.registry import Registry
from tests.load.clients import ClientResult, Clients
from tests.load.faults import Chaos, Fault, State, small_disk
from tests.load.hostile import Hostile

_TAIL_S = 1.0
"""What a killed router had not written yet: its flush interval, and a second flush that was under way."""
_RECOVERS_S = 60.0
_CALM_S = 40.0
"""Before the first fault: routing with and without the hostile client at work."""
_ROUTER_DOWN_S = 3.0
_ROUTERS = 2
_USUAL_KEY, _HOSTILE_KEY = "dp-usual", "dp-hostile"
_SLOW_SHARE = 0.1
_POLICY_CHANGES = ("reload_policy", "offer_broken_policy")
_MIN_COMPARED = 50
_SETTLED_S = 2.0
"""After a fault is over, until routing is as usual."""
POOL: dict[str, Any] = {
    "name": "pool",
    "kind": "mock",
    "deployment": {"num_replicas": 2},
    "mock": {
        "step_s": 0.0045,
        "shared_steps": True,
        "drafters": {
            "copy": {"num_speculative_tokens": 8, "acceptance_by_class": {"edit": 4.5}},
            "head": {"num_speculative_tokens": 3, "acceptance_by_class": {"math": 3.0}, "step_s": 0.0005},
        },
    },
}
"""Two replicas with every drafter, among mock engines with one each."""
_COUNTED = (
    "requests",
    "answered",
    "retried",
    "failed_before_first_byte",
    "failed_before_first_byte/killed_router",
    "broken_after_first_byte",
    "broken_after_first_byte/killed_router",
    "cut_by_killed_router",
    "slow_readers",
    "duplicates",
    "unrecorded_attempts",
    "dropped_while_disk_was_full",
    "lost_tail_of_killed_router",
)


@dataclass
class Story:
    """When each fault was done, undone and over."""

    done: dict[str, float] = field(default_factory=dict)
    recovery_s: dict[str, float] = field(default_factory=dict)
    over: dict[str, float] = field(default_factory=dict)


def write_keys(file: Path) -> Path:
    """A file with the keys of the usual clients and of the hostile one."""
    keys = {"usual": _USUAL_KEY, "hostile": _HOSTILE_KEY}
    file.write_text(yaml.safe_dump([{"name": name, "sha256": digest(key)} for name, key in keys.items()]))
    return file


def fleet(folder: Path, registry: Path, real: bool, keys: Path | None = None) -> DraftpickConfig:
    """The fleet that suffers: impatient, so that a hanging engine is noticed soon."""
    fields: dict[str, Any] = yaml.safe_load((FLEETS / ("embedded.yaml" if real else "mock.yaml")).read_text())
    patience = 60 if real else 2
    fields["router"] |= {
        "policy": str(registry),
        "num_replicas": _ROUTERS,
        "records": {"dir": str(folder)},
        "first_byte_timeout_s": patience,
        "stream_idle_timeout_s": patience,
        "timeout_s": 5 * patience if real else 3,
        "max_attempts": 4,
        "breaker": {"base_ejection_s": 0.5, "max_ejection_s": 2, "slow_start_s": 3},
    }
    if keys is not None:
        fields["router"]["keys"] = {"file": str(keys)}
    if real:
        return with_engines(resolve(fields), ["plain", "suffix"])
    fields["engines"][0]["deployment"] = {"num_replicas": 2}
    fields["engines"].append(POOL)
    return resolve(fields)


@contextmanager
def suffering(
    scratch: Path, disk: Path | None, port: int, *, real: bool = False, keys: Path | None = None
) -> Iterator[tuple[Chaos, str]]:
    """A running fleet to which faults can be done, and its address. What it writes lies in `scratch`."""
    registry = Registry(scratch / "registry")
    registry.path.mkdir()
    config = fleet(scratch / "disk" / "records", registry.path, real, keys)
    for kind, options in (("uniform", {}), ("fixed", {"arm": config.arms[1]})):
        manifest = {"kind": kind, "arms": list(config.arms), "featurizer": "none", "options": options}
        artifact.write(scratch / kind, manifest, {})
        registry.add(scratch / kind, {}, "chaos")
    registry.promote("p0001", "chaos")
    prepare_models(config)
    with running(config, port=port) as url:
        yield Chaos(config, registry, disk), url


async def suffer(chaos: Chaos, faults: Sequence[Fault], clients: Clients, seconds: float, bar: Any) -> Story:
    """Do the faults one after another, spread over `seconds`, while the clients ask."""
    story, began = Story(), time.monotonic()
    asking, watching = asyncio.create_task(clients.run()), asyncio.create_task(chaos.watch_memory())
    row = bar.add_task("faults", total=len(faults))
    calm_s = min(_CALM_S, seconds / 4)
    await asyncio.sleep(calm_s)
    for number, fault in enumerate(faults):
        bar.update(row, description=fault.name)
        story.done[fault.name] = time.monotonic()
        await fault.do()
        undone = time.monotonic()
        if fault.undo is not None:
            await asyncio.sleep(fault.lasts_s)
            undone = time.monotonic()
            await fault.undo()
        else:
            await asyncio.sleep(1.0)
        story.recovery_s[fault.name] = await _recovery_s(chaos, fault, undone)
        story.over[fault.name] = time.monotonic()
        bar.advance(row)
        until = began + calm_s + (number + 1) / len(faults) * (seconds - calm_s - 4)
        await asyncio.sleep(max(2.0, until - time.monotonic()))
    clients.stop()
    await asyncio.wait_for(asking, 90)
    watching.cancel()
    return story


async def _recovery_s(chaos: Chaos, fault: Fault, since: float) -> float:
    """Seconds until every replica of the router finds all well, `_RECOVERS_S` at most."""
    while time.monotonic() - since < _RECOVERS_S:
        states = await chaos.states()
        if len(states) == _ROUTERS and all(fault.over(state) for state in states):
            break
        await asyncio.sleep(0.1)
    return time.monotonic() - since


def judge(
    results: Sequence[ClientResult], folder: Path, story: Story, states: Sequence[State]
) -> tuple[dict[str, float], Counter[str]]:
    """(figures, errors by code)."""
    records = defaultdict(list)
    for record in read(folder):
        records[record.client_request_id or ""].append(record)
    killed = story.done.get("kill_router", float("inf"))
    disk = (story.done.get("disk_full", float("inf")), story.over.get("disk_full", float("-inf")))
    figures: Counter[str] = Counter(dict.fromkeys(_COUNTED, 0), requests=len(results))
    errors: Counter[str] = Counter()
    for one in results:
        cut_by_router = one.sent < killed + _ROUTER_DOWN_S and one.ended > killed and not one.error.startswith("engine")
        figures["answered"] += one.done
        figures["slow_readers"] += one.slow
        if not one.done:
            where = "broken_after_first_byte" if one.began else "failed_before_first_byte"
            figures["cut_by_killed_router" if cut_by_router else where] += 1
            why = "killed_router" if cut_by_router else one.error or f"http_{one.status}"
            figures[f"{where}/{why}"] += 1
            during = max(
                (name for name, at in story.done.items() if at <= one.ended), key=story.done.__getitem__, default=""
            )
            errors[f"{'broken' if one.began else 'failed'}: {one.error or one.status}, {during}"] += 1
        mine = records.get(one.request_id, [])
        if not (one.done or one.began or cut_by_router):
            attempts = [(r.decision.arm, r.outcome.status, round(r.outcome.e2e_s or 0.0, 2)) for r in mine]
            out.print(f"failed after {one.ended - one.sent:.2f} s, stream {one.stream}: {attempts}", highlight=False)
        good = sum(record.outcome.status == "ok" for record in mine)
        late = any(r.outcome.ttft_s is not None and r.attempt < len(mine) and one.stream for r in mine)
        figures["duplicates"] += good > 1 or late
        missing = max(0, one.attempts - len(mine))
        if disk[0] - _TAIL_S <= one.ended and one.sent <= disk[1]:
            figures["dropped_while_disk_was_full"] += missing
        elif killed - _TAIL_S <= one.ended <= killed + _TAIL_S:
            figures["lost_tail_of_killed_router"] += missing
        else:
            figures["unrecorded_attempts"] += missing
        figures["retried"] += one.attempts > 1
    figures["records_dropped_and_counted"] = sum(s["records"]["dropped"] for s in states)
    return dict(figures), errors


def routing_shift(
    results: Sequence[ClientResult], story: Story, turns: Sequence[tuple[float, float]]
) -> dict[str, float]:
    """How the engines of whole, first attempts differ between the turns of the hostile client and its rests, outside
    faults: the largest difference of an engine's share, and the probability of such tables by chance (chi-squared
    tests, one for each policy)."""
    changes = [at for name, at in story.done.items() if name in _POLICY_CHANGES]
    from scipy.stats import chi2_contingency  # here: most of this module's users need it not, and it takes a second

    tables: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for one in results:
        calm = not any(at <= one.sent <= story.over.get(name, np.inf) + _SETTLED_S for name, at in story.done.items())
        if one.done and one.attempts == 1 and calm:
            during = any(begin <= one.sent <= end for begin, end in turns)
            tables[sum(at <= one.sent for at in changes)][one.arm][during] += 1
    differences, p_values, compared = [0.0], [1.0], 0
    for by_arm in tables.values():
        table = np.asarray(list(by_arm.values()), np.float64)
        if len(table) > 1 and table.sum(0).min() >= _MIN_COMPARED:
            shares = table / table.sum(0)
            differences.append(float(np.abs(shares[:, 1] - shares[:, 0]).max()))
            p_values.append(float(chi2_contingency(table).pvalue))
            compared += int(table.sum())
    least = min(p_values) * max(len(p_values) - 1, 1)  # of several tests
    return {
        "arm_share_difference": max(differences),
        "arm_share_p_value": min(least, 1.0),
        "arm_share_requests": compared,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--only", default="", help="these faults alone, by name, with commas")
    parser.add_argument("--real", action="store_true", help="real vLLM engines (plain and suffix)")
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="draftpick-chaos-"))
    try:
        with small_disk(scratch / "disk") as disk:
            _run(args, scratch, disk)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run(args: argparse.Namespace, scratch: Path, disk: Path | None) -> None:
    keys = None if args.real else write_keys(scratch / "keys.yaml")
    with progress_bar() as bar, suffering(scratch, disk, args.port, real=args.real, keys=keys) as (chaos, url):
        clients = Clients(url, chaos.model, 2 if args.real else args.clients)
        hostile = None if args.real else Hostile(url, chaos.model, _HOSTILE_KEY)
        if hostile is not None:
            clients.key, clients.slow_share = _USUAL_KEY, _SLOW_SHARE
        real = [chaos.killed("suffix"), chaos.reloaded(), chaos.broken_policy(), chaos.router_killed()]
        faults = real if args.real else chaos.mock_faults()
        if args.only:
            faults = [fault for fault in faults if fault.name in args.only.split(",")]

        async def run() -> tuple[Story, list[State]]:
            attacking = None if hostile is None else asyncio.create_task(hostile.run())
            story = await suffer(chaos, faults, clients, args.seconds, bar)
            if hostile is not None and attacking is not None:
                hostile.stop()
                await attacking
            await asyncio.sleep(1.5)  # the records' last flush
            return story, await chaos.states()

        story, states = asyncio.run(run())
        figures, errors = judge(clients.results, scratch / "disk" / "records", story, states)
    if hostile is not None:
        figures |= routing_shift(clients.results, story, hostile.on)
        figures |= {f"hostile/{kind}": count for kind, count in sorted(hostile.counts.items())}
    figures["peak_rss_mb"] = chaos.peak_rss_mb
    figures |= {f"recovery_s/{name}": seconds for name, seconds in story.recovery_s.items()}
    for name, value in figures.items():
        out.print(f"{name:<40} {value:>10.2f}".replace(".00", ""), highlight=False)
    out.print(f"what failed or broke: {dict(errors) or 'nothing'}", highlight=False)
    if args.json_file:
        shown = {name: Interval(*(3 * (float(value),))) for name, value in figures.items()}
        more = {"clients": clients.num_clients, "small_disk": disk is not None, "errors": dict(errors)}
        write(args.json_file, len(clients.results), shown, **more)


if __name__ == "__main__":
    main()
