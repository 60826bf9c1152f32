"""How long a hook's process takes beside a bare interpreter's, on a host where the reference stack runs.

Prints one JSON document: milliseconds of wall time from fork to exit, each of RUNS rounds measuring every command
once, so that whatever else the machine does falls on all of them alike.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

RUNS = 30
PYTHON = "/usr/bin/python3"
HOOK = [PYTHON, "-I", "-S", "/usr/lib/aistack/aistack-hook"]

COMMANDS = {
    "python3 -I -c pass": [PYTHON, "-I", "-c", "pass"],
    "python3 -I -S -c pass": [PYTHON, "-I", "-S", "-c", "pass"],
    "await-ready redis (RESP)": [*HOOK, "await-ready", "redis"],
    "await-ready qdrant (HTTP)": [*HOOK, "await-ready", "qdrant"],
    "await-ready postgres (SCRAM login)": [*HOOK, "await-ready", "postgres"],
    "start-pre app (4 dependencies, one podman call)": [*HOOK, "start-pre", "app"],
    "podman image list": ["podman", "image", "list", "--no-trunc", "--format", "{{.ID}}"],
    "click, pydantic, requests imported": [PYTHON, "-I", "-c", "import click, pydantic, requests"],
}


def once(command: list[str]) -> float:
    """Milliseconds that one run takes; the run must succeed."""
    began = time.perf_counter()
    pid = os.posix_spawnp(
        command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    )
    _, status = os.waitpid(pid, 0)
    spent = (time.perf_counter() - began) * 1000
    if status != 0:
        sys.exit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return spent


def main() -> None:
    """Measure and print."""
    subprocess.run(["systemctl", "is-active", "--quiet", "podman-aistack-app.service"], check=True)
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for command in COMMANDS.values():
        once(command)
    for _ in range(RUNS):
        for name, command in COMMANDS.items():
            times[name].append(round(once(command), 3))
    print(json.dumps({"runs": RUNS, "milliseconds": times}))


main()
