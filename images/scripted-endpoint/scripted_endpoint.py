#!/usr/bin/env -S python3 -I
"""A scripted OpenAI-compatible endpoint: it plays a model whose answers are known beforehand. A stand-in, and named so.

What it plays is chosen by a word in the last message of the user that has one, else by the control route:

    play:NAME[:NUMBER][#LABEL]      for example play:function, play:eventually:3#task-7, play:status:503

A label gives the same play a count of its own. NUMBER has the meaning that PLAYS says.

    GET  /health                    200 while it listens, as the llama.cpp server answers
    GET  /v1/models                 the one model
    POST /v1/chat/completions       streamed or not
    GET  /control                   the play of those that name none, and the requests so far
    PUT  /control                   {"play": "NAME[:NUMBER]" or null} sets it, and forgets the counts
    POST /control/refuse            {"seconds": S}: connections are refused for so long

It listens on port 8000, or on the one that its only argument or SCRIPTED_ENDPOINT_PORT names.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

PATTERN = re.compile(r"\bplay:([a-z-]+)(?::([0-9]+(?:\.[0-9]+)?))?(#[A-Za-z0-9_-]+)?")
LONGEST = 600.0
"""Seconds that it hangs or goes on at most."""
KEPT = 1000
"""Requests that it remembers."""
DEFAULT = "answer"

RIGHT = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return a - b\n"
TEST = "from calc import add\n\nassert add(2, 3) == 5\n"


class BreakOff(Exception):
    """The connection is closed without a word."""


@dataclass
class Answer:
    """What the model says."""

    text: str = ""
    edits: dict[str, str] = field(default_factory=dict)
    """Whole files, written in the format that the request asks for."""
    finish_reason: str = "stop"
    status: int = 200
    error: str = ""
    """Of an answer that is no success."""
    before: float = 0.0
    """Seconds before the first byte."""
    midway: str = ""
    """After the first half of the text: `hang`, `break-off`, `endless`, `repeat` (one word for ever) or `error`."""
    raw: bytes | None = None
    """This, instead of any answer."""


def function(number: float, count: int) -> Answer:
    """A right function and its test."""
    del number, count
    return Answer("Here is the function, and a test.", {"calc.py": RIGHT, "test_calc.py": TEST})


def wrong(number: float, count: int) -> Answer:
    """A function that is wrong each time in another way, and its test."""
    del number
    return Answer("Here it is.", {"calc.py": f"# attempt {count}\n{WRONG}", "test_calc.py": TEST})


PLAYS: dict[str, Any] = {
    "answer": lambda _number, _count: Answer("There is nothing to change."),
    "function": function,
    "wrong": wrong,
    # Wrong until the NUMBERth request.
    "eventually": lambda number, count: function(number, count) if count >= number else wrong(number, count),
    # After NUMBER seconds.
    "slow": lambda number, _count: Answer("Slowly.", {"calc.py": RIGHT, "test_calc.py": TEST}, before=number),
    # 503 for the first NUMBER requests.
    "flaky": lambda number, count: (
        function(number, count) if count > number else Answer(status=503, error="the model is being loaded")
    ),
    # NUMBER is the status.
    "status": lambda number, _count: Answer(status=int(number), error=f"this is played: {int(number)}"),
    "refusal": lambda _number, _count: Answer("I cannot help with that."),
    "empty": lambda _number, _count: Answer(""),
    # An edit in no format of aider's.
    "malformed": lambda _number, _count: Answer(
        "```python\ndef add(a, b):\n```\n<<<<<<< SEARCH\nthis is nowhere\n=======\nnor is this\n>>>>>>> REPLACE\n"
    ),
    "diff": lambda _number, _count: Answer(
        "calc.py\n```python\n<<<<<<< SEARCH\n    return a - b\n=======\n    return a + b\n>>>>>>> REPLACE\n```\n"
    ),
    "escape": lambda _number, _count: Answer("Outside.", {"../../outside.txt": "escaped\n"}),
    "absolute": lambda _number, _count: Answer("Outside.", {"/tmp/outside.txt": "escaped\n"}),
    "git-internals": lambda _number, _count: Answer("Inside git.", {".git/hooks/pre-commit": "#!/bin/sh\nexit 0\n"}),
    # Through a link in the workspace, `link`.
    "through-link": lambda _number, _count: Answer("Through.", {"link/outside.txt": "escaped\n"}),
    "too-long": lambda _number, _count: Answer("def add(a, b):", finish_reason="length"),
    "hang": lambda _number, _count: Answer("late", before=LONGEST),
    "hang-midway": lambda _number, _count: Answer("Here is half of it", {"calc.py": RIGHT}, midway="hang"),
    "break-off": lambda _number, _count: Answer("Here is half of it", {"calc.py": RIGHT}, midway="break-off"),
    "endless": lambda _number, _count: Answer("word ", midway="endless"),
    "repeat": lambda _number, _count: Answer("word ", midway="repeat"),
    "error-midway": lambda _number, _count: Answer("Here is half of it", {"calc.py": RIGHT}, midway="error"),
    "garbage": lambda _number, _count: Answer(raw=b"<html>this is no JSON</html>"),
    "no-choices": lambda _number, _count: Answer(raw=b'{"object": "chat.completion"}'),
}
"""What it can play: from NUMBER and how often this play was asked for, this time included."""


def user_text(request: dict[str, Any]) -> list[str]:
    """The messages of the user, the last one first."""
    texts = []
    for message in reversed(request.get("messages", [])):
        content = message.get("content")
        if isinstance(content, list):
            content = " ".join(part.get("text", "") for part in content)
        if message.get("role") == "user" and content:
            texts.append(content)
    return texts


def written(answer: Answer, request: dict[str, Any]) -> str:
    """The answer's text, with its edits in the format that the system's message asks for."""
    system = " ".join(str(message.get("content")) for message in request.get("messages", []))
    diff = "SEARCH/REPLACE" in system
    parts = [answer.text]
    for path, content in answer.edits.items():
        body = f"<<<<<<< SEARCH\n=======\n{content}>>>>>>> REPLACE\n" if diff else content
        parts.append(f"\n{path}\n```\n{body}```\n")
    return "\n".join(parts) if answer.edits else answer.text


class Script:
    """What is played, and what was asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.default: str | None = None
        self._counts: dict[str, int] = {}
        self.requests: list[dict[str, Any]] = []

    def play(self, play: str | None) -> None:
        """Set what is played for those who name nothing, and begin anew.

        Raises:
            ValueError: there is no such play.
        """
        if play is not None:
            chosen(f"play:{play}")
        with self._lock:
            self.default = play
            self._counts.clear()
            self.requests.clear()

    def next(self, request: dict[str, Any]) -> Answer:
        """The next answer.

        Raises:
            ValueError: there is no such play.
        """
        texts = user_text(request)
        word = next((found[0] for text in texts if (found := PATTERN.search(text))), None)
        with self._lock:
            word = word or f"play:{self.default or DEFAULT}"
            count = self._counts[word] = self._counts.get(word, 0) + 1
            size = sum(len(text) for text in texts)
            seen = {
                "play": word,
                "count": count,
                "size": size,
                "time": time.time(),
                "prompt": (texts or [""])[0][:2000],
            }
            self.requests = [*self.requests, seen][-KEPT:]
        name, number = chosen(word)
        answer: Answer = PLAYS[name](number, count)
        return answer


def chosen(word: str) -> tuple[str, float]:
    """The name and the number of a play.

    Raises:
        ValueError: there is no such play.
    """
    found = PATTERN.fullmatch(word)
    if found is None or found[1] not in PLAYS:
        raise ValueError(f"{word} is no play; there are: {', '.join(PLAYS)}")
    return found[1], float(found[2] or 0)


class Handler(BaseHTTPRequestHandler):
    """The routes."""

    protocol_version = "HTTP/1.1"
    server: Endpoint
    MODEL: ClassVar[dict[str, Any]] = {"id": "scripted", "object": "model", "created": 0, "owned_by": "script"}

    def do_GET(self) -> None:
        """Answer /health, /v1/models and /control."""
        if self.path == "/health":
            self._send(200, {"status": "ok"})
        elif self.path == "/v1/models":
            self._send(200, {"object": "list", "data": [self.MODEL]})
        elif self.path == "/control":
            script = self.server.script
            self._send(200, {"play": script.default, "requests": script.requests})
        else:
            self._send(404, {"error": {"message": f"no such route: {self.path}"}})

    def do_PUT(self) -> None:
        """Answer /control."""
        if self.path != "/control":
            self._send(404, {"error": {"message": f"no such route: {self.path}"}})
            return
        try:
            self.server.script.play(self._body()["play"])
        except (ValueError, KeyError, TypeError) as error:
            self._send(400, {"error": {"message": str(error)}})
        else:
            self._send(200, {"play": self.server.script.default})

    def do_POST(self) -> None:
        """Answer a completion, or begin to refuse connections."""
        try:
            body = self._body()
            if self.path == "/control/refuse":
                seconds = float(body["seconds"])
                self._send(200, {"seconds": seconds})
                self.server.refuse(min(seconds, LONGEST))
                return
            if self.path != "/v1/chat/completions":
                self._send(404, {"error": {"message": f"no such route: {self.path}"}})
                return
            answer = self.server.script.next(body)
        except (ValueError, KeyError, TypeError) as error:
            self._send(400, {"error": {"message": str(error), "type": "invalid_request_error"}})
            return
        try:
            self._complete(body, answer)
        except (ConnectionError, BreakOff):
            self.close_connection = True
            self.connection.close()

    def _complete(self, request: dict[str, Any], answer: Answer) -> None:
        self._wait(answer.before)
        if answer.raw is not None:
            self._send_bytes(200, answer.raw, "text/event-stream" if request.get("stream") else "application/json")
        elif answer.status != 200:
            kind = "server_error" if answer.status >= 500 else "invalid_request_error"
            self._send(answer.status, {"error": {"message": answer.error, "type": kind, "code": answer.status}})
        elif request.get("stream"):
            self._stream(request, answer)
        else:
            self._whole(request, answer)

    def _whole(self, request: dict[str, Any], answer: Answer) -> None:
        if answer.midway == "break-off":
            raise BreakOff
        if answer.midway:
            self._wait(LONGEST)
        text = written(answer, request)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason}
        body = {**self._head("chat.completion"), "choices": [choice], "usage": self._usage(request, text)}
        self._send(200, body)

    def _stream(self, request: dict[str, Any], answer: Answer) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        text = written(answer, request)
        for part in self._parts(text, answer):
            self._event(choices=[{"index": 0, "delta": {"role": "assistant", "content": part}, "finish_reason": None}])
        self._event(choices=[{"index": 0, "delta": {}, "finish_reason": answer.finish_reason}])
        if (request.get("stream_options") or {}).get("include_usage"):
            self._event(choices=[], usage=self._usage(request, text))
        self.wfile.write(b"data: [DONE]\n\n")

    def _parts(self, text: str, answer: Answer) -> Iterator[str]:
        middle = len(text) // 2
        yield text[:middle]
        if answer.midway == "break-off":
            raise BreakOff
        if answer.midway == "hang":
            self._wait(LONGEST)
        elif answer.midway == "error":
            self._event(error={"message": "this is played", "type": "server_error", "code": 500})
            raise BreakOff
        elif answer.midway in {"endless", "repeat"}:
            end, count = time.monotonic() + LONGEST, 0
            while time.monotonic() < end:
                self._wait(0.01)
                count += 1
                yield text if answer.midway == "repeat" else f"{count} "
        yield text[middle:]

    def _wait(self, seconds: float) -> None:
        """Wait, unless the caller leaves."""
        if seconds <= 0:
            return
        self.connection.settimeout(seconds)
        try:
            if self.connection.recv(1, socket.MSG_PEEK) == b"":
                raise BreakOff
        except TimeoutError:
            return
        finally:
            self.connection.settimeout(None)

    def _event(self, **members: Any) -> None:
        body = {**self._head("chat.completion.chunk"), **members}
        self.wfile.write(b"data: " + json.dumps(body).encode() + b"\n\n")
        self.wfile.flush()

    @staticmethod
    def _head(kind: str) -> dict[str, Any]:
        return {"id": "scripted-1", "object": kind, "created": int(time.time()), "model": "scripted"}

    @staticmethod
    def _usage(request: dict[str, Any], text: str) -> dict[str, int]:
        asked = sum(len(str(message.get("content"))) for message in request.get("messages", [])) // 4
        said = len(text) // 4
        return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}

    def _body(self) -> dict[str, Any]:
        """The request's JSON.

        Raises:
            ValueError: it is none.
            TypeError: it is no object.
        """
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", "0"))))
        if not isinstance(body, dict):
            raise TypeError("the body is no JSON object")
        return body

    def _send(self, status: int, body: dict[str, Any]) -> None:
        self._send_bytes(status, json.dumps(body).encode(), "application/json")

    def _send_bytes(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing about requests."""


class Endpoint(ThreadingHTTPServer):
    """The server; it can refuse connections for a while and listen again."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, host: str, port: int) -> None:
        super().__init__((host, port), Handler)
        self.script = Script()

    def refuse(self, seconds: float) -> None:
        """Listen to nobody for so long; returns at once."""
        threading.Thread(target=self._refuse, args=(seconds,), daemon=True).start()

    def _refuse(self, seconds: float) -> None:
        self.shutdown()
        self.socket.close()
        time.sleep(seconds)
        self.socket = socket.socket(self.address_family, self.socket_type)
        self.server_bind()
        self.server_activate()
        self.serve_forever()


def main() -> int:
    """Serve until SIGTERM."""
    port = int(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("SCRIPTED_ENDPOINT_PORT", "8000"))
    # PID 1 has no default action for a signal.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    endpoint = Endpoint("0.0.0.0", port)
    print(f"scripted-endpoint: listening on port {port}", flush=True)
    threading.Thread(target=endpoint.serve_forever, daemon=True).start()
    while True:
        signal.pause()


if __name__ == "__main__":
    sys.exit(main())
