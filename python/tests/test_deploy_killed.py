"""A deployment that is killed, at each of its calls and at random moments, and what recovery makes of it; and one that
is asked to end, by Ctrl-C or SIGTERM, which needs no recovery.

podman and systemd are stand-ins (fake_system.py); the deployment, the hooks, the journal and the signals are real.
AISTACK_KILLS sets how many times it is killed.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import fakehost
import pytest

from aistack.cli.app import run
from aistack.deploy import engine as _loaded_before_the_fork  # noqa: F401
from aistack.hooks import deploy_lock
from aistack.hooks.deploys import DEPLOYED, PHASES, Deploys
from aistack.hooks.manifest import Manifest, load
from aistack.hooks.recover import BUILT
from aistack.hooks.releases import GOOD, Store

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
HOOK = HERE.parent / "aistack-hook"
KILLS = int(os.environ.get("AISTACK_KILLS", "8"))
OLD, NEW = "1" * 64, "2" * 64
BOUND = 60.0  # seconds for anything here
CALLS = 50  # more than a deployment makes of podman and systemctl
# What the new image is like: it serves, or does not once it is live, or not for long.
KINDS = ("good", "fails-live", "ready-once")
LONGEST_PHASE = 1.0  # seconds, about
# Not secret, and the same each time.
EVERY = list(itertools.product(KINDS, range(1, CALLS)))
CHOSEN = sorted(random.Random(0).sample(EVERY, min(KILLS * 2 // 3, len(EVERY))))  # noqa: S311
AT_RANDOM = KILLS - len(CHOSEN)
# The phases of a deployment that goes well.
PHASES_OF_ONE = PHASES[: PHASES.index("revert")]
SEVERAL = 5  # times that somebody impatient presses Ctrl-C


class Host:
    """The made-up host, with a service that serves its old release."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, new: str) -> None:
        """Install it all, start the service, and let its release be good."""
        self.root = root
        for folder in ("units", "containers", "networks", "behaviours", "programs", "root", "source"):
            (root / folder).mkdir()
        for program in ("podman", "systemctl", "journalctl"):
            script = root / "programs" / program
            script.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {HERE / "fake_system.py"} {program} "$@"\n')
            script.chmod(0o755)
        (root / "root" / "program").write_bytes(b"\x7fELF")
        (root / "root" / "program").chmod(0o755)
        (root / "source" / "Containerfile").write_text("FROM registry.example/app:1\n")
        (root / "behaviours" / NEW).write_text(new)
        (root / "images").write_text(f"registry.example/app:1\t{OLD}\n")
        app = fakehost.service(
            "app",
            probe=fakehost.probe("exec", None, command=["true"], startTimeoutSeconds=0.3, timeoutSeconds=4, failures=1),
        )
        app["deploy"]["test"]["soakSeconds"] = 0
        document = fakehost.manifest(root, {"app": app})
        document["rollback"]["probationSeconds"] = 0
        (root / "stack.json").write_text(json.dumps(document))
        for name, value in {
            "PATH": f"{root / 'programs'}{os.pathsep}{os.environ['PATH']}",
            "FAKE_HOST": str(root),
            "FAKE_HOOK": str(HOOK),
            "FAKE_PYTHON": sys.executable,
            "AISTACK_MANIFEST": str(root / "stack.json"),
        }.items():
            monkeypatch.setenv(name, value)
        restart = [str(root / "programs" / "systemctl"), "restart", "podman-aistack-app.service"]
        subprocess.run(restart, check=True, timeout=BOUND)
        self.settle()

    @property
    def manifest(self) -> Manifest:
        """The manifest."""
        return load()

    @property
    def said(self) -> str:
        """What the deployment printed."""
        return (self.root / "deploy.log").read_text()

    def deploy(self, kill: int = 0) -> int:
        """Deploy the new image in a process of its own, which is killed before a call. Returns its exit code."""
        child = os.fork()
        if child == 0:
            self._deploy(None, f"{kill} {os.getpid()}")
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)

    def interrupt(self, what: signal.Signals, phase: str, times: int = 1, *, after: float = 0.0) -> int:
        """Deploy the new image, and send a signal when a phase begins, or some seconds after that.

        But for SIGKILL its children get it too, as they do from a terminal.
        """
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            os.close(reader)
            self._deploy(writer, None)
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as events:
            for line in events:
                found = json.loads(line)
                if (found.get("phase"), found.get("status")) == (phase, "started"):
                    time.sleep(after)
                    for _ in range(times):
                        os.kill(child if what == signal.SIGKILL else -child, what)
                        time.sleep(0.02)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)

    def leave(self, phase: str) -> int:
        """Deploy the new image, and stop reading what it prints when a phase begins."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            self._deploy(writer, None)
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as events:
            next(line for line in events if f'"phase": "{phase}", "status": "started"' in line)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)

    def _deploy(self, out: int | None, kill: str | None) -> None:
        """In the child: never returns."""
        code = 99
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            log = (self.root / "deploy.log").open("w", encoding="utf-8", buffering=1)
            sys.stdout = sys.stderr = log
            if out is not None:
                sys.stdout = os.fdopen(out, "w", encoding="utf-8", buffering=1)
            if kill is not None:
                os.environ["FAKE_KILL"] = kill
            words = ["deploy", "app", "--build", str(self.root / "source")]
            code = run([*words, "--jsonl"] if out is not None else words)
        finally:
            os._exit(code)

    def settle(self) -> None:
        """Wait until systemd does nothing any more."""
        deadline = time.monotonic() + BOUND
        while self._busy():
            assert time.monotonic() < deadline, "systemd does not come to rest"
            time.sleep(0.02)

    def _busy(self) -> bool:
        """Whether a job of the made-up systemd, or a call that its dead caller left, is under way."""
        wanted = f"FAKE_HOST={self.root}".encode()
        for entry in (folder.name for folder in Path("/proc").iterdir()):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            try:
                environment = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if wanted in environment:
                return True
        return False

    def recover(self) -> None:
        """What the timer does some seconds later, twice: what podman was still at comes to its end in between."""
        hook = [sys.executable, "-I", "-S", str(HOOK), "recover", "late"]
        subprocess.run(hook, check=True, timeout=BOUND)
        self.settle()
        subprocess.run(hook, check=True, timeout=BOUND)
        self.settle()

    def check(self) -> str:
        """Exactly one release serves, and the journal says which; nothing is left over. Returns the outcome."""
        with deploy_lock.acquire(self.manifest, "test"):
            pass
        store = Store.open(str(self.root / "state" / "releases.db"), create=False)
        try:
            deploys = Deploys(store)
            assert not deploys.unfinished()
            current = store.current("app")
            assert current is not None
            assert current.state == GOOD, current.state
            attempt = next(iter(deploys.history()), None)
            references = {release.image_ref for release in store.history()}
        finally:
            store.close()
        containers = [json.loads(file.read_text()) for file in (self.root / "containers").glob("*.json")]
        assert [(found["Name"], found["Image"]) for found in containers] == [("aistack-app", current.image_id)]
        assert not list((self.root / "networks").iterdir())
        assert not (self.root / "run" / "deploy").exists()
        assert "ActiveState=active" in (self.root / "units" / "podman-aistack-app.service").read_text()
        verdict = json.loads((self.root / "run" / "app" / "verdict.json").read_text())
        assert (verdict["phase"], verdict["release"]) == ("ready", current.id)
        tags = dict(line.split("\t") for line in (self.root / "images").read_text().splitlines())
        assert tags["localhost/aistack/app:live"] == current.image_id
        assert tags[f"localhost/aistack/app:{current.image_id[:12]}"] == current.image_id
        assert {tag for tag in tags if tag.startswith(BUILT)} <= references
        if attempt is None:
            assert current.image_id == OLD
            return ""
        assert (current.image_id == NEW) == (attempt.outcome == DEPLOYED), (attempt.outcome, attempt.reason)
        return attempt.outcome


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Host]:
    """Return what makes the host, with what the new image is like."""

    def one(new: str) -> Host:
        number = len(list(tmp_path.iterdir()))
        root = tmp_path / str(number)
        root.mkdir()
        return Host(root, monkeypatch, new)

    return one


@pytest.mark.parametrize(
    ("kind", "code", "outcome"),
    [
        ("good", 0, DEPLOYED),
        ("never-ready", 6, "test-failed"),
        ("fails-live", 7, "rolled-back"),
        ("ready-once", 7, "rolled-back"),
    ],
)
def test_nobody_kills_it(make: Callable[[str], Host], kind: str, code: int, outcome: str) -> None:
    host = make(kind)
    found = host.deploy()
    host.settle()
    assert found == code, host.said
    assert host.check() == outcome


@pytest.mark.parametrize(("kind", "call"), CHOSEN)
def test_killed_before_a_call(make: Callable[[str], Host], kind: str, call: int) -> None:
    host = make(kind)
    code = host.deploy(kill=call)
    host.settle()
    assert code in {0 if kind == "good" else 7, -signal.SIGKILL}, host.said
    host.recover()
    host.check()


@pytest.mark.parametrize("number", range(AT_RANDOM))
def test_killed_at_a_random_moment(make: Callable[[str], Host], number: int) -> None:
    chance = random.Random(number)  # noqa: S311
    kind, phase = chance.choice(KINDS), PHASES_OF_ONE[number % len(PHASES_OF_ONE)]
    host = make(kind)
    code = host.interrupt(signal.SIGKILL, phase, after=chance.uniform(0.0, LONGEST_PHASE))
    host.settle()
    assert code in {0 if kind == "good" else 7, -signal.SIGKILL}, host.said
    host.recover()
    host.check()


@pytest.mark.parametrize(
    ("phase", "what"),
    [*((phase, signal.SIGINT) for phase in PHASES_OF_ONE), ("test", signal.SIGTERM), ("switch", signal.SIGTERM)],
)
def test_asked_to_end_when_a_phase_begins(make: Callable[[str], Host], phase: str, what: signal.Signals) -> None:
    host = make("good")
    code = host.interrupt(what, phase)
    host.settle()
    ended = {"plan": {130, -what}, "lock": {130, -what}, "probation": {7, 0}, "bless": {0}}
    assert code in ended.get(phase, {130 if phase in {"validate", "build", "test"} else 7}), host.said
    assert host.check() == {130: "interrupted", 7: "rolled-back", 0: DEPLOYED}.get(code, "") or code == 130


def test_asked_to_end_with_a_release_that_was_good_before(make: Callable[[str], Host]) -> None:
    host = make("good")
    assert host.deploy() == 0, host.said
    assert run(["rollback", "app", "--yes"]) == 0
    host.settle()
    assert host.interrupt(signal.SIGINT, "switch") == 7, host.said
    host.settle()
    assert host.check() == "rolled-back"


@pytest.mark.parametrize("phase", ["test", "switch"])
def test_asked_again_and_again(make: Callable[[str], Host], phase: str) -> None:
    host = make("good")
    code = host.interrupt(signal.SIGINT, phase, SEVERAL)
    host.settle()
    assert code == (7 if phase == "switch" else 130), host.said
    host.check()


@pytest.mark.parametrize(("kind", "code", "outcome"), [("good", 0, DEPLOYED), ("fails-live", 7, "rolled-back")])
def test_who_reads_goes_away_and_it_goes_on(make: Callable[[str], Host], kind: str, code: int, outcome: str) -> None:
    host = make(kind)
    assert host.leave("validate") == code, host.said
    host.settle()
    assert host.check() == outcome
