"""What Ralph's loop costs, in Ralph's image: prints one JSON document.

Ralph is the process of its container; its backend is the tests' stand-in (scripted_backend.py, beside this file), which
answers as soon as it has written a line into the workspace. `ralph_loop.py FOLDER`: everything is kept below it.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from scripted_backend import ScriptedBackend

ITERATIONS = 60
TASKS = 400
RESUMES = 5
PATIENCE = 120.0  # seconds for anything here
FAULTS = ["503", "drop", "malformed", "infra:no model"]
NEEDED = 5  # iterations that the task with faults needs


class Ralph:
    """Ralph's process."""

    def __init__(self, folder: Path, backend: ScriptedBackend) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        environment = {
            **os.environ,
            "RALPH_WIGGUM_PORT": str(self.port),
            "RALPH_WIGGUM_BIND_ADDRESS": "127.0.0.1",
            "RALPH_WIGGUM_DATA_PATH": str(folder / "data"),
            "RALPH_WORKSPACE_PATH": str(folder / "workspaces"),
            "AIDER_WRAPPER_HOST": "127.0.0.1",
            "AIDER_WRAPPER_PORT": str(backend.port),
            "LOG_LEVEL": "warning",
        }
        self.began = time.time()
        self.process = subprocess.Popen([sys.executable, "-m", "aistack.services.ralph_wiggum"], env=environment)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                # Nothing tells when a process begins to listen.
                time.sleep(0.002)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The document that a request is answered with."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)

    def submit(self, *script: object, limit: int = 100, **more: object) -> str:
        """Submit a task with a script for the stand-in."""
        body = {"prompt": "measure", "context": {"script": list(script)}, "max_iterations": limit, **more}
        return str(self.ask("/tasks", body)["task_id"])

    def ended(self, task_id: str) -> Any:
        """The task, once it has ended."""
        deadline = time.monotonic() + PATIENCE
        while (task := self.ask(f"/tasks/{task_id}"))["finished_at"] is None:
            if time.monotonic() > deadline:
                sys.exit(f"the task is still {task['state']}: {task['detail']}")
            time.sleep(0.02)
        return task

    def end(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(PATIENCE)


def overhead(ralph: Ralph, backend: ScriptedBackend) -> list[float]:
    """Seconds from the end of one call of the backend to the beginning of the next: all that Ralph does between."""
    task_id = ralph.submit("edit", limit=ITERATIONS)
    ralph.ended(task_id)
    calls = backend.calls_of(task_id)
    return [later["at"] - call["ended"] for call, later in itertools.pairwise(calls)]


def throughput(ralph: Ralph, clients: int) -> float:
    """Tasks that are taken in a second."""

    def send(number: int) -> str:
        return ralph.submit("done", require_approval=True, priority=number % 3)

    began = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(send, range(TASKS)))
    return TASKS / (time.monotonic() - began)


def resume(folder: Path, backend: ScriptedBackend, ralph: Ralph) -> tuple[Ralph, dict[str, float]]:
    """Kill Ralph in the middle of a call; seconds until the next one asks the backend again."""
    task_id = ralph.submit(["hang", "done"])
    backend.wait_for_call_of(task_id)
    ralph.process.kill()
    ralph.process.wait()
    again = Ralph(folder, backend)
    backend.wait_for_call_of(task_id, 2)
    asked = backend.calls_of(task_id)[1]["at"]
    state = again.ended(task_id)
    if (state["state"], state["iterations"]) != ("completed", 1):
        sys.exit(f"the resumed task is {state['state']} after {state['iterations']} iterations")
    return again, {"whole": asked - again.began}


def bare() -> float:
    """Seconds that a process takes to import what Ralph is made of, without Ralph."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import fastapi, httpx, prometheus_client, uvicorn"], check=True)
    return time.monotonic() - began


def faults(ralph: Ralph) -> dict[str, int]:
    """A task that needs a few iterations, with four faults before each answer."""
    script: list[object] = [[*FAULTS, "edit"] for _ in range(NEEDED - 1)]
    task = ralph.ended(ralph.submit(*script, [*FAULTS, "done"], limit=NEEDED))
    return {
        "faults": NEEDED * len(FAULTS),
        "needed": NEEDED,
        "counted": task["iterations"],
        "completed": int(task["state"] == "completed"),
    }


def main() -> None:
    """Measure and print."""
    folder = Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "workspaces").mkdir(parents=True)
    backend = ScriptedBackend(folder / "workspaces")
    ralph = Ralph(folder, backend)
    found: dict[str, Any] = {"overhead": overhead(ralph, backend), "faults": faults(ralph)}
    found["submitted"] = {str(clients): throughput(ralph, clients) for clients in (1, 8)}
    found["resume"], found["bare"] = [], []
    for _ in range(RESUMES):
        found["bare"].append(bare())
        ralph, seconds = resume(folder, backend, ralph)
        found["resume"].append(seconds["whole"])
    ralph.end()
    backend.close()
    print(json.dumps(found))


main()
