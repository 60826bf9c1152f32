"""Locks on files, waited for with a bound."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager

from aistack.hooks.errors import LOCK_HELD, HookError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_PAUSE = 0.05  # seconds between two tries


def take(descriptor: int, seconds: float) -> bool | None:
    """Take the lock of an open file; says whether it had to be waited for, None if it was not to be had in time.

    Raises OSError.
    """
    deadline = time.monotonic() + seconds
    waited = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            if time.monotonic() >= deadline:
                return None
            time.sleep(_PAUSE)
        else:
            return waited


@contextmanager
def held(path: str, seconds: float, who: str) -> Iterator[bool]:
    """Hold the lock of `path` (flock(2)), which is made if it is not there; says whether it had to be waited for.

    Raises HookError when `who`, another that holds it, does not let go within `seconds` (exit code 4).
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HookError(f"cannot lock {path}: {error.strerror}") from None
    try:
        waited = take(descriptor, seconds)
        if waited is None:
            raise HookError(f"{who} has not ended for {seconds:g} s: fuser -v {path}", LOCK_HELD)
        yield waited
    finally:
        os.close(descriptor)
