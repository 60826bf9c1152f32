"""A stand-in for aider-wrapper's fork server, where a test is about what surrounds aider."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

from aistack.services.aider_wrapper import order as orders
from aistack.services.aider_wrapper.forks import Forks, Run

if TYPE_CHECKING:
    from collections.abc import Callable

    from aistack.services.aider_wrapper.order import Order


class StandInForks(Forks):
    """Every run ends at once: with what `work`, called with the workspace, returns as its `kind`."""

    work: Callable[[Path], str | None] = staticmethod(lambda _: None)

    def start(self) -> None:
        """There is nothing to start."""

    @property
    def ready(self) -> bool:
        """It is."""
        return True

    async def wait_ready(self) -> None:
        """It is."""

    async def run(self, order: Order) -> Run:
        """Do the work."""
        kind = type(self).work(Path(order.root))
        run = Run(1, lambda **_: None)
        run.printed(f"{len(order.prompt)} characters".encode())
        error = None if kind is None else f"as the test says: {kind}"
        run.reported(json.dumps({"event": orders.ENDED, "kind": kind, "error": error}).encode() + b"\n")
        run.pipes.append(asyncio.ensure_future(asyncio.sleep(0)))
        run.ended.set_result(0)
        return run
