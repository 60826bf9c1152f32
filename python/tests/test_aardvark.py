"""The name server's file and process: what is read, corrected, ended. Files, locks and processes are real."""

from __future__ import annotations

import fcntl
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aistack.hooks import aardvark, locks, ports
from aistack.hooks.errors import DOWN, LOCK_HELD, HookError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FIRST, SECOND = "a1" * 32, "b2" * 32
FILE = (
    f"10.89.100.1\n{FIRST} 10.89.100.2  aistack-redis,redis\n{SECOND} 10.89.100.3,10.89.100.9 fd00::3 aistack-app,app\n"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files are, with one for the stack's network."""
    place = tmp_path / "networks" / "aardvark-dns"
    place.mkdir(parents=True)
    (place / "local-ai").write_text(FILE)
    monkeypatch.setattr(aardvark, "DIRECTORY", str(place))
    return place


@pytest.fixture
def serve(folder: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Start a process that looks like the name server of this folder; a SIGHUP leaves a file of its number."""
    running: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        # It waits without a child: between fork and exec that would look like a second name server.
        program = 'mkfifo "$0.$$.fifo"; exec 3<>"$0.$$.fifo"; trap \'echo > "$0.$$"\' HUP; echo > "$0.up.$$"'
        program += "; while :; do read -r line <&3; done"
        command = ["/usr/lib/podman/aardvark-dns", "-c", program, str(folder.parent / "heard"), "--config", str(folder)]
        process = subprocess.Popen(command, executable="/bin/sh")
        running.append(process)
        wait((folder.parent / f"heard.up.{process.pid}").exists)
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()


def wait(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_addresses_of_each_container(folder: Path) -> None:
    assert aardvark.entries("local-ai") == {FIRST: ["10.89.100.2"], SECOND: ["10.89.100.3", "10.89.100.9"]}
    (folder / "local-ai").write_text("10.89.100.1\n")
    assert aardvark.entries("local-ai") == {}
    (folder / "local-ai").unlink()
    assert aardvark.entries("local-ai") == {}


@pytest.mark.parametrize(
    "content",
    [
        b"\n\xff\xfe\n",
        b"10.89.100.1\ngarbage\n",
        b"10.89.100.1\n" + FIRST[:60].encode() + b" 10.89.100.2  redis\n",
        b"x\n\n",
        f"10.89.100.1\n{FIRST}\n".encode(),
    ],
)
def test_a_damaged_file_is_told_from_an_empty_one(folder: Path, content: bytes) -> None:
    (folder / "local-ai").write_bytes(content)
    with pytest.raises(aardvark.Unreadable):
        aardvark.entries("local-ai")


def test_a_container_is_forgotten_and_the_process_told(
    folder: Path, serve: Callable[[], subprocess.Popen[bytes]]
) -> None:
    process = serve()
    inode = (folder / "local-ai").stat().st_ino
    aardvark.forget("local-ai", {FIRST})
    assert aardvark.entries("local-ai") == {SECOND: ["10.89.100.3", "10.89.100.9"]}
    # In its place: whatever else is in the folder, the process takes for the file of another network.
    assert (folder / "local-ai").stat().st_ino == inode
    assert list(folder.iterdir()) == [folder / "local-ai"]
    wait((folder.parent / f"heard.{process.pid}").exists)


def test_a_file_that_cannot_be_corrected_is_named(folder: Path) -> None:
    (folder / "local-ai").write_bytes(b"\xff")
    with pytest.raises(HookError, match=r"cannot correct .*/local-ai"):
        aardvark.forget("local-ai", {FIRST})


def test_a_damaged_file_is_removed(folder: Path) -> None:
    aardvark.discard("local-ai")
    assert not list(folder.iterdir())
    aardvark.discard("local-ai")


def test_only_the_name_servers_of_this_folder_count(folder: Path, serve: Callable[[], subprocess.Popen[bytes]]) -> None:
    assert aardvark.processes() == []
    process = serve()
    other = subprocess.Popen(["/usr/lib/podman/aardvark-dns", "30", str(folder.parent)], executable="/bin/sleep")
    stranger = subprocess.Popen(["/bin/sh", "-c", "sleep 30; :", str(folder)])
    try:
        assert aardvark.processes() == [process.pid]
    finally:
        for each in (other, stranger):
            each.kill()
            each.wait()


def test_a_number_that_is_a_strangers_is_corrected(folder: Path, serve: Callable[[], subprocess.Popen[bytes]]) -> None:
    process = serve()
    for recorded in ("1", "", "x", "99999999999"):
        (folder / "aardvark.pid").write_text(recorded)
        aardvark.prepare("10.89.100.1")
        assert (folder / "aardvark.pid").read_text() == str(process.pid)
    (folder / "aardvark.pid").unlink()
    aardvark.prepare("10.89.100.1")
    assert (folder / "aardvark.pid").read_text() == str(process.pid)


def test_of_two_name_servers_neither_is_kept(
    folder: Path, serve: Callable[[], subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "holder", lambda *_: None)
    serve()
    serve()
    (folder / "aardvark.pid").write_text("1")
    aardvark.prepare("10.89.100.1")
    assert aardvark.processes() == []
    assert not (folder / "aardvark.pid").exists()


def test_one_that_does_not_answer_is_ended(folder: Path, serve: Callable[[], subprocess.Popen[bytes]]) -> None:
    process = serve()
    (folder / "aardvark.pid").write_text(str(process.pid))
    aardvark.stop()
    assert process.wait(20) == -9
    assert aardvark.processes() == []
    assert not (folder / "aardvark.pid").exists()


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_whoever_holds_the_port_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, protocol: str) -> None:
    (folder / "aardvark.pid").write_text("1")
    holder = ports.Holder(77, "dnsmasq", "")
    monkeypatch.setattr(ports, "holder", lambda _, port, which: holder if (port, which) == (53, protocol) else None)
    with pytest.raises(HookError, match=r"port 53 of 10\.89\.100\.1, .*, is held by dnsmasq \(pid 77\)") as caught:
        aardvark.prepare("10.89.100.1")
    assert caught.value.code == DOWN


def test_a_lock_that_netavark_does_not_let_go_of_is_not_waited_for_for_ever(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aardvark, "_LOCK_WAIT", 0.2)
    with (folder.parent / "aardvark.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        began = time.monotonic()
        with pytest.raises(HookError, match=r"netavark has not ended for 0\.2 s: fuser -v .*aardvark\.lock") as caught:
            aardvark.forget("local-ai", {FIRST})
    assert time.monotonic() - began < 30
    assert caught.value.code == LOCK_HELD
    assert (folder / "local-ai").read_text() == FILE
    aardvark.forget("local-ai", {FIRST})


def test_a_lock_says_whether_it_was_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with locks.held(path, 20, "another") as waited:
        assert not waited
    with Path(path).open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        release = threading.Timer(0.2, fcntl.flock, (other, fcntl.LOCK_UN))
        release.start()
        with locks.held(path, 20, "another") as waited:
            assert waited
        release.join()


def test_a_lock_that_cannot_be_made(tmp_path: Path) -> None:
    path = str(tmp_path / "missing" / "lock")
    with pytest.raises(HookError, match=f"cannot lock {path}: No such file"), locks.held(path, 1, "another"):
        pytest.fail("there is no such folder")
