"""What really passes between aider and the model's endpoint.

litellm, which aider asks with, hides much of it: an answer that breaks off comes out as a complete one, and many errors
with another status than the endpoint's. So whose failure something is, is read from the connection itself.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import httpx

from aistack.services.aider_wrapper import order as orders

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aistack.services.aider_wrapper.report import Report

CONNECT_SECONDS = 5.0
_REFUSED = frozenset({400, 413, 422})
"""The endpoint works, and will not take this request."""


class Wire(httpx.BaseTransport):
    """Carries requests, and remembers of the last one how it went.

    Attributes:
        status: the status of the answer; None if there was none.
        failure: how the connection failed; None if it did not.
        ended: whether all of the answer has passed.
        finished: whether it came to its end, by its own words.
        error: the status of an error that the endpoint sent in the middle of an answer; None if it sent none.
        tokens: what the endpoint counted; None if it did not say.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        # Plain HTTP inside the stack's network; preparing TLS would take longer than all else.
        self._inner = httpx.HTTPTransport(verify=False, trust_env=False)
        self._forget()

    def _forget(self) -> None:
        self.status: int | None = None
        self.failure: httpx.TransportError | None = None
        self.ended = False
        self.finished = False
        self.error: int | None = None
        self.tokens: int | None = None

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Carry a request."""
        self._forget()
        self._report.write(orders.ASKED)
        request.headers["Accept-Encoding"] = "identity"
        try:
            response = self._inner.handle_request(request)
        except httpx.TransportError as error:
            self.failure = error
            raise
        self.status = response.status_code
        stream = response.stream
        assert isinstance(stream, httpx.SyncByteStream)  # noqa: S101 (of a synchronous transport)
        return httpx.Response(
            response.status_code,
            headers=response.headers,
            stream=_Watched(stream, self, self._report),
            extensions=response.extensions,
        )

    def close(self) -> None:
        """Close its connections."""
        self._inner.close()

    def line(self, line: bytes) -> None:
        """Take in one line of the answer, a server-sent event."""
        name, _, value = line.partition(b":")
        if name != b"data":
            return
        if value.strip() == b"[DONE]":
            self.finished = True
            return
        try:
            event = json.loads(value)
            if event.get("error"):
                code = event["error"].get("code")
                self.error = code if isinstance(code, int) else httpx.codes.INTERNAL_SERVER_ERROR
            choices, usage = event.get("choices") or [], event.get("usage")
            self.finished = self.finished or any(choice.get("finish_reason") for choice in choices)
            self.tokens = usage["total_tokens"] if usage else self.tokens
        except (ValueError, AttributeError, KeyError, TypeError):
            # Not what the protocol says; whether anything came of it, its end shows.
            return

    def blame(self) -> tuple[str, str]:
        """Return whose failure the last request was, and what happened."""
        if self.failure is not None:
            kind = type(self.failure).__name__
            return "infrastructure", f"the model's endpoint cannot be reached: {str(self.failure) or kind}"
        status = self.error or self.status
        if status is None or (status == httpx.codes.OK and self.ended):
            return "infrastructure", "the model's endpoint broke off its answer, or answered with something else"
        if status == httpx.codes.OK:
            # litellm does so after a hundred times the same.
            return "agent", "the model's answer was given up on: it repeats itself, or cannot be read"
        said = f"the model's endpoint answered with status {status}"
        if status == httpx.codes.TOO_MANY_REQUESTS:
            return "limit", said
        return ("agent" if status in _REFUSED else "infrastructure"), said


class _Watched(httpx.SyncByteStream):
    """The answer's bytes, looked at while they pass."""

    def __init__(self, inner: httpx.SyncByteStream, wire: Wire, report: Report) -> None:
        self._inner = inner
        self._wire = wire
        self._report = report

    def __iter__(self) -> Iterator[bytes]:
        began, rest = False, b""
        try:
            for chunk in self._inner:
                if not began:
                    began = True
                    self._report.write(orders.ANSWERING)
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._wire.line(line)
                yield chunk
        except httpx.TransportError as error:
            self._wire.failure = error
            raise
        self._wire.line(rest)
        self._wire.ended = True

    def close(self) -> None:
        """Close the connection."""
        self._inner.close()
