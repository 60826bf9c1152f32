"""What must hold before a container starts, and the report that says what does not.

Everything is checked before anything is reported. What waiting cannot mend fails at once; what is only "not yet" is
waited for, each dependency with a deadline of its own, all of them at the same time.
"""

from __future__ import annotations

import errno
import os
import socket
import time

from aistack.hooks import probe
from aistack.hooks.errors import HookError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from aistack.hooks.manifest import Manifest, Service

# Kinds of this module, beside those of `probe`.
FILE_MISSING = "file missing"
FILE_UNREADABLE = "file unreadable"
DISK_FULL = "disk full"
PORT_TAKEN = "port taken"
DEVICE_MISSING = "device missing"
SECRET_MISSING = "secret missing"
IMAGE_MISSING = "image missing"
WRONG_MACHINE = "wrong architecture"
NETWORK_MISSING = "network missing"
NETWORK_DIFFERS = "network differs"

_MEBIBYTE = 1024 * 1024
_LOOK_AGAIN = 2.0  # seconds until a unit that was on its way is looked at again: it may have given up meanwhile
_LONGEST_LINE = 1000  # characters of a check in the journal


class Check:
    """One thing that was looked at: what (`subject`), what was found (`kind`, `detail`), and the command that helps."""

    __slots__ = ("address", "detail", "fix", "kind", "permanent", "seconds", "subject", "tries")

    def __init__(
        self,
        subject: str,
        kind: str,
        detail: str,
        *,
        address: str = "",
        fix: str = "",
        permanent: bool = True,
        seconds: float = 0.0,
        tries: int = 1,
    ) -> None:
        self.subject = subject
        self.kind = kind
        self.detail = detail
        self.address = address
        self.fix = fix
        self.permanent = permanent
        self.seconds = seconds
        self.tries = tries

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with it."""
        return self.kind == probe.READY

    def line(self) -> str:
        """The check on one line, for the journal."""
        spent = f" after {self.seconds:.1f} s and {self.tries} tries" if self.tries > 1 else ""
        fix = f"; {self.fix}" if self.fix and not self.ok else ""
        return printable(f"{self.subject}: {self.kind}: {self.detail}{spent}{fix}", _LONGEST_LINE)

    def data(self) -> dict[str, Any]:
        """The check as plain data, for the verdict and for --json."""
        return {
            "subject": self.subject,
            "kind": self.kind,
            "ok": self.ok,
            "permanent": self.permanent,
            "detail": self.detail,
            "address": self.address,
            "seconds": round(self.seconds, 3),
            "tries": self.tries,
            "fix": self.fix,
        }


def run(manifest: Manifest, service: Service, *, wait: bool) -> list[Check]:
    """Check everything `service` needs to start.

    With `wait`, dependencies that are not ready yet get `startup.timeoutSeconds` each; without, one try each.
    `startup.dependencyCheck = false` leaves the dependencies out. Raises nothing for what it finds.
    """
    checks = local(manifest, service)
    if not manifest.dependency_check:
        return checks
    blocked = any(not check.ok for check in checks)
    return checks + dependencies(manifest, service.depends_on, manifest.startup_timeout if wait and not blocked else 0)


def local(manifest: Manifest, service: Service) -> list[Check]:
    """The checks that need no other service: files, secrets, disks, devices, ports."""
    return [
        _network(manifest),
        *(_file(service, wanted["path"], wanted["what"]) for wanted in service.preflight_files),
        *(_secret(manifest, key) for key in _secrets(service)),
        *(_disk(wanted["path"], wanted["megabytes"]) for wanted in service.preflight_disk),
        *(_device(path) for path in service.preflight_devices),
        *(_port(service, wanted) for wanted in service.publish),
    ]


def dependencies(manifest: Manifest, names: list[str], timeout: float, *, as_started: bool = False) -> list[Check]:
    """Probe the named services at the same time, each until it is ready or `timeout` seconds are over.

    As soon as one has failed for good the others are not waited for any longer: the report is complete as it is. With
    `as_started` the secret that a service was started with will do, if its file has another one by now.
    """
    if len(names) <= 1:
        return [_dependency(manifest, name, timeout, lambda: False, as_started=as_started) for name in names]
    import threading

    hopeless = threading.Event()
    found: dict[str, Check] = {}

    unforeseen: list[Exception] = []

    def look(name: str) -> None:
        try:
            found[name] = check = _dependency(manifest, name, timeout, hopeless.is_set, as_started=as_started)
        except Exception as error:  # noqa: BLE001  (raised below: a thread has nobody to raise it to)
            unforeseen.append(error)
            hopeless.set()
            return
        if not check.ok and check.permanent:
            hopeless.set()

    threads = [threading.Thread(target=look, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if unforeseen:
        raise unforeseen[0]
    return [found[name] for name in names]


def _dependency(
    manifest: Manifest, name: str, timeout: float, hopeless: Callable[[], bool], *, as_started: bool
) -> Check:
    service = manifest.services[name]
    subject = f"dependency {name}"
    try:
        passwords: list[str | None] = [None]
        if service.probe is not None and service.probe.secret is not None:
            from aistack.hooks.runtime import probe_password, probe_passwords

            passwords = probe_passwords(manifest, service) if as_started else [probe_password(manifest, service)]
    except HookError as error:
        return Check(subject, SECRET_MISSING, str(error))
    began = time.monotonic()
    tries = 0
    look_at = 0.0  # seconds from the beginning
    while True:
        tries += 1
        asked = time.monotonic() - began
        result = probe.ask_any(manifest, service, passwords)
        spent = time.monotonic() - began
        if not result.ok and result.kind == probe.NAME_UNKNOWN and not service.external and spent >= look_at:
            # No container carries the name. If none is on its way either, waiting is in vain.
            look_at = spent + _LOOK_AGAIN
            state = _unit_state(service.unit)
            result.permanent = state in ("failed", "inactive")
            if result.permanent:
                result.detail += f"; its unit is {state}"
        if result.ok or result.permanent or spent >= timeout or hopeless():
            fix = _advice(service, result)
            return Check(
                subject,
                result.kind,
                result.detail,
                address=result.address,
                fix=fix,
                permanent=result.permanent,
                seconds=spent,
                tries=tries,
            )
        time.sleep(min(probe.pause(spent, spent - asked), max(0.0, timeout - spent)))


def _unit_state(unit: str) -> str:
    from aistack.hooks.runtime import unit_states

    try:
        return unit_states([unit]).get(unit, {}).get("ActiveState", "unknown")
    except HookError:
        return "unknown"


def _advice(service: Service, result: probe.Result) -> str:
    if result.ok:
        return ""
    if service.external:
        return f"it is external: check services.aistack.services.{service.name}.external and that machine"
    if result.kind == probe.AUTH_REFUSED and service.probe is not None and service.probe.secret is not None:
        return f"compare the secret {service.probe.secret} with what {service.name} was set up with"
    if result.permanent and result.kind == probe.NAME_UNKNOWN:
        return f"systemctl start {service.unit}; journalctl -u {service.unit} -n 50"
    return f"journalctl -u {service.unit} -n 50"


# --- local checks ----------------------------------------------------------------------------------------------------


def _network(manifest: Manifest) -> Check:
    from aistack.hooks import runtime

    subject = f"network {manifest.network}"
    # Asking podman costs 40 ms, and reading its file for more than these two costs an import.
    path = os.path.join(runtime.NETWORKS, f"{manifest.network}.json")
    known = _text_of(path)
    if f'"{manifest.subnet}"' in known and f'"{manifest.interface}"' in known:
        return Check(subject, probe.READY, "exists")
    fix = "aistack network repair; journalctl -u aistack-network -n 50"
    if known:
        from aistack.hooks import network

        definition = network.read_json(path)
        other = ["its definition is damaged"] if definition is None else network.differences(manifest, definition)
        return Check(subject, NETWORK_DIFFERS if other else probe.READY, "; ".join(other) or "exists", fix=fix)
    try:
        code, _, errors = runtime.run(["podman", "network", "exists", manifest.network], runtime.PODMAN_TIMEOUT)
    except HookError as error:
        code, errors = -1, str(error)
    if code == 0:
        return Check(subject, probe.READY, "exists")
    return Check(subject, NETWORK_MISSING, printable(errors) or "podman does not know it", fix=fix)


def _text_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _file(service: Service, path: str, what: str) -> Check:
    subject = f"{what} {path}" if what else f"file {path}"
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return Check(
            subject, FILE_MISSING, "does not exist on this host", address=path, fix=f"put it there: ls -l {path}"
        )
    except OSError as error:
        return Check(subject, FILE_UNREADABLE, error.strerror or str(error), address=path, fix=f"namei -l {path}")
    uid, gid = _user(service)
    if not (uid == 0 and _reads_all(service)) and not _may_read(found, uid, gid):
        mode = f"mode {found.st_mode & 0o7777:04o} of {found.st_uid}:{found.st_gid}"
        detail = f"{mode} keeps out the container's user {uid}:{gid}"
        return Check(
            subject, FILE_UNREADABLE, detail, address=path, fix=f"chmod a+r {path}, or chown it to {uid}:{gid}"
        )
    return Check(subject, probe.READY, f"{found.st_size} bytes", address=path)


def _user(service: Service) -> tuple[int, int]:
    from aistack.hooks.runtime import owner

    return owner(service)


def _reads_all(service: Service) -> bool:
    """Whether root in the container may read what its mode forbids: CAP_DAC_OVERRIDE of capabilities(7)."""
    dropped = {name.upper().removeprefix("CAP_") for name in service.cap_drop}
    added = {name.upper().removeprefix("CAP_") for name in service.cap_add}
    return bool(added & {"ALL", "DAC_OVERRIDE", "DAC_READ_SEARCH"}) or not dropped & {"ALL", "DAC_OVERRIDE"}


def _may_read(found: os.stat_result, uid: int, gid: int) -> bool:
    shift = 6 if found.st_uid == uid else 3 if found.st_gid == gid else 0
    needed = 0o5 if found.st_mode & 0o40000 else 0o4
    return (found.st_mode >> shift) & needed == needed


def _secrets(service: Service) -> list[str]:
    """What the container gets, and what its own probe logs in with: without that it can never be seen to be ready."""
    own = [service.probe.secret] if service.probe is not None and service.probe.secret is not None else []
    return list(dict.fromkeys([*service.secrets, *own]))


def _secret(manifest: Manifest, key: str) -> Check:
    from aistack.hooks.runtime import read_secret

    subject = f"secret {key}"
    try:
        read_secret(manifest, key)
    except HookError as error:
        return Check(subject, SECRET_MISSING, str(error).removeprefix(f"{subject}: "))
    return Check(subject, probe.READY, "present")


def _disk(path: str, megabytes: int) -> Check:
    subject = f"disk {path}"
    existing = path
    while not os.path.exists(existing):
        existing = os.path.dirname(existing) or "/"
    try:
        found = os.statvfs(existing)
    except OSError as error:
        return Check(subject, DISK_FULL, f"cannot be asked for its free space: {error.strerror}", address=path)
    free = found.f_bavail * found.f_frsize // _MEBIBYTE
    if free < megabytes:
        detail = f"{free} MiB free, {megabytes} MiB needed"
        return Check(
            subject, DISK_FULL, detail, address=path, fix=f"df -h {existing}; du -xh {existing} | sort -h | tail"
        )
    if found.f_files and found.f_favail == 0:
        return Check(subject, DISK_FULL, "no free inodes", address=path, fix=f"df -i {existing}")
    return Check(subject, probe.READY, f"{free} MiB free", address=path)


def _device(path: str) -> Check:
    subject = f"device {path}"
    if os.path.exists(path):
        return Check(subject, probe.READY, "present", address=path)
    return Check(
        subject,
        DEVICE_MISSING,
        "does not exist on this host",
        address=path,
        fix='is the driver loaded? (or services.aistack.llama-cpp.acceleration = "cpu")',
    )


def _port(service: Service, wanted: dict[str, Any]) -> Check:
    address, port, protocol = wanted["address"], wanted["hostPort"], wanted["protocol"]
    where = f"{address}:{port}/{protocol}"
    subject = f"port {where}"
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    host = address.removeprefix("[").removesuffix("]")  # podman wants an IPv6 address in brackets, the kernel does not
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    try:
        with socket.socket(family, kind) as link:
            if protocol != "udp":
                # Connections in TIME-WAIT do not keep podman from listening, so they must not fail the check.
                link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            link.bind((host, port))
            if protocol != "udp":
                link.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            from aistack.hooks.ports import holder

            who = holder(host, port, protocol)
            if who is not None and who.container == service.container:
                # What an unclean stop left over; the unit removes it before it starts the new one.
                return Check(subject, probe.READY, "held by this service's own old container", address=where)
            by = f"by {who}" if who is not None else "by another program"
            return Check(subject, PORT_TAKEN, f"already in use {by}", address=where, fix=f"ss -lpn 'sport = :{port}'")
        detail = f"cannot be listened on: {error.strerror}"
        return Check(
            subject,
            PORT_TAKEN,
            detail,
            address=where,
            fix=f"is {printable(address)} an address of this host? ip address",
        )
    return Check(subject, probe.READY, "free", address=where)


def report(service: str, checks: list[Check]) -> str:
    """What the journal gets when a service cannot start: a headline, then one line for each failed check."""
    failed = [check for check in checks if not check.ok]
    head = f"{service} cannot start: {len(failed)} of {len(checks)} checks failed"
    return "\n".join([head, *(f"  {check.line()}" for check in failed)])
