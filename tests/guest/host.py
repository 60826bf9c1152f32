"""What the host must offer, checked before anything is begun: all that is missing, with remedies."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

from guest import cgroup, paths
from guest.errors import GuestError
from guest.process import run

COMMANDS = {
    # command: the Debian package that brings it
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "mount": "mount",
    "tar": "tar",
}

MODULES = (
    *("overlay", "bridge", "veth", "nf_tables", "nft_ct", "nft_nat", "nft_masq", "nft_chain_nat"),
    *("nft_fib_inet", "nft_compat"),
)
"""Kernel modules that podman in a guest uses and that a guest cannot load itself."""


UNFIT_FILE_SYSTEMS = ("overlayfs", "nfs", "nfs4", "v9fs", "fuseblk")


def require(*, disk_megabytes: int) -> None:
    """Raise GuestError naming everything that is missing; load kernel modules where there are any."""
    problems = [
        *_root(),
        *_architecture(),
        *_commands(),
        *_disk(disk_megabytes),
        *_file_system(),
    ]
    if not problems:
        # These two are tried for real, and that needs root and the commands above.
        problems = [*_namespaces(), *_cgroups()]
    if problems:
        raise GuestError("guests cannot run on this machine", why="\n        ".join(problems))
    _load_modules()


def _root() -> list[str]:
    if os.geteuid() == 0:
        return []
    return [f"not root (uid {os.geteuid()}): mounts and namespaces need it; use sudo"]


def _architecture() -> list[str]:
    machine = platform.machine()
    if machine == "x86_64":
        return []
    return [f"{machine} processor: the llama.cpp server of the test image is built for x86_64 only"]


def _commands() -> list[str]:
    missing = {package for command, package in COMMANDS.items() if shutil.which(command) is None}
    if not missing:
        return []
    return [f"commands are missing: apt-get install {' '.join(sorted(missing))}"]


def _existing_cache() -> Path:
    folder = paths.cache()
    while not folder.is_dir():
        folder = folder.parent
    return folder


def _file_system() -> list[str]:
    """The guests' layers need a disk that an overlay can be put on."""
    folder = _existing_cache()
    kind = run(["stat", "--file-system", "--format=%T", folder]).out.strip()
    if kind not in UNFIT_FILE_SYSTEMS:
        return []
    elsewhere = "set AISTACK_CACHE to a folder on a plain disk, such as a volume of this container"
    return [f"{folder} is on {kind}, which cannot carry another overlay: {elsewhere}"]


def _disk(megabytes: int) -> list[str]:
    folder = _existing_cache()
    free = shutil.disk_usage(folder).free // 2**20
    if free >= megabytes:
        return []
    room = "make room, or set AISTACK_CACHE to a folder on another disk"
    return [f"{free} MB free on the disk of {folder}, {megabytes} MB are needed: {room}"]


def _namespaces() -> list[str]:
    tried = run(["unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--cgroup", "true"])
    if tried.code == 0:
        return []
    return [f"namespaces cannot be made here ({tried.err.strip()}): run on a host or in a VM"]


def _cgroups() -> list[str]:
    try:
        folder = cgroup.mount_point()
    except GuestError as error:
        return [f"{error.what}: {error.next_step}"]
    if not os.access(folder, os.W_OK):
        return [f"the cgroup hierarchy {folder} is read-only: run on a host or in a VM"]
    return []


def _load_modules() -> None:
    if shutil.which("modprobe") is None or not Path("/proc/modules").exists():
        return
    for module in MODULES:
        # One that is built in, or that this kernel does not have, is no error here: what cannot
        # work without it says so in the guest.
        run(["modprobe", "--quiet", module])
