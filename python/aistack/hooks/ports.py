"""Who holds a port of this host. Read only when a port turned out to be taken."""

from __future__ import annotations

import os
import socket
import sys

from aistack.hooks.errors import printable

_LISTEN = "0A"  # TCP state in /proc/net/tcp (include/net/tcp_states.h)


class Holder:
    """A process with a listening socket; `container` is the podman container it keeps the port for, if any."""

    __slots__ = ("command", "container", "pid")

    def __init__(self, pid: int, command: str, container: str) -> None:
        self.pid = pid
        self.command = command
        self.container = container

    def __str__(self) -> str:
        if self.container:
            return f"container {printable(self.container, 80)}"
        return f"{printable(self.command, 80)} (pid {self.pid})"


def holder(address: str, port: int, protocol: str) -> Holder | None:
    """The process that holds `port` at `address`, or None where it cannot be told (another namespace, not root)."""
    inodes = _inodes(address, port, protocol)
    if not inodes:
        return None
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if _links(pid).isdisjoint(inodes):
            continue
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().decode(errors="replace").split("\0")
        except OSError:
            continue  # it ended while we looked
        container = ""
        if os.path.basename(words[0]) == "conmon" and "-n" in words:
            container = words[words.index("-n") + 1]
        return Holder(int(pid), os.path.basename(words[0]), container)
    return None


def _links(pid: str) -> set[str]:
    """What the open files of a process are; none where it has ended, or is not ours to read."""
    found: set[str] = set()
    try:
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            try:
                found.add(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
            except FileNotFoundError:
                continue  # a busy process closes one while we look
    except OSError:
        return set()
    return found


def _inodes(address: str, port: int, protocol: str) -> set[str]:
    found: set[str] = set()
    for table in (protocol, protocol + "6"):
        try:
            with open(f"/proc/net/{table}", encoding="ascii") as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except OSError:
            continue
        for row in rows:
            listening = protocol == "udp" or row[3] == _LISTEN
            where, _, number = row[1].rpartition(":")
            if listening and int(number, 16) == port and _overlap(where, address):
                found.add(f"socket:[{row[9]}]")
    return found


def _overlap(where: str, address: str) -> bool:
    """Whether a socket at `where` (hexadecimal words, as the kernel has them) is in the way of `address`."""
    words = bytes.fromhex(where)
    if sys.byteorder == "little":
        words = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
    try:
        wanted = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    except OSError:
        return True
    mapped = b"\0" * 10 + b"\xff\xff"  # an IPv4 address in IPv6 (RFC 4291, 2.5.5.2)
    return not any(words) or not any(wanted) or words.removeprefix(mapped) == wanted.removeprefix(mapped)
