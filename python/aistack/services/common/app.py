"""The application of a service, with the routes and rules that all of them have."""

from __future__ import annotations

import time
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily

import aistack
from aistack.services.common import errors, openapi
from aistack.services.common.auth import ApiKey, Authentication, KeyUnavailable
from aistack.services.common.body import BodyLimit
from aistack.services.common.lifecycle import Lifecycle
from aistack.services.common.observe import Metrics, Observe
from aistack.services.common.ready import Dependency, NotReady, Readiness, ask
from aistack.services.common.schema import ResponseModel
from aistack.services.common.telemetry import Telemetry
from aistack.services.common.tracing import Tracing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from prometheus_client.metrics_core import Metric

    from aistack.services.common.settings import ServiceSettings


class Health(ResponseModel):
    """The answer of a service that lives."""

    status: Literal["ok"]
    service: str
    version: str
    uptime_seconds: float


class _Dropped:
    """A collector: telemetry that could not be written."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.telemetry = telemetry

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily("aistack_telemetry_dropped", "Telemetry lines that could not be written.")
        family.add_metric([], self.telemetry.dropped)
        yield family


def create_app(
    settings: ServiceSettings,
    *,
    title: str,
    description: str,
    dependencies: Sequence[Dependency] = (),
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
) -> FastAPI:
    """Make a service's application; the caller adds its routes.

    `app.state` has what the routes use: `settings`, `lifecycle`, `telemetry`, `tracing`, `metrics` (a service adds its
    own to `metrics.registry`).

    Args:
        settings: the service's settings.
        title: the API's name.
        description: what the service does, in a sentence.
        dependencies: what must answer before the service is ready.
        lifespan: what surrounds serving; after it telemetry and traces are closed.

    Raises:
        ConfigurationError: tracing is asked for and its library is missing, or the API key's file is missing or empty.
    """
    lifecycle = Lifecycle()
    telemetry = Telemetry(settings.telemetry_path, settings.service)
    tracing = Tracing(settings, telemetry)
    metrics = Metrics()
    metrics.registry.register(_Dropped(telemetry))
    key = None if settings.api_key_file is None else ApiKey(settings.api_key_file)
    if key is not None:
        key.read()
        dependencies = [*dependencies, Dependency("api-key", _key_check(key))]

    @asynccontextmanager
    async def surrounded(app: FastAPI) -> AsyncIterator[None]:
        telemetry.emit("service.started", version=aistack.__version__)
        try:
            if lifespan is None:
                yield
            else:
                async with lifespan(app):
                    yield
        finally:
            telemetry.emit("service.stopped")
            tracing.close()
            telemetry.close()

    app = FastAPI(
        title=title,
        description=description,
        version=aistack.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=surrounded,
    )
    app.state.settings = settings
    app.state.lifecycle = lifecycle
    app.state.telemetry = telemetry
    app.state.tracing = tracing
    app.state.metrics = metrics
    errors.install(app)
    openapi.install(app, secured=key is not None)
    _add_probes(app, settings, lifecycle, dependencies, metrics.registry)
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, limit=settings.max_request_bytes, timeout=settings.request_body_timeout_seconds)
    if key is not None:
        app.add_middleware(Authentication, key=key)
    app.add_middleware(Observe, metrics=metrics, tracing=tracing)
    return app


def _key_check(key: ApiKey) -> Callable[[], Any]:
    async def check() -> None:
        try:
            key.read()
        except KeyUnavailable as error:
            raise NotReady(str(error)) from None

    return check


def _add_probes(
    app: FastAPI,
    settings: ServiceSettings,
    lifecycle: Lifecycle,
    dependencies: Sequence[Dependency],
    registry: CollectorRegistry,
) -> None:
    began = time.monotonic()

    @app.get("/health", tags=["probes"])
    async def health() -> Health:
        """Whether the process lives; asks nobody else."""
        uptime = round(time.monotonic() - began, 3)
        return Health(status="ok", service=settings.service, version=aistack.__version__, uptime_seconds=uptime)

    @app.get("/ready", tags=["probes"], responses=errors.problems(503))
    async def ready() -> Readiness:
        """Whether all that the service needs answers now."""
        states = await ask(dependencies, settings.ready_timeout_seconds)
        missing = [f"{name}: {state.reason}" for name, state in states.items() if not state.ok]
        if lifecycle.stopping:
            missing.append("the service is being stopped")
        if missing:
            raise errors.ServiceError(
                503,
                "; ".join(missing),
                kind="not-ready",
                title="The service is not ready",
                next_step="look at the dependencies that are not ok",
                headers={"Retry-After": "1"},
                service=settings.service,
                dependencies={name: state.model_dump() for name, state in states.items()},
            )
        return Readiness(status="ready", service=settings.service, dependencies=states)

    @app.get("/metrics", tags=["probes"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})
