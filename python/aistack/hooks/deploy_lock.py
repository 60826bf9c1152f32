"""One deployment, rollback or recovery at a time: a lock that dies with its holder, and says who holds it.

The kernel's own lock (flock(2)) on a file of the state directory decides; the record in the file says who it was. A
holder that is killed frees the lock, whatever happens to the record. The descriptor is close-on-exec: podman's monitor
of a container would else inherit it and hold the lock for as long as the container runs.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time

from aistack.hooks import locks, runtime
from aistack.hooks.errors import LOCK_HELD, HookError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from aistack.hooks.manifest import Manifest

RECOVERY = "aistack recover"  # who ends what was cut off: comes by itself, and ends by itself
_RECOVERY_WAIT = 60.0  # seconds that anybody waits for it
_LARGEST = 4096  # bytes of a record


class Holder:
    """Who holds the lock, or held it last.

    `since` is a Unix time, `since_boot` the same moment in seconds after the boot; `start` is in clock ticks after it.
    """

    __slots__ = ("boot", "pid", "since", "since_boot", "start", "what")

    def __init__(self, raw: dict[str, Any]) -> None:
        self.pid = int(raw["pid"])
        self.boot = str(raw["boot"])
        self.start = int(raw["start"])
        self.since = float(raw["since"])
        self.since_boot = float(raw["since_boot"])
        self.what = printable(str(raw["what"]), 100)

    @classmethod
    def of_this_process(cls, what: str) -> Holder:
        """Describe this process."""
        start = _start_of(os.getpid())
        now, now_boot = time.time(), runtime.boot_seconds()
        found = {"pid": os.getpid(), "boot": boot_id(), "start": start or 0, "since": now, "since_boot": now_boot}
        return cls({**found, "what": what})

    @property
    def alive(self) -> bool:
        """Whether that very process still runs: not another one of its number, nor one before the last boot."""
        return self.boot == boot_id() and _start_of(self.pid) == self.start

    def data(self) -> dict[str, Any]:
        """The record as plain data."""
        return {name: getattr(self, name) for name in ("pid", "boot", "start", "since", "since_boot", "what")}

    def __str__(self) -> str:
        return f"`{self.what}` (process {self.pid}, for {runtime.boot_seconds() - self.since_boot:.0f} s)"


def boot_id() -> str:
    """What the kernel calls this boot (random(4)); in a container it is the host's."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _start_of(pid: int) -> int | None:
    """When a process began, in clock ticks after the boot (field 22 of proc_pid_stat(5)); None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The name, in parentheses, may hold blanks and parentheses itself.
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def path_of(manifest: Manifest) -> str:
    """Where the lock is."""
    return os.path.join(manifest.state_dir, "deploy.lock")


class Lock:
    """The lock, while it is held: use it as a context manager."""

    def __init__(self, descriptor: int, before: Holder | None) -> None:
        self._descriptor = descriptor
        self.before = before
        """Who held it and was cut off, if somebody was: the record of one that ended by itself is empty."""

    def __enter__(self) -> Lock:  # noqa: PYI034  (typing is not imported by hooks)
        return self

    def __exit__(self, *_: object) -> None:
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


def acquire(manifest: Manifest, what: str, wait: float = 0.0) -> Lock:
    """Take the lock for `what` (a command line), waiting up to `wait` seconds for its holder to end.

    Raises HookError: exit code 4 when it is held after that, with its holder.
    """
    path = path_of(manifest)
    try:
        os.makedirs(manifest.state_dir, mode=0o755, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise HookError(f"cannot open the lock {path}: {error.strerror}") from None
    try:
        _take(descriptor, path, wait)
        before = _read(descriptor)
        record = json.dumps(Holder.of_this_process(what).data()).encode()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, record, 0)
    except OSError as error:
        os.close(descriptor)
        full = f" (df -h {manifest.state_dir})" if error.errno == errno.ENOSPC else ""
        raise HookError(f"cannot write the lock {path}: {error.strerror}{full}") from None
    except BaseException:
        os.close(descriptor)
        raise
    return Lock(descriptor, before)


def _take(descriptor: int, path: str, wait: float) -> None:
    if locks.take(descriptor, wait) is not None:
        return
    holder = _read(descriptor)
    if holder is not None and holder.what == RECOVERY and locks.take(descriptor, _RECOVERY_WAIT) is not None:
        return
    who = f"by {holder}" if holder is not None else f"(by whom says: fuser -v {path})"
    raise HookError(
        f"another deployment is under way, the lock is held {who}; wait for its end: aistack lock status", LOCK_HELD
    )


def holder(manifest: Manifest) -> Holder | None:
    """Who holds the lock now; None when it is free. Raises HookError (by somebody unknown, or unreadable)."""
    path = path_of(manifest)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HookError(f"cannot open the lock {path}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        found = _read(descriptor)
        if found is None:
            raise HookError(f"the lock {path} is held, but has no record of by whom: fuser -v {path}") from None
        return found
    finally:
        os.close(descriptor)
    return None


def _read(descriptor: int) -> Holder | None:
    try:
        return Holder(json.loads(os.pread(descriptor, _LARGEST, 0)))
    except (ValueError, KeyError, TypeError):
        return None
