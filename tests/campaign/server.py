"""What the campaign's releases share. It stays beside app.py in the image of each.

GET /health  200 while the process lives.
GET /ready   200 and {"status": "ready", "release": …} if postgres and redis answer too, else 503.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWER_SECONDS = 1.0
POSTGRES = (os.environ.get("POSTGRES_HOST", "postgres"), int(os.environ.get("POSTGRES_PORT", "5432")))
REDIS = (os.environ.get("REDIS_HOST", "redis"), int(os.environ.get("REDIS_PORT", "6379")))

Answer = tuple[int, str]


def body(status: str) -> str:
    """Return what a page says; with the release, so that a client sees which one serves."""
    return json.dumps({"status": status, "release": os.environ.get("RELEASE", "")})


def ready(path: str) -> Answer:
    """Answer as a good release does."""
    if path != "/health":
        try:
            ask(POSTGRES, b"\0\0\0\x08\x04\xd2\x16\x2f")  # SSLRequest: S or N
            ask(REDIS, b"PING\r\n")
        except OSError as error:
            return 503, body(f"not ready: {error}")
    return 200, body("ready")


def ask(place: tuple[str, int], question: bytes) -> None:
    """Want any answer at all from a dependency; raises OSError."""
    try:
        with socket.create_connection(place, timeout=ANSWER_SECONDS) as link:
            link.sendall(question)
            said = link.recv(1)
    except OSError as error:
        raise ConnectionError(f"{place[0]}:{place[1]}: {error}") from error
    if not said:
        raise ConnectionError(f"{place[0]}:{place[1]} says nothing")


def serve(answer: Callable[[str], Answer] = ready, *, address: str = "0.0.0.0", port: int = 8000) -> None:
    """Serve for ever, until SIGTERM where nobody else has a handler for it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = answer(self.path)
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Say nothing about requests."""

    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    ThreadingHTTPServer((address, port), Handler).serve_forever()
