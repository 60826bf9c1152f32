"""A guest's own podman storage, made in a moment from the cached one.

The layers' files are hard links: an overlay never writes to its lower folders, so podman in the
guest cannot change the cached ones, and removing an image removes only links. All else (the
databases, JSON records, locks) is small and really copied.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from guest.process import check

COPY_TIMEOUT = 120.0
"""Seconds; some ten thousand links take well under one."""


def copy(source: Path, target: Path) -> None:
    """Copy the podman storage `source` to `target`, which must not exist."""
    check(["cp", "--archive", "--link", source, target], timeout=COPY_TIMEOUT)
    for file in records(target):
        part = file.with_name(f"{file.name}.part")
        shutil.copy2(file, part)
        stat = file.stat()
        os.chown(part, stat.st_uid, stat.st_gid)
        part.replace(file)


def records(storage: Path) -> Iterator[Path]:
    """Yield the regular files of a podman storage that are not a layer's content."""
    layers = storage / "storage" / "overlay"
    for folder, below, files in os.walk(storage):
        here = Path(folder)
        if here.parent == layers and "diff" in below:
            below.remove("diff")
        for name in files:
            file = here / name
            if not file.is_symlink() and file.is_file():
                yield file
