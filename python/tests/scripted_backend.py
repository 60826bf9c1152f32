"""A stand-in for aider-wrapper: the same routes, and an agent that does what a task's own context says.

`context` has `script`: a list with what each iteration does, the last entry for all that follow. An entry may be a
list: what each attempt at this iteration does. It writes real files into the real workspace.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

PARTIAL = "half-done.txt"


class ScriptedBackend:
    """Serves on the loopback until it is closed."""

    def __init__(self, workspaces: Path, *, port: int = 0, seconds: float = 0.0, key: str | None = None) -> None:
        self.workspaces = workspaces
        self.seconds = seconds  # that each execution takes
        self.key = key
        self.ready = True
        self.down = False  # answers everything with 503
        self.calls: list[dict[str, Any]] = []
        self.finished: dict[str, dict[str, Any]] = {}
        self.state: dict[str, str] = {}
        self.inside: dict[str, int] = {}
        self.most_at_a_time = 0
        self.together: list[str] = []  # workspaces in which two executions were at a time
        self.lock = threading.Lock()
        self.gone = False
        self.connections: set[socket.socket] = set()
        outer = self

        class Handler(_Handler):
            backend = outer

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Be gone at once: nobody is answered any more, and every connection breaks."""
        self.gone = True
        self.server.shutdown()
        self.server.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def calls_of(self, task_id: str) -> list[dict[str, Any]]:
        """Executions that were asked for a task, the first one first."""
        with self.lock:
            return [call for call in self.calls if call["key"].startswith(task_id)]

    def wait_for_call_of(self, task_id: str, number: int = 1, seconds: float = 120.0) -> None:
        """Wait until that many executions were asked for a task."""
        deadline = time.monotonic() + seconds
        while len(self.calls_of(task_id)) < number:
            assert time.monotonic() < deadline, f"only {len(self.calls_of(task_id))} calls"
            time.sleep(0.01)


class _Handler(BaseHTTPRequestHandler):
    backend: ScriptedBackend
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        """Remember the connection."""
        super().setup()
        self.backend.connections.add(self.connection)

    def finish(self) -> None:
        """Forget it."""
        self.backend.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def handle(self) -> None:
        """Serve it, until it breaks."""
        with contextlib.suppress(OSError):
            super().handle()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def answer(self, status: int, document: bytes | dict[str, Any], **headers: str) -> None:
        """Answer with JSON."""
        body = json.dumps(document).encode() if not isinstance(document, bytes) else document
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def problem(self, status: int, kind: str, **headers: str) -> None:
        """Answer with a problem."""
        words = {"type": f"urn:aistack:problem:{kind}", "kind": kind, "title": kind, "status": status}
        self.answer(status, {**words, "detail": f"scripted {kind}", "next_step": "none"}, **headers)

    def do_GET(self) -> None:
        """Say how things are."""
        if self.path == "/ready":
            if self.backend.ready and not self.backend.down:
                self.answer(200, {"status": "ready"})
            else:
                self.problem(503, "not-ready")
            return
        if self.path == "/health":
            self.answer(200, {"status": "ok"})
            return
        key = self.path.rpartition("/")[2]
        with self.backend.lock:
            state = self.backend.state.get(key)
            result = self.backend.finished.get(key)
        if state is None:
            self.problem(404, "not-found")
        else:
            self.answer(200, {"state": state, "result": result})

    def do_POST(self) -> None:
        """Let the scripted agent work."""
        backend = self.backend
        try:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        except ValueError:
            self.problem(400, "malformed")
            return
        if not isinstance(request.get("prompt"), str):
            self.problem(422, "invalid")
            return
        request.setdefault("workspace", "default")
        if ".." in request["workspace"]:
            self.problem(403, "outside-workspace")
            return
        key = self.headers["Idempotency-Key"]
        if backend.key is not None and self.headers.get("X-API-Key") != backend.key:
            self.problem(401, "unauthenticated")
            return
        if backend.down:
            self.problem(503, "unavailable")
            return
        with backend.lock:
            if (known := backend.finished.get(key)) is not None:
                self.answer(200, known)
                return
            call = {"key": key, "at": time.time(), **request}
            backend.calls.append(call)
            name = request["workspace"]
            if backend.inside.get(name):
                backend.together.append(name)
            backend.inside[name] = backend.inside.get(name, 0) + 1
            backend.most_at_a_time = max(backend.most_at_a_time, sum(backend.inside.values()))
            backend.state[key] = "running"
        result = None
        try:
            result = self.work(request, key)
        finally:
            with backend.lock:
                backend.inside[name] -= 1
                call["ended"] = time.time()
                backend.state[key] = "cancelled" if result is None else "finished"
                if result is not None:
                    backend.finished[key] = result
        if result is not None:
            self.answer(200, result)

    def work(self, request: dict[str, Any], key: str) -> dict[str, Any] | None:
        """What the script says; None if the caller is answered already, or has gone."""
        script = request["context"].get("script", ["done"])
        number = request["iteration"]
        entry = script[min(number, len(script)) - 1]
        attempt = int(key.split(".")[2]) if key.count(".") == 3 else 1
        action = entry[min(attempt, len(entry)) - 1] if isinstance(entry, list) else entry
        word, _, text = str(action).partition(":")
        folder = self.backend.workspaces / request["workspace"]
        partial = folder / PARTIAL
        partial.write_text(key)
        if not self.spend(request["context"].get("seconds", self.backend.seconds)):
            return None
        if word == "hang" and not self.spend(3600.0):
            return None
        if word in {"503", "500", "429", "401", "403", "409", "422", "404"}:
            retry = {"Retry_After": text} if text else {}
            self.problem(int(word), "scripted", **retry)
            return None
        if word == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return None
        if word == "malformed":
            self.answer(200, b'{"output": "no exit code"}')
            return None
        partial.unlink(missing_ok=True)
        before = {path.name for path in folder.iterdir()}
        if word in {"edit", "done", "escape"}:
            with (folder / "work.txt").open("a") as file:
                file.write(f"{number}\n")
        if word == "escape":
            (folder / "link").symlink_to("/etc")
        if word == "write":
            name, _, content = text.partition("=")
            (folder / name).write_text(content)
        code = {"fail": 1, "block": 2}.get(word, 0)
        kind = {"fail": "agent", "infra": "infrastructure", "policy": "policy", "budget": "budget", "limit": "limit"}
        return {
            "exit_code": code,
            "output": f"scripted {action}",
            "completed": word in {"done", "lie", "write"},
            "error": text or None if word in {"fail", "block", *kind} else None,
            "error_kind": kind.get(word),
            "files_modified": sorted({path.name for path in folder.iterdir()} - before),
            "git_commits": [],
            "duration_seconds": 0.0,
            "tokens": request["context"].get("tokens", 10),
        }

    def spend(self, seconds: float) -> bool:
        """Take that long; False if the caller has hung up meanwhile."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select([self.connection], [], [], min(left, 0.02))
            if readable or self.backend.gone:
                return False
        return True
