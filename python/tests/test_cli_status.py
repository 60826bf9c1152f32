"""`aistack status`."""

from __future__ import annotations

import re
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import fakehost
import pytest

from aistack.cli import status
from aistack.hooks.releases import Release, Store

ROOT = Path(__file__).resolve().parents[2]

DEPENDENCY_REFUSED = {
    "subject": "dependency db",
    "kind": "refused",
    "ok": False,
    "permanent": False,
    "detail": "nothing listens at 10.89.100.2:5432",
    "address": "10.89.100.2:5432",
    "seconds": 30.0,
    "tries": 120,
    "fix": "journalctl -u podman-aistack-db.service -n 50",
}
FILE_MISSING = {
    "subject": "the model /models/x.gguf",
    "kind": "file missing",
    "ok": False,
    "permanent": True,
    "detail": "does not exist on this host",
    "address": "/models/x.gguf",
    "seconds": 0.0,
    "tries": 1,
    "fix": "put it there: ls -l /models/x.gguf",
}


def pair(host: fakehost.FakeHost) -> None:
    """A database, and an application that depends on it."""
    host.declare(
        {
            "app": fakehost.service("app", dependsOn=["db"]),
            "db": fakehost.service("db", probe=fakehost.probe("tcp", 5432)),
        }
    )


def rows(answer: fakehost.Answer) -> dict[str, Any]:
    return {row["service"]: row for row in answer.json["services"]}


def test_everything_serves(host: fakehost.FakeHost) -> None:
    pair(host)
    for name in ("app", "db"):
        release = host.release(name, 1, "good")
        host.unit(name, "active")
        host.verdict(name, phase="ready", release=release.id, readyAt=1_700_000_000.5, startSeconds=1.234)
    answer = host.run("status")
    assert answer.code == 0
    assert answer.err == ""
    lines = answer.out.splitlines()
    assert re.split(r"\s{2,}", lines[0]) == ["SERVICE", "STATE", "SINCE", "START", "RELEASE", "IMAGE"]
    assert [line.split()[0] for line in lines[1:]] == ["db", "app"], "a dependency comes first"
    assert "ready" in lines[1]
    assert "1.23 s" in lines[1]
    assert "1 good" in lines[2]
    assert fakehost.image(1)[:12] in lines[1]
    row = rows(host.run("status", "--json"))["app"]
    assert row["state"] == "ready"
    assert row["since"] == "2023-11-14T22:13:20.500+00:00"
    assert row["start_seconds"] == 1.234
    assert row["release"]["state"] == "good"
    assert row["runs_declared"] is True
    assert row["reason"] is None
    assert row["next"] is None


def test_systemd_is_asked_once_about_everything(host: fakehost.FakeHost) -> None:
    host.declare({f"s{number}": fakehost.service(f"s{number}") for number in range(20)})
    host.run("status")
    assert len(host.calls()) == 1


def test_a_failed_service_is_down_and_says_why_and_what_next(host: fakehost.FakeHost) -> None:
    pair(host)
    host.unit("db", "active")
    host.unit("app", "failed")
    host.verdict("app", phase="not-ready", release=1, reason="refused: nothing listens at 10.89.100.3:8000")
    answer = host.run("status")
    assert answer.code == 8
    assert "app: failed: refused: nothing listens at 10.89.100.3:8000" in answer.out
    assert "next: journalctl -u podman-aistack-app.service -n 50" in answer.out


def test_a_failed_unit_without_a_verdict_still_has_a_reason(host: fakehost.FakeHost) -> None:
    pair(host)
    host.unit("db", "failed", Result="timeout")
    answer = host.run("status", "db")
    assert answer.code == 8
    assert "db: failed: its unit failed (timeout)" in answer.out


def test_a_service_that_only_waits_for_a_dependency_is_waiting(host: fakehost.FakeHost) -> None:
    pair(host)
    host.unit("db", "activating", SubState="start-post")
    host.unit("app", "failed")
    host.verdict("app", phase="preflight", checks=[DEPENDENCY_REFUSED], reason="dependency db: refused")
    answer = host.run("status")
    assert answer.code == 3
    assert re.search(r"^app +waiting", answer.out, re.MULTILINE)
    assert re.search(r"^db +starting", answer.out, re.MULTILINE)
    expected = "dependency db: refused: nothing listens at 10.89.100.2:5432 after 30.0 s and 120 tries; journalctl"
    assert expected in answer.out
    assert "next: aistack status db" in answer.out
    assert rows(host.run("status", "--json"))["app"]["failed_checks"] == [DEPENDENCY_REFUSED]


def test_a_missing_file_is_no_mere_waiting(host: fakehost.FakeHost) -> None:
    pair(host)
    host.unit("db", "active")
    host.unit("app", "failed")
    host.verdict("app", phase="preflight", checks=[DEPENDENCY_REFUSED, FILE_MISSING], reason="two")
    answer = host.run("status")
    assert answer.code == 8
    assert "the model /models/x.gguf: file missing: does not exist" in answer.out
    assert "next: aistack preflight app" in answer.out


@pytest.mark.parametrize("kind", ["authentication refused", "wrong protocol", "secret missing"])
def test_a_dependency_that_waiting_does_not_mend_is_no_mere_waiting(host: fakehost.FakeHost, kind: str) -> None:
    pair(host)
    host.unit("db", "active")
    host.unit("app", "failed")
    host.verdict("app", phase="preflight", checks=[{**DEPENDENCY_REFUSED, "kind": kind}], reason="x")
    assert host.run("status").code == 8


def test_a_stopped_service_is_down(host: fakehost.FakeHost) -> None:
    pair(host)
    host.unit("db", "active")
    host.unit("app", "inactive")
    answer = host.run("status")
    assert answer.code == 8
    assert "app: stopped: not started since boot" in answer.out
    assert "next: systemctl start podman-aistack-app.service" in answer.out
    host.verdict("app", phase="ready", release=1)
    assert "app: stopped\n" in host.run("status").out


def test_a_unit_systemd_does_not_know_is_down(host: fakehost.FakeHost) -> None:
    pair(host)
    host.unit("db", "inactive", LoadState="not-found")
    answer = host.run("status", "db")
    assert answer.code == 8
    assert "db: failed: systemd knows no such unit" in answer.out
    assert "bundle/install" in answer.out


def test_a_rollback_under_way_is_shown(host: fakehost.FakeHost) -> None:
    pair(host)
    host.release("db", 1, "good")
    host.release("db", 2, "bad", reason="never ready")
    host.unit("db", "failed")
    host.rollback_unit("db", "activating")
    answer = host.run("status", "db")
    assert answer.code == 3
    assert "rolling back" in answer.out
    assert "journalctl -f -u aistack-rollback@db.service" in answer.out
    assert "db: release 1 is what the next start runs, not the declared 2 (bad: never ready)" in answer.out


def test_a_rolled_back_service_serves_and_says_what_is_not_running(host: fakehost.FakeHost) -> None:
    host.declare({"app": fakehost.service("app")})
    good = host.release("app", 1, "good")
    bad = host.release("app", 2, "bad", reason="never ready (refused)", log="boom")
    host.unit("app", "active")
    host.verdict("app", phase="ready", release=good.id, readyAt=time.time(), startSeconds=0.5)
    answer = host.run("status")
    assert answer.code == 0
    assert "1 good (not 2)" in answer.out
    assert "app: release 1 runs, not the declared 2 (bad: never ready (refused))" in answer.out
    assert f"next: aistack releases app --log {bad.id}" in answer.out
    row = rows(host.run("status", "--json"))["app"]
    assert row["runs_declared"] is False
    assert row["release"]["id"] == good.id
    assert row["declared_release"] == {
        "id": bad.id,
        "state": "bad",
        "image_id": fakehost.image(2),
        "image_ref": "registry.example/app:2",
        "reason": "never ready (refused)",
    }


def test_a_release_chosen_by_hand_says_how_to_run_the_declared_one_again(host: fakehost.FakeHost) -> None:
    host.declare({"app": fakehost.service("app")})
    good = host.release("app", 1, "good")
    host.release("app", 2, "good")
    store = Store.open(str(host.journal_path))
    store.choose(good)
    store.close()
    host.unit("app", "active")
    host.verdict("app", phase="ready", release=good.id)
    answer = host.run("status")
    assert answer.code == 0
    assert "app: release 1 runs, not the declared 2 (good)" in answer.out
    assert "next: aistack rollback app --to 2" in answer.out


def test_the_only_release_being_bad_leads_to_its_log(host: fakehost.FakeHost) -> None:
    host.declare({"app": fakehost.service("app")})
    host.release("app", 1, "bad", reason="never ready", log="boom")
    host.unit("app", "failed")
    host.verdict("app", phase="down", release=1, reason="never ready; there is no good release to go back to")
    answer = host.run("status")
    assert answer.code == 8
    assert "there is no good release to go back to" in answer.out
    assert "next: aistack releases app --log 1" in answer.out


def test_since_comes_from_systemd_where_there_is_no_verdict(host: fakehost.FakeHost) -> None:
    host.declare({"app": fakehost.service("app")})
    ten_seconds_ago = int((time.monotonic() - 10) * 1e6)
    host.unit("app", "active", ActiveEnterTimestampMonotonic=str(ten_seconds_ago))
    since = datetime.fromisoformat(rows(host.run("status", "--json"))["app"]["since"])
    assert abs(since.timestamp() - (time.time() - 10)) < 5


def test_external_services_are_asked_themselves(host: fakehost.FakeHost, server: fakehost.Server) -> None:
    host.declare({"there": fakehost.external(server.port), "gone": fakehost.external(fakehost.free_port())})
    answer = host.run("status")
    assert answer.code == 3, "nothing is down here"
    assert re.search(rf"^there +ready .*external 127.0.0.1:{server.port}", answer.out, re.MULTILINE)
    assert "gone: failed: refused: nothing listens at 127.0.0.1" in answer.out
    assert host.run("status", "there").code == 0
    assert host.calls() == [], "there is no unit to ask systemd about"


def test_an_external_service_whose_password_is_missing_says_so(host: fakehost.FakeHost) -> None:
    probe = {**fakehost.probe("redis", 1), "secret": "PW"}
    host.declare(
        {"there": fakehost.external(1, probe=probe)}, secrets={"PW": {"file": str(host.root / "pw"), "as": "env"}}
    )
    answer = host.run("status")
    assert "secret PW" in answer.out
    assert "does not exist" in answer.out


def test_a_truncated_journal_is_one_line_and_the_states_are_still_shown(host: fakehost.FakeHost) -> None:
    host.declare({"app": fakehost.service("app")})
    for number in range(1, 30):
        host.release("app", number, "good")
    data = host.journal_path.read_bytes()
    host.journal_path.write_bytes(data[: len(data) // 2])
    host.unit("app", "active")
    answer = host.run("status")
    assert answer.code == 1
    assert re.search(r"^app +ready", answer.out, re.MULTILINE)
    assert str(host.journal_path) in answer.err
    assert answer.err.count("\n") == 1
    document = host.run("status", "--json").json
    assert str(host.journal_path) in document["problems"][0]
    assert document["exit_code"] == 1
    assert document["services"][0]["release"] is None


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '{"checks": 5}', '{"checks": [5]}', '{"reason": {}}'])
def test_a_damaged_verdict_does_not_hide_the_state(host: fakehost.FakeHost, text: str) -> None:
    host.declare({"app": fakehost.service("app")})
    host.unit("app", "failed")
    host.verdict("app")
    (host.root / "run" / "app" / "verdict.json").write_text(text)
    answer = host.run("status")
    assert answer.code == 8
    assert re.search(r"^app +failed", answer.out, re.MULTILINE)


def test_hostile_text_in_verdict_and_release_cannot_drive_the_terminal(host: fakehost.FakeHost) -> None:
    host.declare({"app": fakehost.service("app")})
    host.release("app", 1, "bad", reason="a\x1b[2Jb\nc", log="")
    host.unit("app", "failed")
    host.verdict("app", phase="not-ready", reason="x\x1b]0;owned\x07\ny", checks=[], release=1)
    answer = host.run("status")
    assert "\x1b" not in answer.out
    assert "\x07" not in answer.out
    assert "\\x1b]0;owned\\x07\\ny" in answer.out
    assert rows(host.run("status", "--json"))["app"]["reason"] == "x\x1b]0;owned\x07\ny"


def test_only_the_named_services_count(host: fakehost.FakeHost) -> None:
    pair(host)
    host.unit("db", "active")
    host.unit("app", "failed")
    assert host.run("status", "db").code == 0
    assert host.run("status", "db", "db").out.count("\ndb ") == 1


def test_no_services_at_all_is_no_error(host: fakehost.FakeHost) -> None:
    answer = host.run("status")
    assert (answer.code, answer.out) == (0, "")
    assert "declares no service" in answer.err


def test_systemctl_that_fails_is_one_line(host: fakehost.FakeHost) -> None:
    pair(host)
    program = host.root / "fake-programs" / "systemctl"
    program.write_text("#!/bin/sh\necho 'Failed to connect to bus' >&2\nexit 1\n")
    answer = host.run("status")
    assert answer.code != 0
    assert "Failed to connect to bus" in answer.err
    assert answer.err.count("\n") == 1


@pytest.mark.parametrize(
    ("phase", "words"), [("ready", "it was ready and its unit failed then"), ("starting", "its unit failed")]
)
def test_a_service_that_hit_its_start_limit_says_that_it_is_retried(
    host: fakehost.FakeHost, phase: str, words: str
) -> None:
    pair(host)
    host.unit("db", "failed", Result="start-limit-hit")
    host.verdict("db", phase=phase)
    assert rows(host.run("status", "--json"))["db"]["reason"] == f"{words} (start-limit-hit)"
    host.retry_timer("db", "active")
    soon = f"{words} (start-limit-hit); it is started again within 30 s"
    assert rows(host.run("status", "--json"))["db"]["reason"] == soon
    assert soon in host.run("status", "db").out


def test_the_retry_that_is_promised_is_the_one_that_is_rendered() -> None:
    timer = ROOT / "bundle/reference/etc/systemd/system/aistack-retry@.timer"
    assert f"OnActiveSec={status.RETRY_SECONDS}s" in timer.read_text(encoding="utf-8").splitlines()


PERMANENT = (
    "it stays until Nix declares another image; to make it permanent: "
    'services.aistack.services.app.image = "local/new:2"'
)


def deploy(host: fakehost.FakeHost) -> Release:
    """Let app run an image that was deployed in place of the declared one."""
    host.declare({"app": fakehost.service("app")})
    declared = host.release("app", 1, "good")
    store = Store.open(str(host.journal_path))
    try:
        found = store.stage(
            "app",
            fakehost.image(2),
            "local/new:2",
            host.environment("app"),
            {"number": 1},
            source="deployment 1",
            base=declared.image_id,
        )
        with store:
            store.choose_within(found)
        store.probation(found)
        store.bless(found)
    finally:
        store.close()
    host.unit("app", "active")
    host.verdict("app", phase="ready", release=found.id, readyAt=time.time(), startSeconds=0.5)
    return found


def test_a_deployed_image_is_said_to_be_one_and_how_to_make_it_permanent(host: fakehost.FakeHost) -> None:
    release = deploy(host)
    answer = host.run("status")
    assert answer.code == 0
    assert f"app: {release} runs, deployed in place of the image that Nix declares" in answer.out
    assert f"next: {PERMANENT}; to go back: aistack rollback app" in answer.out
    assert "not the declared" not in answer.out
    row = rows(host.run("status", "--json"))["app"]
    assert (row["runs_declared"], row["runs_deployed"]) == (False, True)
    listed = host.run("releases", "app")
    assert f"app: {release} was deployed: {PERMANENT}" in listed.out
    entries = host.run("releases", "app", "--json").json["releases"]
    assert [(entry["id"], entry["deployed"]) for entry in entries] == [(release.id, True), (1, False)]


def test_a_deployed_image_stays_one_over_its_next_start(host: fakehost.FakeHost) -> None:
    release = deploy(host)
    store = Store.open(str(host.journal_path))
    try:
        base = fakehost.image(1)
        environment = {**host.environment("app"), "NEW": "1"}
        again = store.declare("app", base, "registry.example/app:1", environment, {"number": 1})
    finally:
        store.close()
    assert (again.image_id, again.id != release.id) == (release.image_id, True)
    host.verdict("app", phase="ready", release=again.id, readyAt=time.time(), startSeconds=0.5)
    assert f"app: {again} runs, deployed in place of the image that Nix declares" in host.run("status").out


def test_a_deployed_image_that_was_gone_back_to_is_not_the_declared_one(host: fakehost.FakeHost) -> None:
    release = deploy(host)
    bad = host.release("app", 3, "bad", reason="never ready")
    answer = host.run("status")
    assert f"app: release {release.id} runs, not the declared {bad.id} (bad: never ready)" in answer.out
    assert "deployed in place" not in answer.out


def test_what_nobody_deployed_is_not_said_to_be(host: fakehost.FakeHost) -> None:
    host.declare({"app": fakehost.service("app")})
    host.release("app", 1, "good")
    host.unit("app", "active")
    host.verdict("app", phase="ready", release=1, readyAt=time.time())
    assert "deployed" not in host.run("status").out
    assert "deployed" not in host.run("releases").out
    assert rows(host.run("status", "--json"))["app"]["runs_deployed"] is False
