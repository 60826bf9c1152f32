"""What commands print: data on standard output, everything else on standard error.

Tables are drawn by rich on a terminal and are plain aligned text everywhere else, so that a pipe
sees no escape sequence. Whatever comes from outside passes `printable` here, once.
"""

from __future__ import annotations

import io
import json
import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aistack.errors import UsageError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Version of every document that `--json` prints. A new key is no new version; a changed one is.
SCHEMA_VERSION = 1

# Colour of a word of state, on a terminal.
COLOURS = {
    "ready": "green",
    "healthy": "green",
    "degraded": "bold red",
    "unhealthy": "bold red",
    "unchecked": "yellow",
    "good": "green",
    "ok": "green",
    "probation": "cyan",
    "staged": "cyan",
    "testing": "cyan",
    "starting": "yellow",
    "waiting": "yellow",
    "stopped": "red",
    "failed": "bold red",
    "bad": "bold red",
}


def prepare_streams() -> None:
    """Let no character that the locale cannot encode end the program: show it escaped instead."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard() -> None:
    """Throw away what standard output does not take: Python would complain again at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def document(content: Mapping[str, Any]) -> None:
    """Print the one JSON document of a command, with the version of its shape first.

    JSON escapes control characters itself, so a document carries names exactly as they are.
    """
    sys.stdout.write(json.dumps({"schema_version": SCHEMA_VERSION, **content}, indent=2) + "\n")


def line(text: str = "") -> None:
    """Print one line of data."""
    sys.stdout.write(printable(text) + "\n" if text else "\n")


def raw(text: str) -> None:
    """Print one line of data that somebody may read back: of any length, and empty if it is empty."""
    sys.stdout.write(printable(text, len(text) * 10 + 1) + "\n")


def indented(text: str, depth: int) -> None:
    """Print one line of data below another, `depth` columns in."""
    sys.stdout.write(" " * depth + printable(text) + "\n")


def note(text: str) -> None:
    """Print one line that is not data."""
    sys.stderr.write(printable(text) + "\n")


def error(message: str, hint: str | None) -> None:
    """Print one line that says what went wrong and what to do next."""
    note(f"aistack: {message}" if hint is None else f"aistack: {message}; {hint}")


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under headers: a rich table on a terminal, plain aligned columns elsewhere."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        _rich_table(headers, cells)
    else:
        _plain_table(headers, cells)


def _plain_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    everything = [[header.upper() for header in headers], *rows]
    widths = [max(len(row[column]) for row in everything) for column in range(len(headers))]
    for row in everything:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write("  ".join(padded).rstrip() + "\n")


def _rich_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    # rich takes a third of the time of a whole command: only somebody looking at it pays for it.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for header in headers:
        drawn.add_column(header.upper(), overflow="fold")
    for row in rows:
        # Text, not markup: a name like "[red]" is a name.
        drawn.add_row(*(Text(cell, style=_style(cell)) for cell in row))
    Console(highlight=False).print(drawn)


def _style(cell: str) -> str:
    return COLOURS.get(cell.split(" ", 1)[0], "")


def confirm(question: str, *, yes: bool) -> None:
    """Ask a question on the terminal; return if the answer is yes.

    Raises:
        UsageError: the answer was no (the default), or there is no terminal to ask on.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            "not confirmed, and there is no terminal to ask on: nothing was changed",
            hint="add --yes to go ahead",
        )
    sys.stderr.write(f"{printable(question)} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise UsageError("not confirmed: nothing was changed")


def rfc3339(moment: float | None) -> str | None:
    """Return a Unix time in seconds as RFC 3339 in UTC, for documents."""
    if moment is None:
        return None
    return datetime.fromtimestamp(moment, tz=UTC).isoformat(timespec="milliseconds")


def duration(seconds: float) -> str:
    """Return a time span for people: its largest unit, and the next one below ten."""
    spans = ((86400, "d"), (3600, "h"), (60, "min"))
    for number, (size, unit) in enumerate(spans):
        if seconds >= size:
            whole, rest = divmod(int(seconds), size)
            below = spans[number + 1] if number + 1 < len(spans) else (1, "s")
            part = rest // below[0]
            return f"{whole} {unit} {part} {below[1]}" if whole < 10 and part else f"{whole} {unit}"
    return f"{seconds:.0f} s"


def local_time(moment: float | None) -> str:
    """Return a Unix time in seconds as the clock on the wall showed it, for people."""
    if moment is None:
        return "-"
    return datetime.fromtimestamp(moment, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
