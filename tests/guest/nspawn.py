"""Boot a guest under systemd-nspawn and know its first process."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from guest import cgroup
from guest.errors import GuestError, WaitTimedOut

BOOT_TIMEOUT = 60.0
"""Seconds until the guest's manager takes commands; it takes about one."""

KILL_TIMEOUT = 20.0
"""Seconds until every process of a killed guest is gone."""

NSPAWN_OPTIONS = (
    *("--quiet", "--boot", "--register=no", "--keep-unit", "--private-network"),
    *("--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=pipe"),
    # What podman needs in the guest: mounts, network set-up, BPF device filters, session keyrings.
    *("--capability=all", "--system-call-filter=@raw-io @mount @keyring bpf perf_event_open"),
)


@dataclass(frozen=True)
class Mounts:
    """What the guest's file system is put together from."""

    lower: Path
    """The cached root, never written."""
    upper: Path
    """What this guest changed; outlives a power-off."""
    work: Path
    root: Path
    """Where the two are joined, in a mount namespace of the guest's own."""
    binds: tuple[tuple[Path, str], ...] = ()
    """Host folders and where they are in the guest."""


@dataclass(frozen=True)
class Leader:
    """A process, with its start time so that a number used again is not taken for it."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return start_time(self.pid) == self.started


def start_time(pid: int) -> int | None:
    """Return when `pid` started, in clock ticks since boot; None if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def script(mounts: Mounts, name: str, cgroup_folder: Path | None) -> str:
    """Return the shell commands that become the guest; they run in a mount namespace of their own."""
    overlay = f"lowerdir={mounts.lower},upperdir={mounts.upper},workdir={mounts.work}"
    nspawn = ["systemd-nspawn", *NSPAWN_OPTIONS, f"--directory={mounts.root}", f"--machine={name}"]
    nspawn += [f"--bind={source}:{target}" for source, target in mounts.binds]
    lines = ["set -e"]
    if cgroup_folder is not None:
        lines.append(f"echo $$ > {shlex.quote(str(cgroup_folder / 'cgroup.procs'))}")
    lines += [
        f"mount -t overlay -o {shlex.quote(overlay)} aistack {shlex.quote(str(mounts.root))}",
        f"exec {shlex.join(nspawn)}",
    ]
    return "\n".join(lines)


def boot(mounts: Mounts, name: str, scope: str, console: Path) -> tuple[Leader, subprocess.Popen[bytes]]:
    """Start the guest and return its first process once its manager takes commands.

    `name` is the guest's host name, `scope` its name among all guests of this host.
    """
    command = ["unshare", "--mount", "--propagation=slave", "sh", "-c"]
    folder: Path | None = None
    if cgroup.host_runs_systemd():
        run = ("systemd-run", "--quiet", "--scope", "--collect", "--property=Delegate=yes")
        command = [*run, f"--unit=aistack-guest-{scope}", *command]
    else:
        folder = cgroup.make(scope)
    address = f"aistack-guest-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, console.open("ab") as output:
        notify.bind(f"\0{address}")
        process = subprocess.Popen(
            [*command, script(mounts, name, folder)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Ctrl-C at our terminal is for us; a guest is stopped on purpose or not at all.
            start_new_session=True,
            env={
                **os.environ,
                "NOTIFY_SOCKET": f"@{address}",
                "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
                "SYSTEMD_LOG_LEVEL": "notice",
            },
        )
        deadline = time.monotonic() + BOOT_TIMEOUT
        try:
            leader = _leader(notify, process, deadline, console)
            _wait_for_manager(leader, process, deadline, console)
        except BaseException:
            process.kill()
            process.wait()
            raise
    return leader, process


def _leader(notify: socket.socket, process: subprocess.Popen[bytes], deadline: float, console: Path) -> Leader:
    notify.settimeout(0.2)
    while time.monotonic() < deadline:
        _still_runs(process, console)
        try:
            message = notify.recv(4096).decode()
        except TimeoutError:
            continue
        for line in message.splitlines():
            if line.startswith("X_NSPAWN_LEADER_PID="):
                pid = int(line.partition("=")[2])
                started = start_time(pid)
                if started is not None:
                    return Leader(pid, started)
    raise WaitTimedOut("systemd-nspawn did not start the guest in time", why=tail(console))


def _wait_for_manager(leader: Leader, process: subprocess.Popen[bytes], deadline: float, console: Path) -> None:
    while time.monotonic() < deadline:
        _still_runs(process, console)
        if backdoor(leader).is_dir():
            return
        time.sleep(0.01)
    raise WaitTimedOut("the guest did not boot in time", why=tail(console))


def backdoor(leader: Leader) -> Path:
    """Return the cgroup that the driver's commands run in."""
    try:
        return cgroup.payload_of(leader.pid) / "system.slice/backdoor.service"
    except OSError:
        return Path("/nonexistent")


def _still_runs(process: subprocess.Popen[bytes], console: Path) -> None:
    if process.poll() is not None:
        raise GuestError(
            f"the guest ended while booting, exit code {process.returncode}",
            why=tail(console),
            next_step=f"read {console}",
        )


def tail(file: Path, lines: int = 15) -> str:
    """Return the end of a log."""
    if not file.is_file():
        return f"{file} does not exist"
    return "\n".join(file.read_text(errors="replace").strip().splitlines()[-lines:])


def enter(leader: Leader, command: list[str], *, environment: dict[str, str]) -> list[str]:
    """Return the host command that runs `command` in the guest as a member of its backdoor unit.

    nsenter changes what a process sees, not the cgroup it is accounted to, so the shell moves
    itself first.
    """
    inside = ["env", "-i", *(f"{key}={value}" for key, value in environment.items()), *command]
    nsenter = ["nsenter", f"--target={leader.pid}", *("-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w")]
    procs = backdoor(leader) / "cgroup.procs"
    move = f"echo $$ > {shlex.quote(str(procs))} && exec {shlex.join(nsenter)} -- {shlex.join(inside)}"
    return ["sh", "-c", move]


def kill(leader: Leader, scope: str) -> None:
    """Pull the plug: kill the guest's first process, and the kernel kills all others with it."""
    folder = mounted_cgroup(scope)
    if leader.alive:
        os.kill(leader.pid, signal.SIGKILL)
    wait_gone(leader, folder)


def mounted_cgroup(scope: str) -> Path:
    """Return the guest's cgroup on this host."""
    if cgroup.host_runs_systemd():
        return cgroup.mount_point() / f"system.slice/aistack-guest-{scope}.scope"
    return cgroup.mount_point() / f"aistack-guest-{scope}"


def wait_gone(leader: Leader, folder: Path, timeout: float = KILL_TIMEOUT) -> None:
    """Wait until the guest's every process has ended, so that its files can be used again."""
    deadline = time.monotonic() + timeout
    while leader.alive or cgroup.processes(folder):
        if time.monotonic() > deadline:
            left = cgroup.processes(folder)
            raise WaitTimedOut(f"a guest did not end in {timeout:.0f} s", why=f"processes: {left}")
        time.sleep(0.01)
    if not cgroup.host_runs_systemd():
        cgroup.remove(folder)
