"""What a command tells its user when it cannot do what was asked, and the exit codes.

Built on the hooks' own error, so that one handler serves both. Standard library only.
"""

from __future__ import annotations

import enum

from aistack.hooks import errors as hook_errors
from aistack.hooks.errors import HookError

# Long enough for every problem of a manifest, short enough for a terminal's patience.
LINE_LIMIT = 4000


class ExitCode(enum.IntEnum):
    """What a command's exit code means (design, section 13). The numbers are an interface."""

    DONE = 0
    UNEXPECTED = 1
    USAGE = 2
    DEPENDENCY_MISSING = 3
    LOCK_HELD = 4
    VALIDATION_FAILED = 5
    TEST_FAILED = 6
    ROLLED_BACK = 7
    DOWN = 8
    APPROVAL_REQUIRED = 9
    ITERATION_LIMIT = 10
    CIRCUIT_OPEN = 11
    TIMED_OUT = 124
    INTERRUPTED = 130

    @property
    def word(self) -> str:
        """The name of the code in `--json` output, as `dependency-missing`."""
        return self.name.lower().replace("_", "-")

    @classmethod
    def of(cls, number: int) -> ExitCode:
        """Return the code of a number; a number nobody defined is unexpected."""
        try:
            return cls(number)
        except ValueError:
            return cls.UNEXPECTED


def printable(text: object, limit: int = LINE_LIMIT) -> str:
    r"""Return text on one line, with everything that could drive a terminal escaped.

    Names, paths and reasons come from files, containers and command lines. A newline in one of
    them would forge a second line of output, an escape sequence would act on the terminal, a
    right-to-left mark would reorder what is read.
    """
    return hook_errors.printable(str(text), limit)


class AistackError(HookError):
    """A failure the user can act on, in one printable line.

    Attributes:
        message: what failed, where and why.
        hint: the next command, or what to change.
        code: the exit code of the command that fails so (`ExitCode`).
    """

    exit_code = ExitCode.UNEXPECTED

    def __init__(self, what: str, *, why: object = None, hint: str | None = None) -> None:
        """Join what and why into the message, and both with the hint into `str()`."""
        self.message = printable(what if why is None else f"{what}: {why}")
        self.hint = None if hint is None else printable(hint)
        line = self.message if self.hint is None else f"{self.message}; {self.hint}"
        super().__init__(line, int(self.exit_code))


class UsageError(AistackError):
    """The command line asks for something that does not exist or cannot be meant."""

    exit_code = ExitCode.USAGE


class ManifestError(AistackError):
    """The manifest is missing, unreadable, malformed or of another version."""

    exit_code = ExitCode.USAGE


class CommandError(AistackError):
    """A program of the host (systemctl, podman) is missing, failed or did not end."""


class StoreError(AistackError):
    """The release journal cannot be read."""


class DownError(AistackError):
    """A service does not serve and this command could not bring it back."""

    exit_code = ExitCode.DOWN
