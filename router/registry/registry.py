"""The registry of policies, with the active one and a candidate. A folder:

    state.json        the current state and recent changes; replaced atomically, by one writer at a time (`.lock`)
    policies/p0001/   an immutable artefact, with `report.json`: why it was made

A policy is added (`shadow`), becomes the candidate (`shadow`, then `canary`) and then `active`, until it is `retired`,
possibly after a `holdout`, or `refused`. Readers need no lock. The file system must support `flock` (local ones and
NFSv4 do).
"""

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from draftpick.engines.atomic_write import atomic_write, sync
from draftpick.router.errors import PolicyRejected
from draftpick.router.policies import artifact, read
from draftpick.router.registry.state import (
    EMPTY,
    ID,
    Candidate,
    HistoryEntry,
    RegistryEdit,
    RegistryEntry,
    RegistryState,
    entry_of,
    id_of,
)

STATE, LOCK, POLICIES, REPORT = "state.json", ".lock", "policies", "report.json"
HISTORY = 200
"""Maximum length of the history."""
_SCRATCH_PREFIX = ".add-"
_LEFTOVER_AGE_S = 3600.0  # longer than any copy takes: its writer is dead
_EDITABLE = ("active", "previous", "pinned", "candidate", "policies")


class Registry:
    """The registry in the folder `path`, which the first `add` creates.

    Every change is one atomic revision. `by` and `reason` go into the history. A change raises `PolicyRejected` if it
    is not allowed, if the state is unreadable, or if the artefact of a policy that would become candidate or active is
    damaged; OSError if the disk fails.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._policies = path / POLICIES

    def state(self) -> RegistryState:
        """The current state; empty without a registry. Raises `PolicyRejected` with the wrong field."""
        path = self.path / STATE
        try:
            return RegistryState.model_validate_json(path.read_bytes(), strict=True)
        except FileNotFoundError:
            return EMPTY
        except OSError as error:
            raise PolicyRejected(f"{path} is not readable: {error.strerror}") from error
        except ValidationError as error:
            raise PolicyRejected(f"{path}: {_first(error)} (fix it, or restore a backup of the file)") from None

    def folder(self, id: str) -> Path:
        """The artefact folder of `id`. Raises `PolicyRejected` for an invalid id."""
        if not ID.fullmatch(id):
            raise PolicyRejected(f"{id!r} is not a policy id (ids are like p0001; see: draftpick policies list)")
        return self._policies / id

    def active_folder(self) -> Path:
        """The active artefact's folder. Raises `PolicyRejected` without one."""
        if (active := self.state().active) is None:
            raise PolicyRejected(f"registry {self.path} has no active policy (draftpick policies promote ID)")
        return self.folder(active)

    def report(self, id: str) -> dict[str, Any]:
        """The report passed to `add` for `id`. Raises `PolicyRejected`."""
        try:
            found = from_json((self.folder(id) / REPORT).read_bytes())
        except (OSError, ValueError) as error:
            raise PolicyRejected(f"the report of {id} is not readable: {error}") from error
        if not isinstance(found, dict):
            raise PolicyRejected(f"the report of {id} is not an object")
        return found

    def add(self, artefact: Path, report: Mapping[str, Any], by: str) -> str:
        """Copy an artefact into the registry; return its id. `report` is JSON; its `reason` goes into the history."""
        read(artefact)
        self._policies.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX, dir=self._policies))
        try:
            policy = _copy(artefact, report, scratch)
            with self._change("add", by, reason=str(report.get("reason", ""))) as draft:
                id = draft.subject = self._free_id(draft)
                # A crash from here on leaves a folder outside the state: its number is skipped.
                os.rename(scratch, self.folder(id))
                sync(self._policies)
                draft.policies[id] = RegistryEntry(stage="shadow", policy=policy, created=_now())
        finally:
            _remove(scratch)
        return id

    def start_shadow(self, id: str, by: str, reason: str = "") -> None:
        """Make `id` the candidate, in shadow; an earlier candidate is retired."""
        with self._change("begin", by, id, reason) as draft:
            draft.start_shadow(id)

    def set_canary_share(self, id: str, share: float, by: str, reason: str = "", *, start: bool = False) -> None:
        """Let the candidate `id` decide a share of the requests, in (0, 1].

        With `start`, a policy that is not the candidate becomes it in the same change.
        """
        if not 0 < share <= 1:
            raise PolicyRejected(f"the share of a canary must be in (0, 1], not {share}")
        with self._change("advance", by, id, f"share {share:g}" + (f": {reason}" if reason else "")) as draft:
            draft.require_unpinned()
            entry_of(draft.policies, id)
            if start and id_of(draft.candidate) != id:
                draft.start_shadow(id)
            if (current := id_of(draft.candidate)) != id:
                raise PolicyRejected(f"{id} is not the candidate, which is {current} (make {id} the candidate first)")
            draft.set_candidate(id, "canary", share)

    def promote(self, id: str, by: str, reason: str = "", *, holdout: float = 0.0) -> None:
        """Make `id` active; the former active one becomes `previous`, and keeps the share `holdout`, below 1.

        A rejected policy needs `pin`.
        """
        if not 0 <= holdout < 1:
            raise PolicyRejected(f"the share of a holdout must be in [0, 1), not {holdout}")
        with self._change("promote", by, id, reason) as draft:
            draft.require_unpinned()
            draft.require_promotable(id)
            draft.activate(id)
            if holdout and draft.previous is not None:
                draft.drop_candidate("retired")
                draft.set_candidate(draft.previous, "holdout", holdout)

    def end_holdout(self, by: str, reason: str = "") -> None:
        """Let the active policy decide all requests; `previous` stays."""
        with self._change("end_holdout", by, reason=reason) as draft:
            if draft.candidate is None or draft.candidate.stage != "holdout":
                raise PolicyRejected("there is no holdout (draftpick policies list)")
            draft.subject = draft.candidate.id
            draft.drop_candidate("retired")

    def reject(self, id: str, by: str, reason: str = "") -> None:
        """Reject the candidate, or a policy that was only added."""
        with self._change("refuse", by, id, reason) as draft:
            stage = entry_of(draft.policies, id).stage
            if stage not in ("shadow", "canary"):
                fix = "draftpick policies rollback" if stage == "active" else "it serves no request"
                raise PolicyRejected(f"{id} is {stage}, only a candidate or an added policy can be rejected ({fix})")
            if id_of(draft.candidate) == id:
                draft.candidate = None
            draft.set_stage(id, "refused")
            draft.previous = None if draft.previous == id else draft.previous

    def rollback(self, by: str, reason: str = "") -> None:
        """Return to the previous policy and reject the active one and the candidate. Works once: then there is no
        previous one."""
        with self._change("rollback", by, reason=reason) as draft:
            draft.require_unpinned()
            failed, draft.subject = draft.active, draft.previous
            if failed is None or draft.previous is None:
                raise PolicyRejected("there is no previous policy to go back to (draftpick policies promote ID)")
            if id_of(draft.candidate) != draft.previous:
                draft.drop_candidate("refused")
            draft.activate(draft.previous)
            draft.set_stage(failed, "refused")
            draft.previous = None

    def pin(self, id: str, by: str, reason: str = "") -> None:
        """Make `id` active, whatever its stage, and block all changes of it except `pin` and `unpin`."""
        with self._change("pin", by, id, reason) as draft:
            entry_of(draft.policies, id)
            if draft.active != id:
                draft.activate(id)
            draft.pinned = True

    def unpin(self, by: str, reason: str = "") -> None:
        """Allow changes of the active policy again."""
        with self._change("unpin", by, reason=reason) as draft:
            if not draft.pinned:
                raise PolicyRejected("no policy is pinned (draftpick policies pin ID)")
            draft.subject, draft.pinned = draft.active, False

    def prune(self, keep: int, by: str = "prune") -> list[str]:
        """Remove all retired and rejected policies except the latest `keep` (at least 1), and folders without a policy.

        Returns their ids. Never removes the active or previous policy, or the candidate. Raises ValueError.
        """
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}: ids must not be reused")
        with self._change("prune", by) as draft:
            spared = {draft.active, draft.previous, id_of(draft.candidate)}
            ended = [id for id, one in draft.policies.items() if one.stage in ("retired", "refused")]
            gone = sorted({*ended} - spared, key=_number)[:-keep]
            for id in gone:
                del draft.policies[id]
            draft.reason = ", ".join(gone)
        with self._locked():
            named = self.state().policies
            for folder in self._folders():
                if folder.name not in named:
                    _remove(folder)
        return gone

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._policies.mkdir(parents=True, exist_ok=True)
        with (self.path / LOCK).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _change(self, action: str, by: str, subject: str | None = None, reason: str = "") -> Iterator[RegistryEdit]:
        """One change: the caller's edits become the next state, unless it raises or changes nothing."""
        with self._locked():
            old = self.state()
            draft = RegistryEdit(old.active, old.previous, old.pinned, old.candidate, {**old.policies}, subject, reason)
            yield draft
            new = {name: getattr(draft, name) for name in _EDITABLE}
            if new == {name: getattr(old, name) for name in _EDITABLE}:
                return
            if draft.active is not None and draft.active != old.active:
                self._check_artefact(draft.active, draft.policies[draft.active])
            if draft.candidate is not None and draft.candidate != old.candidate:
                self._check_artefact(draft.candidate.id, draft.policies[draft.candidate.id])
            change = HistoryEntry(time=_now(), action=action, policy=draft.subject, by=by, reason=draft.reason)
            history = (*old.history, change)[-HISTORY:]
            self._write(RegistryState(schema=1, revision=old.revision + 1, history=history, **new))

    def _write(self, state: RegistryState) -> None:
        text = state.model_dump_json(indent=2, by_alias=True) + "\n"
        atomic_write(self.path / STATE, text, mode=0o644, durable=True)

    def _check_artefact(self, id: str, entry: RegistryEntry) -> None:
        try:
            found = read(self.folder(id)).id
        except PolicyRejected as error:
            raise PolicyRejected(f"{id} is damaged: {error} (add it again)") from error
        if found != entry.policy:
            raise PolicyRejected(f"{id} is damaged: its folder contains {found}, not {entry.policy} (add it again)")

    def _folders(self) -> list[Path]:
        return [folder for folder in self._policies.iterdir() if ID.fullmatch(folder.name)]

    def _free_id(self, draft: RegistryEdit) -> str:
        taken = [_number(id) for id in (*draft.policies, *(folder.name for folder in self._folders()))]
        return f"p{max(taken, default=0) + 1:04}"

    def _remove_leftovers(self) -> None:
        for scratch in self._policies.glob(f"{_SCRATCH_PREFIX}*"):
            with suppress(FileNotFoundError):  # another writer may remove it, too
                if time.time() - scratch.stat().st_mtime > _LEFTOVER_AGE_S:
                    _remove(scratch)


def is_registry(path: Path) -> bool:
    """True if `path` contains a registry."""
    return (path / STATE).is_file()


def _number(id: str) -> int:
    return int(id[1:])


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _first(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    where, problem = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    return f"field {where!r}: {problem}" if where else problem


def _copy(artefact: Path, report: Mapping[str, Any], to: Path) -> str:
    """Copy an artefact and its report to the folder `to`, durably; return the policy's id."""
    try:
        text = json.dumps(report, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise PolicyRejected(f"the report on {artefact} is not JSON: {error}") from error
    (to / REPORT).write_text(text + "\n")
    for name in (artifact.MANIFEST, artifact.ARRAYS):
        shutil.copyfile(artefact / name, to / name)
    policy = read(to).id
    for path in to.iterdir():
        path.chmod(0o444)
        sync(path)
    to.chmod(0o555)
    sync(to)
    return policy


def _remove(folder: Path) -> None:
    with suppress(OSError):
        folder.chmod(0o755)
    shutil.rmtree(folder, ignore_errors=True)


__all__ = ["Candidate", "HistoryEntry", "Registry", "RegistryEntry", "RegistryState", "is_registry"]
