"""`aistack releases`."""

from __future__ import annotations

import os
import re
import time

import fakehost
import pytest


def history(host: fakehost.FakeHost) -> None:
    """Two good releases of app and a bad one that Nix declares; one of db on probation."""
    host.declare({"app": fakehost.service("app"), "db": fakehost.service("db"), "far": fakehost.external(1)})
    host.release("app", 1, "good")
    host.release("app", 2, "good")
    host.release("app", 3, "bad", reason="never ready", log="line one\nline \x1b[31mtwo")
    host.release("db", 1, "probation")


def test_the_history_shows_states_and_marks_what_runs_and_what_is_declared(host: fakehost.FakeHost) -> None:
    history(host)
    answer = host.run("releases", "app")
    assert answer.code == 0
    lines = [re.split(r"\s{2,}", line) for line in answer.out.splitlines()]
    assert lines[0] == ["SERVICE", "RELEASE", "STATE", "CREATED", "IMAGE", "REFERENCE", "REASON"]
    assert [(line[1], line[2], line[6]) for line in lines[1:]] == [
        ("3 !", "bad", "never ready"),
        ("2 *", "good", "-"),
        ("1", "good", "-"),
    ]
    assert lines[1][4] == fakehost.image(3)[:12]


def test_releases_of_the_future_are_named(host: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    history(host)
    assert "future" not in host.run("releases", "app").err
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 86400)
    answer = host.run("releases", "app")
    assert answer.code == 0
    assert "the clock was set back: created in the future, as it is now: release 3, 2, 1" in answer.err


def test_without_a_service_all_are_shown(host: fakehost.FakeHost) -> None:
    history(host)
    answer = host.run("releases", "--json")
    assert answer.json["schema_version"] == 1
    assert [(entry["service"], entry["id"]) for entry in answer.json["releases"]] == [
        ("db", 4),
        ("app", 3),
        ("app", 2),
        ("app", 1),
    ]
    first = answer.json["releases"][0]
    assert first["current"] is True
    assert first["declared"] is True
    assert first["image_id"] == fakehost.image(1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", first["created"])
    assert "created_unix" not in first


def test_the_log_of_a_bad_release_is_printed_harmlessly(host: fakehost.FakeHost) -> None:
    history(host)
    answer = host.run("releases", "app", "--log", "3")
    assert answer.code == 0
    assert answer.out.splitlines() == [
        "app release 3: bad",
        "reason: never ready",
        "line one",
        "line \\x1b[31mtwo",
    ]
    document = host.run("releases", "--log", "3", "--json").json
    assert document["release"]["log"] == "line one\nline \x1b[31mtwo"


def test_a_release_without_log_says_so_beside_the_data(host: fakehost.FakeHost) -> None:
    history(host)
    answer = host.run("releases", "--log", "1")
    assert answer.code == 0
    assert "has no log" in answer.err


@pytest.mark.parametrize("number", ["4", "99", "-1", "0", str(2**70)])
def test_a_number_that_is_no_release_of_the_service_lists_those_there_are(host: fakehost.FakeHost, number: str) -> None:
    history(host)
    answer = host.run("releases", "app", f"--log={number}")
    assert answer.code == 2
    assert f"there is no release {number} of app: recorded are 3, 2, 1" in answer.err


def test_before_the_first_start_there_is_nothing_and_that_is_no_error(host: fakehost.FakeHost) -> None:
    host.declare({"app": fakehost.service("app")})
    answer = host.run("releases")
    assert (answer.code, answer.out) == (0, "")
    assert "no releases yet" in answer.err
    assert host.run("releases", "--json").json["releases"] == []
    assert host.run("releases", "--log", "1").code == 2
    assert not host.journal_path.exists(), "looking makes no journal"


def test_a_service_that_runs_elsewhere_has_no_releases(host: fakehost.FakeHost) -> None:
    history(host)
    answer = host.run("releases", "far")
    assert answer.code == 2
    assert "outside this stack" in answer.err


@pytest.mark.parametrize("keep", [50, 100, 1000, 4096, 6000])
def test_a_truncated_journal_is_one_line_and_code_1(host: fakehost.FakeHost, keep: int) -> None:
    history(host)
    host.journal_path.write_bytes(host.journal_path.read_bytes()[:keep])
    for command in (["releases"], ["releases", "app"], ["rollback", "app", "--yes"]):
        answer = host.run(*command)
        assert answer.code == 1
        assert answer.out == ""
        assert str(host.journal_path) in answer.err
        assert answer.err.count("\n") == 1
        assert answer.err[:-1].isprintable()


def test_an_emptied_journal_is_not_taken_for_a_new_one(host: fakehost.FakeHost) -> None:
    history(host)
    host.journal_path.write_bytes(b"")
    for _ in range(2):  # looking at it changes nothing
        answer = host.run("releases")
        assert (answer.code, answer.out) == (1, "")
        assert "it is empty: what history it had is gone" in answer.err
        assert host.journal_path.read_bytes() == b""


def test_garbage_for_a_journal_is_one_line_that_says_what_to_do(host: fakehost.FakeHost) -> None:
    history(host)
    host.journal_path.write_bytes(b"not a database, but long enough to be taken for one " * 100)
    answer = host.run("releases")
    assert answer.code == 1
    assert "damaged" in answer.err
    assert f"mv {host.journal_path}" in answer.err


def test_a_broken_row_is_one_line(host: fakehost.FakeHost) -> None:
    import sqlite3

    history(host)
    with sqlite3.connect(host.journal_path) as database:
        database.execute("UPDATE release SET environment = '{'")
    database.close()
    answer = host.run("releases")
    assert answer.code == 1
    assert answer.err.count("\n") == 1


def test_a_journal_of_a_newer_version_is_one_line(host: fakehost.FakeHost) -> None:
    import sqlite3

    history(host)
    with sqlite3.connect(host.journal_path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    answer = host.run("releases")
    assert answer.code == 1
    assert "newer aistack" in answer.err
    assert answer.err.count("\n") == 1
    host.unit("app", "active")
    status = host.run("status", "app")
    assert status.code == 1
    assert "\napp  " in status.out


def test_a_directory_for_a_journal_is_one_line(host: fakehost.FakeHost) -> None:
    host.declare({"app": fakehost.service("app")})
    host.journal_path.mkdir(parents=True)
    answer = host.run("releases")
    assert answer.code == 1
    assert "it is not a file" in answer.err
    assert answer.err.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (["releases"], 2, "`aistack releases` needs root"),
        (["rollback", "app", "--yes"], 2, "sudo aistack rollback app"),
        (["status"], 8, "sudo aistack status"),
    ],
)
def test_somebody_else_than_root_is_told_so(host: fakehost.FakeHost, command: list[str], code: int, says: str) -> None:
    history(host)
    host.journal_path.chmod(0o600)
    for folder in (host.root, *host.root.parents):
        if folder.name.startswith(("pytest-", "test_")):
            folder.chmod(0o755)
    for known in ([command[0], "--help"], ["status"]):  # import what an unprivileged user may not be able to read
        host.run(*known)
    os.seteuid(65534)
    try:
        answer = host.run(*command)
    finally:
        os.seteuid(0)
    assert answer.code == code
    assert says in answer.err
    assert answer.err.count("\n") == 1
