"""A Ralph in trouble: its backend is away, comes and goes, or is slow; it is ended and started again; nobody approves.

Ralph is a process of its own, its database and git are real; the backend is a scripted stand-in.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import ralphs
import serving
from scripted_backend import PARTIAL, ScriptedBackend

QUEUED = 1000


def backend_at(folder: Path, port: int = 0) -> ScriptedBackend:
    """A scripted backend for a folder's workspaces."""
    (folder / "workspaces").mkdir(exist_ok=True)
    return ScriptedBackend(folder / "workspaces", port=port)


def test_a_backend_that_is_away_and_comes_back_costs_no_iteration(tmp_path: Path) -> None:
    backend = backend_at(tmp_path)
    with ralphs.running(tmp_path, backend=backend) as ralph:
        task_id = ralph.submit("edit", ["hang", "edit"], "done")["task_id"]
        backend.wait_for_call_of(task_id, 2)
        backend.close()
        waiting = ralph.wait(task_id, "waiting")
        assert (waiting["reason"], waiting["iterations"]) == ("infrastructure", 1)
        assert waiting["retry_at"] is not None
        problem = ralph.raw("GET", "/ready")
        assert problem.status_code == 503
        assert "refused" in problem.json()["detail"]
        assert ralph.raw("GET", "/health").status_code == 200
        # What is submitted meanwhile is taken, and not begun.
        later = ralph.submit("done")["task_id"]
        assert ralph.task(later)["state"] == "queued"
        again = backend_at(tmp_path, backend.port)
        try:
            task = ralph.wait(task_id)
            assert (task["state"], task["iterations"], task["uncounted"]) == ("completed", 3, 1)
            assert (ralph.workspace(task) / "work.txt").read_text() == "1\n2\n3\n"
            assert not (ralph.workspace(task) / PARTIAL).exists()
            assert ralph.wait(later)["uncounted"] == 0
        finally:
            again.close()


def test_a_backend_that_comes_and_goes_costs_no_iteration(tmp_path: Path) -> None:
    with ralphs.running(tmp_path) as ralph:
        tasks = [ralph.submit("edit", "edit", "done", context={"seconds": 0.05})["task_id"] for _ in range(6)]
        flapping = True

        def flap() -> None:
            for down in itertools.cycle((True, False)):
                ralph.backend.down = down and flapping
                if not flapping:
                    return
                time.sleep(0.15)

        flapper = threading.Thread(target=flap)
        flapper.start()
        try:
            for task_id in tasks:
                task = ralph.wait(task_id)
                assert (task["state"], task["iterations"]) == ("completed", 3)
                assert (ralph.workspace(task) / "work.txt").read_text() == "1\n2\n3\n"
        finally:
            flapping = False
            flapper.join()
        assert not ralph.backend.together


def test_a_backend_that_is_too_slow_costs_time_and_no_iteration(tmp_path: Path) -> None:
    with ralphs.running(tmp_path) as ralph:
        # It does not keep the time that it is given, so that Ralph itself runs out of patience.
        task = ralph.wait(ralph.submit("infra:timed out", max_seconds=2)["task_id"])
        assert (task["state"], task["reason"], task["iterations"]) == ("exhausted", "time_budget", 0)
        assert task["uncounted"] > 1
        calls = ralph.backend.calls_of(task["task_id"])
        assert all(1 <= call["timeout_seconds"] <= 2 for call in calls)


def test_a_backend_that_is_never_of_use_is_given_up(tmp_path: Path) -> None:
    with ralphs.running(tmp_path, RALPH_RETRY_MOST_SECONDS="0.02") as ralph:
        task = ralph.wait(ralph.submit("infra:no model")["task_id"])
        assert (task["state"], task["reason"]) == ("failed", "infrastructure")
        assert (task["iterations"], task["uncounted"]) == (0, 50)


def test_a_wrong_key_for_the_backend_waits_until_it_is_right(tmp_path: Path) -> None:
    backend = backend_at(tmp_path)
    backend.key = "right"
    key = tmp_path / "backend-key"
    key.write_text("wrong\n")
    try:
        with ralphs.running(tmp_path, backend=backend, AIDER_WRAPPER_API_KEY_FILE=str(key)) as ralph:
            task_id = ralph.submit("done")["task_id"]
            waiting = ralph.wait(task_id, "waiting")
            assert "401" in waiting["detail"]
            key.write_text("right\n")
            task = ralph.wait(task_id)
            assert (task["state"], task["iterations"]) == ("completed", 1)
    finally:
        backend.close()


def test_without_ralph_s_own_key_nothing_is_done(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("right")
    with ralphs.running(tmp_path, RALPH_WIGGUM_API_KEY_FILE=str(key)) as ralph:
        body = {"prompt": "do it"}
        for headers in ({}, {"X-API-Key": "wrong"}, {"X-API-Key": ""}):
            for method, path in (("POST", "/tasks"), ("GET", "/tasks"), ("PUT", "/settings"), ("GET", "/stats")):
                answer = ralph.raw(method, path, json=body, headers=headers)
                assert (answer.status_code, answer.json()["kind"]) == (401, "unauthenticated")
        assert ralph.raw("GET", "/stats", headers={"X-API-Key": "right"}).json()["iterations"] == 0
        assert ralph.raw("GET", "/health").status_code == 200


def test_what_nobody_approves_in_time_is_rejected(tmp_path: Path) -> None:
    with ralphs.running(tmp_path, RALPH_APPROVAL_TIMEOUT_SECONDS="1") as ralph:
        task = ralph.wait(ralph.submit("done", require_approval=True)["task_id"], "rejected")
        assert task["reason"] == "approval_expired"
        assert [each["action"] for each in task["decisions"]] == ["expire"]
        ralph.act(task["task_id"], "approve", 409)
        assert not ralph.backend.calls


def test_sigterm_ends_it_in_time_and_loses_nothing(tmp_path: Path) -> None:
    backend = backend_at(tmp_path)
    try:
        with ralphs.running(tmp_path, backend=backend) as ralph:
            hanging = ralph.submit("edit", ["hang", "edit"], "done")["task_id"]
            verifying = ralph.submit("done", verify=["test -e go || { touch go; sleep 1000; }"])["task_id"]
            backend.wait_for_call_of(hanging, 2)
            deadline = time.monotonic() + ralphs.BOUND
            while not (ralph.workspace(ralph.task(verifying)) / "go").exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            queued = [ralph.submit("done")["task_id"] for _ in range(3)]
            held = ralph.submit("done", require_approval=True)["task_id"]
            began = time.monotonic()
            ralph.service.process.terminate()
            assert ralph.service.process.wait(ralphs.BOUND) == 0
            assert time.monotonic() - began < 5
        with ralphs.running(tmp_path, backend=backend) as ralph:
            task = ralph.wait(hanging)
            assert (task["state"], task["iterations"]) == ("completed", 3)
            assert (ralph.workspace(task) / "work.txt").read_text() == "1\n2\n3\n"
            assert [call["outcome"] for call in ralph.iterations(hanging)] == [
                "incomplete",
                "unknown",
                "incomplete",
                "done",
            ]
            # The backend had answered: that answer is judged, and nobody is asked again.
            assert ralph.wait(verifying)["iterations"] == 1
            assert len(backend.calls_of(verifying)) == 1
            assert all(ralph.wait(each)["state"] == "completed" for each in queued)
            assert ralph.task(held)["state"] == "awaiting_approval"
    finally:
        backend.close()


def test_an_answer_that_nobody_heard_counts_once(tmp_path: Path) -> None:
    backend = backend_at(tmp_path)
    try:
        with ralphs.running(tmp_path, backend=backend) as ralph:
            task_id = ralph.submit(["hang", "done"])["task_id"]
            backend.wait_for_call_of(task_id)
            (call,) = backend.calls_of(task_id)
            ralph.service.process.kill()
            ralph.service.process.wait()
            # As if the agent had come to its end just before.
            while backend.state[call["key"]] == "running":
                time.sleep(0.01)
            workspace = tmp_path / "workspaces" / call["workspace"]
            (workspace / PARTIAL).unlink()
            (workspace / "work.txt").write_text("1\n")
            result = {"exit_code": 0, "output": "", "completed": True, "error": None, "error_kind": None}
            more = {"files_modified": ["work.txt"], "git_commits": [], "duration_seconds": 1.0, "tokens": 5}
            backend.finished[call["key"]] = {**result, **more}
            backend.state[call["key"]] = "finished"
        with ralphs.running(tmp_path, backend=backend) as ralph:
            task = ralph.wait(task_id)
            assert (task["state"], task["iterations"], task["uncounted"], task["tokens"]) == ("completed", 1, 0, 5)
            assert len(backend.calls_of(task_id)) == 1
    finally:
        backend.close()


def test_a_thousand_queued_tasks_survive_and_are_listed(tmp_path: Path) -> None:
    backend = backend_at(tmp_path)
    backend.ready = False
    try:
        with ralphs.running(tmp_path, backend=backend) as ralph:
            url = f"{ralph.service.url}/tasks"
            with httpx.Client(timeout=ralphs.BOUND, trust_env=False) as client, ThreadPoolExecutor(8) as pool:

                def send(number: int) -> int:
                    body = {"prompt": f"task {number}", "workspace": f"w{number % 3}", "priority": number % 5}
                    return client.post(url, json=body).status_code

                assert set(pool.map(send, range(QUEUED))) == {202}
            assert ralph.ask("GET", "/stats")["tasks"]["queued"] == QUEUED
            ralph.service.process.kill()
        backend.ready = True
        with ralphs.running(tmp_path, backend=backend, RALPH_MAX_CONCURRENT_TASKS="4") as ralph:
            seen: set[str] = set()
            cursor: dict[str, Any] | None = {}
            while cursor is not None:
                page = ralph.ask("GET", "/tasks", params={"limit": "200", **cursor})
                seen |= {task["task_id"] for task in page["tasks"]}
                cursor = None if page["next_cursor"] is None else {"cursor": page["next_cursor"]}
            assert len(seen) == QUEUED
            deadline = time.monotonic() + ralphs.BOUND
            while ralph.ask("GET", "/stats")["tasks"]["completed"] < 20:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            # The highest priority first.
            done = ralph.ask("GET", "/tasks", params={"state": "completed", "limit": "200"})["tasks"]
            assert {task["priority"] for task in done} == {4}
            assert not backend.together
    finally:
        backend.close()


def test_one_ralph_at_a_time_has_the_database(tmp_path: Path) -> None:
    with ralphs.running(tmp_path) as ralph:
        environment = ralphs.environment(tmp_path, 1, RALPH_WIGGUM_PORT=str(serving.free_port()))
        found = subprocess.run(
            [sys.executable, "-m", ralphs.MODULE],
            env={**environment, "PYTHONPATH": str(Path(__file__).parents[1]), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=ralphs.BOUND,
            check=False,
        )
        assert found.returncode == 78
        assert "another Ralph uses" in found.stderr
        assert ralph.raw("GET", "/health").status_code == 200


def test_of_the_environment_and_the_settings_the_last_change_holds(tmp_path: Path) -> None:
    def limits(ralph: ralphs.Ralph) -> list[int]:
        found = ralph.ask("GET", "/settings")["max_iterations"]
        return [found["default"], found["simple"]]

    with ralphs.running(tmp_path) as ralph:
        answer = ralph.raw("GET", "/settings")
        change = {"max_iterations": {**answer.json()["max_iterations"], "default": 7}, "adaptive": True}
        ralph.ask("PUT", "/settings", json=change, headers={"If-Match": answer.headers["ETag"]})
    with ralphs.running(tmp_path, RALPH_MAX_ITERATIONS_SIMPLE="11") as ralph:
        assert limits(ralph) == [7, 11]
    with ralphs.running(tmp_path, RALPH_MAX_ITERATIONS_SIMPLE="11", RALPH_MAX_ITERATIONS_DEFAULT="9") as ralph:
        assert limits(ralph) == [9, 11]


def test_a_loop_that_is_switched_off_takes_nothing(tmp_path: Path) -> None:
    with ralphs.running(tmp_path, RALPH_LOOP_ENABLED="false") as ralph:
        assert ralph.submit("done", status=503)["kind"] == "loop-disabled"
