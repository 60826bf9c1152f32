"""What a deployment tells while it goes on: one event for each phase that begins and ends, and one at the end."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any, Literal, Protocol

from aistack.cli import output

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA_VERSION = 1

Status = Literal["started", "done", "failed", "skipped", "note"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened in a phase. `at` is a Unix time, `seconds` what the phase took if it ended."""

    phase: str
    status: Status
    message: str = ""
    seconds: float | None = None
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    at: float = dataclasses.field(default_factory=time.time)

    def document(self, deployment: int | None, service: str) -> dict[str, Any]:
        """The event as it is printed by --jsonl."""
        return {
            "schema_version": SCHEMA_VERSION,
            "event": "phase",
            "deployment": deployment,
            "service": service,
            "phase": self.phase,
            "status": self.status,
            "at": output.rfc3339(self.at),
            "seconds": None if self.seconds is None else round(self.seconds, 3),
            "message": self.message,
            "data": dict(self.data),
        }


class Listener(Protocol):
    """Who is told."""

    def __call__(self, event: Event) -> None:
        """Take an event."""
