"""Rows of the database as the rest of Ralph sees them. Times are Unix times in seconds."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from aistack.services.ralph_wiggum.breaker import Streak
    from aistack.services.ralph_wiggum.states import Outcome, Phase, Reason, State


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A task. `uncounted` are calls of the backend that did not count; `failures` those in a row up to now."""

    seq: int
    id: str
    prompt: str
    backend: str
    complexity: Literal["simple", "medium", "complex", "auto"]
    workspace: str
    priority: int
    expect_changes: bool
    verify: list[str]
    context: dict[str, Any]
    limit: int
    limit_steps: list[dict[str, Any]]
    max_tokens: int | None
    max_seconds: float
    state: State
    reason: Reason | None
    detail: str | None
    created: float
    updated: float
    started: float | None
    finished: float | None
    approval_expires: float | None
    retry_at: float | None
    active_seconds: float
    active_since: float | None
    iterations: int
    uncounted: int
    failures: int
    tokens: int
    streak: Streak
    feedback: str | None
    base_tree: str | None

    def active_for(self, now: float) -> float:
        """Seconds since it began, without those in which it was stopped."""
        return self.active_seconds + (0.0 if self.active_since is None else max(0.0, now - self.active_since))

    def seconds_left(self, now: float) -> float:
        """Seconds of its wall time that are left; not positive if it is used up."""
        return self.max_seconds - self.active_for(now)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Iteration:
    """One call of the backend."""

    seq: int
    number: int
    attempt: int
    key: str
    phase: Phase
    checkpoint: str | None
    tree_before: str | None
    tree_after: str | None
    opened: float
    closed: float | None
    outcome: Outcome | None
    counted: bool
    failure_class: str | None
    exit_code: int | None
    error_kind: str | None
    error: str | None
    output: str
    files_modified: list[str]
    git_commits: list[str]
    tokens: int
    backend_seconds: float | None
    verify: list[dict[str, Any]]
    reply: dict[str, Any] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a task; the numbers rise over all tasks."""

    id: int
    at: float
    task_id: str
    name: str
    data: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """What somebody did to a task."""

    at: float
    action: str
    by: str
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Closing:
    """All that is written down when an iteration is over."""

    outcome: Outcome
    failure_class: str | None = None
    exit_code: int | None = None
    error_kind: str | None = None
    error: str | None = None
    output: str = ""
    files_modified: list[str] = dataclasses.field(default_factory=list)
    git_commits: list[str] = dataclasses.field(default_factory=list)
    tokens: int = 0
    backend_seconds: float | None = None
    tree_after: str | None = None
    verify: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    fingerprint: str | None = None
    progressed: bool | None = None
    feedback: str | None = None
    detail: str | None = None
    retry_at: float | None = None
    done_reason: Reason | None = None
