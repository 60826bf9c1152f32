"""The lock of deployments: real files, real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import fakehost
import pytest

from aistack.hooks import deploy_lock
from aistack.hooks.errors import LOCK_HELD, HookError
from aistack.hooks.manifest import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aistack.hooks.manifest import Manifest

BOUND = 30.0  # seconds for anything here

# Takes the lock, says so, and goes on until its input ends; with "child" it starts a program that lives on meanwhile.
HOLDER = """
import subprocess, sys
from aistack.hooks import deploy_lock
from aistack.hooks.manifest import load
with deploy_lock.acquire(load(), "aistack deploy app"):
    if sys.argv[1:] == ["child"]:
        child = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL, close_fds=False, start_new_session=True)
        print(child.pid, flush=True)
    else:
        print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def manifest(host: fakehost.FakeHost) -> Manifest:
    """A stack."""
    host.declare({"app": fakehost.service("app")})
    return load()


@pytest.fixture
def hold() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """What starts a process that holds the lock."""
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(Path(deploy_lock.__file__).parents[2])}
        command = [sys.executable, "-c", HOLDER, *arguments]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, start_new_session=True
        )
        running.append(process)
        return process

    yield start
    for process in running:
        with process:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    """The line that it says when it holds the lock."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def path(manifest: Manifest) -> Path:
    """The lock's file."""
    return Path(deploy_lock.path_of(manifest))


def test_it_is_free_before_anybody_took_it_and_after_it_was_given_back(manifest: Manifest) -> None:
    assert deploy_lock.holder(manifest) is None
    assert not path(manifest).exists()
    with deploy_lock.acquire(manifest, "test") as held:
        assert held.before is None
    assert deploy_lock.holder(manifest) is None
    assert path(manifest).read_bytes() == b""


def test_another_process_has_it_and_is_named(manifest: Manifest, hold: Callable[..., subprocess.Popen[str]]) -> None:
    process = hold()
    assert said(process) == "held"
    with pytest.raises(HookError) as caught:
        deploy_lock.acquire(manifest, "test")
    assert caught.value.code == LOCK_HELD
    assert f"the lock is held by `aistack deploy app` (process {process.pid}, for " in str(caught.value)
    holder = deploy_lock.holder(manifest)
    assert holder is not None
    assert (holder.pid, holder.what, holder.alive, holder.boot) == (
        process.pid,
        "aistack deploy app",
        True,
        deploy_lock.boot_id(),
    )


def test_a_lock_cannot_be_taken_twice_in_one_process(manifest: Manifest) -> None:
    with deploy_lock.acquire(manifest, "first"), pytest.raises(HookError, match="held by `first`"):
        deploy_lock.acquire(manifest, "second")


def test_sigkill_frees_it_and_says_who_was_cut_off(
    manifest: Manifest, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    process = hold()
    said(process)
    process.send_signal(signal.SIGKILL)
    process.wait(BOUND)
    assert deploy_lock.holder(manifest) is None
    with deploy_lock.acquire(manifest, "test") as held:
        assert held.before is not None
        assert (held.before.pid, held.before.alive) == (process.pid, False)


def test_a_child_that_lives_on_does_not_keep_it(manifest: Manifest, hold: Callable[..., subprocess.Popen[str]]) -> None:
    process = hold("child")
    child = int(said(process))
    try:
        process.send_signal(signal.SIGKILL)
        process.wait(BOUND)
        os.kill(child, 0)
        assert deploy_lock.holder(manifest) is None
        with deploy_lock.acquire(manifest, "test"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_who_waits_gets_it_when_it_is_given_back(
    manifest: Manifest, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    process = hold()
    said(process)
    assert process.stdin is not None
    timer = threading.Timer(0.5, process.stdin.close)
    timer.start()
    with deploy_lock.acquire(manifest, "test", wait=BOUND):
        assert process.wait(BOUND) == 0
    timer.join()


def test_a_recovery_ends_by_itself_and_is_waited_for(
    manifest: Manifest, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    process = hold()
    said(process)
    record = json.loads(path(manifest).read_text(encoding="utf-8"))
    path(manifest).write_text(json.dumps({**record, "what": deploy_lock.RECOVERY}), encoding="utf-8")
    assert process.stdin is not None
    timer = threading.Timer(0.5, process.stdin.close)
    timer.start()
    with deploy_lock.acquire(manifest, "test"):
        assert process.wait(BOUND) == 0
    timer.join()


def test_its_age_does_not_depend_on_the_clock(manifest: Manifest, hold: Callable[..., subprocess.Popen[str]]) -> None:
    said(hold())
    record = json.loads(path(manifest).read_text(encoding="utf-8"))
    path(manifest).write_text(json.dumps({**record, "since": 0.0}), encoding="utf-8")
    with pytest.raises(HookError, match=r"process \d+, for \d{1,2} s\)"):
        deploy_lock.acquire(manifest, "test")


def test_who_waits_in_vain_is_told_after_that_time(
    manifest: Manifest, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    said(hold())
    began = time.monotonic()
    with pytest.raises(HookError, match="the lock is held by"):
        deploy_lock.acquire(manifest, "test", wait=0.5)
    assert 0.5 <= time.monotonic() - began < BOUND


@pytest.mark.parametrize("record", [b"", b"garbage", b"[]", b'{"pid": "x"}', b"\xff\x00", b'{"pid": 1, "boot": 2}'])
def test_a_record_that_is_garbage_is_nobodys(manifest: Manifest, record: bytes) -> None:
    path(manifest).parent.mkdir(parents=True, exist_ok=True)
    path(manifest).write_bytes(record)
    assert deploy_lock.holder(manifest) is None
    with deploy_lock.acquire(manifest, "test") as held:
        assert held.before is None
        path(manifest).write_bytes(record)
        with pytest.raises(HookError, match="has no record of by whom: fuser -v") as caught:
            deploy_lock.holder(manifest)
        assert caught.value.code != LOCK_HELD
        with pytest.raises(HookError, match=r"by whom says: fuser -v") as caught:
            deploy_lock.acquire(manifest, "test")
        assert caught.value.code == LOCK_HELD


def test_another_process_of_the_same_number_is_not_its_holder(manifest: Manifest) -> None:
    mine = deploy_lock.Holder.of_this_process("x").data()
    assert deploy_lock.Holder(mine).alive
    assert not deploy_lock.Holder({**mine, "start": mine["start"] + 1}).alive
    assert not deploy_lock.Holder({**mine, "boot": "another"}).alive
    assert not deploy_lock.Holder({**mine, "pid": 2**22 + 1}).alive
    path(manifest).parent.mkdir(parents=True, exist_ok=True)
    path(manifest).write_text(json.dumps({**mine, "what": "x\x1b[31m"}), encoding="utf-8")
    with deploy_lock.acquire(manifest, "test") as held:
        assert held.before is not None
        assert held.before.what == "x\\x1b[31m"


def test_a_lock_that_cannot_be_opened_says_why(manifest: Manifest) -> None:
    path(manifest).mkdir(parents=True)
    with pytest.raises(HookError, match=r"cannot open the lock .*: Is a directory"):
        deploy_lock.acquire(manifest, "test")


def test_a_link_is_not_followed(manifest: Manifest, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("x", encoding="utf-8")
    path(manifest).parent.mkdir(parents=True, exist_ok=True)
    path(manifest).symlink_to(precious)
    with pytest.raises(HookError, match="cannot open the lock"):
        deploy_lock.acquire(manifest, "test")
    assert precious.read_text(encoding="utf-8") == "x"


def test_a_full_disk_is_said_and_leaves_it_free(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(HookError, match=r"cannot write the lock .*: No space left on device \(df -h "):
            deploy_lock.acquire(manifest, "test")
    assert deploy_lock.holder(manifest) is None
