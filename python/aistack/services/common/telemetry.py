"""Telemetry: JSON lines in `TELEMETRY_PATH/<service>.jsonl`, all of one schema.

Each line is one write to a file opened for appending, so that lines of several processes never mix. A file that was
rotated away or removed is opened anew at the next line. What cannot be written is counted, and never fails a request.
"""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, StringConstraints

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

LINE_LIMIT = 64 * 1024
"""Bytes; the data of a longer line is left out, and the line says so."""


class TelemetryEvent(BaseModel):
    """One line. Readers go by `event`; `data` holds what only that event has."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    time: AwareDatetime
    service: str
    event: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$", max_length=100)]
    task_id: str | None = None
    iteration: int | None = Field(None, ge=0)
    duration_seconds: float | None = Field(None, ge=0, allow_inf_nan=False)
    trace_id: str | None = None
    data: dict[str, JsonValue] = Field(default_factory=dict)


class Telemetry:
    """Writes events; does nothing where no folder is configured."""

    def __init__(self, folder: Path | None, service: str) -> None:
        self.service = service
        self.path = None if folder is None else folder / f"{service}.jsonl"
        self.dropped = 0
        """Lines that could not be written."""
        self._descriptor = -1
        self._torn = False
        self._complained = False

    def emit(
        self,
        event: str,
        *,
        task_id: str | None = None,
        iteration: int | None = None,
        duration_seconds: float | None = None,
        trace_id: str | None = None,
        **data: Any,  # noqa: ANN401 (whatever JSON has; the model checks it)
    ) -> None:
        """Append one event.

        Raises:
            pydantic.ValidationError: it does not fit the schema, which is a mistake of the program.
        """
        if self.path is None:
            return
        line = TelemetryEvent(
            time=datetime.now(UTC),
            service=self.service,
            event=event,
            task_id=task_id,
            iteration=iteration,
            duration_seconds=duration_seconds,
            trace_id=trace_id,
            data=data,
        )
        raw = line.model_dump_json().encode()
        if len(raw) >= LINE_LIMIT:
            raw = line.model_copy(update={"data": {"left_out_bytes": len(raw)}}).model_dump_json().encode()
        try:
            self._write(self.path, raw + b"\n")
            self._complained = False
        except OSError as error:
            self.dropped += 1
            if not self._complained:
                self._complained = True
                log.warning("telemetry cannot be written", extra={"path": str(self.path), "reason": error.strerror})

    def close(self) -> None:
        """Close the file; the next event opens it again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, path: Path, raw: bytes) -> None:
        self._open(path)
        if self._torn:
            raw = b"\n" + raw
        written = os.write(self._descriptor, raw)
        self._torn = written < len(raw)
        if self._torn:
            raise OSError(0, "the disk took only a part of the line")

    def _open(self, path: Path) -> None:
        """Have the file open that is there under this name now."""
        if self._descriptor >= 0:
            here = os.fstat(self._descriptor)
            try:
                there = path.stat()
            except FileNotFoundError:
                there = None
            if there is not None and (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino):
                return
            self.close()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        # A process that was killed may have left a line without its end.
        size = os.fstat(self._descriptor).st_size
        self._torn = size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"
