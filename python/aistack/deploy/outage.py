"""How long a service did not answer while it was switched: asked again and again in a thread of its own."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self

from aistack.hooks import probe, runtime

if TYPE_CHECKING:
    from aistack.hooks.manifest import Manifest, Service

_PAUSE = 0.02  # seconds between two questions
_LONGEST_QUESTION = 1.0  # seconds; a service that holds an answer back for longer does not serve


class Outage:
    """A context manager; `seconds` afterwards is the time from the last answer before each gap to the next."""

    def __init__(self, manifest: Manifest, service: Service) -> None:
        """Ask nothing yet."""
        import copy

        self.seconds: float | None = None
        self._manifest = manifest
        self._service = copy.copy(service)
        # Whoever answers under the name will do.
        self._service.container = ""
        if self._service.probe is not None:
            self._service.probe = copy.copy(self._service.probe)
            self._service.probe.timeout = min(self._service.probe.timeout, _LONGEST_QUESTION)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        """Begin, if there is anything to ask."""
        if self._service.probe is not None and self._service.probe.kind != "exec":
            self._password = runtime.probe_password(self._manifest, self._service)
            self.seconds = 0.0
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(_LONGEST_QUESTION + 5)

    def _watch(self) -> None:
        answered = time.monotonic()
        gap = False
        total = 0.0
        while not self._over.is_set():
            ok = probe.ask(self._manifest, self._service, self._password).ok
            now = time.monotonic()
            if ok:
                total += now - answered if gap else 0.0
                answered, gap = now, False
            else:
                gap = True
            self.seconds = total + (now - answered if gap else 0.0)
            self._over.wait(_PAUSE)
