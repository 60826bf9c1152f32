"""The error every hook may raise: one line for the administrator and the exit code that goes with it."""

from __future__ import annotations

# Exit codes shared by hooks and command line.
DONE = 0
UNEXPECTED = 1
INVALID = 2
DEPENDENCY_MISSING = 3
LOCK_HELD = 4
ROLLED_BACK = 7
DOWN = 8
TIMED_OUT = 124


class HookError(Exception):
    """Something an administrator can act on.

    The message says what failed, where, why and the next command, in one line. `code` is the exit code.
    """

    def __init__(self, message: str, code: int = UNEXPECTED) -> None:
        super().__init__(message)
        self.code = code


def printable(text: str, limit: int = 400) -> str:
    """`text` on one line, control characters escaped, cut to `limit` characters.

    Whatever comes from a server, a file or a command line passes here before it reaches a terminal or the journal.
    """
    line = text.strip()
    if not line.isprintable():
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    return line if len(line) <= limit else line[: limit - 1] + "…"
