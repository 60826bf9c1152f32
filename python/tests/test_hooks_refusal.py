"""What the journal gets when a service cannot start: everything once, then in short, and anew when it changes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import fakehost
import pytest

from aistack.hooks import runtime, start_pre
from aistack.hooks.errors import HookError
from aistack.hooks.manifest import load

if TYPE_CHECKING:
    from pathlib import Path


def refused(host: fakehost.FakeHost) -> str:
    host.capsys.readouterr()
    assert start_pre.start_pre(load(), "app") == 3
    return host.capsys.readouterr().err


def test_what_changed_is_said_in_full(host: fakehost.FakeHost, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    entry = fakehost.service("app", secrets=["PASSWORD"])
    host.declare({"app": entry}, secrets={"PASSWORD": {"file": str(secret), "as": "env"}})
    host.release("app", 1, "good")
    host.images(fakehost.image(1))
    first = refused(host)
    assert "app cannot start: 1 of 2 checks failed\n  secret PASSWORD: secret missing: " in first
    assert f"{secret} does not exist" in first
    again = refused(host)
    assert f"app still cannot start: secret PASSWORD: secret missing: {secret} does not exist" in again
    assert "checks failed" not in again
    secret.touch()
    changed = refused(host)
    assert f"  secret PASSWORD: secret missing: {secret} is empty" in changed


def test_a_start_that_cannot_be_written_down_is_refused_for_what_the_checks_find(
    host: fakehost.FakeHost, tmp_path: Path
) -> None:
    entry = fakehost.service(
        "app", preflight={"files": [], "freeDisk": [{"path": str(tmp_path), "megabytes": 1 << 40}], "devices": []}
    )
    host.declare({"app": entry}, stateDir=str(tmp_path / "file"))
    (tmp_path / "file").touch()
    said = refused(host)
    assert "releases.db" in said
    assert f"  disk {tmp_path}: disk full: " in said


def test_the_error_itself_is_reported_where_the_checks_find_nothing(host: fakehost.FakeHost, tmp_path: Path) -> None:
    host.declare({"app": fakehost.service("app")}, stateDir=str(tmp_path / "file"))
    (tmp_path / "file").touch()
    with pytest.raises(HookError, match=r"releases\.db"):
        start_pre.start_pre(load(), "app")


@pytest.mark.parametrize(("restarts", "waits"), [(0, True), (1, False)])
def test_only_a_restart_of_systemd_itself_does_not_wait_again(
    host: fakehost.FakeHost, *, restarts: int, waits: bool
) -> None:
    services = {
        "redis": fakehost.service("redis", probe=fakehost.probe("exec", None, command=["true"])),
        "app": fakehost.service("app", dependsOn=["redis"]),
    }
    host.declare(services)
    host.release("app", 1, "good")
    host.images(fakehost.image(1))
    (host.root / "not-ready").touch()
    host.unit("app", "activating", NRestarts=str(restarts))
    # Whatever the wall clock did since.
    host.verdict("app", phase="preflight", at=time.time() + 86400, atBoot=runtime.boot_seconds(), reason="as arranged")
    began = time.monotonic()
    assert "dependency redis: not ready yet" in refused(host)
    # startup.timeoutSeconds is 1.
    assert (time.monotonic() - began >= 1) is waits
