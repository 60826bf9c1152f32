"""`aistack rollback`."""

from __future__ import annotations

import io
import os
import pty

import fakehost
import pytest

from aistack.hooks import deploy_lock
from aistack.hooks.manifest import load

UNIT = "podman-aistack-app.service"
ROLLBACK_UNIT = "aistack-rollback@app.service"


@pytest.fixture
def app(host: fakehost.FakeHost) -> fakehost.FakeHost:
    """A host on which app runs release 3 (on probation); 1 and 2 were good; all images are there."""
    host.declare({"app": fakehost.service("app"), "far": fakehost.external(1)})
    host.release("app", 1, "good")
    host.release("app", 2, "good")
    host.release("app", 3, "probation")
    host.unit("app", "active")
    host.verdict("app", phase="ready", release=3)
    host.images(*(fakehost.image(number) for number in (1, 2, 3)))
    return host


def restarts(host: fakehost.FakeHost) -> list[str]:
    return [call for call in host.calls() if call.startswith("systemctl restart")]


def current(host: fakehost.FakeHost) -> int:
    entries = host.run("releases", "app", "--json").json["releases"]
    return int(next(entry["id"] for entry in entries if entry["current"]))


def test_it_goes_back_to_the_previous_good_release_and_verifies(app: fakehost.FakeHost) -> None:
    app.when("restart", UNIT, service="app", active="active", release=2)
    answer = app.run("rollback", "app", "--yes")
    assert answer.code == 0
    assert answer.out.startswith("app: release 2 (registry.example/app:2")
    assert "serves after" in answer.out
    assert restarts(app) == [f"systemctl restart {UNIT}"]
    assert current(app) == 2


def test_it_goes_to_the_release_that_is_named(app: fakehost.FakeHost) -> None:
    app.when("restart", UNIT, service="app", active="active", release=1)
    answer = app.run("rollback", "app", "--to", "1", "--yes", "--json")
    assert answer.code == 0
    document = answer.json
    assert document["schema_version"] == 1
    assert document["from"]["id"] == 3
    assert document["to"]["id"] == 1
    assert document["serves"]["id"] == 1
    assert document["exit_code"] == 0
    assert document["dry_run"] is False
    assert document["seconds"] >= 0
    assert current(app) == 1


def test_a_dry_run_says_what_and_does_nothing(app: fakehost.FakeHost) -> None:
    answer = app.run("rollback", "app", "--dry-run")
    assert answer.code == 0
    assert "would go from release 3" in answer.out
    assert "to release 2" in answer.out
    assert restarts(app) == []
    assert current(app) == 3


def test_without_a_terminal_and_without_yes_it_refuses(app: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    answer = app.run("rollback", "app")
    assert answer.code == 2
    assert answer.out == ""
    assert "nothing was changed; add --yes to go ahead" in answer.err
    assert restarts(app) == []
    assert current(app) == 3


@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("YES\n", 0), ("\n", 2), ("n\n", 2), ("yy\n", 2), ("\x04", 2)])
def test_on_a_terminal_it_asks_and_no_is_the_default(
    app: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch, typed: str, code: int
) -> None:
    app.when("restart", UNIT, service="app", active="active", release=2)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "r") as keyboard, os.fdopen(ours, "w") as typist:
        monkeypatch.setattr("sys.stdin", keyboard)
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
        typist.write(typed)
        typist.flush()
        answer = app.run("rollback", "app")
    assert answer.code == code
    assert f"Restart {UNIT} with release 2" in answer.err
    assert "[y/N] " in answer.err
    assert len(restarts(app)) == (1 if code == 0 else 0)


def test_a_release_that_runs_already_is_left_alone(app: fakehost.FakeHost) -> None:
    answer = app.run("rollback", "app", "--to", "3")
    assert answer.code == 0
    assert "runs already: nothing to do" in answer.out
    assert restarts(app) == []


@pytest.mark.parametrize("number", ["99", "0", "-5", str(2**70)])
def test_a_release_that_does_not_exist_is_code_2_and_lists_those_that_do(app: fakehost.FakeHost, number: str) -> None:
    answer = app.run("rollback", "app", f"--to={number}", "--yes")
    assert answer.code == 2
    assert f"it has no release {number}; it has 3, 2, 1" in answer.err
    assert answer.err.count("\n") == 1
    assert restarts(app) == []


def test_without_any_good_release_it_says_so(host: fakehost.FakeHost) -> None:
    host.declare({"app": fakehost.service("app")})
    host.release("app", 1, "probation")
    answer = host.run("rollback", "app", "--yes")
    assert answer.code == 2
    assert "none of its releases was ever good (current is 1, probation)" in answer.err


def test_with_the_current_release_the_only_good_one_it_says_so(host: fakehost.FakeHost) -> None:
    host.declare({"app": fakehost.service("app")})
    host.release("app", 1, "good")
    answer = host.run("rollback", "app", "--yes")
    assert answer.code == 2
    assert "no release of it but the current one (1) was ever good" in answer.err


def test_back_never_means_forward(app: fakehost.FakeHost) -> None:
    app.when("restart", UNIT, service="app", active="active", release=1)
    assert app.run("rollback", "app", "--to", "1", "--yes").code == 0
    answer = app.run("rollback", "app", "--yes")
    assert answer.code == 2
    assert "no good release is older than the current one (1); 2 is newer: --to 2" in answer.err


@pytest.mark.parametrize("journal", [True, False])
def test_a_service_that_never_started_has_nothing_to_go_back_to(host: fakehost.FakeHost, *, journal: bool) -> None:
    host.declare({"app": fakehost.service("app"), "db": fakehost.service("db")})
    if journal:
        host.release("db", 1, "good")
    answer = host.run("rollback", "app", "--yes")
    assert answer.code == 2
    assert "no release of it is recorded yet" in answer.err


def test_a_service_that_runs_elsewhere_cannot_be_rolled_back(app: fakehost.FakeHost) -> None:
    answer = app.run("rollback", "far", "--yes")
    assert answer.code == 2
    assert "outside this stack" in answer.err


def test_a_release_whose_image_is_gone_is_refused(app: fakehost.FakeHost) -> None:
    app.images(fakehost.image(3))
    answer = app.run("rollback", "app", "--yes")
    assert answer.code == 2
    assert "is not in podman's storage any more" in answer.err
    assert restarts(app) == []
    assert current(app) == 3


def test_a_release_that_does_not_start_is_down(app: fakehost.FakeHost) -> None:
    app.when("restart", UNIT, service="app", active="failed", release=2, code=1)
    answer = app.run("rollback", "app", "--yes")
    assert answer.code == 8
    assert answer.out == ""
    assert "DOWN" in answer.err
    assert "release 2 (registry.example/app:2, image 000000000000) does not serve: as arranged" in answer.err
    assert "aistack status app" in answer.err
    assert any(call == f"systemctl start {ROLLBACK_UNIT}" for call in app.calls())
    document = app.run("rollback", "app", "--to", "1", "--yes", "--json").json
    assert document["exit_code"] == 8
    assert document["serves"] is None
    assert document["next"] == "aistack status app"


def test_a_release_that_fails_and_is_rolled_back_by_systemd_is_code_7(app: fakehost.FakeHost) -> None:
    app.when("restart", UNIT, service="app", active="failed", release=1, code=1)
    app.when("start", ROLLBACK_UNIT, service="app", active="active", release=2)
    answer = app.run("rollback", "app", "--to", "1", "--yes", "--json")
    assert answer.code == 7
    assert answer.json["serves"]["id"] == 2
    assert answer.json["exit_code"] == 7
    assert "release 2" in answer.json["message"]


def test_a_start_that_chose_another_release_is_not_called_a_success(app: fakehost.FakeHost) -> None:
    app.when("restart", UNIT, service="app", active="active", release=2)
    answer = app.run("rollback", "app", "--to", "1", "--yes")
    assert answer.code == 7
    assert "release 2" in answer.err


def test_systemctl_is_quoted_where_nothing_else_knows_why(app: fakehost.FakeHost) -> None:
    app.when("restart", UNIT, service="app", active="inactive", release=2, code=1)
    app.verdict("app")
    (app.root / "after" / "restart" / UNIT / "verdict.json").write_text("{}")
    answer = app.run("rollback", "app", "--yes")
    assert answer.code == 8
    assert f"Job for {UNIT} failed." in answer.err
    assert answer.err.splitlines()[-1].startswith("aistack: app: DOWN: ")


def test_a_release_that_runs_and_does_not_answer_is_down(host: fakehost.FakeHost) -> None:
    host.declare({"app": fakehost.service("app", probe=fakehost.probe("exec", None, command=["ask"]))})
    host.release("app", 1, "good")
    host.release("app", 2, "good")
    host.images(fakehost.image(1), fakehost.image(2))
    host.when("restart", UNIT, service="app", active="active", release=1)
    (host.root / "not-ready").touch()
    answer = host.run("rollback", "app", "--yes")
    assert answer.code == 8
    assert "ask returned 1: not yet" in answer.err


def test_an_invalid_manifest_is_refused_before_anything_is_done(app: fakehost.FakeHost) -> None:
    app.manifest_path.write_text(app.manifest_path.read_text().replace('"dns": true', '"dns": "yes"'))
    answer = app.run("rollback", "app", "--yes")
    assert answer.code == 2
    assert "network.dns" in answer.err
    assert restarts(app) == []


def test_failed_dependents_are_started_again(host: fakehost.FakeHost) -> None:
    host.declare(
        {
            "app": fakehost.service("app", probe=fakehost.probe("exec", None, command=["true"])),
            "web": fakehost.service("web", dependsOn=["app"]),
            "shop": fakehost.service("shop", dependsOn=["app"]),
        }
    )
    host.release("app", 1, "good")
    host.release("app", 2, "good")
    host.images(fakehost.image(1), fakehost.image(2))
    host.unit("app", "failed")
    host.unit("web", "failed")
    host.retry_timer("web", "active")
    host.unit("shop", "failed")  # and stopped by hand then, which took its timer along
    host.when("restart", UNIT, service="app", active="active", release=1)
    answer = host.run("rollback", "app", "--yes", "--json")
    assert answer.code == 0
    assert answer.json["restored"] == ["web"]
    assert "systemctl start --no-block podman-aistack-web.service" in host.calls()


def test_while_a_deployment_is_under_way_it_is_code_4_and_nothing_changes(app: fakehost.FakeHost) -> None:
    with deploy_lock.acquire(load(), "aistack deploy app"):
        answer = app.run("rollback", "app", "--yes")
        assert app.run("rollback", "app", "--dry-run").code == 0
    assert answer.code == 4
    assert "the lock is held by `aistack deploy app` (process " in answer.err
    assert restarts(app) == []
    assert current(app) == 3


def test_another_release_that_was_chosen_while_it_was_asked_for_is_not_left(
    app: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aistack.cli.output.confirm", lambda *_, **__: app.release("app", 4, "good"))
    answer = app.run("rollback", "app")
    assert answer.code == 2
    assert "was chosen meanwhile" in answer.err
    assert restarts(app) == []
    assert current(app) == 4


def test_the_lock_is_free_afterwards(app: fakehost.FakeHost) -> None:
    app.when("restart", UNIT, service="app", active="active", release=2)
    assert app.run("rollback", "app", "--yes").code == 0
    assert deploy_lock.holder(load()) is None
