"""Things that take long to make are made once: keyed by their inputs, whole or not there at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from guest import paths
from guest.errors import GuestError

KEEP_OLD = 1
"""Entries of other keys that pruning leaves: the one before, for who changes branches."""


def key_of(parts: Iterable[str | bytes | Path]) -> str:
    """Return a short hash of `parts`; a Path stands for its name, mode and content (a folder: all)."""
    digest = hashlib.sha256()

    def feed(data: bytes) -> None:
        digest.update(str(len(data)).encode() + b":" + data)

    for part in parts:
        if isinstance(part, Path):
            files = sorted(part.rglob("*")) if part.is_dir() else [part]
            for file in files:
                if file.is_file() and "__pycache__" not in file.parts:
                    feed(file.relative_to(part.parent).as_posix().encode())
                    feed(b"x" if os.access(file, os.X_OK) else b"-")
                    feed(file.read_bytes())
        else:
            feed(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:16]


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[IO[bytes]]:
    """Hold the lock file `path`; BlockingIOError if somebody has it and `wait` is false."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(file, mode if wait else mode | fcntl.LOCK_NB)
        yield file


@dataclass(frozen=True)
class Entry:
    """One cached folder, `<cache>/<kind>-<key>`."""

    kind: str
    key: str

    @property
    def path(self) -> Path:
        """Where the folder is once built."""
        return paths.cache() / f"{self.kind}-{self.key}"

    @property
    def present(self) -> bool:
        """Whether it is there, whole."""
        return self.path.is_dir()

    @property
    def lock(self) -> Path:
        """The lock file: shared while in use, exclusive while removed."""
        return paths.cache() / "locks" / self.path.name

    @contextmanager
    def in_use(self) -> Iterator[Path]:
        """Keep the folder from being pruned while something runs from it."""
        with locked(self.lock, shared=True):
            yield self.path

    def ensure(self, build: Callable[[Path], None]) -> Path:
        """Return the folder, built by `build(folder)` first if it is not there.

        The build happens beside its place and is renamed when it has succeeded; a second process
        that wants the same entry waits for the first.
        """
        with locked(paths.cache() / "locks" / f"build-{self.kind}"):
            if not self.present:
                part = self.path.with_name(f"{self.path.name}.part")
                remove(part)
                part.mkdir(parents=True)
                try:
                    build(part)
                except BaseException:
                    remove(part)
                    raise
                part.rename(self.path)
            os.utime(self.path)
            self._prune()
        return self.path

    def _prune(self) -> None:
        others = [
            path
            for path in paths.cache().glob(f"{self.kind}-*")
            if path.is_dir() and path != self.path and path.suffix != ".part"
        ]
        others = [path for path in others if str(path) not in _below_guests()]
        others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for path in others[KEEP_OLD:]:
            try:
                with locked(paths.cache() / "locks" / path.name, wait=False):
                    remove(path)
            except BlockingIOError:
                continue


def _below_guests() -> set[str]:
    """Return the entries that guests were made from, running or not."""
    found: set[str] = set()
    for file in paths.guests().glob("*/made-from.json"):
        # A guest may be removed meanwhile.
        with suppress(FileNotFoundError):
            found.update(map(str, json.loads(file.read_text()).values()))
    return found


def fingerprint(folder: Path) -> str:
    """Return a hash of every name, mode, owner, size and time of change below `folder`.

    Contents are not read, and link counts are left out: guests hold hard links to some files.
    """
    digest = hashlib.sha256()
    for here, below, files in os.walk(folder):
        below.sort()
        for name in sorted([*below, *files]):
            stat = os.lstat(os.path.join(here, name))  # noqa: PTH118
            row = (here, name, stat.st_mode, stat.st_uid, stat.st_gid, stat.st_size, stat.st_mtime_ns)
            digest.update(repr(row).encode(errors="surrogateescape"))
    return digest.hexdigest()


def remove(path: Path) -> None:
    """Remove a folder that may not be there; refuse anything outside the cache."""
    if paths.cache().resolve() not in path.resolve().parents:
        raise GuestError(f"refusing to remove {path}", why=f"it is not inside the cache {paths.cache()}")
    if not path.is_dir():
        return
    mounted = mounts_below(path)
    if mounted:
        raise GuestError(
            f"refusing to remove {path}",
            why=f"something is mounted there, and would be emptied: {', '.join(mounted)}",
            next_step=f"umount {' '.join(mounted)}",
        )
    shutil.rmtree(path)


def mounts_below(path: Path, mountinfo: str | None = None) -> list[str]:
    """Return the mount points at and below `path` in this process's mount namespace."""
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    # Blanks in a name are written as octal numbers.
    points = [Path(line.split()[4].encode().decode("unicode_escape")) for line in text.splitlines()]
    wanted = path.resolve()
    return [str(point) for point in points if point == wanted or wanted in point.parents]
