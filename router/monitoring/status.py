"""The content of `GET /v1/route/state`: engines, clusters of requests, recent decisions, policies. No request text."""

import asyncio
import uuid
from collections.abc import Mapping
from itertools import islice
from typing import Any

from draftpick.router.errors import PolicyRejected
from draftpick.router.monitoring.cluster_labels import cluster_names
from draftpick.router.monitoring.damaged_lines import DamagedLines
from draftpick.router.monitoring.explain import EngineStatus, engine_statuses
from draftpick.router.parts import Parts
from draftpick.router.policies.base import Policy
from draftpick.router.registry.file_watcher import FileWatcher
from draftpick.router.registry.registry import STATE, Registry
from draftpick.router.registry.state import RegistryState
from draftpick.router.telemetry.recent_requests import KEPT, WindowTotals, total

DECISIONS, EVENTS = 100, 40
_KINDS, _POLICIES, _CHANGES, _CHECKS = 12, 20, 30, 30
_Cells = Mapping[tuple[str, int | None], WindowTotals]


class FleetStatus:
    """The state of one router replica; `router` in the state identifies it."""

    def __init__(self, parts: Parts, model: str, registry: Registry | None) -> None:
        self._parts, self._model = parts, model
        self._policies = RegistryStatus(registry) if registry is not None else None
        self._damaged = DamagedLines(parts.records.folder) if parts.records is not None else None
        self._id = uuid.uuid4().hex[:8]
        self._cluster_names: tuple[Policy | None, list[str]] = None, []

    async def state(self) -> dict[str, object]:
        """All state, for JSON. The registry is None if there is none, `{"error": ...}` if damaged."""
        self._parts.attempts.drain()
        serving, recent = self._parts.active_policies, self._parts.recent
        cells, candidate = recent.sums(serving.policy.id), serving.candidate
        engines = engine_statuses(self._parts)
        return {
            "ready": any(standing.ineligible_reason not in ("no_replica", "gone") for standing in engines.values()),
            "router": self._id,
            "model": self._model,
            "policy": serving.policy.id,
            "candidate": {"policy": candidate.id, "share": serving.share} if candidate is not None else None,
            "safe_mode": serving.safe_modes(),
            "exploration_rate": serving.explore,
            "objective": self._parts.config.load.objective,
            "baseline": self._parts.baseline,
            "window": {"most": KEPT, "seconds": recent.span_s(), **total(cells.values()).means()},
            "arms": self._arms(cells, engines),
            "kinds": self._clusters(cells),
            "decisions": self._decisions(),
            "events": list(islice(reversed(self._parts.events.recent), EVENTS)),
            "registry": await asyncio.to_thread(self._policies.state) if self._policies is not None else None,
            "records": await self._records(),
        }

    async def _records(self) -> dict[str, int | None] | None:
        """Records written, dropped, and damaged lines of all routers' (None: the folder is unreadable)."""
        if (records := self._parts.records) is None or self._damaged is None:
            return None
        try:
            damaged = await asyncio.to_thread(self._damaged.count)
        except OSError:
            damaged = None
        return {"written": records.written, "dropped": records.dropped, "damaged": damaged}

    def _arms(self, cells: _Cells, engines: Mapping[str, EngineStatus]) -> list[dict[str, object]]:
        speeds, all_attempts = self._parts.recent.tokens_per_s(), sum(sums.attempts for sums in cells.values())
        found = []
        for arm, standing in engines.items():
            sums = total(sums for (one, _), sums in cells.items() if one == arm)
            share = sums.attempts / all_attempts if all_attempts else None
            now = {"share": share, "tokens_per_s": speeds.get(arm, 0.0), "standing": standing}
            found.append({"arm": arm, **now, **sums.means()})
        return found

    def _clusters(self, cells: _Cells) -> list[dict[str, object]]:
        """Clusters by number of requests, descending; their names contain no text."""
        by_kind: dict[int | None, dict[str, WindowTotals]] = {}
        for (arm, kind), sums in cells.items():
            by_kind.setdefault(kind, {})[arm] = sums
        whole = {kind: total(arms.values()) for kind, arms in by_kind.items()}
        names, most = self._current_cluster_names(), sorted(whole, key=lambda kind: -whole[kind].attempts)[:_KINDS]
        return [
            {
                "kind": kind,
                "name": names[kind] if kind is not None else None,
                "arms": {arm: int(sums.attempts) for arm, sums in by_kind[kind].items()},
                **whole[kind].means(),
            }
            for kind in most
        ]

    def _decisions(self) -> list[dict[str, object]]:
        names, policy = self._current_cluster_names(), self._parts.active_policies.policy.id
        return [
            {
                **seen.row,
                "kind": names[seen.cluster[1]] if seen.cluster is not None and seen.cluster[0] == policy else None,
            }
            for seen in self._parts.recent.last(DECISIONS)
        ]

    def _current_cluster_names(self) -> list[str]:
        policy = self._parts.active_policies.policy
        if self._cluster_names[0] is not policy:
            self._cluster_names = policy, cluster_names(policy.clusters)
        return self._cluster_names[1]


class RegistryStatus:
    """Content of a registry, reread after changes. Raises nothing: errors are reported."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._watcher = FileWatcher(registry.path / STATE)
        self._known: dict[str, object] | None = None

    def state(self) -> dict[str, object]:
        """The state, its latest policies and changes, and the reasons for these policies."""
        if self._watcher.changed() or self._known is None:
            try:
                self._known = self._read(self._registry.state())
            except PolicyRejected as error:
                self._known = {"error": str(error)}
        return self._known

    def _read(self, state: RegistryState) -> dict[str, object]:
        named = {state.active, state.previous, state.candidate.id if state.candidate is not None else None}
        newest = sorted(state.policies, key=lambda id: int(id[1:]))[-_POLICIES:]
        shown = [id for id in state.policies if id in named or id in newest]
        found: dict[str, object] = state.model_dump(mode="json", by_alias=True, exclude={"policies", "history"})
        return {
            **found,
            "policies": [{"id": id, **state.policies[id].model_dump(mode="json"), **self._why(id)} for id in shown],
            "history": [change.model_dump(mode="json") for change in state.history[-_CHANGES:]][::-1],
        }

    def _why(self, id: str) -> dict[str, object]:
        """The reason in a policy's report, if it is one of `draftpick.policy_training.retraining.pipeline`."""
        try:
            report = self._registry.report(id)
        except PolicyRejected:
            return {"reason": None, "gate": None}
        gate = report.get("gate")
        return {"reason": _text(report.get("reason")), "gate": _gate(gate) if isinstance(gate, dict) else None}


def _gate(gate: dict[str, Any]) -> dict[str, object]:
    checks = gate.get("checks")
    rows = [check for check in checks if isinstance(check, dict)][:_CHECKS] if isinstance(checks, list) else []
    return {
        "passed": gate.get("passed") is True,
        "checks": [
            {"name": _text(row.get("name")), "passed": row.get("passed") is True, "why": _text(row.get("why"))}
            for row in rows
        ],
    }


def _text(value: Any) -> str | None:
    return value[:500] if isinstance(value, str) else None
