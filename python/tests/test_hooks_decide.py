"""Who is to blame for a unit that failed for good, and how a service gets back to what worked."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

import fakehost
import hookhost
import pytest
import scripted

from aistack.hooks import rollback
from aistack.hooks.errors import DONE, DOWN, HookError
from aistack.hooks.manifest import load
from aistack.hooks.releases import Store
from aistack.hooks.rollback import ROLL_BACK, STAY_DOWN, TRY_AGAIN, Decision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME_SERVER = scripted.own_address()
UNIT = "podman-aistack-app.service"
RETRY = "systemctl restart --no-block aistack-retry@app.timer"
BLESS = "systemctl restart --no-block aistack-bless@app.timer"
RESET = f"systemctl reset-failed {UNIT}"
RESTART = f"systemctl restart {UNIT}"
ANSWERS = fakehost.probe("exec", None, command=["true"])


@pytest.fixture
def stack(host: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch) -> hookhost.Host:
    """A host on which nobody is patient."""
    monkeypatch.setattr(rollback, "_DEPENDENCY_GRACE", 0.05)
    return hookhost.Host(host, NAME_SERVER)


def declare(stack: hookhost.Host, *states: str, **changes: Any) -> None:  # noqa: ANN401  (any JSON value)
    """Declare an app that answers, with a release in each of these states; the last one is current unless it is bad."""
    stack.declare(fakehost.service("app", **{"probe": ANSWERS, **changes}))
    for number, state in enumerate(states, 1):
        stack.fake.release("app", number, state)


def decide(stack: hookhost.Host, result: str = "exit-code") -> Decision:
    """Decide about the current release of the app."""
    manifest = load()
    with stack.store() as store:
        return rollback.decide(manifest, manifest.service("app"), store, store.current("app"), result)


# --- whose fault it is -----------------------------------------------------------------------------------------------

PHASES = ["preflight", "starting", "not-ready", "ready", None]
STATES = ["staged", "probation", "good"]


def expected(phase: str | None, state: str, policy: str, *, up: bool, older: bool) -> str:
    """What the design says (sections 7 and 9), once more."""
    if phase == "preflight":  # it was never started: no fault of the image
        return TRY_AGAIN
    if state == "good":  # proven releases are restarted
        return TRY_AGAIN
    if not up:  # a down dependency rolls nothing back
        return TRY_AGAIN
    return ROLL_BACK if older and policy == "image" else STAY_DOWN


@pytest.mark.parametrize("phase", PHASES)
def test_every_case(stack: hookhost.Host, phase: str | None) -> None:
    cases = {
        f"app{number}": case
        for number, case in enumerate(itertools.product(STATES, ["image", "none"], [True, False], [True, False]))
    }
    with scripted.Tcp(scripted.silent) as server:
        services = {"up": fakehost.external(server.port), "down": fakehost.external(fakehost.free_port())}
        for name, (_, policy, up, _) in cases.items():
            services[name] = fakehost.service(name, dependsOn=["up" if up else "down"], rollbackPolicy=policy)
        stack.declare(fakehost.service("app"), **services)
        manifest = load()
        with stack.store() as store:
            for name, (state, policy, up, older) in cases.items():
                releases = []
                for number, one in enumerate(["good", state] if older else [state]):
                    releases.append(store.declare(name, fakehost.image(number), f"{name}:{number}", {}, {}))
                    if one in {"probation", "good"}:
                        store.probation(releases[-1])
                    if one == "good":
                        store.bless(releases[-1])
                if phase is not None:
                    stack.fake.verdict(name, phase=phase, reason="as arranged", checks=[])
                found = rollback.decide(manifest, manifest.service(name), store, store.current(name), "exit-code")
                assert found.action == expected(phase, state, policy, up=up, older=older), (state, policy, up, older)
                target = found.target.id if found.target is not None else None
                assert target == (releases[0].id if found.action == ROLL_BACK else None)
                assert (found.absent is not None) == (phase != "preflight" and state != "good" and not up)


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        ("not-ready", "never ready (as arranged)"),
        ("ready", "was ready and ended again within its probation (signal)"),
        ("starting", "its container could not be started (signal)"),
    ],
)
def test_the_reason_says_how_far_it_came(stack: hookhost.Host, phase: str, words: str) -> None:
    declare(stack, "good", "staged")
    stack.fake.verdict("app", phase=phase, reason="as arranged", checks=[])
    assert decide(stack, "signal").reason == words


def test_reasons_to_stay_down(stack: hookhost.Host) -> None:
    declare(stack, "staged")
    stack.fake.verdict("app", phase="not-ready", reason="r", checks=[])
    assert decide(stack).reason == "never ready (r); there is no good release to go back to"
    declare(stack, rollbackPolicy="none")
    assert decide(stack).reason.endswith('services.aistack.services.app.rollback.policy is "none"')


def test_a_service_without_a_release_is_tried_again(stack: hookhost.Host) -> None:
    declare(stack)
    found = decide(stack)
    assert (found.action, found.reason) == (TRY_AGAIN, "it has no release yet")


def test_dependencies_are_blamed_only_where_they_are_checked(stack: hookhost.Host) -> None:
    stack.declare(
        fakehost.service("app", dependsOn=["db"]),
        db=fakehost.external(fakehost.free_port()),
        startup={"dependencyCheck": False, "timeoutSeconds": 1},
    )
    stack.fake.release("app", 1, "good")
    stack.fake.release("app", 2, "staged")
    assert decide(stack).action == ROLL_BACK


# --- OnFailure -------------------------------------------------------------------------------------------------------


def fail(stack: hookhost.Host, code: int, **verdict: Any) -> str:  # noqa: ANN401  (any JSON value)
    """Let the app's unit have failed after this verdict; return what its OnFailure= said."""
    stack.fake.unit("app", "failed", NRestarts="3")
    stack.fake.verdict("app", **{"checks": [], **verdict})
    stack.said()
    found = rollback.on_failure(load(), "app")
    said = stack.said()
    assert found == code, said
    return said


def restarts_to(stack: hookhost.Host, active: str, release: int, code: int = 0) -> None:
    """Let a restart of the app leave its unit so."""
    stack.fake.when("restart", UNIT, service="app", active=active, release=release, code=code)


@pytest.mark.parametrize("state", ["active", "activating", "inactive"])
def test_a_unit_that_is_not_failed_any_more_is_left_alone(stack: hookhost.Host, state: str) -> None:
    declare(stack, "good", "staged")
    stack.fake.unit("app", state)
    assert rollback.on_failure(load(), "app") == DONE
    assert f"app is {state} again: nothing to do" in stack.said()
    assert {call.split()[1] for call in stack.calls("systemctl")} == {"show"}
    assert stack.history() == {1: "good", 2: "staged"}


def test_a_bad_release_goes_back_and_its_dependents_come_back(stack: hookhost.Host) -> None:
    web = fakehost.service("web", dependsOn=["app"])
    edge = fakehost.service("edge", dependsOn=["web"])
    stack.declare(
        fakehost.service("app", probe=ANSWERS), web=web, edge=edge, fan=fakehost.service("fan", wants=["app"])
    )
    stack.fake.release("app", 1, "good")
    stack.fake.release("app", 2, "probation")
    for name in ("web", "edge", "fan"):
        stack.fake.unit(name, "failed")
        stack.fake.retry_timer(name, "active")
    (stack.root / "journal").write_text("line one\nit broke\n")
    restarts_to(stack, "active", 1)
    said = fail(stack, DONE, phase="ready", release=2, reason="answered")
    assert said.startswith("app ROLLED BACK to release 1 (")
    assert "left release 2 (" in said
    assert "was ready and ended again within its probation (exit-code)" in said
    assert said.endswith("; started again: web, edge\n")
    assert stack.current().id == 1
    with stack.store() as store:
        bad = store.get("app", 2)
    assert bad is not None
    assert (bad.state, bad.log) == ("bad", "line one\nit broke\n")
    assert bad.reason == "was ready and ended again within its probation (exit-code)"
    changing = [call for call in stack.calls("systemctl") if " show " not in call]
    units = "podman-aistack-web.service podman-aistack-edge.service"
    probation = "systemctl stop aistack-bless@app.timer"
    revived = [f"systemctl reset-failed {units}", f"systemctl start --no-block {units}"]
    assert changing == [probation, RESET, RESTART, *revived]


def test_an_old_release_that_does_not_start_either_is_down(stack: hookhost.Host) -> None:
    declare(stack, "good", "staged")
    restarts_to(stack, "failed", 1, code=1)
    said = fail(stack, DOWN, phase="not-ready", release=2, reason="refused", decisive=True)
    assert said.startswith("app is DOWN: release 1 (")
    assert f"does not start either: systemctl restart {UNIT} failed: Job for {UNIT} failed." in said
    assert "; left release 2 (" in said, "nothing says which release is to blame"
    assert said.endswith("): never ready (refused); see: aistack status app\n")
    assert stack.history() == {1: "good", 2: "bad"}
    assert stack.current().id == 1


def test_an_old_release_that_does_not_answer_is_down(stack: hookhost.Host) -> None:
    declare(stack, "good", "staged")
    restarts_to(stack, "active", 1)
    (stack.root / "not-ready").touch()
    said = fail(stack, DOWN, phase="not-ready", release=2, reason="refused", decisive=True)
    assert "does not start either: not ready yet: true returned 1: not yet" in said


def test_dependents_that_cannot_be_started_do_not_undo_a_rollback(stack: hookhost.Host) -> None:
    stack.declare(fakehost.service("app", probe=ANSWERS), web=fakehost.service("web", dependsOn=["app"]))
    stack.fake.release("app", 1, "good")
    stack.fake.release("app", 2, "staged")
    stack.fake.unit("web", "failed")
    stack.fake.retry_timer("web", "active")
    restarts_to(stack, "active", 1)
    script = stack.root / "on/start/podman-aistack-web.service"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\necho Transaction is destructive. >&2\nexit 1\n")
    script.chmod(0o755)
    said = fail(stack, DONE, phase="not-ready", release=2, reason="refused", decisive=True)
    assert "app serves again, but its dependents could not be started: " in said
    assert "app ROLLED BACK to release 1" in said


def test_with_nothing_to_go_back_to_it_stays_down_and_says_so(stack: hookhost.Host) -> None:
    declare(stack, "staged")
    (stack.root / "journal").write_text("no such file: model.gguf\n")
    said = fail(stack, DOWN, phase="not-ready", release=1, reason="refused", decisive=True)
    assert said.startswith("app is DOWN: release 1 (")
    assert "there is no good release to go back to; mend it, then: systemctl reset-failed" in said
    assert said.endswith("(its log: aistack releases app --log 1)\n")
    assert stack.history() == {1: "bad"}
    assert stack.current().id == 1
    assert stack.current().log == "no such file: model.gguf\n"
    verdict = stack.verdict()
    assert (verdict["phase"], verdict["ok"], verdict["release"]) == ("down", False, 1)
    assert RETRY not in stack.calls()


@pytest.mark.parametrize(
    ("states", "verdict", "words"),
    [
        (["good", "staged"], {"phase": "preflight", "reason": "disk /: disk full"}, "disk /: disk full"),
        (["good"], {"phase": "ready", "release": 1, "reason": "answered"}, "is proven, so it is restarted"),
        (["good"], {"phase": "not-ready", "release": 1, "reason": "timed out", "decisive": True}, "timed out"),
        ([], {"phase": "starting"}, "it has no release yet"),
    ],
)
def test_what_another_image_does_not_mend_is_tried_again(
    stack: hookhost.Host, states: list[str], verdict: dict[str, object], words: str
) -> None:
    declare(stack, *states)
    said = fail(stack, DONE, **verdict)
    assert said.startswith("app: not rolled back: ")
    assert words in said
    assert said.endswith("; tried again in a while\n")
    assert stack.calls()[-1] == RETRY
    assert stack.history() == dict(enumerate(states, 1))


def test_a_journal_that_cannot_be_opened_is_no_reason_to_stay_down(stack: hookhost.Host) -> None:
    declare(stack)
    stack.fake.journal_path.mkdir(parents=True)
    said = fail(stack, DONE, phase="preflight", reason="no disk")
    assert "unable to open database file" in said
    assert stack.calls()[-1] == RETRY


def test_somebody_who_starts_it_meanwhile_is_not_disturbed(
    stack: hookhost.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(stack, "good", "staged")

    def decide_slowly(*_: object) -> Decision:
        stack.fake.unit("app", "activating")
        return Decision(ROLL_BACK, "never ready")

    monkeypatch.setattr(rollback, "decide", decide_slowly)
    assert "app is activating again: nothing to do" in fail(stack, DONE, phase="not-ready", release=2)
    assert stack.history() == {1: "good", 2: "staged"}
    assert RESTART not in stack.calls()


# --- a rollback by hand ----------------------------------------------------------------------------------------------


def test_a_rollback_by_hand_condemns_nothing(stack: hookhost.Host) -> None:
    declare(stack, "good", "good")
    restarts_to(stack, "active", 1)
    manifest = load()
    with stack.store() as store:
        target = store.get("app", 1)
        assert target is not None
        outcome = rollback.roll_back(manifest, manifest.service("app"), store, target)
    assert (outcome.serving, outcome.restored) == (True, [])
    assert stack.history() == {1: "good", 2: "good"}
    assert stack.current().id == 1
    assert rollback.report("app", None, target, outcome) == DONE
    assert f"app ROLLED BACK to {target}, ready after {outcome.seconds:.1f} s; as asked" in stack.said()


def test_a_restart_has_time_for_every_start_of_a_series(stack: hookhost.Host) -> None:
    asked = fakehost.probe("exec", None, command=["true"], startTimeoutSeconds=100)
    declare(stack, probe=asked, stopTimeoutSeconds=10)
    manifest = load()
    # startup.timeoutSeconds is 1.
    assert rollback.restart_bound(manifest, manifest.service("app")) >= 3 * (1 + 100 + 10)


# --- the end of a probation ------------------------------------------------------------------------------------------


def bless(stack: hookhost.Host, code: int = DONE) -> str:
    """Let the probation of the app be over; return what was said."""
    stack.said()
    found = rollback.bless(load(), "app")
    said = stack.said()
    assert found == code, said
    return said


def in_probation(stack: hookhost.Host, *before: str, **changes: Any) -> int:  # noqa: ANN401  (any JSON value)
    """Let the app run a release in probation, after these; return its number."""
    declare(stack, *before, "probation", **changes)
    number = len(before) + 1
    stack.fake.unit("app", "active")
    stack.fake.verdict("app", phase="ready", release=number, checks=[])
    return number


def test_a_release_that_is_still_ready_is_good(stack: hookhost.Host) -> None:
    in_probation(stack)
    said = bless(stack)
    assert said.startswith("app: release 1 (")
    assert said.endswith(" stayed ready for 60 s: good\n")
    assert stack.history() == {1: "good"}


def test_old_releases_and_their_tags_are_forgotten(stack: hookhost.Host) -> None:
    in_probation(stack, "good", "good", "good")
    stack.fake.declare(
        stack.fake.document["services"],
        rollback={"policy": "image", "retain": 2, "probationSeconds": 60},
        network=stack.fake.document["network"],
    )
    bless(stack)
    assert stack.history() == {3: "good", 4: "good"}
    kept = f"localhost/aistack/app:{fakehost.image(1)[:12]}"
    assert stack.calls("podman untag") == [f"podman untag {fakehost.image(n)} {kept}" for n in (2, 1)]


def test_an_image_that_another_release_runs_keeps_its_tag(stack: hookhost.Host) -> None:
    declare(stack)
    with stack.store() as store:
        for number in range(4):
            store.bless(store.declare("app", fakehost.image(1), "registry.example/app:1", {"N": str(number)}, {}))
        manifest = load()
        manifest.retain = 1
        rollback.forget(manifest, manifest.service("app"), store)
        assert [release.id for release in store.history("app")] == [4]
    assert stack.calls("podman untag") == []


@pytest.mark.parametrize(
    ("unit", "verdict", "states"),
    [
        ("inactive", {"phase": "ready", "release": 2}, ["good", "probation"]),
        ("failed", {"phase": "ready", "release": 2}, ["good", "probation"]),
        ("activating", {"phase": "ready", "release": 2}, ["good", "probation"]),
        ("active", {"phase": "starting", "release": 2}, ["good", "probation"]),
        ("active", {"phase": "ready", "release": 1}, ["good", "probation"]),
        ("active", {}, ["good", "probation"]),
        ("active", {"phase": "ready", "release": 2}, ["good", "staged"]),
        ("active", {"phase": "ready", "release": 2}, ["good", "good"]),
        ("active", {"phase": "ready", "release": 1}, []),
    ],
)
def test_only_what_runs_in_probation_is_blessed(
    stack: hookhost.Host, unit: str, verdict: dict[str, object], states: list[str]
) -> None:
    declare(stack, *states)
    stack.fake.unit("app", unit)
    stack.fake.verdict("app", **verdict)
    assert bless(stack) == ""
    assert stack.history() == dict(enumerate(states, 1))
    assert {call.split()[1] for call in stack.calls("systemctl")} == {"show"}


def test_a_short_pause_at_the_end_of_a_probation_is_forgiven(stack: hookhost.Host) -> None:
    in_probation(stack, "good")
    (stack.root / "not-ready").touch()
    script = stack.root / "fake-programs/podman"
    # The second check succeeds.
    script.write_text(script.read_text().replace("echo 'not yet'", "rm \"$FAKE_HOST/not-ready\"; echo 'not yet'"))
    bless(stack)
    assert stack.history() == {1: "good", 2: "good"}


def test_a_release_that_is_not_ready_any_more_goes_back(stack: hookhost.Host) -> None:
    in_probation(stack, "good", probe={**ANSWERS, "timeoutSeconds": 0.05})
    (stack.root / "not-ready").touch()
    restarts_to(stack, "active", 1)
    script = stack.root / "on/restart" / UNIT
    script.write_text(script.read_text().replace("#!/bin/sh\n", '#!/bin/sh\nrm "$FAKE_HOST/not-ready"\n'))
    said = bless(stack)
    assert "app ROLLED BACK to release 1" in said
    assert "not ready at the end of its probation (not ready yet: true returned 1: not yet)" in said
    assert stack.history() == {1: "good", 2: "bad"}


@pytest.mark.parametrize(
    ("before", "policy", "words"),
    [([], "image", "nothing to go back to"), (["good"], "none", "nothing to go back to")],
)
def test_with_no_way_back_the_probation_goes_on(
    stack: hookhost.Host, before: list[str], policy: str, words: str
) -> None:
    number = in_probation(stack, *before, probe={**ANSWERS, "timeoutSeconds": 0.05}, rollbackPolicy=policy)
    (stack.root / "not-ready").touch()
    said = bless(stack)
    assert words in said
    assert said.endswith("probation goes on\n")
    assert stack.history()[number] == "probation"
    assert stack.calls()[-1] == BLESS


def test_an_absent_dependency_prolongs_the_probation(stack: hookhost.Host) -> None:
    app = fakehost.service("app", probe={**ANSWERS, "timeoutSeconds": 0.05}, dependsOn=["db"])
    stack.declare(app, db=fakehost.external(fakehost.free_port()))
    stack.fake.release("app", 1, "good")
    stack.fake.release("app", 2, "probation")
    stack.fake.unit("app", "active")
    stack.fake.verdict("app", phase="ready", release=2, checks=[])
    (stack.root / "not-ready").touch()
    said = bless(stack)
    assert "but dependency db does not answer; probation goes on" in said
    assert stack.history() == {1: "good", 2: "probation"}
    assert stack.calls()[-1] == BLESS


# --- another start ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["active", "activating", "inactive", "deactivating"])
def test_only_a_failed_unit_is_started_again(stack: hookhost.Host, state: str) -> None:
    declare(stack)
    stack.fake.unit("app", state)
    assert rollback.retry(load(), "app") == DONE
    assert {call.split()[1] for call in stack.calls("systemctl")} == {"show"}


def test_a_failed_unit_is_started_whatever_its_limit_says(stack: hookhost.Host) -> None:
    declare(stack)
    stack.fake.unit("app", "failed")
    assert rollback.retry(load(), "app") == DONE
    assert stack.calls()[-2:] == [RESET, f"systemctl start --no-block {UNIT}"]


def test_a_systemd_that_does_not_answer_is_one_error(stack: hookhost.Host) -> None:
    declare(stack)
    (stack.root / "fake-programs/systemctl").write_text("#!/bin/sh\nprintf 'no bus\\nmore\\n' >&2\nexit 1\n")
    for verb in (rollback.retry, rollback.on_failure, rollback.bless):
        with pytest.raises(HookError, match=r"systemctl show .* failed: no bus$") as caught:
            verb(load(), "app")
        assert caught.value.code == DOWN


def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be written to the journal any more; how that really is shows a scenario."""

    def no(*_: object) -> None:
        raise HookError("cannot use releases.db: database or disk is full")

    monkeypatch.setattr(Store, "_set_state", no)


def test_an_end_of_probation_that_cannot_be_written_down_comes_again(
    stack: hookhost.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(stack, "probation")
    stack.fake.unit("app", "active")
    stack.fake.verdict("app", phase="ready", release=1)
    with monkeypatch.context() as patch:
        full(patch)
        stack.said()
        assert rollback.bless(load(), "app") == DONE
    assert "app: the end of its probation cannot be recorded: cannot use " in stack.said()
    assert stack.calls()[-1] == BLESS
    assert stack.history() == {1: "probation"}
    assert rollback.bless(load(), "app") == DONE
    assert stack.history() == {1: "good"}


def test_a_rollback_that_cannot_be_written_down_is_tried_again(
    stack: hookhost.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(stack, "good", "staged")
    stack.fake.unit("app", "failed")
    stack.fake.verdict("app", phase="not-ready", decisive=True, release=2, reason="timed out", checks=[])
    full(monkeypatch)
    stack.said()
    assert rollback.on_failure(load(), "app") == DONE
    assert "app: not rolled back: cannot use " in stack.said()
    assert stack.calls()[-1] == RETRY
    assert stack.history() == {2: "staged", 1: "good"}


# --- the whole way ---------------------------------------------------------------------------------------------------


@pytest.fixture
def containers() -> Iterator[Callable[..., scripted.Dns]]:
    """Start the network's name server."""
    yield from hookhost.containers(NAME_SERVER)


def test_an_innocent_release_outlives_a_dependency_that_went_away(
    stack: hookhost.Host, containers: Callable[..., scripted.Dns]
) -> None:
    from aistack.hooks import await_ready, start_pre

    containers(app="127.0.0.1", db="127.0.0.1")
    ready = fakehost.free_port()
    asked = fakehost.probe("tcp", ready, startTimeoutSeconds=0.1)
    with scripted.Tcp(scripted.silent) as db_server:
        db = fakehost.service("db", probe=fakehost.probe("tcp", db_server.port))
        stack.declare(fakehost.service("app", probe=asked, dependsOn=["db"]), db=db)
        stack.have(app=2, db=1)
        stack.fake.release("app", 1, "good")
        # The new release starts, its dependency goes away, and so it is never ready.
        assert start_pre.start_pre(load(), "app") == DONE
    assert await_ready.await_ready(load(), "app") == 1
    assert start_pre.start_pre(load(), "app") == 1  # given up: no second full start timeout
    stack.fake.unit("app", "failed", NRestarts="3")
    assert rollback.on_failure(load(), "app") == DONE
    assert "dependency db does not answer" in stack.said()
    # The dependency is back; the release gets a real start, and is ready.
    with scripted.Tcp(scripted.silent, port=db_server.port), scripted.Tcp(scripted.silent, port=ready):
        stack.fake.verdict("db", phase="starting", release=1, proven=True, at=time.time(), checks=[])
        stack.fake.retry_timer("app", "active")
        assert await_ready.await_ready(load(), "db") == DONE
        assert stack.calls()[-1] == f"systemctl start --no-block {UNIT}"
        stack.fake.unit("app", "activating", NRestarts="0")
        assert start_pre.start_pre(load(), "app") == DONE
        assert await_ready.await_ready(load(), "app") == DONE
    assert stack.history() == {1: "good", 2: "probation"}
