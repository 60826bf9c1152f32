"""What a tick of a health timer finds, writes down and does: real sockets, an injected clock, systemd as a stand-in."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from typing import TYPE_CHECKING, Any

import fakehost
import pytest
import scripted

from aistack.hooks import generation, health, main, network, probe, rollback, runtime
from aistack.hooks.errors import HookError
from aistack.hooks.manifest import identity, load
from aistack.hooks.network import Fault
from aistack.hooks.releases import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UNIT = "podman-aistack-app.service"
RESTART = f"systemctl try-restart --no-block {UNIT}"
ROLLBACK = "systemctl start --no-block aistack-rollback@app.service"
OK = b"HTTP/1.0 200 OK\r\n\r\nok"
BROKEN = b"HTTP/1.0 500 No\r\n\r\nno database"


@dataclasses.dataclass
class Clock:
    """Both clocks, as the test sets them."""

    boot: float = 1000.0
    wall: float = 1_700_000_000.0

    def time(self) -> float:
        return self.wall

    def now(self) -> float:
        return self.boot

    def pass_(self, seconds: float) -> None:
        self.boot += seconds
        self.wall += seconds


class Stack:
    """An app that needs redis, both on real sockets of the loopback, and the ticks of its timer."""

    def __init__(self, host: fakehost.FakeHost, clock: Clock, app: scripted.Tcp, redis: scripted.Tcp) -> None:
        self.host = host
        self.clock = clock
        self.answer = OK
        self.redis_answer = b"+PONG\r\n"
        app.handler = lambda link: scripted.says(self.answer)(link) if self.answer else scripted.resets(link)
        redis.handler = lambda link: scripted.says(self.redis_answer)(link) if self.redis_answer else None
        self.services = {
            "redis": fakehost.service("redis", port=redis.port, probe=fakehost.probe("redis", redis.port)),
            "app": fakehost.service(
                "app",
                port=app.port,
                dependsOn=["redis"],
                probe=fakehost.probe("http", app.port, expect="ok", timeoutSeconds=0.2),
            ),
        }
        self.declare()
        host.unit("app", "active")
        self.ready(1)

    def declare(self, *, healing: bool = False, policy: str = "image", **bounds: float) -> None:
        self.services["app"]["rollbackPolicy"] = policy
        bounds = {"maxRestarts": 3, "windowSeconds": 3600, "backoffSeconds": 10, **bounds}
        self.host.declare(self.services, selfHealing={"enable": healing, **bounds})

    def ready(self, release: int | None) -> None:
        """Let the app have got ready now, with this release."""
        now = {"readyAt": self.clock.wall, "readyAtBoot": self.clock.boot}
        self.host.verdict("app", phase="ready", ok=True, release=release, **now)

    def tick(self, times: int = 1, *, every: float = 5.0) -> str:
        """Tick so many times; returns what was said."""
        self.host.capsys.readouterr()
        for _ in range(times):
            self.clock.pass_(every)
            assert main.main(["health", "5"]) == 0
        return self.host.capsys.readouterr().err

    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.host.root / "run/app/health.json").read_text())
        return found

    def acted(self) -> list[str]:
        """What systemd was told to do so far."""
        return [call for call in self.host.calls() if call.startswith("systemctl ") and " show " not in call]


@pytest.fixture
def stack(host: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    """The stack, up, with a good release of the app."""
    clock = Clock()
    monkeypatch.setattr(health, "now", clock.now)
    monkeypatch.setattr("time.time", clock.time)
    monkeypatch.setattr(rollback, "_DEPENDENCY_GRACE", 0.1)
    monkeypatch.setattr(probe, "resolve", lambda name, _: ["127.0.0.1"] if name in ("app", "redis") else [])
    monkeypatch.setattr(network, "check", lambda _: [])
    units = host.root / "run-systemd-units"
    units.mkdir()
    (units / f"invocation:{UNIT}").symlink_to("an-invocation")
    (units / "invocation:podman-aistack-redis.service").symlink_to("an-invocation")
    monkeypatch.setattr(health, "_UNITS", str(units))
    host.release("app", 1, "good")
    with scripted.Tcp(scripted.silent) as app, scripted.Tcp(scripted.silent) as redis:
        yield Stack(host, clock, app, redis)


def state(host: fakehost.FakeHost, number: int) -> str:
    store = Store.open(str(host.journal_path))
    try:
        release = store.get("app", number)
        assert release is not None
        return release.state
    finally:
        store.close()


# --- what is found ---------------------------------------------------------------------------------------------------


def test_a_healthy_service_costs_no_process_and_no_line(stack: Stack) -> None:
    assert stack.tick(3) == ""
    assert stack.host.calls() == []
    record = stack.record()
    assert (record["state"], record["kind"], record["failures"], record["action"]) == ("healthy", "ready", 0, None)
    assert record["service"] == "app"
    assert record["schemaVersion"] == 1
    assert record["at"] == stack.clock.wall
    assert record["since"] < record["at"]
    assert 0 < record["tookSeconds"] < 5


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (BROKEN, "not ready yet", "no database"),
        (b"HTTP/1.0 200 OK\r\n\r\nsorry", "not ready yet", "answered 200 without 'ok'"),
        (b"SSH-2.0\r\n", "wrong protocol", "does not speak HTTP"),
        (b"", "not ready yet", "closed the connection"),
    ],
    ids=["500", "lies", "another protocol", "breaks off"],
)
def test_what_a_service_answers_is_written_down(stack: Stack, answer: bytes, kind: str, words: str) -> None:
    stack.answer = answer
    stack.tick()
    record = stack.record()
    assert record["kind"] == kind
    assert words in record["detail"]
    assert (record["state"], record["failures"]) == ("healthy", 1)


def test_a_service_that_hangs_costs_its_timeout_and_delays_nobody(stack: Stack) -> None:
    stack.host.verdict("redis", phase="ready", ok=True, release=None, readyAt=stack.clock.wall)
    stack.answer = b"x"
    hanging = threading.Event()
    with scripted.Tcp(scripted.silent) as silent:
        stack.services["app"]["probe"]["port"] = silent.port
        stack.declare()
        stack.tick()
        hanging.set()
    assert stack.record()["kind"] == "timed out"
    assert 0.2 <= stack.record()["tookSeconds"] < 5
    redis = json.loads((stack.host.root / "run/redis/health.json").read_text())
    assert (redis["state"], redis["kind"]) == ("healthy", "ready")
    assert redis["tookSeconds"] < stack.record()["tookSeconds"]


@pytest.mark.parametrize(
    "phase", ["starting", "not-ready", "preflight", "down", None], ids=lambda phase: str(phase or "never started")
)
def test_a_service_that_is_not_ready_is_not_asked(stack: Stack, phase: str | None) -> None:
    stack.answer = BROKEN
    if phase is None:
        (stack.host.root / "run/app/verdict.json").unlink()
    else:
        stack.host.verdict("app", phase=phase, release=1)
    assert stack.tick(5) == ""
    assert (stack.record()["state"], stack.record()["failures"]) == ("unknown", 0)
    assert stack.acted() == []


@pytest.mark.parametrize("active", ["inactive", "deactivating", "activating", "failed"])
def test_a_unit_that_is_not_active_is_left_alone(stack: Stack, active: str) -> None:
    stack.declare(healing=True)
    stack.answer = BROKEN
    stack.host.unit("app", active)
    assert stack.tick(5) == ""
    assert stack.record()["state"] == "unknown"
    assert active in stack.record()["detail"]
    assert stack.acted() == []


def test_a_unit_with_a_job_is_left_alone(stack: Stack) -> None:
    stack.declare(healing=True)
    stack.answer = BROKEN
    stack.host.unit("app", "active", Job="4711")
    stack.tick(5)
    assert stack.record()["detail"] == "it is being started or stopped"
    assert stack.acted() == []


def test_an_answer_under_the_name_of_a_stopped_unit_is_not_its_health(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_UNITS", "/nowhere")
    stack.host.unit("app", "inactive")
    stack.tick()
    assert stack.record()["state"] == "unknown"


def test_where_systemd_keeps_no_record_of_running_units_it_is_asked(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_UNITS", "/nowhere")
    stack.tick()
    assert stack.record()["state"] == "healthy"
    assert [call.partition(" --")[0] for call in stack.host.calls()] == ["systemctl show"]


def test_a_rollback_under_way_is_left_alone(stack: Stack) -> None:
    stack.answer = BROKEN
    stack.host.rollback_unit("app", "activating")
    stack.tick(5)
    assert stack.record()["detail"] == "it is being rolled back"


def test_a_probe_that_cannot_be_put_together_says_nothing_about_the_service(stack: Stack) -> None:
    stack.declare(healing=True)
    stack.services["app"]["probe"]["secret"] = "GONE"  # noqa: S105  (its name)
    stack.declare(healing=True)
    stack.tick(5)
    assert stack.record()["state"] == "unknown"
    assert "GONE" in stack.record()["detail"]
    assert stack.acted() == []


def test_a_probe_of_a_command_of_ones_own(stack: Stack) -> None:
    stack.services["app"]["probe"] = fakehost.probe("exec", None, command=["/check"])
    stack.declare()
    stack.tick()
    assert (stack.record()["kind"], stack.record()["detail"]) == ("ready", "/check succeeded")
    (stack.host.root / "not-ready").touch()
    stack.tick()
    assert stack.record()["detail"] == "/check returned 1: not yet"


def test_other_intervals_and_what_runs_elsewhere_are_not_this_timers(stack: Stack) -> None:
    stack.services["redis"]["probe"]["intervalSeconds"] = 7
    stack.declare()
    stack.host.verdict("redis", phase="ready", readyAt=1.0)
    stack.tick()
    assert not (stack.host.root / "run/redis/health.json").exists()
    assert main.main(["health", "9"]) == 0


def test_it_ends_well_whatever_it_finds(stack: Stack) -> None:
    stack.host.manifest_path.write_text("{")
    assert "is not JSON" in stack.tick()
    assert main.main(["health", "often"]) == 0
    assert main.main(["health"]) == 2


def test_a_damaged_record_is_begun_anew(stack: Stack) -> None:
    (stack.host.root / "run/app/health.json").write_text('{"half')
    stack.tick()
    assert stack.record()["state"] == "healthy"


def test_what_goes_wrong_with_one_service_keeps_no_other_from_being_looked_at(stack: Stack) -> None:
    stack.host.verdict("redis", phase="ready", readyAt=1.0)
    (stack.host.root / "run/app/health.json").mkdir()
    assert "app: its health could not be looked after: cannot write" in stack.tick()
    assert (stack.host.root / "run/redis/health.json").exists()


# --- after N failures, and not before --------------------------------------------------------------------------------


def test_it_acts_after_n_failures_and_not_before(stack: Stack) -> None:
    stack.declare(healing=True)
    stack.answer = BROKEN
    assert stack.tick(2) == ""
    assert (stack.record()["state"], stack.record()["failures"]) == ("healthy", 2)
    assert stack.acted() == []
    said = stack.tick()
    assert (stack.record()["state"], stack.record()["action"]) == ("unhealthy", "restart")
    seen = "3 checks failed, the last: not ready yet: GET / answered 500: no database"
    assert f"app is unhealthy ({seen}): restarted (1 of 3" in said
    assert stack.acted() == [f"systemctl reset-failed {UNIT}", RESTART]


def test_failures_that_do_not_follow_each_other_do_nothing(stack: Stack) -> None:
    stack.declare(healing=True)
    for answer in [BROKEN, BROKEN, OK] * 4:
        stack.answer = answer
        assert stack.tick() == ""
    assert stack.acted() == []
    assert stack.record()["failures"] == 0


def test_a_new_start_begins_to_count_anew(stack: Stack) -> None:
    stack.declare(healing=True)
    stack.answer = BROKEN
    stack.tick(2)
    stack.ready(1)
    stack.tick(2)
    assert stack.record()["failures"] == 2
    assert stack.acted() == []


def test_a_start_in_the_middle_of_a_tick_is_not_judged_by_what_was_before(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.answer = BROKEN
    stack.tick(2)
    asked = probe.ask

    def ask(*arguments: Any) -> probe.Result:  # noqa: ANN401  (whatever it is called with)
        stack.clock.pass_(1)
        stack.ready(1)
        return asked(*arguments)

    monkeypatch.setattr(probe, "ask", ask)
    stack.tick()
    assert stack.record()["failures"] == 2
    assert stack.acted() == []


# --- blame -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", [1, 2], ids=["proven", "unproven"])
def test_a_dependency_that_does_not_answer_is_to_blame(stack: Stack, release: int) -> None:
    stack.declare(healing=True)
    stack.host.release("app", 2, "probation")
    stack.ready(release)
    stack.answer, stack.redis_answer = BROKEN, b""
    said = stack.tick(12)
    assert said.count("\n") == 1
    assert "dependency redis does not answer (not ready yet), so it is left alone" in said
    assert (stack.record()["state"], stack.record()["action"]) == ("unhealthy", "blamed")
    assert stack.acted() == []
    # It came back, and the app has not noticed: now it is the app's own fault, after as many checks again.
    stack.redis_answer = b"+PONG\r\n"
    stack.tick(2)
    assert stack.acted() == []
    stack.tick()
    assert stack.acted()[-1] == (RESTART if release == 1 else ROLLBACK)


def test_a_name_server_that_fails_is_no_releases_fault(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    stack.host.release("app", 2, "probation")
    stack.ready(2)
    monkeypatch.setattr(probe, "resolve", lambda name, _: ["127.0.0.1"] if name == "redis" else [])
    said = stack.tick(6)
    assert said.count("\n") == 1
    assert "the network is to blame" in said
    assert stack.acted() == []


def test_the_network_is_mended_before_anything_is_restarted(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    stack.declare(healing=True)
    fault = Fault(network.NAME_STALE, "name app", "is another's", container="aistack-app")
    others = [
        Fault(network.NAME_STALE, "name redis", "is another's", container="aistack-redis"),
        Fault(network.GHOST, "container aistack-app", "left over", container="aistack-app"),
    ]
    mended: list[Fault] = []

    def repair(_: object, faults: list[Fault]) -> list[Fault]:
        mended.extend(faults)
        fault.mended = "set up again"
        return faults

    monkeypatch.setattr(network, "check", lambda _: [fault, *others])
    monkeypatch.setattr(network, "repair", repair)
    stack.answer = BROKEN
    said = stack.tick(3)
    assert mended == [fault]
    assert "its network was to blame: name app: stale name: is another's: set up again" in said
    assert stack.acted() == []
    # It did not help: the next time it is restarted, whatever the network looks like.
    stack.tick(3)
    assert stack.acted()[-1] == RESTART


def test_what_another_services_turn_mended_restarts_nothing(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    stack.declare(healing=True)
    known = ["redis"]
    monkeypatch.setattr(probe, "resolve", lambda name, _: ["127.0.0.1"] if name in known else [])

    def mended_meanwhile(_: object) -> list[Fault]:
        known.append("app")
        return []

    monkeypatch.setattr(network, "check", mended_meanwhile)
    said = stack.tick(3)
    assert stack.acted() == []
    assert "the network was to blame, and was mended meanwhile" in said
    assert stack.record()["action"] == "repair"
    assert "app is healthy again" in stack.tick()


# --- in probation ----------------------------------------------------------------------------------------------------


def test_a_release_in_probation_goes_back_without_waiting_for_its_end(stack: Stack) -> None:
    stack.host.release("app", 2, "probation")
    stack.ready(2)
    stack.answer = BROKEN
    stack.tick(2)
    assert stack.acted() == []
    said = stack.tick()
    assert stack.acted() == [ROLLBACK]
    assert "fails within its probation: going back to release 1" in said
    assert stack.record()["action"] == "rollback"


@pytest.mark.parametrize(("policy", "why"), [("none", "policy is none"), ("image", "no good release")])
def test_without_a_way_back_a_release_in_probation_is_left_alone(stack: Stack, policy: str, why: str) -> None:
    stack.host.journal_path.unlink()
    if policy == "none":
        stack.host.release("app", 1, "good")
    stack.declare(policy=policy)
    release = stack.host.release("app", 2, "probation")
    stack.ready(release.id)
    stack.answer = BROKEN
    said = stack.tick(9)
    assert said.count("\n") == 1
    assert "app is DEGRADED" in said
    assert why in said
    assert stack.acted() == []


def roll_back(stack: Stack) -> str:
    stack.host.capsys.readouterr()
    assert rollback.on_failure(load(), "app") == 0
    return stack.host.capsys.readouterr().err


@pytest.fixture
def condemned(stack: Stack) -> Stack:
    """Health has found a release in probation unhealthy and asked for its rollback."""
    stack.host.release("app", 2, "probation")
    stack.host.images(fakehost.image(1), fakehost.image(2))
    stack.ready(2)
    stack.answer = BROKEN
    stack.tick(3)
    assert stack.acted() == [ROLLBACK]
    return stack


def test_the_rollback_takes_healths_word_for_an_active_unit(condemned: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    restart = rollback.restart

    def heal(*arguments: Any) -> str | None:  # noqa: ANN401  (whatever it is called with)
        condemned.answer = OK
        return restart(*arguments)

    monkeypatch.setattr(rollback, "restart", heal)
    said = roll_back(condemned)
    assert "app ROLLED BACK to release 1" in said
    assert "3 checks failed within its probation (not ready yet: GET / answered 500" in said
    assert state(condemned.host, 2) == "bad"
    assert condemned.acted()[-2:] == [f"systemctl reset-failed {UNIT}", f"systemctl restart {UNIT}"]


@pytest.mark.parametrize("change", ["answers", "restarted", "stopped", "good", "dependency"])
def test_the_rollback_judges_what_is_so_now(condemned: Stack, change: str) -> None:
    if change == "answers":
        condemned.answer = OK
    elif change == "restarted":
        condemned.clock.pass_(1)
        condemned.ready(2)
    elif change == "stopped":
        condemned.host.unit("app", "inactive")
    elif change == "dependency":
        condemned.redis_answer = b""
    else:
        with contextlib.closing(Store.open(str(condemned.host.journal_path))) as store:
            release = store.get("app", 2)
            assert release is not None
            store.bless(release)
    before = state(condemned.host, 2)
    roll_back(condemned)
    assert state(condemned.host, 2) == before
    assert condemned.acted() == [ROLLBACK]


def test_without_healths_word_an_active_unit_is_not_rolled_back(stack: Stack) -> None:
    stack.host.release("app", 2, "probation")
    stack.ready(2)
    stack.answer = BROKEN
    stack.tick(2)
    assert "nothing to do" in roll_back(stack)
    assert state(stack.host, 2) == "probation"


# --- proven ----------------------------------------------------------------------------------------------------------


def test_without_self_healing_a_proven_service_is_degraded_and_said_so_once(stack: Stack) -> None:
    stack.answer = BROKEN
    said = stack.tick(20)
    assert said.count("\n") == 1
    assert "app is DEGRADED" in said
    assert "is proven and self-healing is off" in said
    assert stack.record()["action"] == "degraded"
    assert stack.acted() == []
    stack.answer = OK
    said = stack.tick(3)
    assert said == "app is healthy again, after 90 s\n"
    assert (stack.record()["state"], stack.record()["action"]) == ("healthy", None)


def test_restarts_are_bounded_and_their_pauses_double(stack: Stack) -> None:
    stack.declare(healing=True, backoffSeconds=100)
    stack.answer = BROKEN
    at: list[float] = []
    said = ""
    for _ in range(120):
        before = len(stack.acted())
        said += stack.tick()
        if len(stack.acted()) > before:
            at.append(stack.clock.boot)
            stack.clock.pass_(1)
            stack.ready(1)
    assert stack.acted().count(RESTART) == 3
    assert [100 <= at[1] - at[0] < 110, 200 <= at[2] - at[1] < 210] == [True, True]
    assert said.count("DEGRADED") == 1
    assert "3 restarts within 3600 s did not help: left alone until it is healthy again" in said
    # A window later it still was not healthy again.
    assert stack.tick(10, every=500) == ""
    assert stack.acted().count(RESTART) == 3
    # Then it was, and fails again: the window is over, so it is restarted.
    stack.answer = OK
    stack.tick()
    stack.answer = BROKEN
    stack.tick(3)
    assert stack.acted().count(RESTART) == 4


def test_health_between_two_failures_does_not_lift_the_bound(stack: Stack) -> None:
    stack.declare(healing=True, backoffSeconds=0)
    for _ in range(10):
        stack.answer = BROKEN
        stack.tick(3)
        stack.clock.pass_(1)
        stack.ready(1)
        stack.answer = OK
        stack.tick(2)
    assert stack.acted().count(RESTART) == 3


@pytest.mark.parametrize("jump", [-86400.0 * 365, 86400.0 * 365], ids=["back", "forward"])
def test_a_jump_of_the_clock_changes_nothing(stack: Stack, jump: float) -> None:
    stack.declare(healing=True, backoffSeconds=100)
    stack.answer = BROKEN
    stack.tick(2)
    stack.clock.wall += jump
    assert stack.acted() == []
    stack.tick()
    assert stack.acted().count(RESTART) == 1
    stack.ready(1)
    stack.clock.wall += jump
    stack.tick(15)
    assert stack.acted().count(RESTART) == 1
    stack.tick(10)
    assert stack.acted().count(RESTART) == 2


def test_what_decides_is_the_clock_that_nobody_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert before <= health.now() <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_restart_is_counted_even_if_it_cannot_be_done(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    stack.declare(healing=True, backoffSeconds=0)

    def refuse(*_: str) -> str:
        raise HookError("systemctl try-restart failed: no bus")

    monkeypatch.setattr(runtime, "systemctl", refuse)
    monkeypatch.setattr(runtime, "unit_states", lambda *_a: {UNIT: {"ActiveState": "active"}})
    stack.answer = BROKEN
    said = stack.tick(12)
    assert said.count("no bus") == 3
    assert len(stack.record()["restarts"]) == 3


def test_a_restart_does_not_start_what_was_stopped_meanwhile(stack: Stack) -> None:
    # try-restart restarts only what runs: systemd decides, in one step.
    stack.declare(healing=True)
    stack.answer = BROKEN
    stack.tick(3)
    assert not [call for call in stack.acted() if call.startswith(("systemctl restart", "systemctl start"))]


# --- the policy "system" ---------------------------------------------------------------------------------------------


class Generations:
    """A NixOS host in a folder: generations of the system, of which one runs."""

    def __init__(self, root: Path, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root / "nixos"
        self.stack = stack
        self.profiles = self.root / "profiles"
        self.profiles.mkdir(parents=True)
        self.log = root / "activated"
        monkeypatch.setattr(generation, "PROFILES", str(self.profiles))
        monkeypatch.setattr(generation, "RUNNING", str(self.root / "running"))
        program = root / "fake-programs/systemd-run"
        program.write_text(f'#!/bin/sh\nfor last; do :; done\necho "$*" >> {self.log}\nexit "$(cat {root}/code)"\n')
        program.chmod(0o755)
        (root / "code").write_text("0")

    def add(self, number: int, environment: dict[str, str], *, declares: bool = True) -> Path:
        system = self.root / f"system-of-{number}"
        (system / "etc/aistack").mkdir(parents=True)
        document = {**self.stack.host.document, "environment": environment}
        if not declares:
            document = {**document, "services": {}}
        (system / "etc/aistack/stack.json").write_text(json.dumps(document))
        (self.profiles / f"system-{number}-link").symlink_to(system)
        return system

    def run(self, number: int) -> None:
        (self.root / "running").unlink(missing_ok=True)
        (self.root / "running").symlink_to(self.root / f"system-of-{number}")
        (self.profiles / "system").unlink(missing_ok=True)
        (self.profiles / "system").symlink_to(f"system-{number}-link")


@pytest.fixture
def nixos(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generations:
    """A host whose generations 3 and 7 differ in the environment; 7 runs, with a bad release 2."""
    stack.declare(policy="system")
    host = Generations(tmp_path, stack, monkeypatch)
    host.add(3, {"A": "old"})
    host.add(7, {"A": "new"})
    host.run(7)
    return host


def fail_in_probation(stack: Stack) -> str:
    """Let release 2, as declared now, fail; returns what its rollback said."""
    with contextlib.closing(Store.open(str(stack.host.journal_path))) as store:
        entry = identity(stack.host.document["services"]["app"])
        release = store.declare("app", fakehost.image(2), "registry.example/app:2", {}, entry)
        store.probation(release)
    stack.ready(release.id)
    stack.answer = BROKEN
    stack.tick(3)
    stack.answer, answer = OK, stack.answer
    stack.host.images(fakehost.image(1), fakehost.image(2))
    # Asked again before it goes back, it still fails; afterwards it answers.
    verify = rollback._verify  # noqa: SLF001  (to count its calls)
    answers = iter([answer, OK, OK, OK])

    def asked(*arguments: Any) -> str | None:  # noqa: ANN401  (whatever it is called with)
        stack.answer = next(answers)
        return verify(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollback, "_verify", asked)
        return roll_back(stack)


def test_the_previous_generation_is_activated_once(nixos: Generations) -> None:
    stack = nixos.stack
    said = fail_in_probation(stack)
    (line,) = nixos.log.read_text().splitlines()
    assert line.endswith("system-3-link/bin/switch-to-configuration test")
    assert "app ROLLED BACK to NixOS generation 3" in said
    assert "nixos-rebuild boot --rollback" in said
    assert state(stack.host, 2) == "bad"
    assert roll_back(stack)
    assert len(nixos.log.read_text().splitlines()) == 1


@pytest.mark.parametrize("why", ["first", "same", "undeclared", "gone back already", "no NixOS"])
def test_where_no_generation_helps_it_is_the_last_good_image(nixos: Generations, why: str) -> None:
    stack = nixos.stack
    words = {
        "first": "there is no earlier NixOS generation",
        "same": "NixOS generation 3 declares the same app",
        "undeclared": "NixOS generation 3 does not declare app",
        "gone back already": "the system that runs does not declare release 2",
        "no NixOS": "this host has no NixOS generations",
    }[why]
    link = nixos.profiles / "system-3-link"
    if why == "gone back already":
        nixos.run(7)
        changed = json.loads((nixos.root / "system-of-7/etc/aistack/stack.json").read_text())
        changed["services"]["app"]["command"] = ["--other"]
        (nixos.root / "system-of-7/etc/aistack/stack.json").write_text(json.dumps(changed))
    elif why == "no NixOS":
        for path in nixos.profiles.iterdir():
            path.unlink()
    else:
        link.unlink()
        if why == "same":
            link.symlink_to(nixos.root / "system-of-7-again")
            (nixos.root / "system-of-7-again/etc/aistack").mkdir(parents=True)
            text = (nixos.root / "system-of-7/etc/aistack/stack.json").read_text()
            (nixos.root / "system-of-7-again/etc/aistack/stack.json").write_text(text)
        if why == "undeclared":
            (nixos.root / "empty").mkdir()
            link.symlink_to(nixos.root / "empty")
    said = fail_in_probation(stack)
    assert f'the rollback policy is "system", but {words}' in said
    assert "app ROLLED BACK to release 1" in said
    assert not nixos.log.exists()


def test_what_was_only_tried_goes_back_to_the_default(nixos: Generations) -> None:
    nixos.add(9, {"A": "tried"})
    (nixos.profiles / "system-9-link").unlink()
    (nixos.root / "running").unlink()
    (nixos.root / "running").symlink_to(nixos.root / "system-of-9")
    fail_in_probation(nixos.stack)
    assert "system-7-link" in nixos.log.read_text()


def test_a_generation_in_which_it_does_not_get_ready_either(
    nixos: Generations, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = nixos.stack
    (stack.host.root / "code").write_text("4")
    troubles = iter(["the job failed", None])
    monkeypatch.setattr(rollback, "restart", lambda *_: next(troubles))

    def activate(_: generation.Generation) -> int:
        stack.host.unit("app", "failed")
        return 4

    monkeypatch.setattr(generation, "activate", activate)
    said = fail_in_probation(stack)
    assert "ended with exit code 4" in said
    assert "is not ready in NixOS generation 3 (the job failed): the last good image instead" in said
    assert "app ROLLED BACK to release 1" in said
