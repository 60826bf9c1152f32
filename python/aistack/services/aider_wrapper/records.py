"""What became of executions, by their idempotency key: a file each, which survives the service.

A record is written before aider starts and again when it has ended, each time complete and on the disk before anything
else happens. So whoever asks again after a crash, of either side, is told the truth: the answer, or that there is none
and the workspace is as it was.
"""

from __future__ import annotations

import hashlib
import logging
import os
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from aistack.services.aider_wrapper.repository import Checkpoint  # noqa: TC001 (pydantic reads the annotations)
from aistack.services.aider_wrapper.schema import ExecuteResult  # noqa: TC001 (pydantic reads the annotations)

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

KEPT = 1000
"""Records of executions that have ended."""


class Record(BaseModel):
    """One execution."""

    model_config = ConfigDict(extra="forbid")

    key: str
    fingerprint: str
    """Of the request: the same key with another request is a mistake."""
    workspace: str
    state: Literal["running", "finished", "cancelled"]
    before: Checkpoint
    result: ExecuteResult | None = None

    @property
    def stands(self) -> bool:
        """Whether this is the answer for whoever asks again: it counts. Any other left nothing, and may be repeated."""
        return self.result is not None and self.result.error_kind in {None, "agent"}


class Records:
    """The records in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.new"):
            left.unlink()

    def _path(self, key: str) -> Path:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.json"

    def get(self, key: str) -> Record | None:
        """Return a record."""
        return self._read(self._path(key))

    def put(self, record: Record) -> None:
        """Write a record; it is on the disk when this returns. Raises OSError."""
        path = self._path(record.key)
        new = path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(record.model_dump_json().encode())
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def remove(self, key: str) -> None:
        """Forget an execution."""
        self._path(key).unlink(missing_ok=True)

    def running(self) -> list[Record]:
        """Return those that had not ended."""
        found = (self._read(path) for path in self.folder.glob("*.json"))
        return [record for record in found if record is not None and record.state == "running"]

    def prune(self) -> None:
        """Forget the oldest of those that have ended."""
        paths = sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in paths[KEPT:]:
            record = self._read(path)
            if record is None or record.state != "running":
                path.unlink(missing_ok=True)

    @staticmethod
    def _read(path: Path) -> Record | None:
        try:
            return Record.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            log.warning("a record of an execution cannot be read", extra={"path": str(path)})
            return None
