"""Whether the backend can be asked: shut when it could not be reached, open again when a probe says so."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from aistack.services.ralph_wiggum.backend import Backend


def pause(times: int, first: float, most: float) -> float:
    """Seconds to wait before the next try: doubled each time, at most `most`, and up to half of it left out."""
    # Beyond that the bound holds anyway, and the power would be too large for a float.
    return min(most, first * 2.0 ** min(times - 1, 60)) * random.uniform(0.5, 1.0)  # noqa: S311  (no secret)


class Bell:
    """Wakes everybody who waits for a change. Take a waiter before you look, so that nothing is missed between."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def waiter(self) -> asyncio.Event:
        """What the next ring sets."""
        return self._event

    def ring(self) -> None:
        """Wake them."""
        self._event.set()
        self._event = asyncio.Event()


class Gate:
    """One backend's."""

    def __init__(self, backend: Backend, first: float, most: float, opened: Callable[[], None]) -> None:
        """Describe it; `first` and `most` are the pauses between two probes, in seconds; `opened` is told."""
        self._backend = backend
        self._first = first
        self._most = most
        self._opened = opened
        self._shut = asyncio.Event()
        self._shut.set()
        self._open = False
        self.why: str | None = "it was not asked yet"
        self._asked = False

    @property
    def is_open(self) -> bool:
        """Whether it can be asked."""
        return self._open

    @property
    def state(self) -> Literal["up", "down", "unknown"]:
        """The same for people."""
        return "up" if self._open else "down" if self._asked else "unknown"

    def shut(self, why: str) -> None:
        """It could not be reached: nobody asks it until a probe was answered."""
        self._open, self._asked, self.why = False, True, why
        self._shut.set()

    async def run(self) -> None:
        """Probe while it is shut."""
        while True:
            await self._shut.wait()
            self._shut.clear()
            times = 0
            while not self._open:
                why = await self._backend.ready()
                self._asked, self.why = True, why
                if why is None:
                    self._open = True
                    self._opened()
                    break
                times += 1
                await asyncio.sleep(pause(times, self._first, self._most))
