"""Progress for people: a moving line on a terminal, plain lines everywhere else."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

FRAMES = "-\\|/"
INTERVAL = 0.2
"""Seconds between two frames."""


class Progress:
    """Says which step is under way and how long each took."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._live = out.isatty() and os.environ.get("TERM") != "dumb"

    def say(self, text: str) -> None:
        """Print `text`."""
        print(text, file=self._out, flush=True)

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Show `title` while the body runs, then whether it worked and its seconds."""
        started = time.monotonic()
        done = threading.Event()
        spinner: threading.Thread | None = None
        if self._live:
            spinner = threading.Thread(target=self._spin, args=(title, started, done), daemon=True)
            spinner.start()
        else:
            self.say(f"  ...  {title}")
        mark = "FAIL"
        try:
            yield
            mark = " ok "
        finally:
            done.set()
            if spinner is not None:
                spinner.join()
            end = "\r\x1b[K" if self._live else ""
            self.say(f"{end}  {mark} {title}  ({time.monotonic() - started:.1f} s)")

    def _spin(self, title: str, started: float, done: threading.Event) -> None:
        frame = 0
        while not done.wait(INTERVAL):
            seconds = time.monotonic() - started
            print(
                f"\r\x1b[K   {FRAMES[frame % len(FRAMES)]}   {title}  {seconds:.0f} s",
                end="",
                file=self._out,
                flush=True,
            )
            frame += 1
