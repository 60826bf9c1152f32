"""The service that lets an agent work, asked over HTTP. Failures are typed by how they came, never by their text."""

from __future__ import annotations

import dataclasses
import email.utils
import enum
import json
import socket
import time
from typing import TYPE_CHECKING, Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from aistack.services.ralph_wiggum.states import FailureClass

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_CONNECT = 5.0  # seconds
_MARGIN = 30.0  # seconds that an answer may come later than the backend's own time limit
_PROBE = 5.0  # seconds
_MOST = 32 * 1024 * 1024  # bytes of an answer
_LONGEST_PAUSE = 3600.0  # seconds; a backend that asks for a longer pause is asked again by then
KEY_HEADER = "X-API-Key"
IDEMPOTENCY_HEADER = "Idempotency-Key"


class Order(BaseModel):
    """What is asked of the backend, as the contract has it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    # The prompt of a task, and what its last attempt came to.
    prompt: str = Field(min_length=1, max_length=110_000)
    context: dict[str, JsonValue]
    iteration: int = Field(ge=1, le=10_000)
    mode: Literal["autonomous"]
    workspace: str = Field(min_length=1, max_length=200, pattern=r"^[^\x00]+$")
    timeout_seconds: float = Field(ge=1, le=3600)


class Reply(BaseModel):
    """What an execution came to, as the contract has it."""

    model_config = ConfigDict(extra="ignore", strict=True)

    exit_code: int
    output: str
    completed: bool
    error: str | None
    error_kind: FailureClass | None = Field(strict=False)
    files_modified: list[str]
    git_commits: list[str]
    duration_seconds: float
    tokens: int | None


class _Execution(BaseModel):
    """What the backend says about an execution."""

    model_config = ConfigDict(extra="ignore", strict=True)

    state: Literal["running", "finished", "cancelled"]
    result: Reply | None


class Missing(enum.Enum):
    """Why an execution has no result."""

    RUNNING = "running"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trouble:
    """Why there is no reply. `retry_after` are the seconds that the backend asks to wait."""

    failure_class: FailureClass
    kind: str
    detail: str
    retry_after: float | None = None
    refused: bool = False  # the request itself is wrong: it would be refused again


class Backend:
    """One backend at one address."""

    def __init__(self, name: str, url: str, *, key_file: Path | None = None) -> None:
        """Describe it; nothing is asked yet."""
        self.name = name
        self.url = url.rstrip("/")
        self._key_file = key_file
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=8)
        # What this machine's environment says about proxies is about the world, not about a service next door.
        self._client = httpx.AsyncClient(base_url=self.url, trust_env=False, follow_redirects=False, limits=limits)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def ready(self) -> str | None:
        """None if it can work now, else why not."""
        try:
            answer = await self._client.get("/ready", timeout=_PROBE)
        except (httpx.HTTPError, OSError) as error:
            return _unreachable(error, self.url).detail
        return (
            None if answer.status_code == httpx.codes.OK else f"{self.url}/ready was answered with {answer.status_code}"
        )

    async def execute(self, order: Order, *, key: str, headers: Mapping[str, str]) -> Reply | Trouble:
        """Let the agent work, and wait for what it came to. Cancelling it hangs up."""
        try:
            sent = {**headers, IDEMPOTENCY_HEADER: key, **self._authentication()}
        except OSError as error:
            where = f"{self._key_file}: {error.strerror}"
            return Trouble(
                failure_class=FailureClass.INFRASTRUCTURE, kind="key", detail=f"its API key cannot be read: {where}"
            )
        patience = httpx.Timeout(order.timeout_seconds + _MARGIN, connect=_CONNECT)
        try:
            async with self._client.stream(
                "POST", "/api/execute", json=order.model_dump(mode="json"), headers=sent, timeout=patience
            ) as answer:
                body = b""
                async for chunk in answer.aiter_bytes():
                    body += chunk
                    if len(body) > _MOST:
                        return _malformed(f"its answer is larger than {_MOST} bytes")
        except (httpx.HTTPError, OSError) as error:
            return _unreachable(error, self.url)
        return understood(answer.status_code, answer.headers, body)

    async def outcome(self, key: str) -> Reply | Trouble | Missing:
        """What became of an execution whose answer nobody heard. Starts none."""
        try:
            answer = await self._client.get(f"/api/execute/{key}", headers=self._authentication(), timeout=_PROBE)
        except (httpx.HTTPError, OSError) as error:
            return _unreachable(error, self.url)
        if answer.status_code == httpx.codes.NOT_FOUND:
            return Missing.UNKNOWN
        if answer.status_code != httpx.codes.OK:
            return understood(answer.status_code, answer.headers, answer.content)
        try:
            found = _Execution.model_validate_json(answer.content)
        except ValidationError:
            return _malformed("what it says about an execution is not what the contract says")
        if found.state == "finished" and found.result is not None:
            return found.result
        return Missing.RUNNING if found.state == "running" else Missing.CANCELLED

    def _authentication(self) -> dict[str, str]:
        # Read each time: a key may be rotated.
        return {} if self._key_file is None else {KEY_HEADER: self._key_file.read_text(encoding="utf-8").strip()}


def understood(status: int, headers: Mapping[str, str], body: bytes) -> Reply | Trouble:
    """What an answer means."""
    if status == httpx.codes.OK:
        try:
            return Reply.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the document"
            return _malformed(f"its answer is not what the contract says: {where}: {first['msg']}")
    said = f"it answered with {status}{_detail(body)}"
    if status == httpx.codes.TOO_MANY_REQUESTS:
        return Trouble(
            failure_class=FailureClass.LIMIT, kind="rate_limit", detail=said, retry_after=retry_after(headers)
        )
    if status == httpx.codes.FORBIDDEN:
        return Trouble(failure_class=FailureClass.POLICY, kind="forbidden", detail=said)
    if status in {400, 413, 415, 422}:
        return Trouble(failure_class=FailureClass.POLICY, kind="refused", detail=said, refused=True)
    kind = {401: "unauthenticated", 408: "timeout", 409: "busy", 504: "timeout"}.get(status, f"http_{status}")
    return Trouble(failure_class=FailureClass.INFRASTRUCTURE, kind=kind, detail=said, retry_after=retry_after(headers))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer asks to wait, as a number or as a date; None if it does not say."""
    value = headers.get("Retry-After", "")
    if value.isdecimal():
        return min(float(value), _LONGEST_PAUSE)
    try:
        moment = email.utils.parsedate_to_datetime(value).timestamp()
    except ValueError:
        return None
    return min(max(0.0, moment - time.time()), _LONGEST_PAUSE)


def _detail(body: bytes) -> str:
    """What a problem document says, for people."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    detail = document.get("detail") if isinstance(document, dict) else None
    return f": {detail[:500]}" if isinstance(detail, str) else ""


def _malformed(why: str) -> Trouble:
    return Trouble(failure_class=FailureClass.INFRASTRUCTURE, kind="malformed", detail=why)


def _unreachable(error: Exception, url: str) -> Trouble:
    kind, why = "unreachable", str(error) or type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            kind, why = "name_unknown", "its name is not known"
        elif isinstance(cause, ConnectionRefusedError):
            kind, why = "refused", "the connection was refused"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.TimeoutException):
        kind, why = "timeout", "it did not answer in time"
    return Trouble(failure_class=FailureClass.INFRASTRUCTURE, kind=kind, detail=f"{url}: {why}")
