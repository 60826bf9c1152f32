"""Ralph's own process over a scripted backend, for tests."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import serving
from scripted_backend import ScriptedBackend

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx

MODULE = "aistack.services.ralph_wiggum"
BOUND = 120.0  # seconds for anything here: the machine may be busy
ENDED = {"completed", "exhausted", "failed", "stopped", "rejected"}


def environment(folder: Path, backend_port: int, **more: str) -> dict[str, str]:
    """The keys of the `.env` for a Ralph that keeps everything below a folder, and waits for milliseconds."""
    return {
        "RALPH_WIGGUM_PORT": "{port}",
        "RALPH_WIGGUM_BIND_ADDRESS": "127.0.0.1",
        "RALPH_WIGGUM_DATA_PATH": str(folder / "data"),
        "RALPH_WORKSPACE_PATH": str(folder / "workspaces"),
        "TELEMETRY_PATH": str(folder / "telemetry"),
        "AIDER_WRAPPER_HOST": "127.0.0.1",
        "AIDER_WRAPPER_PORT": str(backend_port),
        "RALPH_RETRY_SECONDS": "0.02",
        "RALPH_RETRY_MOST_SECONDS": "0.2",
        **more,
    }


class Ralph:
    """What a test does with a Ralph that runs."""

    def __init__(self, service: serving.Running, backend: ScriptedBackend, folder: Path) -> None:
        self.service = service
        self.backend = backend
        self.folder = folder

    def ask(self, method: str, path: str, status: int = 200, **options: Any) -> Any:  # noqa: ANN401  (JSON)
        """One request; the document that it must be answered with."""
        answer = self.service.ask(method, path, **options)
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text[:2000]}"
        return answer.json()

    def raw(self, method: str, path: str, **options: Any) -> httpx.Response:  # noqa: ANN401  (httpx's own)
        """One request."""
        return self.service.ask(method, path, **options)

    def submit(self, *script: object, status: int = 202, context: dict[str, Any] | None = None, **body: Any) -> Any:  # noqa: ANN401
        """Submit a task whose agent does what the script says."""
        asked = {"prompt": "do it", "context": {"script": list(script), **(context or {})}, **body}
        return self.ask("POST", "/tasks", status, json=asked)

    def task(self, task_id: str) -> Any:  # noqa: ANN401  (JSON)
        """A task as it is now."""
        return self.ask("GET", f"/tasks/{task_id}")

    def act(self, task_id: str, action: str, status: int = 200, **body: Any) -> Any:  # noqa: ANN401  (JSON)
        """Approve, reject, stop or resume a task."""
        said = {"by": "tester", "reason": "a test", **body}
        return self.ask("POST", f"/tasks/{task_id}/{action}", status, json=said)

    def wait(self, task_id: str, *states: str) -> Any:  # noqa: ANN401  (JSON)
        """Wait until a task is in one of the states, by default until it has ended."""
        wanted = set(states) or ENDED
        deadline = time.monotonic() + BOUND
        while (task := self.task(task_id))["state"] not in wanted:
            assert time.monotonic() < deadline, f"{task['state']} ({task['detail']}), not {wanted}"
            assert task["state"] not in ENDED, f"{task['state']} ({task['detail']}), not {wanted}"
            time.sleep(0.02)
        return task

    def iterations(self, task_id: str) -> list[dict[str, Any]]:
        """All calls for a task."""
        found: list[dict[str, Any]] = self.ask("GET", f"/tasks/{task_id}/iterations")["iterations"]
        return found

    def workspace(self, task: dict[str, Any]) -> Path:
        """A task's workspace."""
        return self.folder / "workspaces" / str(task["workspace"])


@contextmanager
def running(folder: Path, *, backend: ScriptedBackend | None = None, **more: str) -> Iterator[Ralph]:
    """Run Ralph over a scripted backend, a new one unless one is given, until the block ends."""
    (folder / "workspaces").mkdir(exist_ok=True)
    behind = backend or ScriptedBackend(folder / "workspaces")
    try:
        with serving.running(MODULE, folder, environment(folder, behind.port, **more)) as service:
            yield Ralph(service, behind, folder)
    finally:
        if backend is None:
            behind.close()
