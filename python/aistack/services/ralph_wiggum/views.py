"""Rows of the database as the routes show them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from aistack.services.ralph_wiggum import models
from aistack.services.ralph_wiggum.clock import rfc3339, rfc3339_or_none
from aistack.services.ralph_wiggum.states import FailureClass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aistack.services.ralph_wiggum.records import Decision, Event, Iteration, Task

_START = 200  # characters of a prompt in a list


def task(record: Task, decisions: Sequence[Decision], now: float) -> models.Task:
    """A task with everything."""
    return models.Task(
        task_id=record.id,
        state=record.state,
        reason=record.reason,
        detail=record.detail,
        prompt=record.prompt,
        backend=record.backend,
        complexity=record.complexity,
        workspace=record.workspace,
        priority=record.priority,
        expect_changes=record.expect_changes,
        verify=record.verify,
        context=record.context,
        limit=models.Limit(
            value=record.limit, steps=[models.LimitStep.model_validate(step) for step in record.limit_steps]
        ),
        max_tokens=record.max_tokens,
        max_seconds=record.max_seconds,
        iterations=record.iterations,
        uncounted=record.uncounted,
        tokens=record.tokens,
        active_seconds=round(record.active_for(now), 3),
        approval_expires_at=rfc3339_or_none(record.approval_expires),
        retry_at=rfc3339_or_none(record.retry_at),
        created_at=rfc3339(record.created),
        started_at=rfc3339_or_none(record.started),
        updated_at=rfc3339(record.updated),
        finished_at=rfc3339_or_none(record.finished),
        decisions=[decision(each) for each in decisions],
    )


def decision(record: Decision) -> models.Decision:
    """What somebody did."""
    return models.Decision.model_validate(
        {"at": rfc3339(record.at), "action": record.action, "by": record.by, "reason": record.reason}
    )


def summary(record: Task) -> models.TaskSummary:
    """A task in a list."""
    return models.TaskSummary(
        task_id=record.id,
        state=record.state,
        reason=record.reason,
        detail=record.detail,
        prompt_start=record.prompt[:_START],
        backend=record.backend,
        workspace=record.workspace,
        priority=record.priority,
        iterations=record.iterations,
        limit=record.limit,
        uncounted=record.uncounted,
        tokens=record.tokens,
        created_at=rfc3339(record.created),
        updated_at=rfc3339(record.updated),
        finished_at=rfc3339_or_none(record.finished),
    )


def iteration(record: Iteration) -> models.Iteration:
    """A call of the backend."""
    changed = None
    if record.tree_before is not None and record.tree_after is not None:
        changed = record.tree_before != record.tree_after
    return models.Iteration(
        number=record.number,
        attempt=record.attempt,
        idempotency_key=record.key,
        phase=record.phase,
        outcome=record.outcome,
        counted=record.counted,
        failure_class=None if record.failure_class is None else FailureClass(record.failure_class),
        checkpoint=record.checkpoint,
        exit_code=record.exit_code,
        error_kind=record.error_kind,
        error=record.error,
        output=record.output,
        files_modified=record.files_modified,
        git_commits=record.git_commits,
        tokens=record.tokens,
        changed=changed,
        verify=[models.Verification.model_validate(each) for each in record.verify],
        backend_seconds=record.backend_seconds,
        opened_at=rfc3339(record.opened),
        closed_at=rfc3339_or_none(record.closed),
    )


def server_sent(record: Event) -> str:
    """An event as the stream has it: its number is what Last-Event-ID names."""
    document = {
        "event": record.name,
        "id": record.id,
        "at": rfc3339(record.at),
        "task_id": record.task_id,
        **record.data,
    }
    return f"id: {record.id}\nevent: {record.name}\ndata: {json.dumps(document)}\n\n"
