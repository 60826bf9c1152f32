"""Ralph's database: every transition of a task is one transaction, and is on the disk when it is over.

SQLite in WAL mode with synchronous=FULL. Used from one thread at a time; a lock file keeps a second Ralph out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import secrets
import sqlite3
import uuid
from typing import TYPE_CHECKING, Any

from aistack.services.common import ConfigurationError
from aistack.services.ralph_wiggum import limits, schema
from aistack.services.ralph_wiggum.breaker import Streak
from aistack.services.ralph_wiggum.records import Closing, Decision, Event, Iteration, Task
from aistack.services.ralph_wiggum.states import (
    ACTIVE,
    COUNTED,
    ENDED,
    Outcome,
    Phase,
    Reason,
    State,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from aistack.services.ralph_wiggum.models import Submission
    from aistack.services.ralph_wiggum.workspace import Checkpoint

MOST_FAILURES = 50  # calls in a row that do not count, before a task is given up
HISTORY = 200  # finished tasks that a new one is compared with
_PATIENCE = 5.0  # seconds for a lock of SQLite's; only a reader from outside could hold one
_EXPIRED_BY = "ralph-wiggum"


class Unusable(ConfigurationError):
    """The database cannot be used; says which, why and what to do."""


class Unknown(Exception):
    """There is no such task."""


class NotNow(Exception):
    """The task is in a state in which this cannot be done."""

    def __init__(self, task: Task, why: str) -> None:
        self.task = task
        super().__init__(why)


class KeyReused(Exception):
    """An idempotency key came with another request before."""


class Store:
    """The tasks. Every method that changes something is one transaction."""

    def __init__(self, path: Path, *, most_failures: int = MOST_FAILURES) -> None:
        """Open the database, made if there is none.

        Raises:
            Unusable: another Ralph uses it, it is damaged, of another version, or cannot be written.
        """
        self.path = path
        self._most_failures = most_failures
        self._lock = _locked(path.with_suffix(".lock"))
        try:
            self._db = self._opened(path)
        except BaseException:
            os.close(self._lock)
            raise

    def _opened(self, path: Path) -> sqlite3.Connection:
        try:
            database = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
            database.row_factory = sqlite3.Row
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.execute("PRAGMA foreign_keys = ON")
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                # Both or neither: executescript would end the transaction.
                database.execute("BEGIN IMMEDIATE")
                for statement in schema.TABLES.split(";\n"):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {schema.VERSION}")
                database.execute("COMMIT")
            elif version != schema.VERSION:
                database.close()
                raise Unusable(
                    f"{path} is of version {version}, and this Ralph reads {schema.VERSION}: "
                    "run the Ralph that wrote it, or put the file away"
                )
        except sqlite3.Error as error:
            raise Unusable(
                f"cannot open {path}: {error}; free or mend the volume, or put the file away and start again"
            ) from None
        return database

    def close_database(self) -> None:
        """Close it, and let another Ralph have it."""
        self._db.close()
        os.close(self._lock)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # --- reading -----------------------------------------------------------------------------------------------------

    def task(self, task_id: str) -> Task:
        """A task. Raises Unknown."""
        row = self._db.execute("SELECT * FROM task WHERE id = ?", (task_id,)).fetchone()
        if row is None:
            raise Unknown(task_id)
        return _task(row)

    def tasks(self, *, state: State | None, before: int | None, most: int) -> list[Task]:
        """Tasks, the newest first; `before` is the `seq` that the page begins after."""
        rows = self._db.execute(
            "SELECT * FROM task WHERE (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR seq < ?2)"
            " ORDER BY seq DESC LIMIT ?3",
            (state, before, most),
        )
        return [_task(row) for row in rows]

    def in_state(self, state: State) -> list[Task]:
        """All tasks in a state, the oldest first."""
        return [_task(row) for row in self._db.execute("SELECT * FROM task WHERE state = ? ORDER BY seq", (state,))]

    def iterations(self, task: Task) -> list[Iteration]:
        """All calls for a task, the first one first."""
        rows = self._db.execute("SELECT * FROM iteration WHERE task = ? ORDER BY seq", (task.seq,))
        return [_iteration(row) for row in rows]

    def under_way(self, task: Task) -> Iteration | None:
        """The call that is not over, or None."""
        row = self._db.execute("SELECT * FROM iteration WHERE task = ? AND phase != 'closed'", (task.seq,)).fetchone()
        return None if row is None else _iteration(row)

    def decisions(self, task: Task) -> list[Decision]:
        """What was done to a task, the first thing first."""
        rows = self._db.execute("SELECT * FROM decision WHERE task = ? ORDER BY id", (task.seq,))
        return [Decision(at=row["at"], action=row["action"], by=row["by_whom"], reason=row["reason"]) for row in rows]

    def events(self, *, task: Task | None, after: int, most: int) -> list[Event]:
        """Events with a higher number than `after`, of one task or of all, the oldest first."""
        rows = self._db.execute(
            "SELECT event.*, task.id AS task_id FROM event JOIN task ON task.seq = event.task "
            "WHERE event.id > ?1 AND (?2 IS NULL OR event.task = ?2) ORDER BY event.id LIMIT ?3",
            (after, None if task is None else task.seq, most),
        )
        return [
            Event(id=row["id"], at=row["at"], task_id=row["task_id"], name=row["name"], data=json.loads(row["data"]))
            for row in rows
        ]

    def last_event(self) -> int:
        """The number of the newest event; 0 for none."""
        return int(self._db.execute("SELECT coalesce(max(id), 0) FROM event").fetchone()[0])

    def trees_seen(self, task: Task) -> set[str]:
        """Contents that the workspace had after iterations that counted."""
        rows = self._db.execute(
            "SELECT tree_after FROM iteration WHERE task = ? AND counted = 1 AND tree_after IS NOT NULL", (task.seq,)
        )
        return {row[0] for row in rows}

    def stats(self) -> dict[str, Any]:
        """Numbers of all tasks."""
        states = dict.fromkeys(State, 0)
        iterations = uncounted = tokens = 0
        for row in self._db.execute(
            "SELECT state, count(*), sum(iterations), sum(uncounted), sum(tokens) FROM task GROUP BY state"
        ):
            states[State(row[0])] = row[1]
            iterations += row[2]
            uncounted += row[3]
            tokens += row[4]
        average = self._db.execute("SELECT avg(iterations) FROM task WHERE state = 'completed'").fetchone()[0]
        judged = states[State.COMPLETED] + states[State.EXHAUSTED] + states[State.FAILED]
        return {
            "tasks": states,
            "iterations": iterations,
            "uncounted": uncounted,
            "tokens": tokens,
            "average_iterations": average,
            "completion_rate": states[State.COMPLETED] / judged if judged else None,
        }

    def next_moment(self) -> float | None:
        """When something is due by itself: an approval expires, a waiting task is tried or runs out of time."""
        row = self._db.execute(
            "SELECT min(approval_expires) FROM task WHERE state = 'awaiting_approval' UNION ALL "
            "SELECT min(min(retry_at, active_since + max_seconds - active_seconds)) FROM task WHERE state = 'waiting'"
        ).fetchall()
        return min((each[0] for each in row if each[0] is not None), default=None)

    # --- submitting --------------------------------------------------------------------------------------------------

    def submit(
        self,
        request: Submission,
        *,
        now: float,
        key: str | None,
        decide: Callable[[list[limits.Finished]], Sequence[limits.Step]],
        max_seconds: float,
        approval_seconds: float,
    ) -> tuple[Task, bool]:
        """Take a task, and say whether it is a new one; `decide` makes the limit from the history.

        Raises:
            KeyReused: the key came with another request before.
        """
        asked = json.dumps(request.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(asked.encode()).hexdigest()
        with self._transaction():
            if key is not None and (known := self._by_key(key, digest)) is not None:
                return known, False
            steps = decide(self._history())
            task_id = str(uuid.uuid4())
            waits = request.require_approval
            self._db.execute(
                "INSERT INTO task (id, idempotency_key, request_hash, prompt, words, backend, complexity, workspace,"
                " priority, expect_changes, verify, context, iteration_limit, limit_steps, max_tokens, max_seconds,"
                " state, created, updated, approval_expires)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    task_id,
                    key,
                    digest,
                    request.prompt,
                    json.dumps(sorted(limits.words(request.prompt))),
                    request.backend,
                    request.complexity,
                    request.workspace or f"task-{task_id}",
                    request.priority,
                    request.expect_changes,
                    json.dumps(request.verify),
                    json.dumps(request.context),
                    steps[-1].value,
                    json.dumps([dataclasses.asdict(step) for step in steps]),
                    request.max_tokens,
                    request.max_seconds or max_seconds,
                    State.AWAITING_APPROVAL if waits else State.QUEUED,
                    now,
                    now,
                    now + approval_seconds if waits else None,
                ),
            )
            task = self.task(task_id)
            data = {
                "state": task.state,
                "backend": task.backend,
                "complexity": task.complexity,
                "prompt_length": len(task.prompt),
                "limit": task.limit,
                "limit_steps": task.limit_steps,
            }
            self._event(task, now, "task.submitted", data)
            return task, True

    def _by_key(self, key: str, digest: str) -> Task | None:
        row = self._db.execute("SELECT * FROM task WHERE idempotency_key = ?", (key,)).fetchone()
        if row is not None and row["request_hash"] != digest:
            raise KeyReused(row["id"])
        return None if row is None else _task(row)

    def _history(self) -> list[limits.Finished]:
        rows = self._db.execute(
            "SELECT id, words, iterations, state FROM task WHERE finished IS NOT NULL AND iterations > 0 AND"
            " (state = 'completed' OR (state = 'exhausted' AND reason = 'iteration_limit'))"
            " ORDER BY finished DESC LIMIT ?",
            (HISTORY,),
        )
        return [
            limits.Finished(
                task_id=row["id"],
                words=frozenset(json.loads(row["words"])),
                iterations=row["iterations"],
                completed=row["state"] == State.COMPLETED,
            )
            for row in rows
        ]

    # --- what somebody does to a task --------------------------------------------------------------------------------

    def approve(self, task_id: str, *, by: str, reason: str, now: float) -> Task:
        """Let a task begin. Raises Unknown, NotNow."""
        with self._transaction():
            task = self._expect(task_id, {State.AWAITING_APPROVAL})
            if task.approval_expires is not None and task.approval_expires <= now:
                raise NotNow(task, "the time for its approval is over; submit it again")
            self._decided(task, now, "approve", by, reason)
            return self._move(task, State.QUEUED, now, detail=f"approved by {by}")

    def reject(self, task_id: str, *, by: str, reason: str, now: float) -> Task:
        """Refuse a task that waits for approval. Raises Unknown, NotNow."""
        with self._transaction():
            task = self._expect(task_id, {State.AWAITING_APPROVAL})
            self._decided(task, now, "reject", by, reason)
            return self._move(task, State.REJECTED, now, reason=Reason.REJECTED, detail=f"rejected by {by}: {reason}")

    def stop(self, task_id: str, *, by: str, reason: str, now: float) -> Task:
        """Stop a task wherever it is; a call under way does not count any more. Raises Unknown, NotNow."""
        with self._transaction():
            task = self._expect(task_id, set(State) - ENDED)
            self._decided(task, now, "stop", by, reason)
            if (iteration := self.under_way(task)) is not None:
                task = self._record(task, iteration, Closing(outcome=Outcome.STOPPED, error="stopped"), now)
            return self._move(task, State.STOPPED, now, reason=Reason.STOPPED, detail=f"stopped by {by}: {reason}")

    def resume(
        self,
        task_id: str,
        *,
        by: str,
        reason: str,
        now: float,
        ceiling: int,
        limit: int | None = None,
        max_tokens: int | None = None,
        max_seconds: float | None = None,
    ) -> Task:
        """Let a task go on that was stopped, gave up or ran into a bound; or try a waiting one now.

        Its iterations, tokens and time so far stay counted, its circuit is closed again. Raises Unknown, NotNow.
        """
        with self._transaction():
            task = self._expect(task_id, {State.STOPPED, State.EXHAUSTED, State.FAILED, State.WAITING})
            steps = task.limit_steps
            if limit is not None:
                limit = min(limit, ceiling)
                why = f"{by}: {reason}"
                steps = [*steps, {"rule": "resumed", "value": limit, "why": why, "evidence": {}}]
            bounds = (limit or task.limit, max_tokens or task.max_tokens, max_seconds or task.max_seconds)
            _require_room(task, *bounds, ceiling=ceiling, now=now)
            self._decided(task, now, "resume", by, reason)
            self._db.execute(
                "UPDATE task SET iteration_limit = ?, limit_steps = ?, max_tokens = ?, max_seconds = ?, failures = 0,"
                " fingerprint = NULL, same_error = 0, no_progress = 0, finished = NULL, retry_at = ? WHERE seq = ?",
                (bounds[0], json.dumps(steps), bounds[1], bounds[2], now, task.seq),
            )
            if task.state == State.WAITING:
                return self.task(task_id)
            return self._move(self.task(task_id), State.QUEUED, now, detail=f"resumed by {by}")

    def _expect(self, task_id: str, states: Collection[State]) -> Task:
        task = self.task(task_id)
        if task.state not in states:
            raise NotNow(task, f"it is {task.state}, and this needs {' or '.join(sorted(states))}")
        return task

    def _decided(self, task: Task, now: float, action: str, by: str, reason: str) -> None:
        self._db.execute(
            "INSERT INTO decision (task, at, action, by_whom, reason) VALUES (?, ?, ?, ?, ?)",
            (task.seq, now, action, by, reason),
        )

    # --- the loop ----------------------------------------------------------------------------------------------------

    def expire(self, now: float) -> list[Task]:
        """End what nobody approved in time, and what waited until its wall time was used up."""
        if (moment := self.next_moment()) is None or moment > now:
            return []
        ended = []
        with self._transaction():
            for row in self._db.execute(
                "SELECT * FROM task WHERE state = 'awaiting_approval' AND approval_expires <= ?", (now,)
            ).fetchall():
                task = _task(row)
                self._decided(task, now, "expire", _EXPIRED_BY, "nobody approved it in time")
                detail = "nobody approved it in time"
                ended.append(self._move(task, State.REJECTED, now, reason=Reason.APPROVAL_EXPIRED, detail=detail))
            for row in self._db.execute(
                "SELECT * FROM task WHERE state = 'waiting' AND active_since + max_seconds - active_seconds <= ?",
                (now,),
            ).fetchall():
                ended.append(self._out_of_time(_task(row), now))  # noqa: PERF401  (it changes the database)
        return ended

    def claim(self, now: float, busy: Collection[str] = ()) -> Task | None:
        """Take the next task to work on: a waiting one that is due, else the queued one with the highest priority.

        Never one whose workspace another task works in, is within, or holds; `busy` names further such workspaces.
        """
        chosen = self._next(now, busy)
        if chosen is None:
            return None
        with self._transaction():
            return self._move(chosen, State.RUNNING, now)

    def _next(self, now: float, busy: Collection[str]) -> Task | None:
        taken = {row[0] for row in self._db.execute("SELECT workspace FROM task WHERE state = 'running'")} | set(busy)
        for row in self._db.execute(
            "SELECT * FROM task WHERE state = 'waiting' AND retry_at <= ? ORDER BY priority DESC, seq", (now,)
        ):
            if not any(_overlap(row["workspace"], other) for other in taken):
                return _task(row)
        # A waiting task keeps its workspace: what it has begun there is not done.
        taken |= {row[0] for row in self._db.execute("SELECT workspace FROM task WHERE state = 'waiting'")}
        for row in self._db.execute(
            "SELECT seq, workspace FROM task WHERE state = 'queued' ORDER BY priority DESC, seq"
        ):
            if not any(_overlap(row["workspace"], other) for other in taken):
                return _task(self._db.execute("SELECT * FROM task WHERE seq = ?", (row["seq"],)).fetchone())
        return None

    def open(self, task: Task, checkpoint: Checkpoint, now: float) -> tuple[Task, Iteration | None]:
        """Write down that the backend is about to be asked. None if the task is not to go on: the task says why."""
        with self._transaction():
            task = self.task(task.id)
            if task.state != State.RUNNING:
                return task, None
            if (ended := self._beyond(task, now)) is not None:
                return ended, None
            number = task.iterations + 1
            attempt = 1 + int(
                self._db.execute(
                    "SELECT coalesce(max(attempt), 0) FROM iteration WHERE task = ? AND number = ?", (task.seq, number)
                ).fetchone()[0]
            )
            key = f"{task.id}.{number}.{attempt}.{secrets.token_hex(4)}"
            self._db.execute(
                "INSERT INTO iteration (task, number, attempt, key, phase, checkpoint, tree_before, opened)"
                " VALUES (?, ?, ?, ?, 'open', ?, ?, ?)",
                (task.seq, number, attempt, key, checkpoint.commit, checkpoint.tree, now),
            )
            if task.base_tree is None:
                self._db.execute("UPDATE task SET base_tree = ? WHERE seq = ?", (checkpoint.tree, task.seq))
                task = self.task(task.id)
            self._event(task, now, "iteration.started", {"number": number, "attempt": attempt, "limit": task.limit})
            return task, self.under_way(task)

    def answered(self, task: Task, iteration: Iteration, reply: dict[str, Any], tree_after: str, now: float) -> bool:
        """Keep the backend's answer while it is found out what it is worth. False if the task was stopped meanwhile."""
        with self._transaction():
            changed = self._db.execute(
                "UPDATE iteration SET phase = 'answered', reply = ?, tree_after = ? WHERE seq = ? AND phase = 'open'",
                (json.dumps(reply), tree_after, iteration.seq),
            )
            if changed.rowcount:
                self._event(task, now, "iteration.answered", {"number": iteration.number, "attempt": iteration.attempt})
            return changed.rowcount == 1

    def close(self, task: Task, iteration: Iteration, closing: Closing, now: float) -> Task:
        """End an iteration and decide, in the same transaction, what becomes of its task.

        Nothing happens if it is over already: it was stopped.
        """
        with self._transaction():
            row = self._db.execute("SELECT phase FROM iteration WHERE seq = ?", (iteration.seq,)).fetchone()
            if row["phase"] == Phase.CLOSED:
                return self.task(task.id)
            task = self._record(self.task(task.id), iteration, closing, now)
            return self._decide(task, closing, now)

    def _record(self, task: Task, iteration: Iteration, closing: Closing, now: float) -> Task:
        """Write the end of an iteration, and the task's counters."""
        counted = closing.outcome in COUNTED
        self._db.execute(
            "UPDATE iteration SET phase = 'closed', closed = ?, outcome = ?, counted = ?, failure_class = ?,"
            " exit_code = ?, error_kind = ?, error = ?, output = ?, files_modified = ?, git_commits = ?, tokens = ?,"
            " backend_seconds = ?, tree_after = ?, verify = ?, reply = NULL WHERE seq = ?",
            (
                now,
                closing.outcome,
                counted,
                closing.failure_class,
                closing.exit_code,
                closing.error_kind,
                closing.error,
                closing.output,
                json.dumps(closing.files_modified),
                json.dumps(closing.git_commits),
                closing.tokens,
                closing.backend_seconds,
                closing.tree_after,
                json.dumps(closing.verify),
                iteration.seq,
            ),
        )
        streak = task.streak
        failures = task.failures
        if counted:
            streak = streak.after(closing.fingerprint, progressed=closing.progressed)
            failures = 0
        elif closing.outcome in {Outcome.INFRASTRUCTURE, Outcome.RATE_LIMITED}:
            failures += 1
        self._db.execute(
            "UPDATE task SET iterations = iterations + ?, uncounted = uncounted + ?, failures = ?, tokens = tokens + ?,"
            " fingerprint = ?, same_error = ?, no_progress = ?, feedback = CASE WHEN ? THEN ? ELSE feedback END,"
            " updated = ? WHERE seq = ?",
            (
                counted,
                not counted,
                failures,
                closing.tokens,
                streak.fingerprint,
                streak.same_error,
                streak.no_progress,
                counted,
                closing.feedback,
                now,
                task.seq,
            ),
        )
        data = {
            "number": iteration.number,
            "attempt": iteration.attempt,
            "outcome": closing.outcome,
            "counted": counted,
            "failure_class": closing.failure_class,
            "exit_code": closing.exit_code,
            "error_kind": closing.error_kind,
            "detail": closing.detail,
            "files_modified": len(closing.files_modified),
            "git_commits": len(closing.git_commits),
            "tokens": closing.tokens,
            "seconds": round(now - iteration.opened, 3),
            "backend_seconds": closing.backend_seconds,
        }
        self._event(task, now, "iteration.completed", data)
        return self.task(task.id)

    def _decide(self, task: Task, closing: Closing, now: float) -> Task:
        """What becomes of a task whose iteration is over. The first rule that fits."""
        detail = closing.detail
        match closing.outcome:
            case Outcome.DONE:
                return self._move(task, State.COMPLETED, now, reason=closing.done_reason or Reason.DONE, detail=detail)
            case Outcome.POLICY:
                return self._move(task, State.FAILED, now, reason=Reason.POLICY, detail=detail)
            case Outcome.REFUSED:
                return self._move(task, State.FAILED, now, reason=Reason.REFUSED, detail=detail)
            case Outcome.BUDGET:
                return self._move(task, State.EXHAUSTED, now, reason=Reason.TOKEN_BUDGET, detail=detail)
        if (ended := self._beyond(task, now)) is not None:
            return ended
        if closing.outcome in {Outcome.INFRASTRUCTURE, Outcome.RATE_LIMITED}:
            if task.failures >= self._most_failures:
                detail = f"{task.failures} calls in a row that did not count, the last one: {detail}"
                return self._move(task, State.FAILED, now, reason=Reason.INFRASTRUCTURE, detail=detail)
            limited = closing.outcome == Outcome.RATE_LIMITED
            reason = Reason.RATE_LIMIT if limited else Reason.INFRASTRUCTURE
            return self._move(task, State.WAITING, now, reason=reason, detail=detail, retry_at=closing.retry_at or now)
        if closing.outcome in COUNTED and (why := task.streak.open_because()) is not None:
            return self._move(task, State.FAILED, now, reason=Reason.CIRCUIT_OPEN, detail=f"{why}: {detail}")
        return task

    def _beyond(self, task: Task, now: float) -> Task | None:
        """End a task that has used up one of its bounds; None if it has not."""
        if task.iterations >= task.limit:
            detail = f"{task.iterations} of {task.limit} iterations are used, and it is not done"
            return self._move(task, State.EXHAUSTED, now, reason=Reason.ITERATION_LIMIT, detail=detail)
        if task.max_tokens is not None and task.tokens >= task.max_tokens:
            detail = f"{task.tokens} of {task.max_tokens} tokens are used, and it is not done"
            return self._move(task, State.EXHAUSTED, now, reason=Reason.TOKEN_BUDGET, detail=detail)
        if task.seconds_left(now) <= 0:
            return self._out_of_time(task, now)
        return None

    def _out_of_time(self, task: Task, now: float) -> Task:
        detail = f"its {task.max_seconds:g} s are used, and it is not done"
        return self._move(task, State.EXHAUSTED, now, reason=Reason.TIME_BUDGET, detail=detail)

    def fail(self, task: Task, reason: Reason, detail: str, now: float) -> Task:
        """Give up a running task outside an iteration: its workspace cannot be used."""
        with self._transaction():
            task = self.task(task.id)
            return self._move(task, State.FAILED, now, reason=reason, detail=detail) if task.state in ACTIVE else task

    def wait(self, task: Task, detail: str, retry_at: float, now: float) -> Task:
        """Put a running task aside: something of this machine is in its way. A call under way stays to be resolved."""
        with self._transaction():
            task = self.task(task.id)
            if task.state != State.RUNNING:
                return task
            return self._move(task, State.WAITING, now, reason=Reason.INFRASTRUCTURE, detail=detail, retry_at=retry_at)

    def _move(
        self,
        task: Task,
        state: State,
        now: float,
        *,
        reason: Reason | None = None,
        detail: str | None = None,
        retry_at: float | None = None,
    ) -> Task:
        """Put a task into a state, and tell so."""
        if state in ENDED and (iteration := self.under_way(task)) is not None:
            task = self._record(task, iteration, Closing(outcome=Outcome.UNKNOWN, detail="cut off"), now)
        active = state in ACTIVE
        since = (task.active_since or now) if active else None
        seconds = task.active_seconds if active else task.active_for(now)
        ended = state in ENDED
        self._db.execute(
            "UPDATE task SET state = ?, reason = ?, detail = ?, updated = ?, retry_at = ?, active_since = ?,"
            " active_seconds = ?, started = coalesce(started, ?), finished = ?, approval_expires = ? WHERE seq = ?",
            (
                state,
                reason,
                detail,
                now,
                retry_at,
                since,
                seconds,
                now if active else None,
                now if ended else None,
                task.approval_expires if state == State.AWAITING_APPROVAL else None,
                task.seq,
            ),
        )
        moved = self.task(task.id)
        data: dict[str, Any] = {"from": task.state, "state": state, "reason": reason, "detail": detail}
        if ended:
            data |= {
                "backend": moved.backend,
                "complexity": moved.complexity,
                "prompt_length": len(moved.prompt),
                "iterations": moved.iterations,
                "limit": moved.limit,
                "uncounted": moved.uncounted,
                "tokens": moved.tokens,
                "active_seconds": round(seconds, 3),
            }
        self._event(moved, now, "task.ended" if ended else "task.state", data)
        return moved

    def _event(self, task: Task, now: float, name: str, data: dict[str, Any]) -> None:
        self._db.execute(
            "INSERT INTO event (task, at, name, data) VALUES (?, ?, ?, ?)", (task.seq, now, name, json.dumps(data))
        )

    # --- settings, telemetry, tidying --------------------------------------------------------------------------------

    def settings(self, declared: dict[str, Any]) -> tuple[int, dict[str, Any], float | None]:
        """The version, the document that holds, and when it was last set here.

        Of what the .env declares and what was set here, whichever changed last holds, key by key.
        """
        with self._transaction():
            row = self._db.execute("SELECT * FROM setting").fetchone()
            if row is None:
                self._db.execute(
                    "INSERT INTO setting (id, version, document, declared) VALUES (1, 1, ?, ?)",
                    (json.dumps(declared), json.dumps(declared)),
                )
                return 1, declared, None
            document, before = json.loads(row["document"]), json.loads(row["declared"])
            changed = {key: value for key, value in declared.items() if before.get(key) != value}
            if not changed:
                return row["version"], document, row["updated"]
            document |= changed
            updated = None if document == declared else row["updated"]
            self._db.execute(
                "UPDATE setting SET version = version + 1, document = ?, declared = ?, updated = ?",
                (json.dumps(document), json.dumps(declared), updated),
            )
            return row["version"] + 1, document, updated

    def put_settings(self, document: dict[str, Any], version: int, now: float) -> int | None:
        """Set the document if its version is still this one; returns the new version, or None if it is not."""
        with self._transaction():
            changed = self._db.execute(
                "UPDATE setting SET version = version + 1, document = ?, updated = ? WHERE version = ?",
                (json.dumps(document), now, version),
            )
            return version + 1 if changed.rowcount else None

    def exported(self) -> int:
        """The number of the last event that is in the telemetry."""
        row = self._db.execute("SELECT event FROM exported").fetchone()
        return 0 if row is None else int(row[0])

    def set_exported(self, event: int) -> None:
        """Remember it."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO exported (id, event) VALUES (1, ?1) ON CONFLICT (id) DO UPDATE SET event = ?1", (event,)
            )

    def prune(self, keep: int) -> int:
        """Forget the tasks that ended longest ago, beyond `keep` of them; returns how many."""
        old = [
            (row[0],)
            for row in self._db.execute(
                "SELECT seq FROM task WHERE finished IS NOT NULL ORDER BY finished DESC LIMIT -1 OFFSET ?", (keep,)
            )
        ]
        if old:
            with self._transaction():
                for table, column in (("event", "task"), ("decision", "task"), ("iteration", "task"), ("task", "seq")):
                    self._db.executemany(f"DELETE FROM {table} WHERE {column} = ?", old)  # noqa: S608  (constants)
        return len(old)


def _locked(path: Path) -> int:
    """The descriptor that holds the lock file until it is closed. Raises Unusable."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unusable(f"cannot write in {path.parent}: {error.strerror}; it must belong to Ralph's user") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise Unusable(f"another Ralph uses {path.parent}; see which: fuser -v {path}") from None
    return descriptor


def _overlap(one: str, other: str) -> bool:
    """Whether two workspaces are the same, or one lies in the other."""
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


def _task(row: sqlite3.Row) -> Task:
    return Task(
        seq=row["seq"],
        id=row["id"],
        prompt=row["prompt"],
        backend=row["backend"],
        complexity=row["complexity"],
        workspace=row["workspace"],
        priority=row["priority"],
        expect_changes=bool(row["expect_changes"]),
        verify=json.loads(row["verify"]),
        context=json.loads(row["context"]),
        limit=row["iteration_limit"],
        limit_steps=json.loads(row["limit_steps"]),
        max_tokens=row["max_tokens"],
        max_seconds=row["max_seconds"],
        state=State(row["state"]),
        reason=None if row["reason"] is None else Reason(row["reason"]),
        detail=row["detail"],
        created=row["created"],
        updated=row["updated"],
        started=row["started"],
        finished=row["finished"],
        approval_expires=row["approval_expires"],
        retry_at=row["retry_at"],
        active_seconds=row["active_seconds"],
        active_since=row["active_since"],
        iterations=row["iterations"],
        uncounted=row["uncounted"],
        failures=row["failures"],
        tokens=row["tokens"],
        streak=Streak(fingerprint=row["fingerprint"], same_error=row["same_error"], no_progress=row["no_progress"]),
        feedback=row["feedback"],
        base_tree=row["base_tree"],
    )


def _iteration(row: sqlite3.Row) -> Iteration:
    return Iteration(
        seq=row["seq"],
        number=row["number"],
        attempt=row["attempt"],
        key=row["key"],
        phase=Phase(row["phase"]),
        checkpoint=row["checkpoint"],
        tree_before=row["tree_before"],
        tree_after=row["tree_after"],
        opened=row["opened"],
        closed=row["closed"],
        outcome=None if row["outcome"] is None else Outcome(row["outcome"]),
        counted=bool(row["counted"]),
        failure_class=row["failure_class"],
        exit_code=row["exit_code"],
        error_kind=row["error_kind"],
        error=row["error"],
        output=row["output"],
        files_modified=json.loads(row["files_modified"]),
        git_commits=json.loads(row["git_commits"]),
        tokens=row["tokens"],
        backend_seconds=row["backend_seconds"],
        verify=json.loads(row["verify"]),
        reply=None if row["reply"] is None else json.loads(row["reply"]),
    )


def _require_room(
    task: Task, limit: int, max_tokens: int | None, max_seconds: float, *, ceiling: int, now: float
) -> None:
    """See that there is something left of a task's bounds. Raises NotNow."""
    if limit <= task.iterations:
        raise NotNow(
            task,
            f"it has used its {task.iterations} iterations: give a higher max_iterations, up to {ceiling}",
        )
    if max_tokens is not None and max_tokens <= task.tokens:
        raise NotNow(task, f"it has used {task.tokens} tokens: give a higher max_tokens")
    if max_seconds <= task.active_for(now):
        raise NotNow(task, f"it has used {task.active_for(now):.0f} s: give a higher max_seconds")
