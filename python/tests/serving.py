"""A service of ours for a test: as an application in this process, or as the process that a container runs."""

from __future__ import annotations

import asyncio
import atexit
import functools
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI

START_SECONDS = 240.0
"""A generous bound: the machine may be busy."""


def ask(app: FastAPI, method: str, path: str, **options: Any) -> httpx.Response:  # noqa: ANN401 (httpx's own)
    """One request to an application in this process."""

    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.request(method, path, **options)

    return _runner().run(go())


@functools.cache
def _runner() -> asyncio.Runner:
    """One loop for all requests: what an application waits with belongs to the loop that it waited in first."""
    runner = asyncio.Runner()
    atexit.register(runner.close)
    return runner


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


class Running:
    """A service's process."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:  # noqa: ANN401 (httpx's own)
        """One request."""
        return httpx.request(method, f"{self.url}{path}", timeout=START_SECONDS, trust_env=False, **options)


@contextmanager
def running(
    module: str, folder: Path, environment: dict[str, str], *, python: str | Path = sys.executable
) -> Iterator[Running]:
    """Run `python -m module` until the block ends; it listens once the block begins.

    `environment` has the keys of the `.env`; `{port}` in a value becomes the port. Its standard error is in
    `service.log` in `folder`.
    """
    port = free_port()
    log = folder / "service.log"
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
    settings = {key: value.replace("{port}", str(port)) for key, value in environment.items()}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(python), "-m", module],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(paths), "HOME": str(folder), **settings},
            start_new_session=True,
        )
    service = Running(process, port, log)
    try:
        _wait_listening(service)
        yield service
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def _wait_listening(service: Running) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        if service.process.poll() is not None:
            raise AssertionError(f"it ended with {service.process.returncode}: {service.log.read_text()}")
        try:
            socket.create_connection(("127.0.0.1", service.port), 1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            # Nothing tells when a process begins to listen.
            time.sleep(0.02)
        else:
            return
