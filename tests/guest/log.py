"""A scenario's log: everything in a file, and on the terminal only if asked for."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Log:
    """Lines with the seconds since the start, indented under the sub-tests they belong to."""

    def __init__(self, file: Path, *, verbose: bool = False) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.path = file
        self._file = file.open("w", encoding="utf-8", buffering=1)
        self._started = time.monotonic()
        self._depth = 0
        self._verbose = verbose

    def line(self, text: str) -> None:
        """Write `text`, one or more lines."""
        stamp = f"{time.monotonic() - self._started:8.3f} {'  ' * self._depth}"
        for line in text.rstrip("\n").splitlines() or [""]:
            self._file.write(f"{stamp}{line}\n")
            if self._verbose:
                print(f"{stamp}{line}", file=sys.stderr, flush=True)

    @contextmanager
    def nested(self, title: str) -> Iterator[None]:
        """Write `title`, what happens inside below it, and how long it took."""
        self.line(title)
        started = time.monotonic()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            self.line(f"({title}: {time.monotonic() - started:.2f} s)")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
