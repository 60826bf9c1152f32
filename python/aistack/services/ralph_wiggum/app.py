"""Ralph's application: the routes, the loop and the telemetry over one database."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aistack.services.common import Dependency, NotReady, create_app
from aistack.services.ralph_wiggum import routes, telemetry
from aistack.services.ralph_wiggum.backend import Backend
from aistack.services.ralph_wiggum.engine import Engine
from aistack.services.ralph_wiggum.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi import FastAPI

    from aistack.services.ralph_wiggum.settings import RalphSettings

DATABASE = "ralph.db"


def make(settings: RalphSettings) -> FastAPI:
    """Make the application.

    Raises:
        Unusable: the database cannot be used.
    """
    store = Store(settings.data_path / DATABASE)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        url = f"http://{settings.aider_wrapper_host}:{settings.aider_wrapper_port}"
        backend = Backend("aider", url, key_file=settings.aider_wrapper_api_key_file)
        engine = Engine(settings, store, backend, app.state.tracing)
        app.state.engine = engine
        exporting = asyncio.create_task(telemetry.export(engine, app.state.telemetry, metrics))
        running = asyncio.create_task(engine.run())
        # What is under way is let go of at once, while requests in flight are still being answered.
        stopping = asyncio.create_task(_cancel_when_stopping(app, running))
        try:
            yield
        finally:
            for each in (stopping, running):
                each.cancel()
            await asyncio.gather(stopping, running, return_exceptions=True)
            exporting.cancel()
            await asyncio.gather(exporting, return_exceptions=True)
            await backend.close()
            engine.close()
            store.close_database()

    async def backend_answers() -> None:
        why = app.state.engine.gate.why
        if why is not None:
            raise NotReady(why)

    app = create_app(
        settings,
        title="ralph-wiggum",
        description="Works on tasks in a loop, until they are verifiably done or a bound is reached.",
        dependencies=[Dependency("aider-wrapper", backend_answers)],
        lifespan=lifespan,
    )
    metrics = telemetry.Metrics(app.state.metrics.registry)
    app.include_router(routes.router)
    app.include_router(routes.settings_router)
    return app


async def _cancel_when_stopping(app: FastAPI, running: asyncio.Task[None]) -> None:
    await app.state.lifecycle.wait_stopping()
    running.cancel()
