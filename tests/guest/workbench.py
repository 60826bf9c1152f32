"""The base of the images that edit code: a Debian 12, on whose Python 3.11 aider runs, with pinned packages.

`python3 -m guest.workbench` makes it if it is not cached: a process of its own, beside which other bases can be made.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from guest import cache, paths, root
from guest.cache import Entry, key_of
from guest.errors import GuestError
from guest.process import fetch

SUITE = "bookworm"
PYTHON = "3.11"
PACKAGES = ("git", "python3", "python3-pytest")
"""git and pytest are for the tasks' own commands, which find the system's Python."""

VENV = "/opt/aistack"
SITE = f"{VENV}/lib/python{PYTHON}/site-packages"
"""What the services and aider import; nothing of it is in the way of a task's own commands."""

REQUIREMENTS = paths.IMAGES / "aider-wrapper/requirements.txt"
DOWNLOAD_TIMEOUT = 900.0
"""Seconds; it takes about 60 with a near mirror."""

TIMEOUT = DOWNLOAD_TIMEOUT + root.BUILD_TIMEOUT
"""Seconds for all of it."""

OPTIONS = (
    f"--customize-hook=chroot $1 python3 -m venv --without-pip {VENV}",
    f"--customize-hook=rm -r $1{SITE} && mv {{site}} $1{SITE}",
    # Read at every start of aider: compiled once, and not compared with the sources' times, which layers cut off.
    f"--customize-hook=chroot $1 {VENV}/bin/python3 -m compileall -q -j 2 --invalidation-mode unchecked-hash {SITE}",
    # Folders that images mount on.
    "--customize-hook=install -d -o 1000 -g 1000 $1/data $1/workspace",
)


def entry() -> Entry:
    """Return the cache entry of the base's root, a tar file in a folder."""
    return Entry("workbench", key_of([SUITE, *PACKAGES, *root.SLIM, *OPTIONS, REQUIREMENTS, "1"]))


def build(target: Path) -> None:
    """Make the base's root as `target`/base.tar."""
    log = root.build_log("workbench")
    site = target / "site"
    fetch(
        "aider's Python packages",
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"),
            *("--require-hashes", "--only-binary=:all:", "--no-deps", f"--requirement={REQUIREMENTS}"),
            *(f"--target={site}", f"--python-version={PYTHON}", "--implementation=cp"),
            *(f"--platform=manylinux_2_{minor}_x86_64" for minor in (28, 27, 17, 12, 5)),
            *("--platform=manylinux2014_x86_64", "--platform=manylinux1_x86_64"),
        ],
        timeout=DOWNLOAD_TIMEOUT,
        log=log,
    )
    for tests in [folder for folder in site.rglob("tests") if folder.is_dir()]:
        cache.remove(tests)
    options = tuple(option.format(site=site) for option in OPTIONS)
    root.mmdebstrap(PACKAGES, target / "base.tar", log=log, options=options, suite=SUITE)


def ensure() -> Path:
    """Return the folder of the base's root, made first if it is not cached."""
    return entry().ensure(build)


def main() -> int:
    """Make the base; a termination signal ends what is under way and leaves nothing behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        ensure()
    except GuestError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
