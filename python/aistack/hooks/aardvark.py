"""aardvark-dns, the name server of podman's networks: what it serves, and the process that serves it.

netavark writes a file for each network, with a line for each container, and sends SIGHUP to the process whose number
is in `aardvark.pid`, whoever that is by now. A reload of a container's network writes that container's own line and no
other, fails when the file cannot be read, and takes the container off the network when no name server can be started.
So the file and the process are put in order before.
"""

from __future__ import annotations

import os
import signal
import time

from aistack.hooks.errors import DOWN, HookError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container
    from contextlib import AbstractContextManager
    from typing import TextIO

DIRECTORY = "/run/containers/networks/aardvark-dns"  # a constant of podman for containers of root
_PROGRAM = "aardvark-dns"
_PID_FILE = "aardvark.pid"
_LOCK = "aardvark.lock"  # beside the directory; netavark takes it by flock(2)
_ID_LENGTH = 64  # hexadecimal digits of a container's id
_LOCK_WAIT = 20.0  # seconds; a sign that netavark hangs
_END = 2.0  # seconds in which a killed process has ended


class Unreadable(Exception):
    """The file of a network is not what netavark writes."""


def entries(network: str) -> dict[str, list[str]]:
    """The IPv4 addresses that are on file for each container id. Empty where there is no file. Raises Unreadable."""
    try:
        with open(_path(network), encoding="utf-8") as file:
            return {line.split(" ")[0]: _addresses(line) for line in file.read().splitlines()[1:]}
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise Unreadable(str(error)) from None


def _addresses(line: str) -> list[str]:
    """The addresses on a container's line: its id, IPv4, IPv6, names, with one blank between them."""
    words = line.split(" ")
    if len(words) < 4 or len(words[0]) != _ID_LENGTH or not words[0].isalnum():
        raise Unreadable("it has a line that is no container's")
    return [address for address in words[1].split(",") if address]


def forget(network: str, ids: Container[str]) -> None:
    """Drop the lines of these containers, and let the process read the file again. Raises HookError."""
    with _locked():
        try:
            with open(_path(network), "r+", encoding="utf-8") as file:
                head, *lines = file.read().splitlines()
                _rewrite(file, [head, *(line for line in lines if line.split(" ")[0] not in ids)])
        except (OSError, ValueError) as error:
            raise HookError(f"cannot correct {_path(network)}: {error}") from None
        for process in processes():
            _signal(process, signal.SIGHUP)


def _rewrite(file: TextIO, lines: list[str]) -> None:
    # In place, as netavark does: the process takes every other file of the directory for a network's.
    file.seek(0)
    file.write("".join(f"{line}\n" for line in lines))
    file.truncate()


def discard(network: str) -> None:
    """Remove the file of a network, which netavark writes anew. Raises HookError."""
    with _locked():
        try:
            os.unlink(_path(network))
        except FileNotFoundError:
            return
        except OSError as error:
            raise HookError(f"cannot remove {_path(network)}: {error.strerror}") from None


def processes() -> list[int]:
    """The running name servers of podman's networks; one, where all is well."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().decode(errors="replace").split("\0")
        except OSError:
            continue  # it has ended meanwhile
        if os.path.basename(words[0]) == _PROGRAM and DIRECTORY in words:
            found.append(int(pid))
    return sorted(found)


def prepare(gateway: str) -> None:
    """Put the process and its number in order, so that netavark neither starts a second one nor signals a stranger.

    Raises HookError (exit code 8) when another program holds the port: netavark could start no name server then.
    """
    running = processes()
    if len(running) > 1:
        stop()
        running = []
    path = os.path.join(DIRECTORY, _PID_FILE)
    if running:
        if _recorded() != running[0]:
            with open(path, "w", encoding="ascii") as file:
                file.write(str(running[0]))
        return
    _unlink(path)
    from aistack.hooks.ports import holder

    who = holder(gateway, 53, "udp") or holder(gateway, 53, "tcp")
    if who is not None:
        raise HookError(
            f"port 53 of {gateway}, where the network's name server has to listen, is held by {who}: "
            "let it listen on its own addresses only, then: aistack network repair",
            DOWN,
        )


def stop() -> None:
    """End the name server, also one that answers nobody any more; a reload starts it again."""
    running = processes()
    for process in running:
        _signal(process, signal.SIGKILL)
    deadline = time.monotonic() + _END
    while time.monotonic() < deadline and any(process in running for process in processes()):
        time.sleep(0.01)
    _unlink(os.path.join(DIRECTORY, _PID_FILE))


def _recorded() -> int | None:
    try:
        with open(os.path.join(DIRECTORY, _PID_FILE), encoding="ascii") as file:
            return int(file.read(20))
    except (OSError, ValueError):
        return None


def _signal(process: int, number: int) -> None:
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return  # it has ended meanwhile


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _path(network: str) -> str:
    return os.path.join(DIRECTORY, network)


def _locked() -> AbstractContextManager[bool]:
    """Keep netavark out while the file is changed. It holds the lock for milliseconds. Raises HookError."""
    from aistack.hooks.locks import held

    return held(os.path.join(os.path.dirname(DIRECTORY), _LOCK), _LOCK_WAIT, "netavark")
