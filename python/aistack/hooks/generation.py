"""The way back of `rollback.policy = "system"`: activate the NixOS generation before the one with a bad release.

Activated as `nixos-rebuild test` does it, so the boot loader's default stays what the administrator made it: a reboot
brings the declared system back, in which the bad release is known to be bad and is not tried again.
"""

from __future__ import annotations

import json
import os

from aistack.hooks import locks, runtime
from aistack.hooks.errors import HookError
from aistack.hooks.manifest import identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import Any

    from aistack.hooks.manifest import Manifest, Service
    from aistack.hooks.releases import Release

ACTIVATION_TIMEOUT = 600.0  # seconds; it may start and stop every unit of the system

PROFILES = "/nix/var/nix/profiles"
RUNNING = "/run/current-system"
UNIT = "aistack-previous-system"  # in which it is activated


class Generation:
    """A NixOS generation: its number and the path of its link."""

    __slots__ = ("number", "path")

    def __init__(self, number: int, path: str) -> None:
        self.number = number
        self.path = path

    def __str__(self) -> str:
        return f"NixOS generation {self.number}"


def previous(service: Service, bad: Release) -> Generation | str:
    """The generation to go back to because of a bad release, or, in words, why there is none."""
    known = _generations()
    if not known:
        return "this host has no NixOS generations"
    running = os.path.realpath(RUNNING)
    numbers = [number for number, path in known.items() if os.path.realpath(path) == running]
    default = os.path.realpath(f"{PROFILES}/system")
    if numbers:
        older = [number for number in known if number < max(numbers)]
    else:
        # What runs was only tried (`nixos-rebuild test`): before it was the default.
        older = [number for number, path in known.items() if os.path.realpath(path) == default]
    if not older:
        return "there is no earlier NixOS generation"
    found = Generation(max(older), known[max(older)])
    before = _declaration(found.path, service.name)
    now = _declaration(running, service.name)
    if before is None:
        return f"{found} does not declare {service.name}"
    if now is None or now[0] != bad.entry:
        return f"the system that runs does not declare {bad} any more"
    if before == now:
        return f"{found} declares the same {service.name}"
    return found


def _generations() -> dict[int, str]:
    try:
        names = os.listdir(PROFILES)
    except OSError:
        return {}
    found = {}
    for name in names:
        number = name.removeprefix("system-").removesuffix("-link")
        if name == f"system-{number}-link" and number.isdigit():
            found[int(number)] = os.path.join(PROFILES, name)
    return found


def _declaration(system: str, service: str) -> list[Any] | None:
    """What a system declares of a service: its entry, and the environment it gets with the stack's."""
    try:
        with open(f"{system}/etc/aistack/stack.json", encoding="utf-8") as file:
            manifest = json.load(file)
        entry = manifest["services"][service]
        return [identity(entry), manifest["environment"] if entry["stackEnvironment"] else None]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def activate(generation: Generation) -> int:
    """Activate a generation now, without making it the boot loader's default; returns its exit code. Raises HookError.

    In a unit of its own: what is activated may stop the one that this runs in.
    """
    command = ["systemd-run", "--collect", "--wait", "--quiet", "--service-type=exec"]
    command += [f"--unit={UNIT}", f"{generation.path}/bin/switch-to-configuration", "test"]
    return runtime.run(command, ACTIVATION_TIMEOUT)[0]


def alone(manifest: Manifest) -> AbstractContextManager[bool]:
    """One way back at a time: two services that fail together must not go back two generations.

    Raises HookError (exit code 4) when the other one has not ended after the time that an activation may take.
    """
    try:
        os.makedirs(manifest.runtime_dir, mode=0o755, exist_ok=True)
    except OSError as error:
        raise HookError(f"cannot make {manifest.runtime_dir}: {error.strerror}") from None
    return locks.held(f"{manifest.runtime_dir}/system.lock", ACTIVATION_TIMEOUT, "another way back to a generation")
