#!/usr/bin/env -S python3 -I
"""An administrator's own container: it is ready only if it can really use all it depends on.

GET /health  200 while the process lives.
GET /ready   200 if SQL with a vector distance, a redis round trip, a completion and a vector search
             all work now, else 503; either way a JSON body with each one's milliseconds or error.
Configured by the stack's .env keys alone; POSTGRES_PASSWORD may be a file (POSTGRES_PASSWORD_FILE).
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import redis

PORT = 8000
TIMEOUT = 1.5
"""Seconds that any one step with a dependency may take."""

NEEDED = (
    *("POSTGRES_HOST", "POSTGRES_PORT", "POSTGRES_DB", "POSTGRES_USER"),
    *("REDIS_HOST", "REDIS_PORT", "QDRANT_HOST", "QDRANT_PORT"),
    *("LLAMA_CPP_HOST", "LLAMA_CPP_PORT"),
)


class NotUsable(Exception):
    """A dependency answered, but not with what it should."""


def password(key: str) -> str | None:
    """Return the secret `key`, from its file if KEY_FILE names one."""
    file = os.environ.get(f"{key}_FILE")
    return Path(file).read_text(encoding="utf-8").strip() if file else os.environ.get(key)


def check_postgres() -> None:
    """Compare two vectors in the database."""
    env = os.environ
    with (
        psycopg.connect(
            host=env["POSTGRES_HOST"],
            port=int(env["POSTGRES_PORT"]),
            dbname=env["POSTGRES_DB"],
            user=env["POSTGRES_USER"],
            password=password("POSTGRES_PASSWORD"),
            connect_timeout=2,
            autocommit=True,
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT '[3,4]'::vector <-> '[0,0]'::vector")
        row = cursor.fetchone()
        if row is None or abs(float(row[0]) - 5.0) > 1e-6:
            raise NotUsable(f"the distance of (3,4) came out as {row}")


def check_redis() -> None:
    """Write a value of our own and read it back."""
    with redis.Redis(
        host=os.environ["REDIS_HOST"],
        port=int(os.environ["REDIS_PORT"]),
        password=password("REDIS_PASSWORD"),
        socket_timeout=TIMEOUT,
        socket_connect_timeout=TIMEOUT,
    ) as client:
        key, value = f"app:{secrets.token_hex(8)}", secrets.token_bytes(16)
        client.set(key, value, ex=60)
        if client.getdel(key) != value:
            raise NotUsable("a value did not come back as it was written")


def call(prefix: str, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Send JSON to the service whose keys start with `prefix`; return the decoded answer."""
    env = os.environ
    connection = HTTPConnection(env[f"{prefix}_HOST"], int(env[f"{prefix}_PORT"]), timeout=TIMEOUT)
    try:
        connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        response = connection.getresponse()
        data = response.read()
    finally:
        connection.close()
    if response.status >= 300:
        raise NotUsable(f"{method} {path}: {response.status} {data[:200].decode(errors='replace')}")
    return json.loads(data)


def check_llama_cpp() -> None:
    """Have the model say a few tokens."""
    answer = call("LLAMA_CPP", "POST", "/completion", {"prompt": "hello", "n_predict": 2})
    if answer.get("tokens_predicted", 0) < 1:
        raise NotUsable(f"no token predicted: {answer}")


def check_qdrant() -> None:
    """Store two vectors in a collection of our own and find the nearer one."""
    name = f"app-{secrets.token_hex(8)}"
    call("QDRANT", "PUT", f"/collections/{name}", {"vectors": {"size": 2, "distance": "Cosine"}})
    try:
        points = [{"id": 1, "vector": [1.0, 0.0]}, {"id": 2, "vector": [0.0, 1.0]}]
        call("QDRANT", "PUT", f"/collections/{name}/points?wait=true", {"points": points})
        query = {"vector": [0.1, 0.9], "limit": 1}
        hits = call("QDRANT", "POST", f"/collections/{name}/points/search", query)["result"]
        if [hit["id"] for hit in hits] != [2]:
            raise NotUsable(f"the nearest of two points came out as {hits}")
    finally:
        call("QDRANT", "DELETE", f"/collections/{name}")


CHECKS: dict[str, Callable[[], None]] = {
    "postgres": check_postgres,
    "redis": check_redis,
    "llama-cpp": check_llama_cpp,
    "qdrant": check_qdrant,
}


def measure(check: Callable[[], None]) -> dict[str, Any]:
    """Run one check; return whether it worked, its milliseconds, and the error if it did not."""
    started = time.perf_counter()
    error: str | None = None
    try:
        check()
    except (NotUsable, OSError, ValueError, KeyError, psycopg.Error, redis.RedisError) as problem:
        error = f"{type(problem).__name__}: {problem}".splitlines()[0]
    ms = round((time.perf_counter() - started) * 1000, 1)
    return {"ok": error is None, "ms": ms, **({"error": error} if error else {})}


def readiness() -> tuple[bool, dict[str, Any]]:
    """Try all dependencies at once."""
    with ThreadPoolExecutor(len(CHECKS)) as pool:
        results = dict(zip(CHECKS, pool.map(measure, CHECKS.values()), strict=True))
    ready = all(result["ok"] for result in results.values())
    return ready, {"status": "ready" if ready else "not ready", "dependencies": results}


class Handler(BaseHTTPRequestHandler):
    """The two endpoints."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer /health and /ready."""
        if self.path == "/health":
            self._send(200, {"status": "ok"})
        elif self.path == "/ready":
            ready, body = readiness()
            self._send(200 if ready else 503, body)
        else:
            self._send(404, {"error": f"no such page: {self.path}"})

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing about requests: probes would fill the journal."""


def main() -> int:
    """Serve until SIGTERM; 78 where the configuration is not complete."""
    missing = [key for key in NEEDED if not os.environ.get(key)]
    if missing:
        print(f"app: not set: {', '.join(missing)}", file=sys.stderr, flush=True)
        return 78
    # PID 1 has no default action for a signal.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = ThreadingHTTPServer(("0.0.0.0", PORT), Handler)
    server.daemon_threads = True
    print(f"app: listening on port {PORT}", flush=True)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
