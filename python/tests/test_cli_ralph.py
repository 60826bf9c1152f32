"""`aistack ralph` against a Ralph that runs; its backend is a scripted stand-in."""

from __future__ import annotations

import http.server
import json
import re
import threading
from typing import TYPE_CHECKING

import fakehost
import pytest
import ralphs
import serving
from ralphs import Ralph

from aistack.cli.ralph_client import SECRET, SERVICE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = "the key of this test"


@pytest.fixture(scope="module")
def ralph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ralph]:
    """One that all tests here share; it wants a key."""
    folder = tmp_path_factory.mktemp("ralph")
    (folder / "key").write_text(f"{KEY}\n")
    with ralphs.running(folder, RALPH_WIGGUM_API_KEY_FILE=str(folder / "key")) as running:
        yield running


def declare(host: fakehost.FakeHost, port: int, key: Path | None) -> None:
    """Declare a Ralph at a port of this machine."""
    entry = fakehost.service(SERVICE, external={"host": "127.0.0.1", "port": port}, port=None)
    secrets = {} if key is None else {SECRET: {"file": str(key), "as": "file"}}
    host.declare({SERVICE: entry}, secrets=secrets)


@pytest.fixture
def at(host: fakehost.FakeHost, ralph: Ralph) -> fakehost.FakeHost:
    """A host whose manifest has that Ralph."""
    declare(host, ralph.service.port, ralph.folder / "key")
    return host


def script(ralph: Ralph, *entries: object, **body: object) -> str:
    """Submit a task with a script for the stand-in, which the command line has no option for."""
    asked = {"prompt": "do it", "context": {"script": list(entries)}, **body}
    answer = ralph.raw("POST", "/tasks", json=asked, headers={"X-API-Key": KEY})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["task_id"])


def test_submit_prints_the_id_and_says_how_the_limit_came_about(at: fakehost.FakeHost) -> None:
    answer = at.run("ralph", "submit", "create a test", "--verify", "test -s work.txt", "--priority", "3")
    assert answer.code == 0, answer.err
    task_id = answer.out.strip()
    assert re.fullmatch(r"[0-9a-f-]{36}", task_id)
    assert "limit 50: 20 x (1 + 0.5 x 3), rounded down" in answer.err
    shown = at.run("ralph", "watch", task_id)
    assert shown.code == 0, shown.err
    assert "iteration 1 done" in shown.out
    document = at.run("ralph", "show", task_id, "--json").json
    assert document["schema_version"] == 1
    assert document["task"]["reason"] == "verified"
    assert document["task"]["priority"] == 3
    assert [each["outcome"] for each in document["iterations"]] == ["done"]


def test_submit_and_watch(at: fakehost.FakeHost) -> None:
    answer = at.run("ralph", "submit", "do it", "--watch")
    assert answer.code == 0, answer.err
    assert "iteration 1 of " in answer.out
    assert answer.out.splitlines()[-1].endswith("completed: done at once")
    again = at.run("ralph", "submit", "do it", "--watch", "--json")
    assert again.json["task"]["state"] == "completed"


def test_the_same_key_is_the_same_task(at: fakehost.FakeHost) -> None:
    one, two = (at.run("ralph", "submit", "once only", "--key", "k-1") for _ in range(2))
    assert one.out == two.out
    other = at.run("ralph", "submit", "another", "--key", "k-1")
    assert other.code == 2
    assert "Idempotency-Key" in other.err


@pytest.mark.parametrize(
    ("entry", "body", "end"),
    [
        ("edit", {"max_iterations": 2}, (10, "iteration-limit")),
        ("edit", {"max_tokens": 15}, (10, "iteration-limit")),
        ("lie", {}, (11, "circuit-open")),
        ("policy:no", {}, (1, "unexpected")),
        ("done", {"require_approval": True}, (9, "approval-required")),
    ],
)
def test_watch_ends_with_what_became_of_it(
    at: fakehost.FakeHost, ralph: Ralph, entry: str, body: dict[str, object], end: tuple[int, str]
) -> None:
    code, word = end
    task_id = script(ralph, entry, **body)
    answer = at.run("ralph", "watch", task_id)
    assert answer.code == code, answer.err
    assert answer.err.count("\n") == 1
    assert task_id in answer.err
    documents = at.run("ralph", "watch", task_id, "--json").out
    assert f'"code": "{word}"' in documents


def test_approve_and_reject(at: fakehost.FakeHost, ralph: Ralph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "ada")
    one, two = (script(ralph, "done", require_approval=True) for _ in range(2))
    listed = at.run("ralph", "list", "--state", "awaiting_approval")
    assert one in listed.out
    assert at.run("ralph", "approve", one).code == 2
    assert at.run("ralph", "approve", one, "--reason", "fine").out == f"{one}: queued\n"
    assert at.run("ralph", "watch", one).code == 0
    assert (
        at.run("ralph", "reject", two, "--reason", "no", "--by", "grace", "--json").json["task"]["state"] == "rejected"
    )
    assert "approve by ada: fine" in at.run("ralph", "show", one).out
    assert at.run("ralph", "watch", two).code == 9
    again = at.run("ralph", "approve", two, "--reason", "after all")
    assert again.code == 2
    assert "it is rejected" in again.err


def test_stop_and_resume(at: fakehost.FakeHost, ralph: Ralph) -> None:
    task_id = script(ralph, ["hang", "done"])
    ralph.backend.wait_for_call_of(task_id)
    assert at.run("ralph", "stop", task_id, "--reason", "enough").out == f"{task_id}: stopped\n"
    watched = at.run("ralph", "watch", task_id)
    assert watched.code == 1
    assert "stopped by" in watched.err
    assert at.run("ralph", "resume", task_id, "--reason", "go on", "--max-iterations", "5").code == 0
    assert at.run("ralph", "watch", task_id).code == 0
    assert at.run("ralph", "show", task_id, "--json").json["task"]["limit"]["value"] == 5


def test_settings_are_shown_and_set(at: fakehost.FakeHost) -> None:
    before = at.run("ralph", "settings", "--json").json["settings"]
    answer = at.run("ralph", "settings", "--simple", "7", "--adaptive", "off")
    assert answer.code == 0, answer.err
    assert "simple: 7\n" in answer.out
    assert "adaptive: off\n" in answer.out
    refused = at.run("ralph", "settings", "--complex", "1000")
    assert refused.code == 2
    assert "max_iterations.complex: is 1000, more than the ceiling of 100" in refused.err
    assert at.run("ralph", "settings", "--simple", "0").code == 2
    back = at.run(
        "ralph", "settings", "--simple", str(before["max_iterations"]["simple"]), "--adaptive", "on", "--json"
    )
    assert back.json["settings"]["max_iterations"] == before["max_iterations"]


def test_stats_and_list(at: fakehost.FakeHost) -> None:
    assert at.run("ralph", "submit", "do\nit [red]", "--watch").code == 0
    stats = at.run("ralph", "stats")
    assert "completed: " in stats.out
    assert "backend: up\n" in stats.out
    assert at.run("ralph", "stats", "--json").json["stats"]["tasks"]["completed"] > 0
    listed = at.run("ralph", "list", "--limit", "1")
    assert listed.out.startswith("TASK ")
    assert "do it [red]" in listed.out
    assert len(at.run("ralph", "list", "--limit", "1", "--json").json["tasks"]) == 1


@pytest.mark.parametrize("task", ["../stats", "a b", "", "x" * 65, "a\x1b[2J"])
def test_what_is_no_id_is_not_sent(at: fakehost.FakeHost, task: str) -> None:
    answer = at.run("ralph", "show", task)
    assert answer.code == 2
    assert answer.err.count("\n") == 1


def test_a_task_that_is_not_there(at: fakehost.FakeHost) -> None:
    for arguments in (("show", "nobody"), ("watch", "nobody"), ("stop", "nobody", "--reason", "x")):
        answer = at.run("ralph", *arguments)
        assert answer.code == 2
        assert "there is no task nobody" in answer.err


def test_a_wrong_key_or_none_or_an_unreadable_one(at: fakehost.FakeHost, ralph: Ralph, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong")
    for key in (wrong, None):
        declare(at, ralph.service.port, key)
        answer = at.run("ralph", "stats")
        assert answer.code == 2
        assert "X-API-Key" in answer.err
    declare(at, ralph.service.port, tmp_path / "none")
    answer = at.run("ralph", "stats")
    assert answer.code == 2
    assert "cannot read the API key" in answer.err


def test_a_ralph_that_is_not_there(host: fakehost.FakeHost) -> None:
    declare(host, serving.free_port(), None)
    answer = host.run("ralph", "stats", "--json")
    assert answer.code == 3
    assert answer.json["error"]["code"] == "dependency-missing"
    assert "aistack status ralph-wiggum" in answer.json["error"]["hint"]
    host.declare({})
    assert host.run("ralph", "stats").code == 2


def test_a_published_port_is_where_it_answers(host: fakehost.FakeHost, ralph: Ralph) -> None:
    port = ralph.service.port
    published = {"address": "127.0.0.1", "hostPort": port, "containerPort": 8098, "protocol": "tcp"}
    host.declare(
        {SERVICE: fakehost.service(SERVICE, port=8098, publish=[published])},
        secrets={SECRET: {"file": str(ralph.folder / "key"), "as": "file"}},
    )
    assert host.run("ralph", "stats").code == 0


def test_something_else_that_answers_there(host: fakehost.FakeHost) -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/stats" else 500)
            self.send_header("Content-Length", "6")
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        declare(host, server.server_port, None)
        for arguments in (("stats",), ("list",)):
            answer = host.run("ralph", *arguments)
            assert answer.code == 1
            assert answer.err.count("\n") == 1
            assert json.dumps(answer.out) == '""'
    finally:
        server.shutdown()
        server.server_close()


def test_a_stream_that_is_cut_off_while_the_task_ends_is_read_to_its_end(host: fakehost.FakeHost) -> None:
    """As when Ralph was restarted meanwhile: the task has ended, and what happened last was not seen yet."""
    events = [
        {"id": 1, "event": "iteration.started", "at": "2026-01-01T10:00:00Z", "number": 1, "limit": 5, "attempt": 1},
        {"id": 2, "event": "task.ended", "at": "2026-01-01T10:00:01Z", "state": "completed", "detail": "done"},
    ]
    asked: list[int] = []

    class Restarted(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.endswith("/events"):
                after = int(self.headers["Last-Event-ID"])
                asked.append(after)
                body = "".join(f"data: {json.dumps(event)}\n\n" for event in events[after : after + 1])
            else:
                body = json.dumps({"state": "completed", "finished_at": "2026-01-01T10:00:01Z"})
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Restarted)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        declare(host, server.server_port, None)
        answer = host.run("ralph", "watch", "a-task")
    finally:
        server.shutdown()
        server.server_close()
    assert answer.code == 0, answer.err
    assert answer.out.splitlines() == ["10:00:00 iteration 1 of 5", "10:00:01 completed: done"]
    assert asked == [0, 1]
