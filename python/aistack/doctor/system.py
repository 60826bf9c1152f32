"""The host below the stack: versions, control groups, room on its disks."""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aistack import __version__
from aistack.doctor.host import ASK_TIMEOUT, Finding, fail, fine, warn
from aistack.hooks import runtime
from aistack.hooks.manifest import SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aistack.doctor.host import Host

# The oldest that work: RestartMode=direct of systemd, the options that the units give podman, the Python of the hooks.
SYSTEMD = 254
PODMAN = 5
PYTHON = (3, 11)

_MEBIBYTE = 2**20
# Below these, in MiB, it is a matter of days, or of minutes.
LITTLE_ROOM = 1024
NO_ROOM = 256


def versions(host: Host) -> Iterator[Finding]:
    """Compare the versions of what the stack runs with."""
    yield fine("versions", f"aistack {__version__}, manifest schema version {SCHEMA_VERSION}")
    found = platform.python_version()
    if sys.version_info[:2] < PYTHON:
        yield fail("versions", f"Python {found} is too old: 3.11 is needed", "apt-get install python3")
    else:
        yield fine("versions", f"Python {found}")
    yield _version("systemd", "systemctl", SYSTEMD)
    yield _version("podman", "podman", PODMAN)
    info = host.podman()
    yield from _network_tools(info.get("host", {}))
    if (groups := info.get("host", {}).get("cgroupVersion", "v2")) != "v2":
        yield warn(
            "versions",
            f"control groups are {groups}, not v2: limits of memory and processors may not hold",
            "grubby --update-kernel=ALL --args=systemd.unified_cgroup_hierarchy=1",
        )
    if info.get("store", {}).get("graphDriverName") == "vfs":
        yield warn(
            "versions",
            "podman copies every image (storage driver vfs), which is slow and fills the disk",
            "man containers-storage.conf",
        )


def _version(name: str, program: str, wanted: int) -> Finding:
    code, out, _ = runtime.run([program, "--version"], ASK_TIMEOUT)
    number = re.search(r"\d+(\.\d+)*", out)
    if code != 0 or number is None:
        return warn("versions", f"{name} does not say its version", f"{program} --version")
    if int(number[0].split(".")[0]) < wanted:
        return fail("versions", f"{name} {number[0]} is too old: {wanted} is needed", f"apt-get install {name}")
    return fine("versions", f"{name} {number[0]}")


def _network_tools(info: dict[str, Any]) -> Iterator[Finding]:
    """Say which programs make the network and its names."""
    backend = info.get("networkBackendInfo", {})
    for name, found in (("netavark", backend), ("aardvark-dns", backend.get("dns", {}))):
        path = found.get("path")
        version = str(found.get("version", "")).removeprefix(name).strip()
        if info.get("networkBackend", "netavark") != "netavark":
            yield fail(
                "versions",
                f"podman makes networks with {info['networkBackend']}, not netavark",
                "apt-get install netavark",
            )
            return
        if path and Path(path).exists():
            yield fine("versions", f"{name} {version}".strip())
        else:
            yield fail(
                "versions",
                f"{name} is missing: containers cannot find each other by name",
                f"apt-get install {name}",
            )


def disk(host: Host) -> Iterator[Finding]:
    """Look for room where the stack and podman write."""
    places = {host.manifest.state_dir: f"du -xh {host.manifest.state_dir} | sort -h | tail"}
    root = host.podman().get("store", {}).get("graphRoot")
    if root:
        places[str(root)] = "podman image prune --force"
    for path, fix in places.items():
        yield _room(path, fix)


def _room(path: str, fix: str) -> Finding:
    existing = Path(path)
    while not existing.exists():
        existing = existing.parent
    found = os.statvfs(existing)
    free = found.f_bavail * found.f_frsize // _MEBIBYTE
    if found.f_flag & os.ST_RDONLY:
        return fail("disk", f"{path} is mounted read-only", f"findmnt --target {path}; journalctl --dmesg -n 50")
    if found.f_files and found.f_favail * 100 < found.f_files:
        word = fail if found.f_favail == 0 else warn
        return word("disk", f"{path}: {found.f_favail} of {found.f_files} inodes are free", f"df -i {path}; {fix}")
    if free < NO_ROOM:
        return fail("disk", f"{path}: {free} MiB are free", fix)
    if free < LITTLE_ROOM:
        return warn("disk", f"{path}: {free} MiB are free", fix)
    return fine("disk", f"{path}: {free} MiB are free")
