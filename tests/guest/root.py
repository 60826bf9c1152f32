"""The guest's root: a Debian 13 with systemd and podman, made by mmdebstrap and cached."""

from __future__ import annotations

from pathlib import Path

from guest import paths
from guest.cache import Entry, key_of
from guest.process import fetch

SUITE = "trixie"
BUILD_TIMEOUT = 900.0
"""Seconds; it takes about 40 on two cores with a near mirror."""

PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "kmod", "procps", "iproute2", "nftables", "curl"),
    *("podman", "netavark", "aardvark-dns", "crun", "podman-compose"),
    *("python3", "python3-click", "python3-pydantic", "python3-rich", "python3-requests"),
    *("python3-dotenv", "sqlite3", "jq", "psmisc"),
)

SLIM = (
    *("--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*"),
    *("--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/i18n/*"),
    '--aptopt=Acquire::Languages "none"',
)
"""What no test reads is left out: fewer files to copy and less disk."""

FILES = {
    # The unified hierarchy of a host may carry no pids controller; podman would refuse its limit.
    "etc/containers/containers.conf": "[containers]\npids_limit = 0\n",
    "etc/systemd/journald.conf.d/guest.conf": (
        "[Journal]\nStorage=persistent\nSystemMaxUse=64M\nRateLimitBurst=0\nAudit=no\n"
    ),
    # The driver's commands run as members of this unit's cgroup, as NixOS' test backdoor does.
    "etc/systemd/system/backdoor.service": (
        "[Unit]\nDescription=Where the test driver's commands run\n\n"
        "[Service]\nExecStart=/usr/bin/sleep infinity\nDelegate=yes\nKillMode=mixed\n\n"
        "[Install]\nWantedBy=basic.target\n"
    ),
    "etc/resolv.conf": "# The guest is on a network of its own: no name server.\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/fstab": "",
}

MASKED = (
    # No terminal, no network to refresh from, nothing to trim: units that would fail or wake up.
    *("console-getty.service", "getty@tty1.service", "apt-daily.timer", "apt-daily-upgrade.timer"),
    *("dpkg-db-backup.timer", "fstrim.timer", "e2scrub_all.timer", "logrotate.timer"),
    *("systemd-networkd-wait-online.service", "systemd-pcrextend@.service"),
)

DISABLED = ("podman-auto-update.timer", "podman.socket", "podman-restart.service")


def entry() -> Entry:
    """Return the cache entry of the root this version of the builder makes."""
    return Entry("root", key_of([SUITE, *PACKAGES, *SLIM, repr(FILES), *MASKED, *DISABLED, "2"]))


def build(target: Path) -> None:
    """Make the root in the empty folder `target`."""
    log = build_log("root")
    mmdebstrap(PACKAGES, target, log=log)
    for name, text in FILES.items():
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_text(text)
    units = target / "etc/systemd/system"
    for name in MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    for name in DISABLED:
        for link in units.glob(f"*.wants/{name}"):
            link.unlink()
    # As after the first boot: nothing to rebuild, so every later one is quicker.
    for name in ("etc/.updated", "var/.updated"):
        (target / name).touch()
    wants = units / "basic.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "backdoor.service").symlink_to("/etc/systemd/system/backdoor.service")


def mmdebstrap(
    packages: tuple[str, ...],
    target: Path,
    *,
    log: Path,
    options: tuple[str, ...] = (),
    suite: str = SUITE,
) -> None:
    """Make a minimal Debian with `packages` in `target`, a folder or a .tar file."""
    wanted = f"--include={','.join(packages)}"
    fetch(
        "Debian's packages",
        [
            # In a mount namespace of its own: what it mounts goes with it, even if it is killed.
            *("unshare", "--mount", "mmdebstrap", "--variant=minbase", "--mode=root", wanted),
            *SLIM,
            *options,
            suite,
            target,
        ],
        timeout=BUILD_TIMEOUT,
        log=log,
    )


def build_log(name: str) -> Path:
    """Return an empty log file for a build."""
    file = paths.logs() / f"build-{name}.log"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"")
    return file


def ensure() -> Path:
    """Return the root, made first if it is not cached."""
    return entry().ensure(build)
