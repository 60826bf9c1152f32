"""What can go wrong, told so that the reader can act on it."""

from __future__ import annotations


class GuestError(Exception):
    """A failure with what, why and the next thing to do; the command line prints it and exits."""

    def __init__(self, what: str, *, why: str = "", next_step: str = "") -> None:
        self.what = what
        self.why = why
        self.next_step = next_step
        lines = [what]
        if why:
            lines.append(f"  why:  {why}")
        if next_step:
            lines.append(f"  next: {next_step}")
        super().__init__("\n".join(lines))


class CommandFailed(GuestError):
    """A command that had to work did not."""


class WaitTimedOut(GuestError):
    """What was waited for did not come in time."""


class Skipped(Exception):
    """A scenario cannot run here; the message is the reason that is shown."""
