"""When a service is asked to end: whoever has work in flight waits for that beside the work."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from starlette.requests import Request

STOP_SECONDS = 5.0
"""A service has ended so long after SIGTERM, whatever it does."""
GRACE_SECONDS = 3.0
"""Requests in flight are given so long after SIGTERM; then they are cancelled."""


class Lifecycle:
    """`app.state.lifecycle`: says when SIGTERM has come, which is before requests in flight are cut off."""

    def __init__(self) -> None:
        self._stopping = asyncio.Event()

    @property
    def stopping(self) -> bool:
        """Whether the service is ending."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Say that the service ends; called in the event loop's thread."""
        self._stopping.set()

    async def wait_stopping(self) -> None:
        """Return when the service is asked to end."""
        await self._stopping.wait()


async def wait_disconnected(request: Request) -> None:
    """Return when the caller has gone; only after the request's body was read."""
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return


async def first_of(*waits: Coroutine[Any, Any, object]) -> int:
    """Wait until one of them is through, cancel the others, and return which it was; what it raises is raised."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        first = next(number for number, task in enumerate(tasks) if task.done())
        tasks[first].result()
        return first
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
