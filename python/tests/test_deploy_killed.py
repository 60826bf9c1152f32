"""A deployment that is killed, at each of its calls and at random moments, and what recovery makes of it.

podman and systemd are stand-ins (fake_system.py); the deployment, the hooks, the journal and the signals are real.
AISTACK_KILLS sets how many times it is killed.
"""

from __future__ import annotations

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

from aistack.hooks import deploy_lock
from aistack.hooks.deploys import DEPLOYED, Deploys
from aistack.hooks.manifest import Manifest, load
from aistack.hooks.releases import GOOD, Store

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
HOOK = HERE.parent / "aistack-hook"
KILLS = int(os.environ.get("AISTACK_KILLS", "8"))
OLD, NEW = "1" * 64, "2" * 64
BOUND = 60.0  # seconds for anything here
CALLS = 40  # more than a deployment makes of podman and systemctl
# Not secret, and the same each time.
CHOSEN = sorted(random.Random(0).sample(range(1, CALLS), min(KILLS, CALLS - 1)))  # noqa: S311


class Host:
    """The made-up host, with a service that serves its old release."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, new: str) -> None:
        """Install it all, start the service, and let its release be good."""
        self.root = root
        for folder in ("units", "containers", "networks", "behaviours", "programs", "root"):
            (root / folder).mkdir()
        for program in ("podman", "systemctl", "journalctl"):
            script = root / "programs" / program
            script.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {HERE / "fake_system.py"} {program} "$@"\n')
            script.chmod(0o755)
        (root / "root" / "program").write_bytes(b"\x7fELF")
        (root / "root" / "program").chmod(0o755)
        (root / "behaviours" / NEW).write_text(new)
        (root / "images").write_text(f"registry.example/app:1\t{OLD}\nlocalhost/new/app:2\t{NEW}\n")
        app = fakehost.service(
            "app", probe=fakehost.probe("exec", None, command=["true"], startTimeoutSeconds=0.3, timeoutSeconds=5)
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

    def deploy(self, kill: int | None = None, after: float | None = None) -> int:
        """Deploy the new image in a process of its own; kill it before a call or after a time. Its exit code."""
        child = os.fork()
        if child == 0:
            self._deploy(kill)
        if after is not None:
            time.sleep(after)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)

    def _deploy(self, kill: int | None) -> None:
        """In the child: never returns."""
        code = 99
        try:
            log = (self.root / "deploy.log").open("w", encoding="utf-8", buffering=1)
            sys.stdout = sys.stderr = log
            if kill is not None:
                os.environ["FAKE_KILL"] = f"{kill} {os.getpid()}"
            from aistack.cli.app import run

            code = run(["deploy", "app", "--image", "localhost/new/app:2"])
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
        """What the timer does some seconds later."""
        subprocess.run([sys.executable, "-I", "-S", HOOK, "recover", "late"], check=True, timeout=BOUND)
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


def test_nobody_kills_it(make: Callable[[str], Host]) -> None:
    host = make("good")
    code = host.deploy()
    host.settle()
    assert code == 0, (host.root / "deploy.log").read_text()
    assert host.check() == DEPLOYED


def test_a_candidate_that_is_never_ready_touches_nothing(make: Callable[[str], Host]) -> None:
    host = make("never-ready")
    code = host.deploy()
    host.settle()
    assert code == 6, (host.root / "deploy.log").read_text()
    assert host.check() == "test-failed"


@pytest.mark.parametrize("kill", CHOSEN)
def test_killed_before_a_call(make: Callable[[str], Host], kill: int) -> None:
    host = make("good")
    code = host.deploy(kill=kill)
    host.settle()
    assert code in {0, -signal.SIGKILL}, (host.root / "deploy.log").read_text()
    host.recover()
    host.check()


@pytest.mark.parametrize("number", range(max(KILLS // 2, KILLS - CALLS + 1)))
def test_killed_at_a_random_moment(make: Callable[[str], Host], number: int) -> None:
    host = make("good")
    code = host.deploy(after=random.Random(number).uniform(0.0, 1.5))  # noqa: S311
    host.settle()
    assert code in {0, -signal.SIGKILL}, (host.root / "deploy.log").read_text()
    host.recover()
    host.check()
