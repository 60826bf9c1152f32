"""What one call of aider costs beyond the model's time: through aider-wrapper, and as a plain start of aider.

Runs where aider-wrapper's image does, beside scripted_endpoint.py, which plays the model and answers at once. Both ways
edit two files in a repository of their own and commit them; every round does each once. Prints one JSON document.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 5
ENDPOINT_PORT, SERVICE_PORT = 18001, 18099
URL = f"http://127.0.0.1:{SERVICE_PORT}"
START = 300.0  # seconds that the service may take to import aider on a busy machine
PROMPT = "Write an adder. play:function"
TICK = os.sysconf("SC_CLK_TCK")

PLAIN = [
    *(sys.executable, "-m", "aider", "--message", PROMPT, "--model", "openai/tiny", "--openai-api-key", "none"),
    *("--openai-api-base", f"http://127.0.0.1:{ENDPOINT_PORT}/v1", "--map-tokens", "1024", "--yes-always"),
    *("--no-check-update", "--analytics-disable", "--no-show-model-warnings", "--no-gitignore", "--no-pretty"),
    *("--no-auto-lint", "--no-suggest-shell-commands", "--no-detect-urls", "--no-show-release-notes"),
]


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for made in ("workspaces", "state", "home"):
            (folder / made).mkdir()
        endpoint = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("scripted_endpoint.py")), str(ENDPOINT_PORT)],
            stdout=subprocess.DEVNULL,
        )
        service = subprocess.Popen(
            [sys.executable, "-m", "aistack.services.aider_wrapper"],
            env={
                **os.environ,
                "AIDER_WRAPPER_PORT": str(SERVICE_PORT),
                "AIDER_WRAPPER_WORKSPACE_ROOT": str(folder / "workspaces"),
                "AIDER_WRAPPER_STATE_DIR": str(folder / "state"),
                "LLAMA_CPP_HOST": "127.0.0.1",
                "LLAMA_CPP_PORT": str(ENDPOINT_PORT),
                "LLAMA_CPP_MODEL_FILE": "tiny.gguf",
                "LOG_LEVEL": "error",
            },
        )
        try:
            print(json.dumps(measured(folder, service)))
        finally:
            service.terminate()
            endpoint.terminate()
            service.wait()
            endpoint.wait()


def measured(folder: Path, service: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Seconds on the clock and of processor time, a list for each way."""
    began = time.perf_counter()
    wait_ready()
    ready = time.perf_counter() - began
    imported = sum(cpu(pid) for pid in (service.pid, forks(service.pid)))
    found: dict[str, Any] = {"ready": ready, "ready_cpu": imported, "forked": [], "plain": []}
    # The first of each is left out: what it reads from the disk the others find in memory.
    for number in range(ROUNDS + 1):
        one = forked(folder, service.pid, number)
        two = plain(folder, number)
        if number:
            found["forked"].append(one)
            found["plain"].append(two)
    return found


def forked(folder: Path, pid: int, number: int) -> dict[str, float]:
    """One call through aider-wrapper."""
    repository = workspace(folder / "workspaces" / f"forked-{number}")
    before = cpu(pid) + cpu(forks(pid))
    began = time.perf_counter()
    body = json.dumps({"prompt": PROMPT, "workspace": repository.name}).encode()
    request = urllib.request.Request(f"{URL}/api/execute", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        result = json.load(response)
    wall = time.perf_counter() - began
    check(repository, ok=result["completed"])
    return {"wall": wall, "cpu": cpu(pid) + cpu(forks(pid)) - before}


def plain(folder: Path, number: int) -> dict[str, float]:
    """One start of aider, with the same work."""
    repository = workspace(folder / f"plain-{number}")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(
        PLAIN,
        cwd=repository,
        env={**os.environ, "HOME": str(folder / "home"), "LITELLM_LOCAL_MODEL_COST_MAP": "True", "TERM": "dumb"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=False,
        timeout=300,
    )
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    check(repository, ok=done.returncode == 0)
    return {"wall": wall, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def workspace(path: Path) -> Path:
    """A repository with a commit."""
    path.mkdir()
    (path / "notes.txt").write_text("one\n", encoding="utf-8")
    for command in (
        ("init", "--quiet"),
        ("config", "user.name", "bench"),
        ("config", "user.email", "bench@localhost"),
        ("add", "--all"),
        ("commit", "--quiet", "--message=first"),
    ):
        subprocess.run(["git", *command], cwd=path, check=True)
    return path


def check(repository: Path, *, ok: bool) -> None:
    """See that aider committed its edit: else nothing was measured."""
    log = subprocess.run(["git", "log", "--format=%h"], cwd=repository, check=True, capture_output=True, text=True)
    if not ok or len(log.stdout.split()) != 2 or not (repository / "calc.py").is_file():
        sys.exit(f"aider made no commit in {repository}")


def cpu(pid: int) -> float:
    """Seconds of processor time of a process and of the children that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2].split()
    return sum(int(field) for field in fields[11:15]) / TICK


def forks(pid: int) -> int:
    """The fork server of the service."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            command = stat.with_name("cmdline").read_bytes()
            parent = int(stat.read_text(encoding="utf-8").rpartition(") ")[2].split()[1])
        except OSError:
            continue
        if parent == pid and b"fork_process" in command:
            return int(stat.parent.name)
    sys.exit("there is no fork server")


def wait_ready() -> None:
    """Wait until the service is ready."""
    deadline = time.monotonic() + START
    while True:
        try:
            with urllib.request.urlopen(f"{URL}/ready", timeout=30):
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                sys.exit(f"the service is not ready: {error}")
        time.sleep(0.1)


main()
