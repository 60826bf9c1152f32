"""`X-API-Key`: needed on every route but the probes, where a key file is configured."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from starlette.datastructures import Headers

from aistack.services.common.errors import ConfigurationError, ServiceError

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.types import ASGIApp, Receive, Scope, Send

HEADER = "X-API-Key"
OPEN = frozenset({"/health", "/ready", "/metrics"})


class KeyUnavailable(ConfigurationError):
    """The key file is missing, unreadable or empty."""


class ApiKey:
    """The key in a file, read again whenever the file has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int, int] | None = None
        self._key = b""

    def read(self) -> bytes:
        """Return the present key.

        Raises:
            KeyUnavailable: there is none; then nobody gets in.
        """
        try:
            status = self.path.stat()
            seen = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
            if seen != self._seen:
                self._key = self.path.read_bytes().strip()
                self._seen = seen
        except OSError as error:
            self._seen = None
            raise KeyUnavailable(f"the API key's file {self.path} cannot be read: {error.strerror}") from None
        if not self._key:
            raise KeyUnavailable(f"the API key's file {self.path} is empty")
        return self._key

    def matches(self, given: str) -> bool:
        """Compare in a time that does not depend on where they differ."""
        return hmac.compare_digest(given.encode("latin-1", errors="replace"), self.read())


class Authentication:
    """The middleware: refuses before the body is read."""

    def __init__(self, app: ASGIApp, key: ApiKey) -> None:
        self.app = app
        self.key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may pass."""
        if scope["type"] == "http" and scope["path"] not in OPEN:
            error = self._refusal(Headers(scope=scope).getlist(HEADER))
            if error is not None:
                await error.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _refusal(self, given: list[str]) -> ServiceError | None:
        challenge = {"WWW-Authenticate": f'ApiKey header="{HEADER}"'}
        if len(given) != 1:
            return ServiceError(401, f"the request has no {HEADER}, or several", headers=challenge)
        try:
            if self.key.matches(given[0]):
                return None
        except KeyUnavailable as error:
            return ServiceError(
                503,
                str(error),
                kind="api-key-unavailable",
                next_step="put the key into that file; it is read again at once",
                headers={"Retry-After": "5"},
            )
        return ServiceError(401, f"the {HEADER} is wrong", headers=challenge)
