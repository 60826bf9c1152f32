"""Everything that happens to tasks, as telemetry and as metrics: read from the events that the store keeps.

A line may come twice after a crash, never not at all: `data.event_id` tells them apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from prometheus_client import Counter, Gauge, Histogram

from aistack.services.ralph_wiggum.clock import rfc3339

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from aistack.services.common import Telemetry
    from aistack.services.ralph_wiggum.engine import Engine
    from aistack.services.ralph_wiggum.records import Event
    from aistack.services.ralph_wiggum.states import State

_BATCH = 500
_REMEMBERED = 5.0  # seconds between two notes of how far the telemetry has come


class Metrics:
    """What is counted; see docs/ralph.md."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register them."""
        self.tasks = Gauge("ralph_tasks", "Tasks by state.", ("state",), registry=registry)
        self.ended = Counter("ralph_tasks_ended", "Tasks that ended.", ("state", "reason"), registry=registry)
        self.iterations = Counter(
            "ralph_iterations", "Iterations that ended, by outcome.", ("outcome", "counted"), registry=registry
        )
        self.seconds = Histogram(
            "ralph_iteration_seconds",
            "From opening an iteration to closing it.",
            buckets=(0.1, 0.5, 1, 5, 15, 30, 60, 120, 300, 600, 900, 1800, 3600),
            registry=registry,
        )
        self.backend_up = Gauge("ralph_backend_up", "Whether the backend can be asked: 1 or 0.", registry=registry)

    def set_states(self, states: dict[State, int]) -> None:
        """Begin with what the store has."""
        for state, number in states.items():
            self.tasks.labels(state).set(number)

    def count(self, event: Event) -> None:
        """Count one event."""
        data = event.data
        match event.name:
            case "task.submitted":
                self.tasks.labels(data["state"]).inc()
            case "task.state" | "task.ended":
                self.tasks.labels(data["from"]).dec()
                self.tasks.labels(data["state"]).inc()
                if event.name == "task.ended":
                    self.ended.labels(data["state"], data["reason"] or "").inc()
            case "iteration.completed":
                self.iterations.labels(data["outcome"], str(data["counted"]).lower()).inc()
                self.seconds.observe(max(0.0, data["seconds"]))


async def export(engine: Engine, telemetry: Telemetry, metrics: Metrics) -> None:
    """Pass on what happens, until this is cancelled; then remember how far it came."""
    after = noted = await engine.read(engine.store.exported)
    newest = after
    noted_at = time.monotonic()
    # What happened before this process began is in the numbers that it begins with.
    counted_from, stats = await engine.read(lambda: (engine.store.last_event(), engine.store.stats()))
    metrics.set_states(stats["tasks"])
    try:
        while True:
            rung = engine.bell.waiter()
            metrics.backend_up.set(engine.gate.is_open)
            events = await engine.read(engine.store.events, task=None, after=after, most=_BATCH)
            for event in events:
                _emit(telemetry, event)
                if event.id > counted_from:
                    metrics.count(event)
                after = newest = event.id
            if newest != noted and time.monotonic() - noted_at > _REMEMBERED:
                await engine.read(engine.store.set_exported, newest)
                noted, noted_at = newest, time.monotonic()
            if len(events) < _BATCH:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_REMEMBERED):
                        await rung.wait()
    finally:
        if newest != noted:
            await asyncio.shield(asyncio.ensure_future(engine.read(engine.store.set_exported, newest)))


def _emit(telemetry: Telemetry, event: Event) -> None:
    data: dict[str, Any] = dict(event.data)
    iteration = data.pop("number", None)
    seconds = data.pop("seconds", None)
    telemetry.emit(
        event.name,
        task_id=event.task_id,
        iteration=iteration,
        duration_seconds=None if seconds is None else max(0.0, seconds),
        event_id=event.id,
        at=rfc3339(event.at),
        **data,
    )
