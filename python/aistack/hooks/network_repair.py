"""Mending the stack's network: what is done about each kind of fault that `aistack.hooks.network` finds.

Nothing here stops a container of the stack unless that was allowed, and none of anybody else's ever.
"""

from __future__ import annotations

import json
import os

from aistack.hooks import aardvark, firewall, network, runtime
from aistack.hooks.errors import DOWN, HookError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from aistack.hooks.manifest import Manifest
    from aistack.hooks.network import Container, Fault

_NETWORKS_WITH_RULES = "/run/containers/networks/firewall/networks"  # netavark's, a file for each id

# What a reload of containers brings back; beside it, what it brings back for all of them only.
_RELOADED = {
    network.BRIDGE_MISSING,
    network.RULES_LOST,
    network.UNLINKED,
    network.NAME_SERVER_DEAD,
    network.NAMES_UNREADABLE,
    network.NAME_STALE,
    network.NAME_MISSING,
}
_RELOADED_BY_ALL = {network.BRIDGE_MISSING, network.NAMES_UNREADABLE}


def mend(manifest: Manifest, faults: list[Fault], *, restart: bool) -> list[HookError]:
    """Do what can be done about these faults; returns what went wrong with that."""
    steps: list[tuple[set[str], Callable[[Manifest, list[Fault]], None]]] = [
        ({network.REBOOTED}, _clear_state),
        ({network.GHOST}, _remove_ghosts),
        ({network.FOREIGN}, _replace_and_restart if restart else _replace),
        ({network.MISSING}, _restore),
        ({network.INTERFACE_TAKEN, network.NAME_SHARED}, _refuse),
        ({network.BRIDGE_BROKEN}, _straighten_bridge),
        ({network.FORWARDING_OFF}, _forward),
        ({network.RULE_STALE}, _remove_rules),
        ({network.NAMES_UNREADABLE}, _discard_names),
        ({network.NAME_STALE}, _forget_names),
        (_RELOADED, _reload),
    ]
    troubles = []
    for kinds, step in steps:
        concerned = [fault for fault in faults if fault.kind in kinds]
        try:
            if concerned:
                step(manifest, concerned)
        except HookError as error:
            troubles.append(error)
    return troubles


def restart_units(manifest: Manifest, faults: list[Fault]) -> None:
    """The last resort: start anew what these faults concern, all that is on the network if it is no one of them.

    Raises HookError if a unit does not stop or does not get ready.
    """
    ours = network.ours(manifest)
    names = {fault.container for fault in faults}
    if not names <= set(ours):
        names = {container.name for container in _users(manifest)[0]}
    units = sorted(ours[name].unit for name in names)
    _stop(manifest, units)
    _start(manifest, units)
    for fault in faults:
        fault.mended = f"mended by a restart of {', '.join(units)}"


def _users(manifest: Manifest) -> tuple[list[Container], list[str]]:
    """The containers of the network, whether they run or not: the stack's own, and the names of all others."""
    ours = network.ours(manifest)
    users = [container for container in network.containers() if manifest.network in container.networks]
    return [c for c in users if c.name in ours], sorted(c.name for c in users if c.name not in ours)


# --- leftovers -------------------------------------------------------------------------------------------------------


def _clear_state(manifest: Manifest, faults: list[Fault]) -> None:
    """Do what podman asks for after a reboot that it did not notice, where its state lies on a disk."""
    del manifest
    import shutil

    (fault,) = faults
    pids = filter(str.isdigit, os.listdir(network.PROCESSES))
    running = next((pid for pid in pids if network.read(f"{network.PROCESSES}/{pid}/comm") == "conmon"), None)
    if running is not None:
        raise HookError(f"{fault.detail}; not done, because a container runs: process {running} watches it", DOWN)
    for path in network.stale_state(fault.detail):
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise HookError(f"cannot remove {path}, as podman asks for: {error}", DOWN) from None
    fault.mended = "removed what podman had kept of the other boot"


def _remove_ghosts(manifest: Manifest, faults: list[Fault]) -> None:
    ours = network.ours(manifest)
    grace = int(max(ours[fault.container].stop_timeout for fault in faults))
    # By their ids: under the same name a new one may just have been started.
    ids = [fault.key for fault in faults]
    runtime.podman("rm", "--force", "--ignore", "--time", str(grace), *ids, timeout=runtime.PODMAN_TIMEOUT + grace)
    for fault in faults:
        fault.mended = "removed"


# --- the definition --------------------------------------------------------------------------------------------------


def _replace(manifest: Manifest, faults: list[Fault], *, restart: bool = False) -> None:
    """Replace a network of the same name and other settings: nothing may run on it meanwhile."""
    (fault,) = faults
    own, strangers = _users(manifest)
    if strangers:
        raise HookError(
            f"{fault.line()}; it is used by {', '.join(strangers)}, which this stack does not own: remove what you do "
            "not need, or set services.aistack.network.name to a name of its own",
            DOWN,
        )
    names = [container.name for container in own]
    if names and not restart:
        raise network.NeedsRestart(f"{fault.line()}; mending that takes a restart of {', '.join(sorted(names))}")
    ours = network.ours(manifest)
    units = sorted(ours[name].unit for name in names)
    _stop(manifest, units)
    # Not --force, which takes every container of the network along: one may have come meanwhile.
    runtime.podman("network", "rm", manifest.network)
    _create(manifest)
    _start(manifest, units)
    fault.mended = f"replaced, with a restart of {', '.join(units)}" if units else "replaced"


def _replace_and_restart(manifest: Manifest, faults: list[Fault]) -> None:
    _replace(manifest, faults, restart=True)


def _stop(manifest: Manifest, units: list[str]) -> None:
    if units:
        longest = sum(service.stop_timeout + 15 for service in manifest.services.values())
        runtime.systemctl("stop", *units, timeout=longest)


def _start(manifest: Manifest, units: list[str]) -> None:
    """Start units and wait until they are ready or have failed."""
    if units:
        services = [service for service in manifest.services.values() if service.unit in units]
        longest = sum(service.probe.start_timeout for service in services if service.probe is not None)
        runtime.systemctl("reset-failed", *units)
        runtime.systemctl("start", *units, timeout=longest + len(units) * (manifest.startup_timeout + 30))


def _create(manifest: Manifest) -> None:
    settings = [f"--subnet={manifest.subnet}", f"--gateway={manifest.gateway}"]
    try:
        runtime.podman(
            *("network", "create", "--driver=bridge", *settings),
            *(f"--interface-name={manifest.interface}", manifest.network),
        )
    except HookError as error:
        raise HookError(
            f"cannot create network {manifest.network}: {error}; is {manifest.subnet} free on this host (ip route), "
            f"and {manifest.interface} (ip link)? services.aistack.network may name others",
            DOWN,
        ) from None


def _restore(manifest: Manifest, faults: list[Fault]) -> None:
    """Bring the definition back: the very same while containers run on the network, whose rules bear its id."""
    (fault,) = faults
    kept = network.read_json(network.kept_path(manifest))
    if not _in_use(manifest):
        _drop_bridge(manifest)
        _create(manifest)
        fault.mended = "created"
    elif kept is not None and not network.differences(manifest, kept) and _has_rules(kept):
        path = network.definition_path(manifest)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        runtime.write_atomic(path, json.dumps(kept, indent=5).encode(), 0o644)
        fault.mended = "restored as it was"
    else:
        # A new one has another id: rules with the old one would stay in front of its own.
        aardvark.prepare(manifest.gateway)
        _drop_bridge(manifest)
        _create(manifest)
        firewall.clear()
        runtime.podman("network", "reload", "--all")
        fault.mended = "created, and its containers set up again without a restart"


def _in_use(manifest: Manifest) -> bool:
    return any(container.running for container in _users(manifest)[0])


def _has_rules(definition: dict[str, Any]) -> bool:
    """Whether the rules that are there were made for the network of this id."""
    return os.path.exists(os.path.join(_NETWORKS_WITH_RULES, network.text(definition.get("id")) or "none"))


# --- bridge, rules, names --------------------------------------------------------------------------------------------


def _refuse(manifest: Manifest, faults: list[Fault]) -> None:
    name = manifest.interface
    hints = {
        network.INTERFACE_TAKEN: f"services.aistack.network.interface may be another name; or: ip link delete {name}",
        network.NAME_SHARED: f"take it off: podman network disconnect {manifest.network} NAME",
    }
    raise HookError("; ".join(f"{fault.line()}; {hints[fault.kind]}" for fault in faults), DOWN)


def _drop_bridge(manifest: Manifest) -> None:
    """Remove the bridge, if there is one; netavark makes it anew, but takes one that is there as it is."""
    name = manifest.interface
    if not os.path.exists(f"{network.INTERFACES}/{name}/bridge"):
        return
    if os.listdir(f"{network.INTERFACES}/{name}/brif") and not _in_use(manifest):
        raise HookError(
            f"bridge {name} is used by others (ip link show master {name}): "
            "services.aistack.network.interface may be another name",
            DOWN,
        )
    _ip("link", "delete", name)


def _straighten_bridge(manifest: Manifest, faults: list[Fault]) -> None:
    """Give the bridge its address, and switch it on: what hangs on it hangs on."""
    _, _, length = manifest.subnet.partition("/")
    _ip("address", "replace", f"{manifest.gateway}/{length}", "broadcast", "+", "dev", manifest.interface)
    _ip("link", "set", "dev", manifest.interface, "up")
    for fault in faults:
        fault.mended = "switched on with its address"


def _ip(*arguments: str) -> None:
    code, _, errors = runtime.run(["ip", *arguments], runtime.SYSTEMCTL_TIMEOUT)
    if code != 0:
        raise HookError(f"`ip {' '.join(arguments)}` failed: {printable(errors)}", DOWN)


def _forward(manifest: Manifest, faults: list[Fault]) -> None:
    del manifest
    for fault in faults:
        try:
            with open(fault.key, "w", encoding="ascii") as file:
                file.write("1")
        except OSError as error:
            raise HookError(f"cannot write {fault.key}: {error.strerror}", DOWN) from None
        fault.mended = "switched on"


def _remove_rules(manifest: Manifest, faults: list[Fault]) -> None:
    del manifest
    rules = firewall.read()
    stale = {fault.key for fault in faults}
    for target in rules.targets if rules is not None else ():
        if target.place in stale:
            target.remove()
    for fault in faults:
        fault.mended = "removed"


def _discard_names(manifest: Manifest, faults: list[Fault]) -> None:
    del faults
    aardvark.discard(manifest.network)


def _forget_names(manifest: Manifest, faults: list[Fault]) -> None:
    gone = [fault for fault in faults if fault.key]
    if gone:
        aardvark.forget(manifest.network, {fault.key for fault in gone})
    for fault in gone:
        fault.mended = "forgotten"


def _reload(manifest: Manifest, faults: list[Fault]) -> None:
    """Let netavark set up again what is lost, and no more than that."""
    running = [c.name for c in network.containers() if c.running and manifest.network in c.networks]
    kinds = {fault.kind for fault in faults}
    lost = {fault.container for fault in faults if not fault.key}
    if network.NAME_SERVER_DEAD in kinds:
        aardvark.stop()
        # One of them suffices to have it started.
        lost.update(running[:1])
    if not lost and not kinds & _RELOADED_BY_ALL:
        return
    aardvark.prepare(manifest.gateway)
    if any(fault.kind == network.RULES_LOST and not fault.container for fault in faults):
        # Whoever flushed the firewall took the rules of every network of podman's.
        firewall.clear()
        runtime.podman("network", "reload", "--all")
    else:
        names = running if kinds & _RELOADED_BY_ALL else [name for name in running if name in lost]
        if names:
            runtime.podman("network", "reload", *names)
    for fault in faults:
        fault.mended = fault.mended or "set up again without a restart"
