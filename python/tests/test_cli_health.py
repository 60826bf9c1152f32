"""`aistack health`, and what `aistack status` shows of it."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import fakehost
import pytest

from aistack.cli import output
from aistack.hooks import health

if TYPE_CHECKING:
    from collections.abc import Callable

READY_AT = 1_700_000_000.5


@pytest.fixture
def app(host: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch) -> fakehost.FakeHost:
    """An app that is ready; 1000 s since boot."""
    host.declare({"app": fakehost.service("app", probe=fakehost.probe("http", 80, intervalSeconds=30))})
    host.unit("app", "active")
    host.verdict("app", phase="ready", ok=True, release=1, readyAt=READY_AT)
    monkeypatch.setattr(health, "now", lambda: 1000.0)
    return host


def record(host: fakehost.FakeHost, **changes: Any) -> None:  # noqa: ANN401  (any JSON value)
    """Let this be what the last check found."""
    found = {
        "schemaVersion": 1,
        "service": "app",
        "start": READY_AT,
        "state": "healthy",
        "kind": "ready",
        "detail": "GET / answered 200",
        "since": READY_AT,
        "sinceBoot": 880.0,
        "at": READY_AT + 110,
        "atBoot": 988.0,
        "failures": 0,
        "tookSeconds": 0.004,
        "action": None,
        "note": None,
        **changes,
    }
    (host.root / "run/app/health.json").write_text(json.dumps(found))


def sick(host: fakehost.FakeHost, action: str = "degraded", note: str = "left alone") -> None:
    record(
        host,
        state="unhealthy",
        kind="not ready yet",
        detail="GET / answered 500",
        failures=4,
        action=action,
        note=note,
    )


def timer(host: fakehost.FakeHost, elapses: str, active: str = "active") -> None:
    (host.root / "units/aistack-health-30.timer").write_text(
        f"Id=aistack-health-30.timer\nActiveState={active}\nNextElapseUSecMonotonic={elapses}\n"
    )


def test_a_healthy_service(app: fakehost.FakeHost) -> None:
    record(app)
    timer(app, "100y")
    answer = app.run("health")
    assert answer.code == 0
    head, line = answer.out.splitlines()
    assert head.split() == ["SERVICE", "HEALTH", "SINCE", "CHECKED", "NEXT"]
    assert line.startswith("app      healthy")
    assert "12 s ago" in line
    assert app.run("status").code == 0


def test_the_document(app: fakehost.FakeHost) -> None:
    sick(app)
    boot = time.clock_gettime(time.CLOCK_MONOTONIC)
    timer(app, f"{int(boot // 60)}min {boot % 60 + 20:.3f}s")
    answer = app.run("health", "--json")
    assert answer.code == answer.json["exit_code"] == 8
    (found,) = answer.json["services"]
    assert (found["service"], found["state"], found["failures_needed"]) == ("app", "degraded", 3)
    assert 15 < found["next_seconds"] <= 21
    assert found["health"]["seconds_ago"] == 12.0
    assert found["health"]["failures"] == 4
    assert found["health"]["action"] == "degraded"
    (row,) = app.run("status", "--json").json["services"]
    assert row["health"] == found["health"]


@pytest.mark.parametrize("name", ["health", "status"])
def test_a_service_that_fails_its_checks_is_degraded_with_reason_and_age(app: fakehost.FakeHost, name: str) -> None:
    sick(app)
    answer = app.run(name)
    assert answer.code == 8
    assert "app: degraded: not ready yet: GET / answered 500 (for 2 min, 4 checks); left alone" in answer.out
    assert "next: journalctl -u podman-aistack-app.service -n 50" in answer.out


@pytest.mark.parametrize("name", ["health", "status"])
def test_one_that_suffers_from_a_dependency_is_not_down_itself(app: fakehost.FakeHost, name: str) -> None:
    sick(app, "blamed", "dependency redis does not answer (refused), so it is left alone")
    answer = app.run(name)
    assert answer.code == 3
    assert "dependency redis does not answer" in answer.out


def test_failures_that_are_too_few_to_act_are_shown(app: fakehost.FakeHost) -> None:
    record(app, kind="timed out", detail="no answer", failures=2)
    answer = app.run("health")
    assert answer.code == 0
    assert "app: healthy: 2 of 3 checks failed: no answer" in answer.out


def test_what_was_found_of_an_earlier_container_is_not_shown(app: fakehost.FakeHost) -> None:
    record(app, start=1.0, state="unhealthy")
    answer = app.run("health")
    assert answer.code == 0
    assert "unchecked" in answer.out
    assert app.run("status", "--json").json["services"][0]["health"] is None


@pytest.mark.parametrize(
    ("active", "word", "code"), [("inactive", "stopped", 8), ("activating", "starting", 3), ("failed", "failed", 8)]
)
def test_a_unit_that_does_not_run_is_what_status_says(
    app: fakehost.FakeHost, active: str, word: str, code: int
) -> None:
    sick(app)
    app.unit("app", active)
    answer = app.run("health")
    assert answer.code == code
    assert answer.out.splitlines()[1].split()[1] == word


def test_a_timer_that_does_not_run_has_no_next_check(app: fakehost.FakeHost) -> None:
    record(app)
    timer(app, "1h", "inactive")
    assert app.run("health").out.splitlines()[1].endswith("-")
    assert app.run("health", "--json").json["services"][0]["next_seconds"] is None


def test_a_service_elsewhere_is_asked_now(host: fakehost.FakeHost, server: fakehost.Server) -> None:
    host.declare({"there": fakehost.external(server.port), "gone": fakehost.external(fakehost.free_port())})
    answer = host.run("health", "--json")
    assert answer.code == 3
    assert [(one["service"], one["state"]) for one in answer.json["services"]] == [
        ("there", "healthy"),
        ("gone", "failed"),
    ]


def script(monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], None]) -> None:
    """Do one step each time the watch pauses, then interrupt it."""
    left = list(steps)

    def pause() -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop(0)()

    monkeypatch.setattr("aistack.cli.health._pause", pause)


def test_watch_is_a_line_for_each_change(app: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    record(app)
    script(monkeypatch, lambda: record(app), lambda: sick(app), lambda: sick(app), lambda: record(app))
    answer = app.run("health", "--watch")
    assert answer.code == 130
    lines = [line.split(" app: ")[1] for line in answer.out.splitlines()]
    assert lines[0] == lines[2] == "healthy"
    assert lines[1].startswith("degraded: not ready yet: GET / answered 500")
    assert "\x1b" not in answer.out


def test_watch_redraws_a_terminal(app: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    record(app)
    script(monkeypatch, lambda: sick(app))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    answer = app.run("health", "--watch")
    assert answer.out.count("\x1b[H\x1b[2J") == 2
    assert "degraded" in answer.out.rpartition("\x1b[2J")[2]


def test_watch_and_json_do_not_go_together(app: fakehost.FakeHost) -> None:
    assert app.run("health", "--watch", "--json").code == 2


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (600, "10 min"), (3660, "1 h 1 min"), (90000, "1 d 1 h")],
)
def test_time_spans_are_for_people(seconds: float, words: str) -> None:
    assert output.duration(seconds) == words
