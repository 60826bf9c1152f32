"""The stack installed into a root once: each scenario's guest begins with a copy of the files that this made.

The demo and the scenario bundle-lifecycle install into a guest that runs, as users do.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from guest import paths, root, stack
from guest.cache import Entry, key_of
from guest.guest import Guest
from guest.machine import Machine
from guest.process import check

TIMEOUT = 120.0
"""Seconds for an installation; it takes about 4."""

ENABLED = "enabled.json"
"""Beside the files: the units that the installation enabled. Not among them: a guest would start them as it boots."""

INSTALL = """
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
mount --rbind /dev "$2/root/dev"
mount -t proc proc "$2/root/proc"
mount -t tmpfs tmpfs "$2/root/run"
mount -t tmpfs tmpfs "$2/root/tmp"
exec chroot "$2/root" "$3/bundle/install" "$3/bundle/$4"
"""
"""In a mount namespace of its own, which takes the mounts along when it ends."""


def ensure(bundle: Path) -> Path:
    """Return the folder with what installing a checked-in bundle adds to the root, made first if it is not cached."""
    lower = root.ensure()
    sources = [paths.CHECKOUT / name for name in ("bundle", "python/aistack", "python/aistack-hook")]
    key = key_of([root.entry().key, bundle.name, *sources, stack.model(), Path(__file__)])

    def build(folder: Path) -> None:
        for name in ("upper", "work", "root"):
            (folder / name).mkdir()
        upper = folder / "upper"
        for name in ("bundle", "python"):
            ignored = shutil.ignore_patterns("__pycache__", "tests", ".*_cache", ".hypothesis", ".benchmarks")
            target = upper / stack.SOURCES[1:] / name
            shutil.copytree(paths.CHECKOUT / name, target, symlinks=True, ignore=ignored)
        model = upper / stack.MODEL[1:]
        model.parent.mkdir(parents=True)
        shutil.copyfile(stack.model(), model)
        # Modes that an empty layer would not hide the root's behind.
        for directory in (upper, *(found for found in upper.rglob("*") if found.is_dir())):
            directory.chmod(0o755)
        command = ["sh", "-euc", INSTALL, "sh", str(lower), str(folder), stack.SOURCES, bundle.name]
        check(["unshare", "--mount", "--propagation=slave", *command], timeout=TIMEOUT)
        links = sorted((upper / "etc/systemd/system").glob("*.wants/*"))
        (folder / ENABLED).write_text(json.dumps(sorted({link.name for link in links})))
        for link in links:
            link.unlink()
        for name in ("work", "root"):
            shutil.rmtree(folder / name)

    return Entry(f"installed-{bundle.name}", key).ensure(build)


def place(guest: Guest, bundle: Path) -> list[str]:
    """Put the stack, with new secrets, into a guest that has not been on; returns the units to enable once it is."""
    layer = ensure(bundle)
    check(["cp", "-a", "--reflink=auto", f"{layer}/upper/.", f"{guest.upper}/"])
    manifest = json.loads((bundle / "etc/aistack/stack.json").read_text())
    for secret in manifest["secrets"].values():
        stack.write_secret(guest.upper / secret["file"].lstrip("/"))
    units = json.loads((layer / ENABLED).read_text())
    return [str(unit) for unit in units]


def enable(machine: Machine, units: list[str]) -> None:
    """Do what is left of the installation: enable its units, and start nothing."""
    machine.succeed(f"systemctl --quiet enable {' '.join(units)}")
