"""The cgroup a guest lives in: one of its own, whether or not the host runs systemd."""

from __future__ import annotations

import os
from pathlib import Path

from guest.errors import GuestError

SYSTEMD_RUNS = Path("/run/systemd/system")


def mount_point(mountinfo: str | None = None) -> Path:
    """Return where the host's version 2 hierarchy is mounted: all of it, or a hybrid's one."""
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] == "cgroup2":
            return Path(before.split()[4])
    raise GuestError(
        "no cgroup2 hierarchy is mounted on this machine",
        why="systemd in a guest needs one; a hybrid layout is enough",
        next_step="mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified",
    )


def host_runs_systemd() -> bool:
    """Whether this host's service manager is systemd, so that it owns the cgroup tree."""
    return SYSTEMD_RUNS.is_dir()


def of_process(pid: int) -> Path:
    """Return the version 2 cgroup folder that `pid` is in."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return mount_point() / line[3:].lstrip("/")
    raise GuestError(f"process {pid} is in no cgroup2 hierarchy")


def payload_of(leader: int) -> Path:
    """Return the root of the tree that the guest whose first process is `leader` manages."""
    folder = of_process(leader)
    return folder.parent if folder.name == "init.scope" else folder


def make(scope: str) -> Path:
    """Make the cgroup folder for a guest on a host without systemd."""
    folder = mount_point() / f"aistack-guest-{scope}"
    remove(folder)
    folder.mkdir(exist_ok=True)
    return folder


def remove(folder: Path) -> None:
    """Remove an empty cgroup and all below it; a folder that is still in use stays."""
    # Not rglob, which raises when what it walks through goes away: the guest's own end removes them too.
    for below, _, _ in os.walk(folder, topdown=False):
        _rmdir(Path(below))


def _rmdir(folder: Path) -> None:
    try:
        folder.rmdir()
    except (FileNotFoundError, OSError):
        # Busy: a process that is just ending. The next start with this name tries again.
        return


def processes(folder: Path) -> list[int]:
    """Return the processes in a cgroup and all below it."""
    found: list[int] = []
    for below, _, _ in os.walk(folder):
        try:
            found += [int(pid) for pid in Path(below, "cgroup.procs").read_text().split()]
        except OSError:
            continue
    return found
