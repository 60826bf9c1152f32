"""Who holds a port of this host. Read only when a port turned out to be taken."""

from __future__ import annotations

import os

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


def holder(port: int, protocol: str) -> Holder | None:
    """The process that holds `port`, or None where it cannot be told (another namespace, not root)."""
    inodes = _inodes(port, protocol)
    if not inodes:
        return None
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            links = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
            if links.isdisjoint(inodes):
                continue
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().decode(errors="replace").split("\0")
        except OSError:
            continue  # it ended while we looked, or is not ours to read
        container = ""
        if os.path.basename(words[0]) == "conmon" and "-n" in words:
            container = words[words.index("-n") + 1]
        return Holder(int(pid), os.path.basename(words[0]), container)
    return None


def _inodes(port: int, protocol: str) -> set[str]:
    found: set[str] = set()
    for table in (protocol, protocol + "6"):
        try:
            with open(f"/proc/net/{table}", encoding="ascii") as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except OSError:
            continue
        for row in rows:
            listening = protocol == "udp" or row[3] == _LISTEN
            if listening and int(row[1].rpartition(":")[2], 16) == port:
                found.add(f"socket:[{row[9]}]")
    return found
