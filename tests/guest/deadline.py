"""Bounded waiting: every wait ends, at the latest with the scenario's own time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

FIRST_PAUSE = 0.02
LONGEST_PAUSE = 0.5


@dataclass
class Deadline:
    """A point in time until which work may go on."""

    seconds: float
    _end: float = field(init=False)

    def __post_init__(self) -> None:
        """Start the clock."""
        self._end = time.monotonic() + self.seconds

    def cancel(self) -> None:
        """Leave no time at all: whatever is waited for ends now."""
        self._end = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds left; 0 when it has passed."""
        return max(0.0, self._end - time.monotonic())

    def bound(self, timeout: float | None) -> float:
        """Return `timeout` seconds, or what is left if that is less or no timeout is given."""
        return self.left if timeout is None else min(timeout, self.left)


def wait_until(condition: Callable[[bool], bool], timeout: float) -> bool:
    """Try `condition` until it is true or `timeout` seconds have passed; return whether it was.

    The pause between tries grows from 20 ms to half a second. The last try gets `True`.
    """
    deadline = Deadline(timeout)
    pause = FIRST_PAUSE
    while True:
        last = deadline.left <= 0
        if condition(last):
            return True
        if last:
            return False
        time.sleep(min(pause, deadline.left))
        pause = min(pause * 1.5, LONGEST_PAUSE)
