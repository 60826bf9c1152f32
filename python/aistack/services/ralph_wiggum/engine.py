"""The loop: takes tasks, asks the backend, finds out what the answers are worth, and keeps out of each other's way.

All that must survive is in the store; what is here can be lost at any moment. A call of the backend is written down
before it is made. After a crash, or SIGTERM, the next Ralph finds it open, asks the backend what became of it, and goes
on from there: with its answer if there is one, else from the checkpoint before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from aistack.services.ralph_wiggum import outcome, verify
from aistack.services.ralph_wiggum.backend import Backend, Missing, Order, Reply, Trouble
from aistack.services.ralph_wiggum.gate import Bell, Gate, pause
from aistack.services.ralph_wiggum.records import Closing
from aistack.services.ralph_wiggum.states import FailureClass, Outcome, Phase, Reason, State
from aistack.services.ralph_wiggum.workspace import Checkpoint, Escape, GitFailed, Workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from aistack.services.common import Tracing
    from aistack.services.ralph_wiggum.records import Iteration, Task
    from aistack.services.ralph_wiggum.settings import RalphSettings
    from aistack.services.ralph_wiggum.store import Store

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

_LONGEST_SLEEP = 60.0  # seconds between two looks at what is due; everything that happens rings the bell
_REDONE = frozenset({Outcome.INFRASTRUCTURE, Outcome.RATE_LIMITED, Outcome.UNKNOWN})


class _Run:
    """A task that is being worked on."""

    def __init__(self, task: Task, workspace: Workspace) -> None:
        self.task = task
        self.workspace = workspace
        self.stopped = asyncio.Event()

    def stop(self) -> None:
        """Let go of it; what becomes of it is in the store, or is found out by the next Ralph."""
        self.stopped.set()
        self.workspace.abort()


class Engine:
    """Works on the tasks of a store until it is stopped."""

    def __init__(self, settings: RalphSettings, store: Store, backend: Backend, tracing: Tracing) -> None:
        """Prepare it; nothing is begun before `run`."""
        self.settings = settings
        self.store = store
        self.backend = backend
        self.tracing = tracing
        self.bell = Bell()
        self.gate = Gate(backend, settings.retry_seconds, settings.retry_most_seconds, self.look)
        self._due = asyncio.Event()
        self._runs: dict[str, _Run] = {}
        self._working: dict[str, asyncio.Task[None]] = {}
        self._stumbled: dict[str, int] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._stopping = False

    # --- the store, from the event loop ------------------------------------------------------------------------------

    async def read(self, ask: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Ask the store something, in its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, functools.partial(ask, *args, **kwargs))

    async def write(self, change: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Change something in the store, in its thread; whoever waits for changes looks again."""
        try:
            return await asyncio.shield(asyncio.ensure_future(self.read(change, *args, **kwargs)))
        finally:
            self.bell.ring()

    # --- what the routes ask for -------------------------------------------------------------------------------------

    def let_go(self, task_id: str) -> None:
        """Stop working on a task that was stopped in the store."""
        if (run := self._runs.get(task_id)) is not None:
            run.stop()

    def look(self) -> None:
        """Have a look at what can be begun."""
        self._due.set()

    # --- the loop over tasks -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until this is cancelled; then everything under way is let go of, within a moment."""
        probing = asyncio.create_task(self.gate.run())
        try:
            while True:
                self._due.clear()
                seconds = await self._begin_what_can_be()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self._due.wait()
        finally:
            self._stopping = True
            probing.cancel()
            for run in self._runs.values():
                run.stop()
            await asyncio.gather(probing, *self._working.values(), return_exceptions=True)

    def close(self) -> None:
        """Let the store's thread end, once nobody asks it any more."""
        self._thread.shutdown(wait=True)

    async def _begin_what_can_be(self) -> float:
        """Begin tasks while there is room; returns the seconds until something is due by itself."""
        now = time.time()
        if (await self.read(self.store.next_moment) or now + 1) <= now:
            await self.write(self.store.expire, now)
        await self.read(self.store.prune, self.settings.retained_tasks)
        # Those that were running when the last Ralph ended, or whose work stumbled here.
        for task in await self.read(self.store.in_state, State.RUNNING):
            if task.id not in self._runs:
                self._begin(task)
        while self.gate.is_open and self.settings.loop_enabled and len(self._runs) < self.settings.max_concurrent_tasks:
            busy = [run.task.workspace for run in self._runs.values()]
            claimed = await self.write(self.store.claim, time.time(), busy)
            if claimed is None:
                break
            self._begin(claimed)
        moment = await self.read(self.store.next_moment)
        return _LONGEST_SLEEP if moment is None else min(_LONGEST_SLEEP, max(0.01, moment - time.time()))

    def _begin(self, task: Task) -> None:
        run = _Run(task, Workspace(self.settings.workspace_path, task.workspace, task.id))
        self._runs[task.id] = run
        self._working[task.id] = asyncio.create_task(self._guarded(run), name=f"task {task.id}")

    async def _guarded(self, run: _Run) -> None:
        """Work on a task. Whatever goes wrong here is this machine's fault: the task waits until it is tried again."""
        task_id = run.task.id
        try:
            await self._work(run)
            self._stumbled.pop(task_id, None)
        except Exception as error:
            if not self._stopping:
                log.exception("work on a task stumbled", extra={"event": "stumbled", "task_id": task_id})
                await self._stumble(run, error)
        finally:
            self._runs.pop(task_id, None)
            self._working.pop(task_id, None)
            self.look()

    async def _stumble(self, run: _Run, error: Exception) -> None:
        times = self._stumbled[run.task.id] = self._stumbled.get(run.task.id, 0) + 1
        seconds = pause(times, self.settings.retry_seconds, self.settings.retry_most_seconds)
        detail = f"{type(error).__name__} in Ralph itself; see its log"
        if isinstance(error, OSError | GitFailed):
            detail = str(error)
        try:
            await self.write(self.store.wait, run.task, detail, time.time() + seconds, time.time())
        except Exception:
            # The disk may be full: nothing can be written down, and this is tried again.
            log.exception("the store cannot be written", extra={"event": "store-failed", "task_id": run.task.id})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await run.stopped.wait()

    # --- the loop over a task's iterations ---------------------------------------------------------------------------

    async def _work(self, run: _Run) -> None:
        """Go on with a task until it is not running any more, or is let go of."""
        try:
            await asyncio.to_thread(run.workspace.prepare)
            checkpoint = await self._settled(run)
            while checkpoint is not None and run.task.state == State.RUNNING and not run.stopped.is_set():
                checkpoint = await self._iterate(run, checkpoint)
        except Escape as error:
            await self.write(self.store.fail, run.task, Reason.WORKSPACE, str(error), time.time())
        except GitFailed:
            if not run.stopped.is_set():
                raise

    async def _settled(self, run: _Run) -> Checkpoint | None:
        """Find out what became of a call that was cut off, and put the workspace in order.

        Returns the checkpoint that the next iteration begins from, or None if there is none.
        """
        iterations = await self.read(self.store.iterations, run.task)
        last = iterations[-1] if iterations else None
        if last is None or last.checkpoint is None or last.tree_before is None:
            return await self._checkpoint(run, "start")
        if last.phase == Phase.CLOSED and last.outcome not in _REDONE:
            return await self._checkpoint(run, f"{last.number}.{last.attempt}.after")
        before = Checkpoint(commit=last.checkpoint, tree=last.tree_before)
        if last.phase == Phase.ANSWERED and last.reply is not None:
            return await self._judge(run, last, Reply.model_validate(last.reply), before)
        answer = await self._unless_stopped(run, self._heard(last.key))
        if answer is None:
            return None
        if last.phase == Phase.OPEN and isinstance(answer, Reply):
            return await self._judge(run, last, answer, before)
        if isinstance(answer, Trouble):
            # Whether it still works there, nobody knows: the workspace is left alone until somebody does.
            self.gate.shut(answer.detail)
            await self._wait(run, answer)
            return None
        await asyncio.to_thread(run.workspace.unlock)
        if await asyncio.to_thread(run.workspace.tree) != before.tree:
            await asyncio.to_thread(run.workspace.restore, before.commit)
        if last.phase == Phase.OPEN:
            closing = Closing(outcome=Outcome.UNKNOWN, detail="cut off; its workspace was put back to its checkpoint")
            run.task = await self.write(self.store.close, run.task, last, closing, time.time())
        return before

    async def _heard(self, key: str) -> Reply | Trouble | Missing:
        """What became of a call, once the backend does not work on it any more."""
        deadline = time.monotonic() + self.settings.iteration_timeout_seconds
        attempt = 0
        while (answer := await self.backend.outcome(key)) is Missing.RUNNING:
            if time.monotonic() > deadline:
                detail = "the backend still works on a call that was cut off, beyond its time"
                return Trouble(failure_class=FailureClass.INFRASTRUCTURE, kind="stuck", detail=detail)
            attempt += 1
            await asyncio.sleep(pause(attempt, 0.05, 2.0))
        return answer

    async def _wait(self, run: _Run, trouble: Trouble) -> None:
        """Put a task aside until the backend answers again. What is open stays so."""
        retry_at = self._retry_at(run.task, trouble)
        run.task = await self.write(self.store.wait, run.task, trouble.detail, retry_at, time.time())

    def _retry_at(self, task: Task, trouble: Trouble | None) -> float:
        if trouble is not None and trouble.retry_after is not None:
            # Not all at the same moment.
            return time.time() + trouble.retry_after * random.uniform(1.0, 1.1)  # noqa: S311
        return time.time() + pause(task.failures + 1, self.settings.retry_seconds, self.settings.retry_most_seconds)

    async def _checkpoint(self, run: _Run, name: str) -> Checkpoint:
        return await asyncio.to_thread(run.workspace.checkpoint, name)

    async def _iterate(self, run: _Run, checkpoint: Checkpoint) -> Checkpoint | None:
        """Ask the backend once; returns where the next iteration begins, or None if there is to be none."""
        task = run.task
        run.task, iteration = await self.write(self.store.open, task, checkpoint, time.time())
        if iteration is None or run.stopped.is_set():
            return None
        seconds = max(1.0, min(self.settings.iteration_timeout_seconds, run.task.seconds_left(time.time())))
        order = Order(
            prompt=outcome.prompt_with(task.prompt, task.feedback),
            context=task.context,
            iteration=iteration.number,
            mode="autonomous",
            workspace=task.workspace,
            timeout_seconds=seconds,
        )
        attributes: dict[str, str | bool | int | float] = {"task.id": task.id, "iteration": iteration.number}
        with self.tracing.span("iteration", attributes):
            headers = self.tracing.headers()
            call = self.backend.execute(order, key=iteration.key, headers=headers)
            answer = await self._unless_stopped(run, call)
        if answer is None:
            return None
        if isinstance(answer, Trouble):
            if answer.kind in {"refused", "unreachable", "name_unknown", "timeout"}:
                self.gate.shut(answer.detail)
            closing = outcome.of_trouble(answer, retry_at=self._retry_at(run.task, answer))
            run.task = await self.write(self.store.close, run.task, iteration, closing, time.time())
            return None
        return await self._judge(run, iteration, answer, checkpoint)

    async def _judge(self, run: _Run, iteration: Iteration, reply: Reply, before: Checkpoint) -> Checkpoint | None:
        """Find out what an answer is worth, and write it down."""
        if iteration.tree_after is None:
            after = await self._checkpoint(run, f"{iteration.number}.{iteration.attempt}.after")
        else:
            after = Checkpoint(commit=before.commit, tree=iteration.tree_after)
        task = run.task
        verified: list[dict[str, Any]] = []
        changed = after.tree != task.base_tree or not task.expect_changes
        runs = bool(task.verify) and outcome.claims_done(reply) and changed
        if runs:
            if iteration.phase == Phase.OPEN:
                raw = reply.model_dump(mode="json")
                if not await self.write(self.store.answered, task, iteration, raw, after.tree, time.time()):
                    return None
            bound = self.settings.verify_timeout_seconds
            found = await self._unless_stopped(run, verify.run_all(task.verify, run.workspace.path, seconds=bound))
            if found is None:
                return None
            verified = found
        seen = await self.read(self.store.trees_seen, task)
        closing = outcome.of_reply(
            task,
            reply,
            block=self.settings.exit_code_block,
            tree_before=before.tree,
            tree_after=after.tree,
            seen=seen,
            verified=verified,
            retry_at=self._retry_at(task, None),
        )
        run.task = await self.write(self.store.close, task, iteration, closing, time.time())
        if run.task.state != State.RUNNING:
            return None
        # A verify command may have left something behind, which is not the agent's doing.
        return await self._checkpoint(run, f"{iteration.number}.{iteration.attempt}.verified") if runs else after

    async def _unless_stopped(self, run: _Run, work: Coroutine[Any, Any, T]) -> T | None:
        """What the work comes to, or None if the task is let go of before: then the work is cancelled."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(run.stopped.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            for each in (working, stopping):
                each.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)
