"""What recovery makes of an attempt that was cut off: every phase, every state of its release.

The journal and the lock are real; podman and systemctl are stand-ins, which the killed deployments of
test_deploy_killed.py and the scenarios have not.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import fakehost
import pytest

from aistack.hooks import deploy_lock, deploys, recover
from aistack.hooks.deploys import DEPLOYED, DOWN, INTERRUPTED, LIVE, PHASES, ROLLED_BACK, Deploys
from aistack.hooks.errors import HookError
from aistack.hooks.manifest import load
from aistack.hooks.releases import BAD, GOOD, PROBATION, STAGED, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aistack.hooks.deploys import Attempt
    from aistack.hooks.releases import Release

OLD, NEW = 1, 2  # releases
UNIT = "podman-aistack-app.service"


class Cut:
    """A stack whose app was good with release OLD, and a deployment of it that was cut off."""

    def __init__(self, host: fakehost.FakeHost, store: Store) -> None:
        """Let OLD serve."""
        self.host = host
        self.store = store
        self.deploys = Deploys(store)
        self.entry = load().services["app"]

    def attempt(self, phase: str, state: str, *, chosen: bool, previous: bool = True) -> Attempt:
        """A deployment of release NEW that was cut off in a phase, with the release in a state."""
        old = self.store.current("app")
        found = self.deploys.begin("app", "local/new:2", "restart")
        release = self.store.stage(
            "app",
            fakehost.image(NEW),
            "local/new:2",
            self.host.environment("app"),
            self.entry.identity,
            source="deployment 1",
            base=fakehost.image(OLD),
        )
        self.deploys.candidate(found, release, old if previous else None)
        with self.store:
            if chosen:
                self.store.choose_within(release)
            self.store.rows("UPDATE release SET state = ? WHERE id = ?", (state, release.id))
            self.store.rows("UPDATE deploy SET phase = ? WHERE id = ?", (phase, found.id))
        return found

    def resolve(self, *, starting: bool = False) -> list[recover.Recovered]:
        """What recovery says and does."""
        return recover.resolve(load(), self.store, starting=starting)

    def state(self, release: int) -> str:
        """The state of a release."""
        found = self.store.get("app", release)
        assert found is not None
        return found.state

    @property
    def current(self) -> Release | None:
        """What the next start runs."""
        return self.store.current("app")

    def restarts(self) -> list[str]:
        """The restarts so far."""
        return [call for call in self.host.calls() if call.startswith("systemctl restart")]


@pytest.fixture
def cut(host: fakehost.FakeHost) -> Iterator[Cut]:
    """A stack whose app serves release OLD."""
    host.declare({"app": fakehost.service("app"), "far": fakehost.external(1)})
    host.release("app", OLD, "good")
    host.unit("app", "active")
    host.verdict("app", phase="ready", release=OLD)
    store = Store.open(str(host.journal_path))
    yield Cut(host, store)
    store.close()


@pytest.mark.parametrize(
    ("phase", "state", "chosen"),
    list(itertools.product(PHASES, (STAGED, PROBATION, GOOD, BAD), (True, False))),
)
def test_every_end_is_one_of_few(cut: Cut, phase: str, state: str, *, chosen: bool) -> None:
    cut.host.unit("app", "inactive")
    attempt = cut.attempt(phase, state, chosen=chosen)
    (found,) = cut.resolve()
    ended = cut.deploys.get(attempt.id)
    assert ended.ended is not None
    assert ended.reason == found.line
    assert cut.current is not None
    if phase not in LIVE:
        expected = INTERRUPTED
        assert "nothing live was touched" in found.line
    elif state == GOOD and chosen:
        expected = DEPLOYED
        assert cut.current.id == NEW
    else:
        expected = ROLLED_BACK
        assert cut.current.id == OLD
        assert cut.state(NEW) == BAD
    assert ended.outcome == found.attempt.outcome == expected
    assert cut.state(OLD) == GOOD
    assert cut.restarts() == []
    assert found.serves is not None
    assert found.serves.id == cut.current.id
    assert cut.resolve() == []


def test_an_attempt_that_had_no_release_yet_is_interrupted(cut: Cut) -> None:
    attempt = cut.deploys.begin("app", "local/new:2", "restart")
    (found,) = cut.resolve()
    assert (found.attempt.id, found.attempt.outcome, found.attempt.code) == (attempt.id, INTERRUPTED, 130)
    cut_off = "deployment 1 of app (local/new:2) was cut off in phase plan: nothing live was touched"
    assert found.line == f"{cut_off}, {cut.current} stays"


def test_a_release_that_runs_is_left_by_a_restart(cut: Cut) -> None:
    cut.attempt(deploys.VERIFY, PROBATION, chosen=True)
    cut.host.verdict("app", phase="ready", release=NEW)
    cut.host.when("restart", UNIT, service="app", active="active", release=OLD)
    (found,) = cut.resolve()
    assert (found.attempt.outcome, found.attempt.code) == (ROLLED_BACK, 7), found.line
    assert cut.restarts() == [f"systemctl restart {UNIT}"]
    assert "went back to release 1" in found.line


@pytest.mark.parametrize(("runs", "restarts"), [(OLD, 0), (NEW, 0), (None, 1)])
def test_one_that_was_good_before_is_not_bad_afterwards(cut: Cut, runs: int | None, restarts: int) -> None:
    cut.attempt(deploys.SWITCH, GOOD, chosen=True)
    cut.host.unit("app", "activating" if runs is None else "active")
    cut.host.verdict("app", phase="ready", release=runs)
    cut.host.when("restart", UNIT, service="app", active="active", release=OLD)
    (found,) = cut.resolve()
    assert found.attempt.outcome == (DEPLOYED if runs == NEW else ROLLED_BACK), found.line
    assert cut.current is not None
    assert cut.current.id == (NEW if runs == NEW else OLD)
    assert (cut.state(OLD), cut.state(NEW)) == (GOOD, GOOD)
    assert len(cut.restarts()) == restarts


def test_one_that_was_gone_back_from_already_is_not_restarted_again(cut: Cut) -> None:
    cut.attempt(deploys.REVERT, PROBATION, chosen=True)
    (found,) = cut.resolve()
    assert found.attempt.outcome == ROLLED_BACK
    assert cut.restarts() == []


def test_one_that_was_left_in_the_journal_alone_is_left_by_a_restart(cut: Cut) -> None:
    cut.attempt(deploys.REVERT, BAD, chosen=False)
    cut.host.verdict("app", phase="ready", release=NEW)
    cut.host.when("restart", UNIT, service="app", active="active", release=OLD)
    (found,) = cut.resolve()
    assert found.attempt.outcome == ROLLED_BACK, found.line
    assert cut.restarts() == [f"systemctl restart {UNIT}"]


def test_where_the_old_one_does_not_start_either_it_is_down(cut: Cut) -> None:
    cut.attempt(deploys.SWITCH, PROBATION, chosen=True)
    cut.host.verdict("app", phase="ready", release=NEW)
    cut.host.when("restart", UNIT, service="app", active="failed", release=OLD, code=1)
    (found,) = cut.resolve()
    assert (found.attempt.outcome, found.attempt.code) == (DOWN, 8), found.line
    assert "which does not start" in found.line
    assert "see: aistack status app" in found.line


def test_where_there_is_nothing_to_go_back_to_it_stays(cut: Cut) -> None:
    with cut.store:
        cut.store.rows("UPDATE release SET state = 'bad' WHERE id = ?", (OLD,))
    cut.attempt(deploys.PROBATION, PROBATION, chosen=True, previous=False)
    (found,) = cut.resolve()
    assert found.attempt.outcome == INTERRUPTED
    assert "there is no release to go back to" in found.line
    assert cut.current is not None
    assert cut.current.id == NEW


@pytest.mark.parametrize("gone", ["missing", "external"])
def test_a_service_that_is_no_container_of_the_stack_any_more_is_left_alone(cut: Cut, gone: str) -> None:
    cut.attempt(deploys.SWITCH, PROBATION, chosen=True)
    cut.host.declare({"app": fakehost.external(1)} if gone == "external" else {})
    (found,) = cut.resolve(starting=True)
    assert found.attempt.outcome == INTERRUPTED
    assert "it is no container of this stack any more" in found.line
    assert cut.restarts() == []


def test_before_the_units_start_nothing_is_waited_for_that_waits_for_us(cut: Cut) -> None:
    attempt = cut.attempt(deploys.SWITCH, PROBATION, chosen=True)
    for state in ("active", "activating", "failed"):
        cut.host.unit("app", state)
        assert cut.resolve(starting=True) == []
    assert cut.deploys.get(attempt.id).ended is None
    cut.host.unit("app", "inactive")
    (found,) = cut.resolve(starting=True)
    assert found.attempt.outcome == ROLLED_BACK
    assert cut.restarts() == []


def test_two_that_were_cut_off_are_resolved_the_oldest_first(cut: Cut) -> None:
    cut.host.unit("app", "inactive")
    first = cut.deploys.begin("app", "one", "restart")
    second = cut.attempt(deploys.SWITCH, PROBATION, chosen=True)
    assert [found.attempt.id for found in cut.resolve()] == [first.id, second.id]


def test_where_nobody_lives_the_verb_does_it_looks_once_more_and_stops_the_timer(cut: Cut) -> None:
    attempt = cut.deploys.begin("app", "x", "restart")
    assert recover.recover(load(), "late") == 0
    assert cut.deploys.get(attempt.id).outcome == INTERRUPTED
    assert cut.host.calls()[-1] == f"systemctl start --no-block {recover.TIMER}"
    looked = len([call for call in cut.host.calls() if call.startswith("podman ps")])
    assert recover.recover(load(), "late") == 0
    assert len([call for call in cut.host.calls() if call.startswith("podman ps")]) == looked + 1
    assert cut.host.calls()[-1] == f"systemctl stop --no-block {recover.TIMER}"


def test_what_is_left_for_later_starts_the_timer(cut: Cut) -> None:
    cut.attempt(deploys.SWITCH, PROBATION, chosen=True)
    assert recover.recover(load(), recover.BEFORE_START) == 0
    assert cut.host.calls()[-1] == f"systemctl start --no-block {recover.TIMER}"


def test_a_deployment_that_lives_is_left_alone(cut: Cut) -> None:
    attempt = cut.attempt(deploys.SWITCH, PROBATION, chosen=True)
    with deploy_lock.acquire(load(), "aistack deploy app"):
        assert recover.recover(load(), "late") == 0
    assert cut.deploys.get(attempt.id).ended is None
    assert [call for call in cut.host.calls() if recover.TIMER in call] == []


def test_without_a_journal_there_is_nothing_to_do(host: fakehost.FakeHost) -> None:
    host.declare({"app": fakehost.service("app")})
    assert recover.recover(load(), "late") == 0
    assert host.calls() == []
    assert not host.journal_path.exists()


_SWEPT = r"""#!/bin/sh
printf 'podman %s\n' "$*" >> "$FAKE_HOST/calls"
case "$1 $2" in
"ps --all") echo c1; echo c2 ;;
"image list") cat "$FAKE_HOST/images" ;;
"network ls") echo n1 ;;
rm*)
  if [ -f "$FAKE_HOST/fails" ]; then rm "$FAKE_HOST/fails"; echo "Error: conmon exited" >&2; exit 125; fi ;;
esac
"""


def test_what_was_left_over_is_removed_even_where_podman_fails_once(cut: Cut) -> None:
    cut.host.root.joinpath("fake-programs", "podman").write_text(_SWEPT, encoding="utf-8")
    folder = cut.host.root / "run" / recover.TRIALS / "7"
    folder.mkdir(parents=True)
    (folder / "env").write_text("KEY=secret", encoding="utf-8")
    (cut.host.root / "fails").touch()
    cut.host.images(fakehost.image(OLD))
    with (cut.host.root / "images").open("a", encoding="utf-8") as file:
        for number, identifier in ((3, NEW), (4, NEW + 1)):
            file.write(f"{recover.BUILT}app:{number}\t{fakehost.image(identifier)}\n")
    cut.store.stage("app", fakehost.image(NEW), f"{recover.BUILT}app:3", {}, {}, source="deployment 3", base="")
    recover.sweep(load(), cut.store)
    assert not folder.parent.exists()
    removing = ("podman rm", "podman network rm", "podman untag")
    removed = [call for call in cut.host.calls() if call.startswith(removing)]
    again = "podman rm --force --ignore --time 0 c1 c2"
    name = f"podman untag {fakehost.image(NEW + 1)} {recover.BUILT}app:4"
    assert removed == [again, again, "podman network rm --force n1", name]
    listings = [call for call in cut.host.calls() if call.startswith(("podman ps", "podman network ls"))]
    assert all("label=aistack.deploy" in call for call in listings)
    assert len(listings) == 2


def test_an_attempt_that_nobody_knows_is_an_error(cut: Cut) -> None:
    with pytest.raises(HookError, match="there is no deployment 99"):
        cut.deploys.get(99)


def test_old_attempts_are_forgotten(cut: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploys, "_RETAINED", 3)
    for number in range(6):
        cut.deploys.end(cut.deploys.begin("app", str(number), "restart"), DEPLOYED, 0, "")
    assert [attempt.source for attempt in cut.deploys.history()] == ["5", "4", "3"]
    assert cut.deploys.history("db") == []


def test_the_time_of_a_phase_adds_up_where_it_is_entered_twice(cut: Cut) -> None:
    attempt = cut.deploys.begin("app", "x", "restart")
    for phase, spent in ((deploys.BUILD, 1.0), (deploys.TEST, 2.0), (deploys.BUILD, 3.0)):
        cut.deploys.enter(attempt, phase, spent)
    cut.deploys.end(attempt, DEPLOYED, 0, "good", spent=4.0, unavailable=0.5, evidence={"a": 1})
    found = cut.deploys.get(attempt.id)
    assert found.seconds == {"plan": 1.0, "build": 6.0, "test": 3.0}
    assert (found.unavailable, found.evidence, found.reason) == (0.5, {"a": 1}, "good")
