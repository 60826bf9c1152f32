"""Where a run of aider writes what happens to it (order.py says which events there are)."""

from __future__ import annotations

import json
import os


class Report:
    """A pipe to the service."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, event: str, **members: object) -> None:
        """Write one event."""
        os.write(self._descriptor, json.dumps({"event": event, **members}).encode() + b"\n")
