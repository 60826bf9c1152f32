"""The scripted endpoint of images/scripted-endpoint as a process, for a test."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = Path(__file__).parents[2] / "images/scripted-endpoint/scripted_endpoint.py"


class Model:
    """It plays a model."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def requests(self) -> list[dict[str, Any]]:
        """What it was asked."""
        found: list[dict[str, Any]] = self._ask("GET", "/control").json()["requests"]
        return found

    def play(self, play: str | None) -> None:
        """Say what it plays for prompts that do not; forgets what it was asked."""
        self._ask("PUT", "/control", json={"play": play}).raise_for_status()

    def refuse(self, seconds: float) -> None:
        """Refuse connections for a while; returns once it does."""
        self._ask("POST", "/control/refuse", json={"seconds": seconds})
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                self._ask("GET", "/health")
            except httpx.HTTPError:
                return
        raise AssertionError("it still listens")

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:  # noqa: ANN401 (httpx's own)
        return httpx.request(method, f"{self.url}{path}", timeout=30, trust_env=False, **options)


@contextmanager
def running() -> Iterator[Model]:
    """Run it until the block ends."""
    model = Model(serving.free_port())
    process = subprocess.Popen([sys.executable, "-I", str(PROGRAM), str(model.port)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert b"listening" in process.stdout.readline()
        with process.stdout:
            yield model
    finally:
        process.terminate()
        process.wait(10)
