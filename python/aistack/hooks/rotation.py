"""A secret's file has another value than running containers were started with: they follow.

What counts is the value, not the file's time: a container is restarted only if what it was given differs. A value that
cannot be used is refused, said once, and what runs goes on with the old one. PostgreSQL keeps its role's password in
the database, so that is changed first; where it cannot be, nothing is restarted.

Called when systemd sees one of the files change, and by a health check that finds a difference which systemd cannot see
(a link somewhere in the path that leads elsewhere now).
"""

from __future__ import annotations

import json
import os
import time

from aistack.hooks import postgres_role, probe, runtime
from aistack.hooks.errors import DONE, HookError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from aistack.hooks.manifest import Manifest, Service

UNIT = "aistack-secrets.service"
SCHEMA_VERSION = 1

_QUIET = 1.0  # seconds for which the files must stay as they are, so that whoever writes gets to the end
_PATIENCE = 15.0  # seconds after which they are taken as they are all the same
_MOST = 5  # rotations within _WINDOW seconds that restart anything; more are a fault of whoever writes
_WINDOW = 600.0


def follow(manifest: Manifest) -> int:
    """Restart the services that run with another value of a secret than its file has; returns the hook's exit code."""
    if not manifest.secret_rotation:
        return DONE
    _settle(manifest)
    record = _read(manifest)
    refused: dict[str, Any] = {}
    changed: dict[str, list[str]] = {}
    for key, services in _users(manifest, _running(manifest)).items():
        trouble = _trouble(manifest, key, services)
        if trouble is None:
            for service in services:
                if _differs(manifest, service, key):
                    changed.setdefault(service.name, []).append(key)
            continue
        refused[key] = _identity(manifest, key)
        if record["refused"].get(key) != refused[key]:
            names = ", ".join(service.name for service in services)
            runtime.say(f"{trouble}; not followed: {names} keep the old value until they are restarted")
    moment = _now()
    recent = [at for at in record["at"] if 0 <= moment - at < _WINDOW]
    exhausted = bool(changed) and len(recent) >= _MOST
    if changed and not exhausted:
        recent.append(moment)
    # Recorded first: a restart must not be lost count of, nor a refusal be said again.
    _write(manifest, {"at": recent, "refused": refused, "exhausted": exhausted})
    if exhausted and not record["exhausted"]:
        runtime.say(
            f"the secrets of {', '.join(changed)} changed more than {_MOST} times within {_WINDOW:g} s: restarted no "
            f"more for now; see who writes them, then: systemctl restart {_units(manifest, changed)}"
        )
    if changed and not exhausted:
        _restart(manifest, changed)
    return DONE


def due(manifest: Manifest, services: list[Service]) -> bool:
    """Whether one of these services, all of which run, has another value of a secret than its file, and nobody said so.

    Costs a few reads of small files.
    """
    if not manifest.secret_rotation:
        return False
    refused: dict[str, Any] | None = None
    for service in services:
        for key in service.secrets:
            if not _differs(manifest, service, key):
                continue
            if refused is None:
                record = _read(manifest)
                if record["exhausted"] and record["at"] and _now() - record["at"][0] < _WINDOW:
                    return False
                refused = record["refused"]
            if refused.get(key) != _identity(manifest, key):
                return True
    return False


def _restart(manifest: Manifest, changed: dict[str, list[str]]) -> None:
    keys = dict.fromkeys(key for found in changed.values() for key in found)
    runtime.say(f"secret {', '.join(keys)} changed: restarting {', '.join(sorted(changed))}")
    units = [manifest.services[name].unit for name in sorted(changed)]
    # Restarts count towards the start limit, and these are nobody's fault. One transaction: systemd starts them in the
    # order of their dependencies. Only what runs: somebody may have stopped one a moment ago.
    runtime.systemctl("reset-failed", *units)
    runtime.systemctl("try-restart", "--no-block", *units)


def _units(manifest: Manifest, names: dict[str, list[str]]) -> str:
    return " ".join(manifest.services[name].unit.removesuffix(".service") for name in sorted(names))


def _running(manifest: Manifest) -> list[Service]:
    """The containers with secrets that are up: what starts or is down reads the file anyway."""
    own = [s for s in manifest.services.values() if not s.external and s.secrets]
    states = runtime.unit_states(service.unit for service in own)
    return [service for service in own if states.get(service.unit, {}).get("ActiveState") == "active"]


def _users(manifest: Manifest, services: list[Service]) -> dict[str, list[Service]]:
    """The running services that were given a value of each secret which differs from the file's."""
    found: dict[str, list[Service]] = {}
    for service in services:
        for key in service.secrets:
            if _differs(manifest, service, key):
                found.setdefault(key, []).append(service)
    return found


def _differs(manifest: Manifest, service: Service, key: str) -> bool:
    given = runtime.given_secret(manifest, service, key)
    if given is None:
        return False
    try:
        return runtime.read_secret(manifest, key) != given
    except HookError:
        return True


def _trouble(manifest: Manifest, key: str, services: list[Service]) -> str | None:
    """Why a value cannot be followed, None if it can; a PostgreSQL that logs in with it has it then."""
    try:
        value = runtime.read_secret(manifest, key)
    except HookError as error:
        return str(error)
    for service in services:
        if postgres_role.keeps(service, key):
            # It may have been changed in the database already, which is how it was done by hand.
            if probe.ask(manifest, service, value).kind != probe.AUTH_REFUSED:
                continue
            trouble = postgres_role.set_password(service, value)
            if trouble is not None:
                return (
                    f"secret {key} changed, and the password in {service.name} cannot: {trouble}; "
                    f"afterwards: systemctl start {UNIT}"
                )
            runtime.say(postgres_role.said(service, key))
    return None


def _settle(manifest: Manifest) -> None:
    """Wait until nobody has written for a moment. There is no event for that which does not come."""
    deadline = time.monotonic() + _PATIENCE
    keys = sorted(manifest.secrets)
    before = [_identity(manifest, key) for key in keys]
    while time.monotonic() < deadline:
        time.sleep(_QUIET)
        now = [_identity(manifest, key) for key in keys]
        if now == before:
            return
        before = now


def _identity(manifest: Manifest, key: str) -> list[int]:
    """What changes whenever a secret's file does, without its contents; empty where there is none."""
    try:
        found = os.stat(manifest.secrets[key]["file"])
    except OSError:
        return []
    return [found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size]


# --- the record ------------------------------------------------------------------------------------------------------


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _path(manifest: Manifest) -> str:
    return os.path.join(manifest.runtime_dir, "rotation.json")


def _read(manifest: Manifest) -> dict[str, Any]:
    """What was done and refused since boot: when (seconds since boot), and the files that were refused."""
    try:
        with open(_path(manifest), encoding="utf-8") as file:
            record = json.load(file)
        if record["schemaVersion"] == SCHEMA_VERSION:
            return {"at": list(record["at"]), "refused": dict(record["refused"]), "exhausted": record["exhausted"]}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {"at": [], "refused": {}, "exhausted": False}


def _write(manifest: Manifest, record: dict[str, Any]) -> None:
    whole = {"schemaVersion": SCHEMA_VERSION, **record}
    runtime.write_atomic(_path(manifest), json.dumps(whole).encode(), 0o644)
