"""Every request: counted, timed, logged, traced; and whatever nobody caught becomes one answer and one line."""

from __future__ import annotations

import logging
import secrets
import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.datastructures import Headers

from aistack.services.common.auth import OPEN
from aistack.services.common.errors import ServiceError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from aistack.services.common.tracing import Tracing

log = logging.getLogger(__name__)


class Metrics:
    """The service's registry, with what every service counts. A service adds its own to `registry`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        labels = ("method", "route", "status")
        self.requests = Counter("aistack_http_requests", "Requests answered.", labels, registry=self.registry)
        self.seconds = Histogram(
            "aistack_http_request_seconds", "Time to answer.", ("method", "route"), registry=self.registry
        )
        self.in_flight = Gauge("aistack_http_requests_in_flight", "Requests being answered.", registry=self.registry)


class Observe:
    """The outermost middleware."""

    METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing) -> None:
        self.app = app
        self.metrics = metrics
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and say what was answered."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0
        began = time.monotonic()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        probe = scope["path"] in OPEN
        self.metrics.in_flight.inc()
        try:
            if probe or not self.tracing.enabled:
                await self._answer(scope, receive, noted)
            else:
                with self.tracing.span(f"{scope['method']} request", caller=Headers(scope=scope)):
                    await self._answer(scope, receive, noted)
                    self.tracing.annotate(
                        {"http.route": self._route(scope), "http.response.status_code": status or 499}
                    )
        finally:
            self.metrics.in_flight.dec()
            seconds = time.monotonic() - began
            # Whatever else a caller may write as a method or a path must not make a time series each.
            method = scope["method"] if scope["method"] in self.METHODS else "other"
            route = self._route(scope)
            # 499: the caller left before there was an answer.
            self.metrics.requests.labels(method, route, str(status or 499)).inc()
            self.metrics.seconds.labels(method, route).observe(seconds)
            log.log(
                logging.DEBUG if probe else logging.INFO,
                "request",
                extra={
                    "event": "request",
                    "method": method,
                    "route": route,
                    "status": status or 499,
                    "milliseconds": round(seconds * 1000, 1),
                },
            )

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception:
            incident = secrets.token_hex(8)
            log.exception(
                "request failed",
                extra={"event": "incident", "incident": incident, "route": self._route(scope)},
            )
            if started:
                raise
            problem = ServiceError(500, f"incident {incident}", incident=incident)
            await problem.response()(scope, receive, noted)

    @staticmethod
    def _route(scope: Scope) -> str:
        return getattr(scope.get("route"), "path", "none")
