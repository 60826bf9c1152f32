"""How a deployment fails before anything live was touched: the phase's own exit code, and what it saw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aistack.errors import AistackError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence


class Refused(AistackError):
    """What is to be deployed is not valid, or cannot be built. `detail` are lines that show more."""

    exit_code = ExitCode.VALIDATION_FAILED

    def __init__(self, what: str, *, why: object = None, hint: str | None = None, detail: Sequence[str] = ()) -> None:
        """Keep the lines beside the message."""
        super().__init__(what, why=why, hint=hint)
        self.detail = list(detail)


class TestFailed(AistackError):
    """The candidate did not pass its isolated test. `evidence` is what was seen of it, `detail` the lines to show."""

    exit_code = ExitCode.TEST_FAILED

    def __init__(
        self,
        what: str,
        *,
        why: object = None,
        hint: str | None = None,
        detail: Sequence[str] = (),
        evidence: dict[str, Any] | None = None,
    ) -> None:
        """Keep what was seen beside the message."""
        super().__init__(what, why=why, hint=hint)
        self.detail = list(detail)
        self.evidence = evidence or {}
