"""The schema of the registry's `state.json`, and its allowed transitions."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, model_validator

from draftpick.engines.config import Model, did_you_mean
from draftpick.router.errors import PolicyRejected

ID = re.compile(r"p[0-9]{4,}")
"""Id of a policy."""

Stage = Literal["shadow", "canary", "holdout", "active", "retired", "refused"]
PolicyId = Annotated[str, Field(pattern=f"^{ID.pattern}$")]


class Candidate(Model):
    """The policy under test: queried in addition to the active one (`shadow`), or with a share of the requests
    (`canary`). Or the previously active one, which keeps a share for comparison (`holdout`)."""

    id: PolicyId
    stage: Literal["shadow", "canary", "holdout"]
    share: float = Field(ge=0, le=1, description="share of requests that it decides")
    since: float = Field(allow_inf_nan=False, description="unix time of this stage and share, in seconds")
    began: float | None = Field(None, allow_inf_nan=False, description="unix time of the first share of this stage")


def id_of(candidate: Candidate | None) -> str | None:
    return None if candidate is None else candidate.id


class RegistryEntry(Model):
    stage: Stage
    policy: str = Field(description="the id in decisions and records")
    created: AwareDatetime


class HistoryEntry(Model):
    time: AwareDatetime
    action: str
    policy: PolicyId | None
    by: str
    reason: str


class RegistryState(Model):
    """The content of `state.json`, schema 1. All fields are required, and references must exist."""

    schema_version: Literal[1] = Field(alias="schema")
    revision: int = Field(ge=0, description="number of changes so far")
    active: PolicyId | None = Field(description="the policy in service")
    previous: PolicyId | None = Field(description="the policy restored by `rollback`")
    pinned: bool = Field(description="the active policy stays until it is unpinned")
    candidate: Candidate | None
    policies: dict[PolicyId, RegistryEntry]
    history: tuple[HistoryEntry, ...]

    def entry(self, id: str) -> RegistryEntry:
        """The policy `id`. Raises `PolicyRejected` for an unknown one."""
        return entry_of(self.policies, id)

    @model_validator(mode="after")
    def _check_consistent(self) -> Self:
        candidate, serving = self.candidate, [id for id, one in self.policies.items() if one.stage == "active"]
        named = {"active": self.active, "previous": self.previous, "candidate": id_of(candidate)}
        for field, id in named.items():
            if id is not None and id not in self.policies:
                raise ValueError(f"field {field!r} names {id}, which is not in `policies`")
        if serving != ([] if self.active is None else [self.active]):
            raise ValueError(f"field 'active' is {self.active}, but the stage of {serving} is active")
        if candidate is not None and self.policies[candidate.id].stage != candidate.stage:
            raise ValueError(f"field 'candidate.stage' differs from 'policies.{candidate.id}.stage'")
        if self.pinned and self.active is None:
            raise ValueError("field 'pinned' is true, but no policy is active")
        return self


def entry_of(policies: Mapping[str, RegistryEntry], id: str) -> RegistryEntry:
    """The policy `id`. Raises `PolicyRejected` for an unknown one."""
    if id not in policies:
        raise PolicyRejected(f"unknown policy {id!r} ({did_you_mean(id, policies)}see: draftpick policies list)")
    return policies[id]


EMPTY = RegistryState(
    schema=1, revision=0, active=None, previous=None, pinned=False, candidate=None, policies={}, history=()
)


@dataclass(slots=True)
class RegistryEdit:
    """A state under change, and the history entry of the change."""

    active: str | None
    previous: str | None
    pinned: bool
    candidate: Candidate | None
    policies: dict[str, RegistryEntry]
    subject: str | None
    reason: str

    def set_stage(self, id: str, stage: Stage) -> None:
        self.policies[id] = self.policies[id].model_copy(update={"stage": stage})

    def start_shadow(self, id: str) -> None:
        self.require_promotable(id)
        if self.candidate is not None and self.candidate.id != id:
            self.drop_candidate("retired")
        self.set_candidate(id, "shadow", 0.0)

    def set_candidate(self, id: str, stage: Literal["shadow", "canary", "holdout"], share: float) -> None:
        before, now = self.candidate, time.time()
        continues = before is not None and (before.id, before.stage) == (id, stage)
        began = before.began if before is not None and continues else now
        self.candidate = Candidate(id=id, stage=stage, share=share, since=now, began=began)
        self.set_stage(id, stage)

    def drop_candidate(self, stage: Stage) -> None:
        if self.candidate is not None:
            self.set_stage(self.candidate.id, stage)
            self.candidate = None

    def activate(self, id: str) -> None:
        if id_of(self.candidate) == id:
            self.candidate = None
        elif self.candidate is not None and self.candidate.stage == "holdout":
            self.drop_candidate("retired")  # it was compared with the one that was active
        if self.active is not None:
            self.set_stage(self.active, "retired")
        self.active, self.previous = id, self.active
        self.set_stage(id, "active")

    def require_unpinned(self) -> None:
        if self.pinned:
            raise PolicyRejected(f"{self.active} is pinned (draftpick policies unpin)")

    def require_promotable(self, id: str) -> None:
        stage = entry_of(self.policies, id).stage
        if stage == "active":
            raise PolicyRejected(f"{id} is already active")
        if stage == "refused":
            raise PolicyRejected(f"{id} was rejected (to use it anyway: draftpick policies pin {id})")
