"""What is done about a unit that failed for good."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path
from typing import Any

import fakehost
import pytest

from aistack.hooks import await_ready, rollback, runtime, start_pre
from aistack.hooks.manifest import Manifest, load
from aistack.hooks.releases import Store

READY = fakehost.probe("exec", None, command=["true"])
UNIT = "podman-aistack-app.service"
START = f"systemctl start --no-block {UNIT}"
RETRY = "systemctl restart --no-block aistack-retry@app.timer"


@pytest.fixture
def app(host: fakehost.FakeHost) -> fakehost.FakeHost:
    """An app that needs redis; a good release of it, and a newer one that runs."""
    host.declare(
        {
            "redis": fakehost.service("redis", probe=fakehost.probe("tcp", 1)),
            "app": fakehost.service("app", probe=READY, dependsOn=["redis"]),
        }
    )
    host.release("app", 1, "good")
    host.release("app", 2, "probation")
    host.images(fakehost.image(1), fakehost.image(2))
    return host


def fail(host: fakehost.FakeHost, verdict: dict[str, Any], **properties: str) -> tuple[int, str]:
    """Let the app's unit have failed after this verdict; returns what the hook did: its code, its words."""
    host.unit("app", "failed", **{"NRestarts": "3", **properties})
    host.verdict("app", **verdict)
    host.capsys.readouterr()
    code = rollback.on_failure(load(), "app")
    return code, host.capsys.readouterr().err


def states(host: fakehost.FakeHost) -> dict[int, str]:
    store = Store.open(str(host.journal_path))
    try:
        return {release.id: release.state for release in store.history("app")}
    finally:
        store.close()


def test_a_stop_that_a_program_answers_with_an_error_is_no_failure(app: fakehost.FakeHost) -> None:
    app.journal('{"MESSAGE_ID":"9d1aaa27d60140bd96365438aad20286"}')
    code, said = fail(app, {"phase": "ready", "release": 2}, NRestarts="0")
    assert code == 0
    assert "was stopped" in said
    assert states(app) == {1: "good", 2: "probation"}
    assert app.calls()[-1] == f"systemctl reset-failed {UNIT}"


def test_restarts_by_hand_are_no_failure_of_a_release_in_probation(app: fakehost.FakeHost) -> None:
    code, said = fail(app, {"phase": "ready", "release": 2}, Result="start-limit-hit", NRestarts="0")
    assert code == 0
    assert "by hand more often than its start limit allows" in said
    assert states(app) == {1: "good", 2: "probation"}
    assert app.calls()[-2:] == [f"systemctl reset-failed {UNIT}", START]


def test_nor_are_they_where_it_answers_each_stop_with_an_error(app: fakehost.FakeHost) -> None:
    # systemd keeps the first result then, and says of the refused start that it failed.
    app.journal('{"MESSAGE_ID":"be02cf6855d2428ba40df7e9d022f03d"}')
    code, said = fail(app, {"phase": "ready", "release": 2}, Result="exit-code", NRestarts="0")
    assert code == 0
    assert "by hand more often than its start limit allows" in said
    assert states(app) == {1: "good", 2: "probation"}
    assert app.calls()[-2:] == [f"systemctl reset-failed {UNIT}", START]


def test_crashes_of_a_release_that_ends_well_are_failures_all_the_same(app: fakehost.FakeHost) -> None:
    # Ended with 0 each time, so systemd's result is the limit itself.
    fail(app, {"phase": "ready", "release": 2}, Result="start-limit-hit", NRestarts="3")
    assert START not in app.calls()


def test_a_rollback_that_could_not_help_is_forgotten_once_the_service_is_ready(app: fakehost.FakeHost) -> None:
    app.declare({"app": fakehost.service("app", probe=READY)})
    app.when("restart", UNIT, service="app", active="failed", release=1, code=1)
    code, said = fail(app, {"phase": "not-ready", "release": 2, "decisive": True, "reason": "timed out"})
    assert (code, "DOWN" in said) == (8, True), said
    reset = "systemctl reset-failed aistack-rollback@app.service"
    assert reset not in app.calls()
    app.verdict("app", phase="starting", release=1, proven=True)
    for times in (1, 1):
        assert await_ready.await_ready(load(), "app") == 0
        assert app.calls().count(reset) == times


def test_two_ways_back_at_once_are_one(app: fakehost.FakeHost) -> None:
    manifest = load()
    app.unit("app", "active")
    app.verdict("app", phase="ready", release=2)
    store = Store.open(str(app.journal_path))
    good, bad = store.get("app", 1), store.get("app", 2)
    assert good is not None
    assert bad is not None
    path = Path(runtime.service_dir(manifest, "app")) / "way-back.lock"

    def other() -> None:
        app.verdict("app", phase="ready", release=1)
        os.close(descriptor)

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    timer = threading.Timer(0.2, other)
    timer.start()
    try:
        outcome = rollback.roll_back(manifest, manifest.services["app"], store, good, bad=bad, reason="slow")
    finally:
        timer.join()
        store.close()
    assert outcome.serving, outcome.reason
    assert f"systemctl restart {UNIT}" not in app.calls()
    assert states(app) == {1: "good", 2: "bad"}


def test_a_dependency_that_went_away_is_waited_for(app: fakehost.FakeHost) -> None:
    code, said = fail(app, {"phase": "not-ready", "release": 2, "decisive": True, "reason": "timed out"})
    assert code == 0
    assert "dependency redis does not answer" in said
    assert states(app) == {1: "good", 2: "probation"}
    assert RETRY in app.calls()
    verdict = runtime.read_verdict(load(), "app")
    assert verdict["phase"] == "preflight"
    assert verdict["release"] == 2
    assert verdict["checks"][0]["subject"] == "dependency redis"


def test_its_return_starts_the_service_again(app: fakehost.FakeHost) -> None:
    fail(app, {"phase": "not-ready", "release": 2, "decisive": True, "reason": "timed out"})
    app.retry_timer("app", "active")
    assert await_ready.revive_dependents(load(), "redis") == ["app"]
    assert app.calls()[-1] == START


def test_a_service_that_was_stopped_while_it_waited_stays_stopped(app: fakehost.FakeHost) -> None:
    fail(app, {"phase": "not-ready", "release": 2, "decisive": True, "reason": "timed out"})
    app.retry_timer("app", "inactive")
    assert await_ready.revive_dependents(load(), "redis") == []
    assert START not in app.calls()


def test_what_ran_is_judged_not_what_should_have_run(app: fakehost.FakeHost) -> None:
    # The image of release 2 cannot be had, so release 1 ran in its place.
    code, said = fail(app, {"phase": "ready", "release": 1, "reason": "ended"})
    assert code == 0
    assert "release 1" in said
    assert "is proven" in said
    assert states(app) == {1: "good", 2: "probation"}


def choose(host: fakehost.FakeHost) -> tuple[int | None, str | None]:
    manifest: Manifest = load()
    store = Store.open(str(host.journal_path))
    try:
        release, trouble, notice = start_pre.choose(manifest, manifest.service("app"), store, runtime.images())
    finally:
        store.close()
    assert trouble is None or release is None
    return (release.id if release is not None else None), notice


@pytest.mark.parametrize(
    ("images", "runs"),
    [((1, 2), 2), ((1,), 1), ((), None)],
    ids=["what ran before", "the last good one", "nothing"],
)
def test_a_declared_image_that_is_not_there_takes_nothing_down(
    app: fakehost.FakeHost, images: tuple[int, ...], runs: int | None
) -> None:
    app.document["services"]["app"]["image"]["ref"] = "localhost/never/built:1"
    app.declare(app.document["services"])
    app.images(*(fakehost.image(number) for number in images))
    chosen, notice = choose(app)
    assert chosen == runs
    assert (notice is not None) == (runs is not None)
    if notice is not None:
        assert "localhost/never/built:1 cannot be had" in notice
        assert f"release {runs}" in notice


def test_a_bad_release_is_no_way_out(app: fakehost.FakeHost) -> None:
    app.release("app", 3, "bad", reason="never ready")
    app.document["services"]["app"]["image"]["ref"] = "localhost/never/built:1"
    app.declare(app.document["services"])
    app.images(fakehost.image(3))
    assert choose(app) == (None, None)
