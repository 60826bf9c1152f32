"""Ralph's routes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from aistack.services.common import ServiceError, problems
from aistack.services.ralph_wiggum import limits, models, views
from aistack.services.ralph_wiggum.clock import rfc3339_or_none
from aistack.services.ralph_wiggum.states import ENDED, State
from aistack.services.ralph_wiggum.store import KeyReused, NotNow, Unknown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aistack.services.common import Lifecycle
    from aistack.services.ralph_wiggum.engine import Engine
    from aistack.services.ralph_wiggum.records import Task

MOST_PAGE = 200
_KEEP_ALIVE = 15.0  # seconds between two signs of life on a stream
_BATCH = 200

router = APIRouter(tags=["tasks"])
settings_router = APIRouter(tags=["settings"])

TaskId = Annotated[str, Path(description="The task's id.", min_length=1, max_length=64)]
_EVENT = {"type": "object", "properties": {key: {"type": "string"} for key in ("id", "event", "data")}}


def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


async def _shown(engine: Engine, task: Task) -> models.Task:
    return views.task(task, await engine.read(engine.store.decisions, task), time.time())


async def _found(engine: Engine, task_id: str) -> Task:
    try:
        return await engine.read(engine.store.task, task_id)
    except Unknown:
        raise _no_such(task_id) from None


def _no_such(task_id: str) -> ServiceError:
    return ServiceError(404, f"there is no task {task_id}", next_step="GET /tasks lists those there are")


@router.post(
    "/tasks",
    status_code=202,
    responses={
        **problems(409, 422, 503),
        202: {"headers": {"Location": {"description": "The task.", "schema": {"type": "string"}}}},
    },
)
async def submit(
    request: Request,
    response: Response,
    submission: models.Submission,
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=200, pattern=r"^[!-~]+$", description="The same one is the same task."),
    ] = None,
) -> models.Task:
    """Take a task. The answer has its limit, and how that came about."""
    engine = _engine(request)
    settings = engine.settings
    if not settings.loop_enabled:
        raise ServiceError(503, "RALPH_LOOP_ENABLED is false", kind="loop-disabled", next_step="set it to true")
    _, document, _ = await engine.read(engine.store.settings, declared(engine))

    def decide(finished: list[limits.Finished]) -> list[limits.Step]:
        return limits.effective(
            submission.prompt,
            complexity=submission.complexity,
            asked=submission.max_iterations,
            bases={kind: document[kind] for kind in settings.bases()},
            ceiling=settings.max_iterations_ceiling,
            adaptive=document["adaptive"],
            finished=finished,
        )

    try:
        task, new = await engine.write(
            engine.store.submit,
            submission,
            now=time.time(),
            key=idempotency_key,
            decide=decide,
            max_seconds=settings.task_timeout_seconds,
            approval_seconds=settings.approval_timeout_seconds,
        )
    except KeyReused as error:
        raise ServiceError(
            409,
            f"this Idempotency-Key came with another request, which became task {error}",
            kind="idempotency-key-reused",
            next_step="use a new key for a new task",
        ) from None
    if new:
        engine.look()
    else:
        response.headers["Idempotent-Replayed"] = "true"
    response.headers["Location"] = f"/tasks/{task.id}"
    return await _shown(engine, task)


@router.get("/tasks", responses=problems(422))
async def list_tasks(
    request: Request,
    state: Annotated[State | None, Query(description="Only those in this state.")] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_PAGE, description="How many at most.")] = 50,
    cursor: Annotated[
        str | None, Query(pattern=r"^[1-9][0-9]{0,17}$", description="`next_cursor` of the page before.")
    ] = None,
) -> models.TaskPage:
    """List tasks, the newest first."""
    engine = _engine(request)
    # Where the page before ended, which stays right whatever is submitted meanwhile.
    before = None if cursor is None else int(cursor)
    found = await engine.read(engine.store.tasks, state=state, before=before, most=limit + 1)
    page = found[:limit]
    following = str(page[-1].seq) if len(found) > limit else None
    return models.TaskPage(tasks=[views.summary(task) for task in page], next_cursor=following)


@router.get("/tasks/{task_id}", responses=problems(404))
async def show(request: Request, task_id: TaskId) -> models.Task:
    """Show a task."""
    engine = _engine(request)
    return await _shown(engine, await _found(engine, task_id))


@router.get("/tasks/{task_id}/iterations", responses=problems(404))
async def iterations(request: Request, task_id: TaskId) -> models.IterationList:
    """List every call of the backend for a task, those that did not count among them."""
    engine = _engine(request)
    task = await _found(engine, task_id)
    found = await engine.read(engine.store.iterations, task)
    return models.IterationList(task_id=task.id, iterations=[views.iteration(each) for each in found])


@router.get(
    "/tasks/{task_id}/events",
    response_class=StreamingResponse,
    responses={
        **problems(404, 422),
        200: {
            "description": "Events as they happen.",
            "content": {"text/event-stream": {"schema": _EVENT}},
        },
    },
)
async def events(
    request: Request,
    task_id: TaskId,
    last_event_id: Annotated[str | None, Header(pattern=r"^[0-9]{1,18}$", description="Go on after this one.")] = None,
) -> StreamingResponse:
    """Stream what happens to a task, from its beginning, until it has ended (server-sent events)."""
    engine = _engine(request)
    task = await _found(engine, task_id)
    lifecycle: Lifecycle = request.app.state.lifecycle
    lines = stream(engine, lifecycle, task, int(last_event_id or 0))
    return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def stream(engine: Engine, lifecycle: Lifecycle, task: Task, after: int) -> AsyncIterator[str]:
    """A task's events with a higher number than `after` as server-sent events, until it or the service has ended."""
    while not lifecycle.stopping:
        rung = engine.bell.waiter()
        # Before its events: what happens between the two questions is not the end of the stream.
        ended = (await engine.read(engine.store.task, task.id)).state in ENDED
        found = await engine.read(engine.store.events, task=task, after=after, most=_BATCH)
        for event in found:
            after = event.id
            yield views.server_sent(event)
        if found:
            continue
        if ended:
            return
        if not await _rings(rung, lifecycle):
            yield ": still here\n\n"


async def _rings(rung: asyncio.Event, lifecycle: Lifecycle) -> bool:
    """Wait for a change, or for the service's end. False if neither came in time."""
    waits = [asyncio.ensure_future(rung.wait()), asyncio.ensure_future(lifecycle.wait_stopping())]
    done, waiting = await asyncio.wait(waits, timeout=_KEEP_ALIVE, return_when=asyncio.FIRST_COMPLETED)
    for each in waiting:
        each.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await each
    return bool(done)


async def _act(request: Request, task_id: str, change: Callable[[Engine], Awaitable[Task]]) -> models.Task:
    engine = _engine(request)
    try:
        task = await change(engine)
    except Unknown:
        raise _no_such(task_id) from None
    except NotNow as error:
        raise ServiceError(
            409,
            f"task {task_id}: {error}",
            kind="not-in-this-state",
            next_step="look at the task as it is now, then decide",
            state=error.task.state,
        ) from None
    engine.look()
    return await _shown(engine, task)


@router.post("/tasks/{task_id}/approve", responses=problems(404, 409))
async def approve(request: Request, task_id: TaskId, action: models.Action) -> models.Task:
    """Let a task begin that waits for approval."""

    async def change(engine: Engine) -> Task:
        return await engine.write(engine.store.approve, task_id, by=action.by, reason=action.reason, now=time.time())

    return await _act(request, task_id, change)


@router.post("/tasks/{task_id}/reject", responses=problems(404, 409))
async def reject(request: Request, task_id: TaskId, action: models.Action) -> models.Task:
    """Refuse a task that waits for approval, for good."""

    async def change(engine: Engine) -> Task:
        return await engine.write(engine.store.reject, task_id, by=action.by, reason=action.reason, now=time.time())

    return await _act(request, task_id, change)


@router.post("/tasks/{task_id}/stop", responses=problems(404, 409))
async def stop(request: Request, task_id: TaskId, action: models.Action) -> models.Task:
    """Stop a task, whether it is queued, waits or runs. A call under way is cut off, and does not count."""

    async def change(engine: Engine) -> Task:
        task = await engine.write(engine.store.stop, task_id, by=action.by, reason=action.reason, now=time.time())
        engine.let_go(task_id)
        return task

    return await _act(request, task_id, change)


@router.post("/tasks/{task_id}/resume", responses=problems(404, 409))
async def resume(request: Request, task_id: TaskId, resumption: models.Resumption) -> models.Task:
    """Let a task go on that was stopped, gave up or ran into a bound; or try a waiting one now."""

    async def change(engine: Engine) -> Task:
        return await engine.write(
            engine.store.resume,
            task_id,
            by=resumption.by,
            reason=resumption.reason,
            now=time.time(),
            ceiling=engine.settings.max_iterations_ceiling,
            limit=resumption.max_iterations,
            max_tokens=resumption.max_tokens,
            max_seconds=resumption.max_seconds,
        )

    return await _act(request, task_id, change)


@router.get("/stats")
async def stats(request: Request) -> models.Stats:
    """Numbers of all tasks."""
    engine = _engine(request)
    found = await engine.read(engine.store.stats)
    return models.Stats(backend=engine.gate.state, **found)


# --- settings --------------------------------------------------------------------------------------------------------

_ETAG = {"ETag": {"description": "Send it as If-Match to change what you saw.", "schema": {"type": "string"}}}


def declared(engine: Engine) -> dict[str, Any]:
    """The settings that the .env has."""
    return {**engine.settings.bases(), "adaptive": engine.settings.adaptive_iterations}


def _shown_settings(engine: Engine, document: dict[str, Any], updated: float | None) -> models.Settings:
    return models.Settings(
        max_iterations=models.Limits(**{kind: document[kind] for kind in engine.settings.bases()}),
        adaptive=document["adaptive"],
        ceiling=engine.settings.max_iterations_ceiling,
        updated_at=rfc3339_or_none(updated),
    )


@settings_router.get("/settings", responses={200: {"headers": _ETAG}})
async def get_settings(request: Request, response: Response) -> models.Settings:
    """Show what holds for tasks that are submitted from now on."""
    engine = _engine(request)
    version, document, updated = await engine.read(engine.store.settings, declared(engine))
    response.headers["ETag"] = f'"{version}"'
    return _shown_settings(engine, document, updated)


@settings_router.put("/settings", responses={**problems(412, 422, 428), 200: {"headers": _ETAG}})
async def put_settings(
    request: Request,
    response: Response,
    change: models.SettingsChange,
    if_match: Annotated[str | None, Header(max_length=100, description="The ETag of what you saw.")] = None,
) -> models.Settings:
    """Set the limits and the adaptive flag, for tasks that are submitted from now on; all others keep theirs."""
    engine = _engine(request)
    if if_match is None:
        raise ServiceError(428, "PUT /settings needs the header If-Match", next_step="send the ETag of GET /settings")
    ceiling = engine.settings.max_iterations_ceiling
    document: dict[str, Any] = {**change.max_iterations.model_dump(), "adaptive": change.adaptive}
    errors = [
        {
            "location": f"body.max_iterations.{kind}",
            "message": f"is {document[kind]}, more than the ceiling of {ceiling}",
        }
        for kind in engine.settings.bases()
        if document[kind] > ceiling
    ]
    if errors:
        places = ", ".join(each["location"] for each in errors)
        raise ServiceError(422, f"above the ceiling of {ceiling}: {places}", errors=errors)
    version, _, _ = await engine.read(engine.store.settings, declared(engine))
    now = time.time()
    changed = None
    if if_match.strip() == f'"{version}"':
        changed = await engine.write(engine.store.put_settings, document, version, now)
    if changed is None:
        raise ServiceError(412, "the settings were changed since", next_step="read GET /settings again, then decide")
    response.headers["ETag"] = f'"{changed}"'
    return _shown_settings(engine, document, now)
