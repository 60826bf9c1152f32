"""Executions: at most so many at a time, one a workspace, each repeatable, each either counted or undone."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import signal
import time
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram

from aistack.services.aider_wrapper import order as orders
from aistack.services.aider_wrapper import prompt, repository, workspaces
from aistack.services.aider_wrapper.forks import Forks, Run, Unavailable
from aistack.services.aider_wrapper.order import Order
from aistack.services.aider_wrapper.records import Record, Records
from aistack.services.aider_wrapper.repository import Busy, Changes, GitFailed, Repository
from aistack.services.aider_wrapper.schema import ErrorKind, ExecuteRequest, ExecuteResult
from aistack.services.common import ServiceError
from aistack.services.common.lifecycle import first_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from typing import Any

    from fastapi import FastAPI

    from aistack.services.aider_wrapper.settings import Settings

log = logging.getLogger(__name__)

TERM_SECONDS = 1.0
"""How long aider has between SIGTERM and SIGKILL."""
FORK_SECONDS = 60.0
"""How long a run waits for a fork server that is being started."""

TEMPORARY, REFUSED, TIMED_OUT, FAILED, INTERRUPTED = 75, 77, 124, 70, 143
EXIT_CODES: dict[str | None, int] = {
    None: 0,
    "agent": 1,
    "infrastructure": TEMPORARY,
    "limit": TEMPORARY,
    "policy": REFUSED,
}


@dataclass(frozen=True)
class Verdict:
    """How a run ended, before anybody looked at the files. `counts` is whether it leaves what it did."""

    exit_code: int
    kind: ErrorKind | None
    error: str | None
    counts: bool


class Execution:
    """One that is under way: whoever asks with its key waits for it."""

    def __init__(self, key: str, fingerprint: str, folder: Path) -> None:
        self.key = key
        self.fingerprint = fingerprint
        self.folder = folder
        self.waiting = 0
        self.left = asyncio.Event()
        """Set when nobody waits for it any more."""
        self.task: asyncio.Task[ExecuteResult] | None = None

    async def join(self) -> ExecuteResult:
        """Wait for its result; if the last one who waits is cancelled, so is the execution."""
        assert self.task is not None  # noqa: S101 (it was started)
        self.waiting += 1
        try:
            return await asyncio.shield(self.task)
        finally:
            self.waiting -= 1
            if not self.waiting:
                self.left.set()


class Executions:
    """All of them."""

    def __init__(self, app: FastAPI, settings: Settings, forks: Forks) -> None:
        self._settings = settings
        self._forks = forks
        self._lifecycle = app.state.lifecycle
        self._telemetry = app.state.telemetry
        self._tracing = app.state.tracing
        self._git_config = settings.state_dir / "gitconfig"
        self._records = Records(settings.state_dir / "executions")
        self._under_way: dict[str, Execution] = {}
        self._slots = asyncio.Semaphore(settings.max_concurrent)
        self._queued = 0
        self._unsettled: dict[str, Record] = {}
        """Executions, by their workspaces, whose end could not be written down or whose workspace was not put back."""
        registry = app.state.metrics.registry
        self._count = Counter("aistack_aider_executions", "Executions by how they ended.", ("kind",), registry=registry)
        self._seconds = Histogram(
            "aistack_aider_execution_seconds",
            "Their durations.",
            registry=registry,
            buckets=(0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600),
        )
        running = Gauge("aistack_aider_executions_running", "Executions under way.", registry=registry)
        running.set_function(lambda: len(self._under_way))
        starts = Gauge("aistack_aider_fork_server_starts", "How often aider was imported.", registry=registry)
        starts.set_function(lambda: forks.starts)

    async def recover(self) -> None:
        """Undo what was cut off with the service, so that nothing is half done."""
        for record in self._records.running():
            await asyncio.to_thread(self._recover, record)
        self._records.prune()

    def _recover(self, record: Record) -> None:
        repo = Repository(Path(record.workspace), self._git_config)
        try:
            with repo.locked():
                repo.restore(record.before)
        except Busy:
            # Another process of this service works there: it is not ours.
            return
        except (GitFailed, OSError) as error:
            log.error("a workspace could not be put back", extra={"workspace": record.workspace, "reason": str(error)})  # noqa: TRY400
        else:
            log.warning("a workspace was put back", extra={"event": "recovered", "workspace": record.workspace})
            self._telemetry.emit("execution.recovered", workspace=record.workspace)
        self._cancelled(record)

    def _cancelled(self, record: Record) -> None:
        if record.key.startswith(_NAMELESS):
            self._records.remove(record.key)
        else:
            self._records.put(record.model_copy(update={"state": "cancelled", "result": None}))

    async def drain(self, seconds: float) -> None:
        """Wait for those under way, which end by themselves once the service is being stopped."""
        tasks = [execution.task for execution in self._under_way.values() if execution.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    def state(self, key: str) -> Record | None:
        """Return what is known of an execution."""
        return self._records.get(key)

    def under_way(self, key: str) -> bool:
        """Whether it runs, or waits to run."""
        return key in self._under_way

    async def execute(self, request: ExecuteRequest, key: str | None) -> ExecuteResult:
        """Do it, or wait for the one with the same key, or repeat its answer. Cancelling it ends the run.

        Raises:
            ServiceError: 403, 404, 409, 429 and 503, as the route says.
        """
        folder = workspaces.workspace(self._settings.workspace_root, request.workspace)
        files = workspaces.files(folder, request.files)
        fingerprint = hashlib.sha256(request.model_dump_json().encode()).hexdigest()
        key = key or f"{_NAMELESS}{secrets.token_hex(16)}"
        execution = self._under_way.get(key)
        if execution is None:
            record = self._records.get(key)
            if record is not None:
                _check_same(fingerprint, record.fingerprint)
                if record.stands and record.result is not None:
                    return record.result
            execution = self._begin(request, key, fingerprint, folder, files)
        else:
            _check_same(fingerprint, execution.fingerprint)
        return await execution.join()

    def _begin(self, request: ExecuteRequest, key: str, fingerprint: str, folder: Path, files: list[str]) -> Execution:
        """Start it as a task of its own, which outlives its caller as long as it takes to put things back."""
        if self._lifecycle.stopping:
            raise _later(503, "the service is being stopped", "stopping", 5)
        if self._slots.locked() and self._queued >= self._settings.max_queued:
            raise _later(429, "as many runs as may wait are waiting", "queue-full", 5)
        execution = Execution(key, fingerprint, folder)
        self._under_way[key] = execution

        async def whole() -> ExecuteResult:
            repo = Repository(folder, self._git_config)
            try:
                with ExitStack() as locks:
                    await asyncio.to_thread(_lock, repo, locks)
                    return await self._run(execution, request, files, repo)
            finally:
                del self._under_way[key]

        execution.task = asyncio.create_task(whole())
        # Whoever waits gets the error; if nobody does, it is no news.
        execution.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return execution

    @asynccontextmanager
    async def _slot(self, execution: Execution) -> AsyncIterator[None]:
        """Wait for one of the runs that may be under way at a time.

        Raises:
            ServiceError: 429 after a bounded wait, 503 if the service ends.
        """
        self._queued += 1
        try:
            number = await first_of(
                self._slots.acquire(),
                asyncio.sleep(self._settings.queue_seconds),
                self._lifecycle.wait_stopping(),
                execution.left.wait(),
            )
        finally:
            self._queued -= 1
        if number == 1:
            raise _later(429, f"no run ended within {self._settings.queue_seconds:g} s", "queue-full", 5)
        if number:
            raise _later(503, "the service is being stopped", "stopping", 5)
        try:
            yield
        finally:
            self._slots.release()

    async def _run(
        self, execution: Execution, request: ExecuteRequest, files: list[str], repo: Repository
    ) -> ExecuteResult:
        async with self._slot(execution):
            began = time.monotonic()
            record = await asyncio.to_thread(self._prepare, execution, repo)
            self._telemetry.emit(
                "execution.started",
                iteration=request.iteration,
                trace_id=self._tracing.trace_id(),
                workspace=execution.folder.name,
                prompt_characters=len(request.prompt),
            )
            verdict, run = await self._drive(execution, request, files, began)
            result = await asyncio.to_thread(self._conclude, repo, record, verdict, run, began)
            self._note(execution, request, result)
            return result

    def _prepare(self, execution: Execution, repo: Repository) -> Record:
        """Remember the workspace as it is, on the disk.

        Raises:
            ServiceError: 503 if that cannot be done.
        """
        workspace = str(execution.folder)
        try:
            left = self._unsettled.get(workspace)
            if left is not None:
                repo.restore(left.before)
                del self._unsettled[workspace]
                self._cancelled(left)
            record = Record(
                key=execution.key,
                fingerprint=execution.fingerprint,
                workspace=workspace,
                state="running",
                before=repo.checkpoint(secrets.token_hex(8)),
            )
            self._records.put(record)
        except (GitFailed, OSError) as error:
            raise _unusable(error) from None
        return record

    async def _drive(
        self, execution: Execution, request: ExecuteRequest, files: list[str], began: float
    ) -> tuple[Verdict, Run | None]:
        """Let aider work, and see to it that it ends."""
        seconds = request.timeout_seconds or self._settings.default_timeout_seconds
        cut = await self._cut(execution, self._forks.wait_ready(), min(seconds, FORK_SECONDS))
        if cut == "time":
            return Verdict(TEMPORARY, "infrastructure", self._forks.trouble, counts=False), None
        if cut:
            return Verdict(INTERRUPTED, "infrastructure", f"interrupted: {cut}", counts=False), None
        run = await self._forks.run(self._order(execution, request, files, seconds))
        cut = await self._cut(execution, run.wait(), began + seconds - time.monotonic())
        if not cut:
            return _judged(run), run
        silent = run.unanswered
        await _kill(run)
        if cut != "time":
            return Verdict(INTERRUPTED, "infrastructure", f"interrupted: {cut}", counts=False), run
        if silent:
            said = "the model had not begun to answer when the time was over"
            return Verdict(TIMED_OUT, "infrastructure", said, counts=False), run
        return Verdict(TIMED_OUT, "agent", "it did not end within the time that it has", counts=False), run

    async def _cut(self, execution: Execution, wait: Coroutine[Any, Any, None], seconds: float) -> str:
        """Wait, and return what cut that off: empty if nothing did, `time` if it was the time."""
        number = await first_of(wait, asyncio.sleep(seconds), self._lifecycle.wait_stopping(), execution.left.wait())
        return ("", "time", "the service was stopped", "the caller left")[number]

    def _order(self, execution: Execution, request: ExecuteRequest, files: list[str], seconds: float) -> Order:
        settings = self._settings
        return Order(
            root=str(execution.folder),
            prompt=prompt.compose(request),
            subject=prompt.subject(request),
            mode=request.mode,
            files=files,
            api_base=f"{settings.endpoint}/v1",
            model=settings.model,
            edit_format=settings.edit_format,
            map_tokens=settings.map_tokens,
            silence_seconds=min(settings.silence_seconds, seconds),
            environment={
                **repository.environment(self._git_config),
                "HOME": str(settings.state_dir / "home"),
                "GIT_CEILING_DIRECTORIES": str(execution.folder.parent),
            },
        )

    def _conclude(
        self, repo: Repository, record: Record, verdict: Verdict, run: Run | None, began: float
    ) -> ExecuteResult:
        """Look at what changed, or put it back; and write down how it ended, before anybody is told.

        Where the disk does not let it, the next execution in this workspace puts it back first, or the next start.
        """
        changes, settled = Changes([], []), True
        said, kind, code = verdict.error, verdict.kind, verdict.exit_code
        try:
            if verdict.counts:
                changes = repo.changes(record.before)
            else:
                repo.restore(record.before)
        except (GitFailed, OSError) as failure:
            log.error("the workspace cannot be read or put back", extra={"reason": str(failure)})  # noqa: TRY400
            said = f"{said}; the workspace could not be put back" if said else "the workspace cannot be read"
            kind, code, settled = "infrastructure", code or TEMPORARY, False
        result = ExecuteResult(
            exit_code=code,
            output="" if run is None else run.text(),
            completed=kind is None,
            error=said,
            error_kind=kind,
            files_modified=[name.encode(errors="surrogateescape").decode(errors="replace") for name in changes.files],
            git_commits=changes.commits,
            duration_seconds=round(time.monotonic() - began, 3),
            tokens=0 if run is None else run.tokens(),
        )
        try:
            if settled:
                self._settle(record, result)
        except OSError as failure:
            self._unsettled[record.workspace] = record
            raise _unusable(failure) from None
        if not settled:
            self._unsettled[record.workspace] = record
        return result

    def _settle(self, record: Record, result: ExecuteResult) -> None:
        if record.key.startswith(_NAMELESS):
            self._records.remove(record.key)
        elif result.exit_code == INTERRUPTED:
            self._cancelled(record)
        else:
            self._records.put(record.model_copy(update={"state": "finished", "result": result}))

    def _note(self, execution: Execution, request: ExecuteRequest, result: ExecuteResult) -> None:
        self._count.labels(result.error_kind or "none").inc()
        self._seconds.observe(result.duration_seconds)
        noted = {
            "workspace": execution.folder.name,
            "exit_code": result.exit_code,
            "error_kind": result.error_kind,
            "error": result.error,
            "files": len(result.files_modified),
            "commits": len(result.git_commits),
            "tokens": result.tokens,
        }
        log.info("execution ended", extra={"event": "execution.ended", **noted})
        self._telemetry.emit(
            "execution.ended",
            iteration=request.iteration,
            duration_seconds=result.duration_seconds,
            trace_id=self._tracing.trace_id(),
            **noted,
        )


_NAMELESS = "~"
"""How the keys begin of those who gave none; no caller's key does."""


def _check_same(now: str, then: str) -> None:
    if now != then:
        raise ServiceError(
            409,
            "this Idempotency-Key was used for another request",
            kind="idempotency-mismatch",
            title="The key belongs to another request",
            next_step="use a key of its own for each request",
        )


def _lock(repo: Repository, locks: ExitStack) -> None:
    """Have a repository, and have it alone.

    Raises:
        ServiceError: 409 if another run has it, 503 if it cannot be used.
    """
    try:
        repo.prepare()
        locks.enter_context(repo.locked())
    except Busy:
        raise _later(409, "another execution works in this workspace", "busy", 2) from None
    except (GitFailed, OSError) as error:
        raise _unusable(error) from None


def _unusable(error: Exception) -> ServiceError:
    return _later(503, f"the workspace cannot be used: {error}", "workspace-unusable", 30)


def _later(status: int, detail: str, kind: str, seconds: int) -> ServiceError:
    step = f"try again in {seconds} s"
    return ServiceError(status, detail, kind=kind, next_step=step, headers={"Retry-After": str(seconds)})


async def _kill(run: Run) -> None:
    """End a run and all that it started: politely, then not."""
    run.kill(signal.SIGTERM)
    if await first_of(run.wait(), asyncio.sleep(TERM_SECONDS)):
        run.kill(signal.SIGKILL)
    await run.wait()


def _judged(run: Run) -> Verdict:
    """Return how a run that ended by itself ended."""
    try:
        status = run.ended.result()
    except Unavailable as error:
        return Verdict(TEMPORARY, "infrastructure", str(error), counts=False)
    ended = next((event for event in run.events if event["event"] == orders.ENDED), None)
    if ended is not None:
        kind = ended["kind"]
        return Verdict(EXIT_CODES[kind], kind, ended["error"], counts=kind in {None, "agent"})
    if status < 0:
        name = signal.Signals(-status).name
        return Verdict(128 - status, "infrastructure", f"aider was killed by {name}", counts=False)
    return Verdict(FAILED, "agent", "aider failed: its last words are in the output", counts=False)
