"""Ralph is killed at random moments, while tasks are submitted and worked on: nothing is lost, nothing counts twice.

Ralph, its database and its workspaces are real; the backend is a scripted stand-in. AISTACK_KILLS sets how many times
it is killed; there are three tasks for each, so that 67 makes 200.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any

import httpx
import ralphs
import serving
from scripted_backend import PARTIAL, ScriptedBackend

if TYPE_CHECKING:
    from pathlib import Path

KILLS = int(os.environ.get("AISTACK_KILLS", "8"))
TASKS = 3 * KILLS
# Each ends after as many iterations as it has entries.
SCRIPTS: list[list[object]] = [
    ["done"],
    ["edit", "done"],
    ["edit", ["503", "edit"], "fail:once", "done"],
    [["drop", "edit"], "block:not yet", "done"],
    [["infra:no model", "malformed", "done"]],
]


def lines(script: list[object]) -> str:
    """What the workspace's file holds in the end: a line for each iteration that edited, each once."""
    last = [entry[-1] if isinstance(entry, list) else entry for entry in script]
    return "".join(f"{number}\n" for number, word in enumerate(last, 1) if word in {"edit", "done"})


def submit_all(url: list[str], accepted: dict[int, str]) -> None:
    """Submit every task until it is accepted, whatever happens to Ralph meanwhile."""
    deadline = time.monotonic() + ralphs.BOUND * (1 + KILLS)
    for number in range(TASKS):
        script = SCRIPTS[number % len(SCRIPTS)]
        body = {
            "prompt": f"task {number}",
            "context": {"script": script, "seconds": 0.02},
            "verify": [f"test $(wc -l < work.txt) -ge {lines(script).count(chr(10))}"],
        }
        while number not in accepted:
            assert time.monotonic() < deadline
            try:
                answer = httpx.post(
                    f"{url[-1]}/tasks",
                    json=body,
                    headers={"Idempotency-Key": f"task-{number}"},
                    timeout=10,
                    trust_env=False,
                )
                assert answer.status_code == 202, answer.text
                accepted[number] = answer.json()["task_id"]
            except httpx.HTTPError:
                # It was just killed.
                time.sleep(0.02)


def test_no_task_is_lost_and_no_iteration_counts_twice(tmp_path: Path) -> None:
    workspaces = tmp_path / "workspaces"
    workspaces.mkdir()
    backend = ScriptedBackend(workspaces)
    chance = random.Random(0)  # noqa: S311  (the same each time)
    url: list[str] = []
    accepted: dict[int, str] = {}
    submitting = threading.Thread(target=submit_all, args=(url, accepted), daemon=True)
    try:
        for number in itertools.count():
            last = number == KILLS
            environment = ralphs.environment(tmp_path, backend.port)
            with serving.running(ralphs.MODULE, tmp_path, environment) as service:
                url.append(service.url)
                if number == 0:
                    submitting.start()
                if not last:
                    time.sleep(chance.uniform(0.0, 1.5))
                    service.process.kill()
                    service.process.wait()
                    continue
                submitting.join(ralphs.BOUND * (1 + KILLS))
                check(service, accepted, backend, tmp_path)
                break
    finally:
        backend.close()


def check(service: serving.Running, accepted: dict[int, str], backend: ScriptedBackend, folder: Path) -> None:
    """Every task is done, and everything that is known of it agrees."""
    assert sorted(accepted) == list(range(TASKS))
    assert len(set(accepted.values())) == TASKS
    ralph = ralphs.Ralph(service, backend, folder)
    for number, task_id in accepted.items():
        script = SCRIPTS[number % len(SCRIPTS)]
        task = ralph.wait(task_id)
        assert (task["state"], task["reason"]) == ("completed", "verified"), task
        assert task["iterations"] == len(script)
        calls = ralph.iterations(task_id)
        counted = [call for call in calls if call["counted"]]
        assert [call["number"] for call in counted] == list(range(1, len(script) + 1))
        assert all(call["phase"] == "closed" for call in calls)
        assert len(calls) - len(counted) == task["uncounted"]
        assert sum(call["tokens"] for call in calls) == task["tokens"]
        assert (ralph.workspace(task) / "work.txt").read_text() == lines(script)
        assert not (ralph.workspace(task) / PARTIAL).exists()
        keys = [call["idempotency_key"] for call in calls]
        asked = [call["key"] for call in backend.calls_of(task_id)]
        # Nothing is asked that was not written down, and nothing that counts was not asked.
        assert set(asked) <= set(keys)
        assert {call["idempotency_key"] for call in counted} <= set(asked)
    assert ralph.ask("GET", "/stats")["tasks"]["completed"] == TASKS
    assert not backend.together
    service.process.terminate()
    assert service.process.wait(ralphs.BOUND) == 0
    agree(folder)


def agree(folder: Path) -> None:
    """The database is whole, and telemetry has every event of it at least once."""
    database = sqlite3.connect(folder / "data" / "ralph.db")
    try:
        assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        events = {row[0] for row in database.execute("SELECT id FROM event")}
        ended = database.execute("SELECT count(*) FROM event WHERE name = 'task.ended'").fetchone()[0]
    finally:
        database.close()
    assert ended == TASKS
    told: set[Any] = set()
    for line in (folder / "telemetry" / "ralph-wiggum.jsonl").read_text().splitlines():
        try:
            told.add(json.loads(line)["data"].get("event_id"))
        except ValueError:
            # The line that was being written when it was killed; its event comes again.
            continue
    assert events <= told
