"""ExecStartPost: ready when the service answers; otherwise its container is removed and the verdict says why."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import fakehost
import hookhost
import pytest
import scripted

from aistack.hooks import await_ready, runtime
from aistack.hooks.deploys import Deploys
from aistack.hooks.errors import DONE, INVALID, UNEXPECTED, HookError
from aistack.hooks.manifest import load
from aistack.hooks.releases import Store

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

NAME_SERVER = scripted.own_address()
BLESS = "systemctl restart --no-block aistack-bless@app.timer"
PONG = scripted.says(b"+PONG\r\n")
LOADING = scripted.says(b"-LOADING Redis is loading the dataset in memory\r\n")


@pytest.fixture
def stack(host: fakehost.FakeHost) -> hookhost.Host:
    """A host whose network has this file's name server."""
    return hookhost.Host(host, NAME_SERVER)


@pytest.fixture
def containers() -> Iterator[Callable[..., scripted.Dns]]:
    """Start the network's name server."""
    yield from hookhost.containers(NAME_SERVER)


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Give this process its own way with SIGTERM back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def monitor() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Start a process that stands for the container's monitor, the unit's main process."""
    running: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        running.append(subprocess.Popen(["sleep", "60"]))  # noqa: S607
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


def declare(stack: hookhost.Host, port: int, seconds: float = 5, **changes: Any) -> None:  # noqa: ANN401  (any JSON value)
    """Declare an app that is a redis at this port, as start-pre leaves it: release 1 of it is chosen."""
    asked = fakehost.probe("redis", port, startTimeoutSeconds=seconds)
    stack.declare(fakehost.service("app", **{"probe": asked, "stopTimeoutSeconds": 7, **changes}))
    stack.fake.release("app", 1, "staged")
    began = runtime.boot_seconds() - 3
    stack.fake.verdict("app", phase="starting", release=1, proven=False, at=time.time(), beganAtBoot=began, checks=[])


def wait(stack: hookhost.Host, code: int = DONE) -> tuple[str, float]:
    """Wait for the app in this process; return what was said, and the seconds it took."""
    stack.said()
    began = time.monotonic()
    found = await_ready.await_ready(load(), "app")
    said = stack.said()
    assert found == code, said
    return said, time.monotonic() - began


def removals(stack: hookhost.Host) -> list[str]:
    """How podman was asked to remove containers."""
    return stack.calls("podman rm")


# --- ready -----------------------------------------------------------------------------------------------------------


def test_a_service_that_answers_is_ready_at_once(stack: hookhost.Host, containers: Callable[..., scripted.Dns]) -> None:
    containers(app="127.0.0.1")
    with scripted.Tcp(PONG) as server:
        declare(stack, server.port)
        said, seconds = wait(stack)
    assert (said, removals(stack)) == ("", [])
    assert seconds < 5
    verdict = stack.verdict()
    assert (verdict["phase"], verdict["ok"], verdict["release"]) == ("ready", True, 1)
    assert (verdict["reason"], verdict["checks"]) == ("answered PONG", [])
    assert 3 <= verdict["startSeconds"] < 10
    assert 0 <= verdict["readySeconds"] <= seconds
    assert time.time() - 10 < verdict["readyAt"] <= time.time()


def test_a_service_that_answers_later_is_found_soon(
    stack: hookhost.Host, containers: Callable[..., scripted.Dns]
) -> None:
    containers(app="127.0.0.1")
    ready = threading.Event()
    became = 0.0

    def become() -> None:
        nonlocal became
        became = time.monotonic()
        ready.set()

    def handler(link: socket.socket) -> None:
        (PONG if ready.is_set() else LOADING)(link)

    with scripted.Tcp(handler) as server:
        declare(stack, server.port, 20)
        timer = threading.Timer(0.3, become)
        timer.start()
        wait(stack)
        assert time.monotonic() - became < 5
        assert server.connections > 3


def test_a_service_without_a_probe_is_ready_when_it_runs(stack: hookhost.Host) -> None:
    declare(stack, 1, probe=None)
    wait(stack)
    assert stack.verdict()["phase"] == "ready"


def test_an_unproven_release_enters_its_probation(stack: hookhost.Host) -> None:
    declare(stack, 1, probe=None)
    wait(stack)
    assert stack.history() == {1: "probation"}
    assert stack.calls("systemctl") == [BLESS]
    wait(stack)  # a restart within the window begins it anew
    assert stack.history() == {1: "probation"}
    assert stack.calls("systemctl") == [BLESS, BLESS]


def test_a_bad_release_that_answers_after_all_is_in_probation_again(stack: hookhost.Host) -> None:
    declare(stack, 1, probe=None)
    with stack.store() as store:
        store.condemn(stack.current(), "never ready", "", None)
    wait(stack)
    assert stack.history() == {1: "probation"}


@pytest.mark.parametrize("known", [True, None])
def test_a_proven_release_has_none(stack: hookhost.Host, *, known: bool | None) -> None:
    declare(stack, 1, probe=None)
    with stack.store() as store:
        store.bless(stack.current())
    stack.fake.verdict("app", phase="starting", release=1, proven=known, at=0, checks=[])
    wait(stack)
    assert stack.history() == {1: "good"}
    assert stack.calls("systemctl") == []


@pytest.mark.parametrize("verdict", [{}, {"release": None}, {"release": 99}])
def test_a_start_of_no_known_release_is_ready_all_the_same(stack: hookhost.Host, verdict: dict[str, object]) -> None:
    declare(stack, 1, probe=None)
    stack.fake.verdict("app", **verdict)
    wait(stack)
    assert stack.verdict()["phase"] == "ready"
    assert stack.history() == {1: "staged"}


def test_what_start_pre_noted_is_kept(stack: hookhost.Host) -> None:
    declare(stack, 1, probe=None)
    stack.fake.verdict("app", phase="starting", release=1, proven=True, notice="as noted", preflightSeconds=1.5, at=0)
    wait(stack)
    verdict = stack.verdict()
    assert (verdict["notice"], verdict["preflightSeconds"], verdict["proven"]) == ("as noted", 1.5, True)


def break_systemd(stack: hookhost.Host) -> str:
    (stack.root / "fake-programs/systemctl").write_text("#!/bin/sh\necho no bus >&2\nexit 1\n")
    return "systemctl restart --no-block aistack-bless@app.timer failed: no bus"


def break_the_journal(stack: hookhost.Host) -> str:
    for path in stack.fake.journal_path.parent.iterdir():
        path.unlink()
    stack.fake.journal_path.mkdir()
    return "unable to open database file"


def break_the_directory(stack: hookhost.Host) -> str:
    folder = stack.root / "run/app"
    (folder / "verdict.json").unlink()
    folder.rmdir()
    folder.touch()
    return f"cannot make {folder}: File exists"


@pytest.mark.parametrize("breaking", [break_systemd, break_the_journal, break_the_directory])
def test_a_ready_service_stays_whatever_cannot_be_recorded(
    stack: hookhost.Host, breaking: Callable[[hookhost.Host], str]
) -> None:
    declare(stack, 1, probe=None)
    words = breaking(stack)
    said, _ = wait(stack)
    assert said.startswith("app is ready, but ")
    assert words in said
    assert said.count("\n") == 1
    assert removals(stack) == []


# --- not ready -------------------------------------------------------------------------------------------------------


def test_a_service_that_is_never_ready(stack: hookhost.Host, containers: Callable[..., scripted.Dns]) -> None:
    containers(app="127.0.0.1")
    with scripted.Tcp(LOADING) as server:
        declare(stack, server.port, 0.5)
        said, seconds = wait(stack, UNEXPECTED)
    reason = "not ready yet: answered LOADING Redis is loading the dataset in memory"
    assert re.fullmatch(rf"app is not ready after [0-4]\.[0-9] s: {reason}; removing its container\n", said)
    assert 0.5 <= seconds < 5
    assert removals(stack) == ["podman rm --force --ignore --time 0 aistack-app"]
    verdict = stack.verdict()
    assert (verdict["phase"], verdict["ok"], verdict["release"]) == ("not-ready", False, 1)
    assert (verdict["decisive"], verdict["reason"]) == (True, reason)
    assert stack.history() == {1: "staged"}


def test_an_answer_that_waiting_does_not_mend_is_final(
    stack: hookhost.Host, containers: Callable[..., scripted.Dns]
) -> None:
    containers(app="127.0.0.1")
    with scripted.Tcp(scripted.says(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as server:
        declare(stack, server.port, 20)
        _, seconds = wait(stack, UNEXPECTED)
    assert seconds < 2
    assert stack.verdict()["decisive"] is True
    assert stack.verdict()["reason"].startswith("wrong protocol: ")


def test_a_server_that_holds_every_probe_does_not_hold_the_start(
    stack: hookhost.Host, containers: Callable[..., scripted.Dns]
) -> None:
    containers(app="127.0.0.1")
    with scripted.Tcp(scripted.drips(b"+", b"P")) as server:
        declare(stack, server.port, 0.6)
        _, seconds = wait(stack, UNEXPECTED)
    # One probe of 0.5 s may begin just before the end.
    assert 0.6 <= seconds < 5


def test_a_missing_secret_of_the_probe_is_said(stack: hookhost.Host) -> None:
    declare(stack, 1, probe=fakehost.probe("redis", 1, secret="KEY"))  # noqa: S106  (its name)
    said, _ = wait(stack, UNEXPECTED)
    assert "secret KEY is not declared" in said
    assert len(removals(stack)) == 1


def test_the_container_goes_even_if_the_verdict_cannot_be_written(stack: hookhost.Host) -> None:
    declare(stack, fakehost.free_port(), 0.1)
    break_the_directory(stack)
    with pytest.raises(HookError, match="File exists"):
        await_ready.await_ready(load(), "app")
    assert len(removals(stack)) == 1


def test_a_container_that_cannot_be_removed_is_said(stack: hookhost.Host) -> None:
    declare(stack, fakehost.free_port(), 0.1)
    (stack.root / "rm-fails").touch()
    with pytest.raises(HookError, match="podman rm failed: Error: storage is locked"):
        await_ready.await_ready(load(), "app")
    assert stack.verdict()["phase"] == "not-ready"


def test_an_external_service_is_not_waited_for(stack: hookhost.Host) -> None:
    stack.declare(fakehost.external(1))
    with pytest.raises(HookError, match="outside this stack") as caught:
        await_ready.await_ready(load(), "app")
    assert caught.value.code == INVALID


# --- the container ends ----------------------------------------------------------------------------------------------


def test_a_container_that_ends_is_noticed_at_once(
    stack: hookhost.Host,
    containers: Callable[..., scripted.Dns],
    monitor: Callable[[], subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    containers(app="127.0.0.1")
    process = monitor()
    monkeypatch.setenv("MAINPID", str(process.pid))
    killed = 0.0

    def kill() -> None:
        nonlocal killed
        killed = time.monotonic()
        process.kill()

    with scripted.Tcp(LOADING) as server:
        declare(stack, server.port, 30)
        # Late enough for a pause to be seen.
        timer = threading.Timer(1.2, kill)
        timer.start()
        said, _ = wait(stack, UNEXPECTED)
    assert time.monotonic() - killed < 5
    assert "exited: the container ended before it was ready (last seen: answered LOADING" in said
    verdict = stack.verdict()
    assert (verdict["phase"], verdict["decisive"]) == ("not-ready", False)
    assert len(removals(stack)) == 1


def test_a_container_that_ended_already(
    stack: hookhost.Host, monitor: Callable[[], subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = monitor()
    process.kill()
    process.wait()
    monkeypatch.setenv("MAINPID", str(process.pid))
    declare(stack, fakehost.free_port(), 30)
    _, seconds = wait(stack, UNEXPECTED)
    assert seconds < 5
    assert stack.verdict()["reason"] == "exited: the container ended before it was ready"


def test_its_last_words_are_those_of_the_whole_start(
    stack: hookhost.Host,
    monitor: Callable[[], subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[float] = []

    def last_words(_: object, since: float) -> str:
        asked.append(since)
        return "exec format error"

    monkeypatch.setattr(runtime, "last_words", last_words)
    process = monitor()
    process.kill()
    process.wait()
    monkeypatch.setenv("MAINPID", str(process.pid))
    declare(stack, fakehost.free_port(), 30)
    # start-pre was long ago: the machine is busy.
    with monkeypatch.context() as earlier:
        began = time.time() - 20
        earlier.setattr(time, "time", lambda: began)
        runtime.write_verdict(load(), "app", phase=runtime.STARTING, ok=True, release=1)
    wait(stack, UNEXPECTED)
    assert asked == [pytest.approx(began, abs=0.1)]
    assert stack.verdict()["reason"].endswith("; its last words: exec format error")


@pytest.mark.parametrize(
    ("phase", "release", "previous", "decisive"),
    [("switch", 2, 1, True), ("probation", 2, 1, False), ("switch", 3, 1, False), ("switch", 2, None, False)],
)
def test_one_end_is_enough_for_a_deployment_that_waits_and_can_go_back(
    stack: hookhost.Host,
    monkeypatch: pytest.MonkeyPatch,
    phase: str,
    release: int,
    previous: int | None,
    *,
    decisive: bool,
) -> None:
    declare(stack, fakehost.free_port(), 30)
    store = Store.open(str(stack.fake.journal_path))
    attempt = Deploys(store).begin("app", "local/new:2", "restart")
    values = (phase, release, previous, attempt.id)
    with store:
        store.rows("UPDATE deploy SET phase = ?, release = ?, previous = ? WHERE id = ?", values)
    store.close()
    stack.fake.verdict("app", phase="starting", release=2)
    monkeypatch.setattr(await_ready, "_main_process", lambda: -1)
    wait(stack, UNEXPECTED)
    assert stack.verdict()["decisive"] is decisive


def test_a_container_that_runs_is_waited_for(
    stack: hookhost.Host,
    containers: Callable[..., scripted.Dns],
    monitor: Callable[[], subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    containers(app="127.0.0.1")
    monkeypatch.setenv("MAINPID", str(monitor().pid))
    with scripted.Tcp(LOADING) as server:
        declare(stack, server.port, 0.5)
        _, seconds = wait(stack, UNEXPECTED)
    assert seconds >= 0.5
    assert stack.verdict()["decisive"] is True


@pytest.mark.parametrize("pid", ["", "x", "-1", "0"])
def test_a_main_process_nobody_knows_is_not_waited_for(
    stack: hookhost.Host, monkeypatch: pytest.MonkeyPatch, pid: str
) -> None:
    monkeypatch.setenv("MAINPID", pid)
    declare(stack, fakehost.free_port(), 0.2)
    _, seconds = wait(stack, UNEXPECTED)
    assert seconds >= 0.2


# --- the unit is stopped ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("removable", [True, False])
def test_a_stop_while_it_waits_is_no_failure(
    stack: hookhost.Host, containers: Callable[..., scripted.Dns], *, removable: bool
) -> None:
    containers(app="127.0.0.1")
    asked = threading.Event()

    def handler(link: socket.socket) -> None:
        asked.set()
        LOADING(link)

    if not removable:
        (stack.root / "rm-fails").touch()
    with scripted.Tcp(handler) as server:
        declare(stack, server.port, 60)
        process = stack.start("await-ready", "app")
        assert asked.wait(20)
        time.sleep(0.1)  # any moment of the wait is as good as another
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        out, said = process.communicate(timeout=20)
        spent = time.monotonic() - began
    assert (process.returncode, out) == (DONE, "")
    assert said == ("" if removable else said)
    assert removable or "its container is not removed: podman rm failed" in said
    assert spent < 5
    # With the time to end by itself that a stop gives it.
    assert removals(stack) == ["podman rm --force --ignore --time 7 aistack-app"]
    assert stack.verdict()["phase"] == "starting"


def test_a_second_stop_does_not_disturb_the_first(
    stack: hookhost.Host, containers: Callable[..., scripted.Dns]
) -> None:
    containers(app="127.0.0.1")
    asked = threading.Event()

    def handler(link: socket.socket) -> None:
        asked.set()
        LOADING(link)

    (stack.root / "rm-slow").touch()
    with scripted.Tcp(handler) as server:
        declare(stack, server.port, 60)
        process = stack.start("await-ready", "app")
        assert asked.wait(20)
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 20
        while not (stack.root / "removing").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == DONE
    assert len(removals(stack)) == 1


def test_a_stop_during_a_long_probe_is_no_failure(
    stack: hookhost.Host, containers: Callable[..., scripted.Dns]
) -> None:
    containers(app="127.0.0.1")
    asked = threading.Event()

    def handler(link: socket.socket) -> None:
        asked.set()
        scripted.silent(link)

    with scripted.Tcp(handler) as server:
        declare(
            stack, server.port, probe=fakehost.probe("redis", server.port, timeoutSeconds=9, startTimeoutSeconds=60)
        )
        process = stack.start("await-ready", "app")
        assert asked.wait(20)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=20) == ("", "")
        assert time.monotonic() - began < 5
    assert process.returncode == DONE


# --- dependents ------------------------------------------------------------------------------------------------------


def blaming(*names: str, ok: bool = False) -> dict[str, object]:
    """Return a verdict on a start that failed because of these."""
    checks = [{"subject": f"dependency {name}", "ok": ok, "kind": "refused"} for name in names]
    return {"phase": "preflight", "checks": checks, "reason": "refused"}


@pytest.mark.parametrize(
    ("verdict", "state", "timer", "started"),
    [
        (blaming("app"), "failed", "active", True),
        (blaming("other", "app"), "failed", "active", True),
        (blaming("other"), "failed", "active", False),
        (blaming("app", ok=True), "failed", "active", False),
        (blaming("app"), "inactive", "active", False),
        (blaming("app"), "active", "active", False),
        (blaming("app"), "activating", "active", False),
        (blaming("app"), "failed", "inactive", False),  # somebody stopped it while it waited
        ({**blaming("app"), "phase": "not-ready"}, "failed", "active", False),
        ({**blaming("app"), "phase": "ready"}, "failed", "active", False),
        ({"phase": "preflight"}, "failed", "active", False),
        ({}, "failed", "active", False),
    ],
)
def test_who_is_started_again_when_a_dependency_is_back(
    stack: hookhost.Host, verdict: dict[str, object], state: str, timer: str, *, started: bool
) -> None:
    stack.declare(
        fakehost.service("app"),
        web=fakehost.service("web", dependsOn=["app"]),
        fan=fakehost.service("fan", wants=["app"]),
    )
    stack.fake.release("app", 1, "good")
    stack.fake.verdict("app", phase="starting", release=1, proven=True, at=0, checks=[])
    stack.fake.unit("web", state)
    stack.fake.retry_timer("web", timer)
    stack.fake.unit("fan", "failed")
    stack.fake.verdict("web", **verdict)
    said, _ = wait(stack)
    starts = [call for call in stack.calls("systemctl") if call.startswith(("systemctl start", "systemctl reset"))]
    unit = "podman-aistack-web.service"
    assert starts == ([f"systemctl reset-failed {unit}", f"systemctl start --no-block {unit}"] if started else [])
    assert said == ("app is back: starting web again\n" if started else "")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"phase": "preflight", "checks": [null]}', '{"phase": "preflight", "checks": 5}']
)
def test_a_strange_verdict_of_a_dependent_harms_nobody(stack: hookhost.Host, text: str) -> None:
    stack.declare(fakehost.service("app"), web=fakehost.service("web", dependsOn=["app"]))
    stack.fake.verdict("app", phase="starting", release=1, proven=True, at=0, checks=[])
    (stack.root / "run/web").mkdir()
    (stack.root / "run/web/verdict.json").write_text(text)
    wait(stack)
    assert stack.verdict()["phase"] == "ready"


def test_the_launcher_waits(stack: hookhost.Host) -> None:
    declare(stack, 1, probe=None)
    process = stack.start("await-ready", "app", MAINPID=str(os.getpid()))
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == DONE
    assert json.loads((stack.root / "run/app/verdict.json").read_text())["phase"] == "ready"


def test_the_time_limit_of_a_removal_includes_the_containers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []

    def run(_: list[str], timeout: float) -> tuple[int, str, str]:
        limits.append(timeout)
        return 0, "", ""

    monkeypatch.setattr(runtime, "run", run)
    runtime.remove_container("aistack-app", 25)
    assert limits == [runtime.PODMAN_TIMEOUT + 25]
