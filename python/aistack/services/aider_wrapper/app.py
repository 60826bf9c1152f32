"""The application of aider-wrapper and its routes."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import httpx
from fastapi import APIRouter, FastAPI, Header, Path, Request, Response

from aistack.services.aider_wrapper import repository
from aistack.services.aider_wrapper.executions import Executions
from aistack.services.aider_wrapper.forks import Forks
from aistack.services.aider_wrapper.schema import ExecuteRequest, ExecuteResult, ExecutionState
from aistack.services.aider_wrapper.settings import Settings
from aistack.services.common import ConfigurationError, Dependency, NotReady, ServiceError, create_app, problems
from aistack.services.common.lifecycle import first_of, wait_disconnected

KEY_PATTERN = r"^[A-Za-z0-9_.:@/+=-]{1,200}$"
DRAIN_SECONDS = 1.0
"""How long executions that nobody waits for have to end when the service does."""
CALLER_LEFT = 499

router = APIRouter(tags=["executions"])


@router.post("/api/execute", responses=problems(403, 404, 409, 429, 503), response_model=ExecuteResult)
async def execute(
    request: Request,
    body: ExecuteRequest,
    idempotency_key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            pattern=KEY_PATTERN,
            description="The same key gets the answer of its first request, while that runs and after it has ended. "
            "One that did not count (it was cut off, or the model was not there) is done again.",
        ),
    ] = None,
) -> ExecuteResult | Response:
    """Have aider work on one message, and wait for what becomes of it: 200, whatever that is.

    A caller who leaves ends the run, unless another one waits for the same key.
    """
    executions: Executions = request.app.state.executions
    work = asyncio.ensure_future(executions.execute(body, idempotency_key))

    async def done() -> None:
        await asyncio.wait([work])

    try:
        left = await first_of(done(), wait_disconnected(request))
    finally:
        if not work.done():
            work.cancel()
    return Response(status_code=CALLER_LEFT) if left else await work


@router.get("/api/execute/{key:path}", responses=problems(404))
async def outcome(request: Request, key: Annotated[str, Path(pattern=KEY_PATTERN)]) -> ExecutionState:
    """What became of an execution, by its Idempotency-Key; starts nothing."""
    executions: Executions = request.app.state.executions
    if executions.under_way(key):
        return ExecutionState(state="running", result=None)
    record = executions.state(key)
    if record is None:
        raise ServiceError(404, "no such execution is known", next_step="send it to POST /api/execute")
    # One that is written down as running and does not was cut off; whoever sends it again finds the workspace put back.
    state = "cancelled" if record.state == "running" else record.state
    return ExecutionState(state=state, result=record.result)


def make(settings: Settings) -> FastAPI:
    """Make the application.

    Raises:
        ConfigurationError: its folder cannot be written to.
    """
    git_config = settings.state_dir / "gitconfig"
    home = settings.state_dir / "home"
    try:
        home.mkdir(parents=True, exist_ok=True)
        repository.write_git_config(git_config)
    except OSError as error:
        raise ConfigurationError(f"AIDER_WRAPPER_STATE_DIR, {settings.state_dir}: {error.strerror}") from None
    forks = Forks({**repository.environment(git_config), "HOME": str(home)})

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        executions: Executions = app.state.executions
        forks.start()
        try:
            await executions.recover()
            yield
        finally:
            await executions.drain(DRAIN_SECONDS)
            await forks.stop()

    app = create_app(
        settings,
        title="aider-wrapper",
        description="The real aider behind HTTP: one call for one message.",
        dependencies=_dependencies(settings, forks),
        lifespan=lifespan,
    )
    app.state.executions = Executions(app, settings, forks)
    app.include_router(router)
    return app


def _dependencies(settings: Settings, forks: Forks) -> list[Dependency]:
    async def aider() -> None:
        if not forks.ready:
            raise NotReady(forks.trouble)

    async def model() -> None:
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=settings.ready_timeout_seconds) as client:
                answer = await client.get(f"{settings.endpoint}/health")
        except httpx.HTTPError as error:
            raise NotReady(f"{settings.endpoint}/health: {type(error).__name__}: {error}") from None
        if answer.status_code != httpx.codes.OK:
            raise NotReady(f"{settings.endpoint}/health answered with {answer.status_code}")

    async def workspaces() -> None:
        if not os.access(settings.workspace_root, os.R_OK | os.W_OK | os.X_OK):
            raise NotReady(f"{settings.workspace_root} is no folder that can be written to")

    return [Dependency("aider", aider), Dependency("llama-cpp", model), Dependency("workspaces", workspaces)]
