"""The stack's podman network: everything that can be wrong with it, found and mended while the stack runs.

A network is a definition (a file of podman's), a bridge, firewall rules and a name server (aardvark-dns), and each of
them can be lost on its own: a firewall reload drops the rules, a crash leaves names of containers that are gone, an
unclean shutdown leaves containers that hold a name. `podman network reload` sets a running container up again without
restarting it; only other settings cannot be had without stopping what uses the network.

What is done about each kind of fault is in `aistack.hooks.network_repair`, which is imported when there is one.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time

from aistack.hooks import aardvark, firewall, probe, runtime
from aistack.hooks.errors import DONE, DOWN, INVALID, HookError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager
    from typing import Any

    from aistack.hooks.manifest import Manifest, Service

# What can be wrong, in the order in which it is mended.
REBOOTED = "unhandled reboot"
GHOST = "ghost container"
FOREIGN = "other settings"
MISSING = "network missing"
INTERFACE_TAKEN = "interface taken"
BRIDGE_BROKEN = "bridge broken"
BRIDGE_MISSING = "bridge missing"
FORWARDING_OFF = "forwarding off"
RULES_LOST = "firewall rules lost"
RULE_STALE = "stale firewall rule"
UNLINKED = "container unplugged"
NAME_SERVER_DEAD = "name server dead"
NAMES_UNREADABLE = "names unreadable"
NAME_STALE = "stale name"
NAME_MISSING = "name missing"
NAME_SHARED = "name shared"

# Everything else is seen for a moment while a container starts or stops, and is a fault only if it stays.
_LASTING = {REBOOTED, FOREIGN, MISSING, INTERFACE_TAKEN, FORWARDING_OFF}

_ON_THE_WAY = ("created", "initialized", "restarting")  # states of a container whose name is on file before it runs
_STAYS = 0.4  # seconds; netavark and aardvark-dns need a tenth for a container that starts or stops
_SETTLED = 3.0  # seconds in which what was done shows
_ROUNDS = 3  # what is mended may uncover what was behind it
_LOCK_WAIT = 60.0  # seconds for another repair to end
INTERFACES = "/sys/class/net"
PROCESSES = "/proc"
_UP = 0x1  # IFF_UP of netdevice(7)


class Fault:
    """One thing that is wrong: what (`subject`), which kind, what was seen. `container` is the one it concerns.

    `key` is what a name does not tell (a container's id, a rule, a file); `mended` says what was done about it.
    """

    __slots__ = ("container", "detail", "key", "kind", "mended", "subject")

    def __init__(self, kind: str, subject: str, detail: str, *, container: str = "", key: str = "") -> None:
        self.kind = kind
        self.subject = subject
        self.detail = printable(detail)
        self.container = container
        self.key = key
        self.mended = ""

    @property
    def same(self) -> tuple[str, str, str]:
        """What two looks at the same fault have in common."""
        return (self.kind, self.subject, self.key)

    def line(self) -> str:
        """The fault on one line."""
        return f"{self.subject}: {self.kind}: {self.detail}"

    def mended_line(self) -> str:
        """The fault and what was done about it, on one line."""
        return f"{self.line()}: {self.mended or 'mended'}"

    def data(self) -> dict[str, str]:
        """The fault as plain data, for --json."""
        return {
            "subject": self.subject,
            "kind": self.kind,
            "detail": self.detail,
            "container": self.container,
            "mended": self.mended,
        }


class NeedsRestart(HookError):
    """What cannot be mended while the stack's own containers run."""


class NotMended(HookError):
    """A repair that did not mend everything: `done` says what it did, `left` is what is still wrong.

    `restart` is whether it might help to allow a restart of the stack's containers, which `restarted` says was allowed.
    """

    def __init__(
        self, done: list[Fault], left: list[Fault], troubles: list[HookError], *, restarted: bool = False
    ) -> None:
        hopeless = [trouble for trouble in troubles if not isinstance(trouble, NeedsRestart)]
        self.done = done
        self.left = left
        self.restart = not hopeless and not restarted
        reasons = [str(trouble) for trouble in hopeless or troubles] or [fault.line() for fault in left]
        if not hopeless:
            more = (
                "journalctl --since -5min --grep 'netavark|aardvark'"
                if restarted
                else "aistack network repair --restart"
            )
            reasons.append(more)
        super().__init__("; ".join(dict.fromkeys(reasons)), DOWN)


class Container:
    """A container that podman knows. `external` ones are in its storage alone, as after a crash of podman."""

    __slots__ = ("external", "id", "name", "networks", "pid", "state")

    def __init__(self, raw: dict[str, Any]) -> None:
        names, networks = raw.get("Names"), raw.get("Networks")
        self.id = text(raw.get("Id"))
        self.name = text(names[0]) if isinstance(names, list) and names else ""
        self.state = text(raw.get("State"))
        self.external = raw.get("External") is True or self.state == "storage"
        self.networks = [text(network) for network in networks] if isinstance(networks, list) else []
        self.pid = text(str(raw.get("Pid")))

    @property
    def running(self) -> bool:
        """Whether it has processes."""
        return self.state in ("running", "paused", "stopping") and not self.external


class _Running:
    """A container of the stack that runs on its network; its address is empty where podman knows none."""

    __slots__ = ("address", "container", "service")

    def __init__(self, service: Service, container: Container, address: str) -> None:
        self.service = service
        self.container = container
        self.address = address


# --- finding ---------------------------------------------------------------------------------------------------------


def check(manifest: Manifest) -> list[Fault]:
    """Everything that is wrong with the network now, in the order in which it is mended. Raises HookError.

    What may be a container on its way up or down is looked at twice.
    """
    found = _look(manifest)
    if all(fault.kind in _LASTING for fault in found):
        return found
    time.sleep(_STAYS)
    before = {fault.same for fault in found}
    return [fault for fault in _look(manifest) if fault.same in before or fault.kind in _LASTING]


def _look(manifest: Manifest) -> list[Fault]:
    try:
        known = containers()
    except HookError as error:
        if stale_state(str(error)):
            return [Fault(REBOOTED, "podman", str(error))]
        raise
    stack = ours(manifest)
    found = _ghosts(stack, known)
    here = [c for c in known if c.running and c.name in stack and manifest.network in c.networks]
    definition = _definition(manifest, addresses=bool(here))
    subject = f"network {manifest.network}"
    if definition is None:
        used = f", and {len(here)} of the stack's containers run on it" if here else ""
        return [*found, Fault(MISSING, subject, f"podman does not know it{used}", key=used)]
    other = differences(manifest, definition)
    if other:
        return [*found, Fault(FOREIGN, subject, "; ".join(other))]
    bridge = _bridge(manifest, needed=bool(here))
    if bridge or not here:
        return [*found, *bridge]
    addresses = _addresses(definition)
    running = [_Running(stack[c.name], c, addresses.get(c.id, "")) for c in here]
    others = {addresses[c.id]: c.name for c in known if c.id in addresses and c.name not in stack}
    coming = {c.id for c in known if c.state in _ON_THE_WAY and manifest.network in c.networks}
    return [
        *found,
        *_forwarding(manifest, running),
        *_rules(manifest, running, others, settled=not coming),
        *_links(manifest, running),
        *_names(manifest, running, coming | set(addresses), others),
    ]


def stale_state(said: str) -> list[str]:
    """The directories that podman wants removed after a reboot it did not notice, if that is what it says."""
    if "boot ID differs" not in said:
        return []
    return [path for path in said.split('"')[1::2] if path.startswith("/run/") and os.path.normpath(path) == path]


def _ghosts(stack: dict[str, Service], known: Iterable[Container]) -> list[Fault]:
    """Containers under our names while no unit runs them: they keep a name, an address, a port."""
    named = [container for container in known if container.name in stack]
    states = runtime.unit_states(dict.fromkeys(stack[container.name].unit for container in named))
    found = []
    for container in named:
        unit = stack[container.name].unit
        state = states.get(unit, {}).get("ActiveState", "inactive")
        if state in ("inactive", "failed"):
            what = "in podman's storage only" if container.external else container.state
            detail = f"left over ({what}) while {unit} is {state}"
            subject = f"container {container.name}"
            found.append(Fault(GHOST, subject, detail, container=container.name, key=container.id))
    return found


def differences(manifest: Manifest, definition: dict[str, Any]) -> list[str]:
    """How a network differs from the declared one, in words."""
    subnets = definition.get("subnets")
    pairs = [(s.get("subnet"), s.get("gateway")) for s in subnets or [] if isinstance(s, dict)]
    # Another subnet beside ours, of IPv6 for example, is the administrator's own affair.
    subnet, gateway = next((pair for pair in pairs if pair[0] == manifest.subnet), (pairs or [(None, None)])[0])
    wanted = {
        "driver": ("bridge", definition.get("driver")),
        "subnet": (manifest.subnet, subnet),
        "gateway": (manifest.gateway, gateway),
        "interface": (manifest.interface, definition.get("network_interface")),
        "DNS": (True, definition.get("dns_enabled")),
        "internal": (False, definition.get("internal", False)),
    }
    return [
        f"{what} is {printable(str(has), 60)}, declared is {expected}"
        for what, (expected, has) in wanted.items()
        if has != expected
    ]


def _bridge(manifest: Manifest, *, needed: bool) -> list[Fault]:
    name = manifest.interface
    folder = f"{INTERFACES}/{name}"
    subject = f"bridge {name}"
    if not os.path.exists(folder):
        return [Fault(BRIDGE_MISSING, subject, "this host has no such interface")] if needed else []
    if not os.path.exists(f"{folder}/bridge"):
        return [Fault(INTERFACE_TAKEN, f"interface {name}", "is no bridge, so it is somebody else's")]
    if not _is_up(name):
        return [Fault(BRIDGE_BROKEN, subject, "is switched off")]
    if not _has_address(manifest.gateway):
        return [Fault(BRIDGE_BROKEN, subject, f"has lost its address {manifest.gateway}")]
    return []


def _is_up(interface: str) -> bool:
    flags = read(f"{INTERFACES}/{interface}/flags")
    return not flags or bool(int(flags, 16) & _UP)


def _has_address(address: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        try:
            link.bind((address, 0))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True


def _forwarding(manifest: Manifest, running: Iterable[_Running]) -> Iterator[Fault]:
    """What netavark switches on in the kernel, and whoever loads the kernel's settings anew may switch off."""
    path = f"{PROCESSES}/sys/net/ipv4/ip_forward"
    if read(path) == "0":
        yield Fault(FORWARDING_OFF, "kernel", "net.ipv4.ip_forward is 0: containers reach nothing outside", key=path)
    path = f"{PROCESSES}/sys/net/ipv4/conf/{manifest.interface}/route_localnet"
    locally = any(port["address"].startswith("127.") for each in running for port in each.service.publish)
    if locally and read(path) == "0":
        detail = "route_localnet is 0: ports published on 127.0.0.1 do not answer"
        yield Fault(FORWARDING_OFF, f"interface {manifest.interface}", detail, key=path)


def _rules(manifest: Manifest, running: list[_Running], others: Iterable[str], *, settled: bool) -> Iterator[Fault]:
    """Whether netavark's rules are there, and, once all is settled, none in front of them that leads to nobody."""
    rules = firewall.read()
    if rules is None:
        return
    subject = f"firewall ({rules.driver})"
    if not rules.has(manifest.subnet):
        yield Fault(RULES_LOST, subject, f"nothing lets {manifest.subnet} through any more")
        return
    published = [(each, port) for each in running for port in each.service.publish if ":" not in port["address"]]
    for each, port in published:
        inner = port["containerPort"]
        if each.address and not any(target.leads_to(each.address, inner) for target in rules.targets):
            where = f"port {port['address']}:{port['hostPort']}"
            detail = f"nothing leads to {each.address}:{inner} any more"
            yield Fault(RULES_LOST, where, detail, container=each.container.name)
    wanted = {(each.address, port["containerPort"]) for each, port in published}
    for target in rules.targets if settled else ():
        if _inside(target.address, manifest.subnet) and target.address not in others and not target.serves(wanted):
            detail = f"leads to {target.place}, which no container has published"
            yield Fault(RULE_STALE, subject, detail, key=target.place)


def _inside(address: str, subnet: str) -> bool:
    base, _, length = subnet.partition("/")
    try:
        pair = [int.from_bytes(socket.inet_aton(each), "big") >> (32 - int(length)) for each in (address, base)]
    except (OSError, ValueError):
        return False
    return pair[0] == pair[1]


def _links(manifest: Manifest, running: Iterable[_Running]) -> Iterator[Fault]:
    """Whether each container has an interface whose other end is a port of the bridge."""
    names = _list(f"{INTERFACES}/{manifest.interface}/brif")
    ports = {read(f"{INTERFACES}/{name}/ifindex") for name in names if _is_up(name)}
    for each in running:
        inner = f"{PROCESSES}/{each.container.pid}/root/sys/class/net"
        interfaces = _list(inner)
        # Without any, not even a loopback, it has ended meanwhile or does not let us see.
        if interfaces and ports.isdisjoint(read(f"{inner}/{name}/iflink") for name in interfaces):
            detail = f"none of its interfaces ends at {manifest.interface}"
            yield Fault(UNLINKED, f"container {each.container.name}", detail, container=each.container.name)


def _names(manifest: Manifest, running: Iterable[_Running], alive: set[str], others: dict[str, str]) -> Iterator[Fault]:
    """Whether the name server has each running container's name, with its address and no other, and will keep it."""
    try:
        noted = aardvark.entries(manifest.network)
    except aardvark.Unreadable as error:
        yield Fault(NAMES_UNREADABLE, f"names of {manifest.network}", str(error))
        return
    gone = {key: addresses for key, addresses in noted.items() if key not in alive}
    for key, addresses in gone.items():
        detail = f"has names of container {key[:12]} ({', '.join(addresses)}), which is gone"
        yield Fault(NAME_STALE, "name server", detail, key=key)
    explained = {address for addresses in gone.values() for address in addresses}
    for each in running:
        try:
            answer = probe.resolve(each.service.name, manifest.gateway)
        except OSError as error:
            detail = f"{manifest.gateway}:53 does not answer ({error.strerror or 'timed out'})"
            yield Fault(NAME_SERVER_DEAD, "name server", detail)
            return
        answer = [address for address in answer if address == each.address or address not in explained]
        yield from _name(each, answer, noted.get(each.container.id, []), others)


def _name(each: _Running, answer: list[str], noted: list[str], others: dict[str, str]) -> Iterator[Fault]:
    """What is wrong with one name: `answer` is what the name server says, `noted` what it will read next time."""
    subject, container, address = f"name {each.service.name}", each.container.name, each.address
    more = [other for other in answer if other != address]
    # A container that is called as ours and more is the stack's own, such as the candidate of a deployment.
    strangers = sorted({others[other] for other in more if other in others})
    strangers = [name for name in strangers if not name.startswith(f"{container}-")]
    if not address:
        yield Fault(NAME_MISSING, subject, "podman knows no address of its container", container=container)
    elif address not in answer and not more:
        yield Fault(NAME_MISSING, subject, f"is not known; its container has {address}", container=container)
    elif address not in answer or any(other not in others for other in more):
        detail = f"is answered with {', '.join(answer)}; its container has {address}"
        yield Fault(NAME_STALE, subject, detail, container=container)
    elif address not in noted:
        detail = f"is known until the name server reads its file again; its container has {address}"
        yield Fault(NAME_MISSING, subject, detail, container=container)
    elif strangers:
        detail = f"is answered with the address of {', '.join(strangers)} too, which this stack does not own"
        yield Fault(NAME_SHARED, subject, detail)


# --- what the host says ----------------------------------------------------------------------------------------------


def containers() -> list[Container]:
    """Every container of this host, running or not, those in storage alone included. Raises HookError."""
    out = runtime.podman("ps", "--all", "--external", "--no-trunc", "--format", "json")
    return [Container(raw) for raw in _objects(out, "podman ps")]


def ours(manifest: Manifest) -> dict[str, Service]:
    """The services that are containers here, by their containers' names."""
    return {service.container: service for service in manifest.services.values() if service.container}


def definition_path(manifest: Manifest) -> str:
    """Where the definition of the network is."""
    return os.path.join(runtime.NETWORKS, f"{manifest.network}.json")


def kept_path(manifest: Manifest) -> str:
    """Where a copy of the definition is, until the next boot."""
    return os.path.join(manifest.runtime_dir, "network.json")


def _definition(manifest: Manifest, *, addresses: bool) -> dict[str, Any] | None:
    """The network as podman knows it, if need be with the addresses of its containers; None if it does not."""
    if not addresses:
        # Asking podman costs as much as all the rest.
        found = read_json(definition_path(manifest))
        if found is not None and found.get("name") == manifest.network:
            return found
    code, out, _ = runtime.run(["podman", "network", "inspect", manifest.network], runtime.PODMAN_TIMEOUT)
    return next(iter(_objects(out, "podman network inspect")), None) if code == 0 else None


def _addresses(definition: dict[str, Any]) -> dict[str, str]:
    """The IPv4 address of each running container of the network, by its id."""
    found: dict[str, str] = {}
    for key, container in _inner(definition, "containers"):
        for _, interface in _inner(container, "interfaces"):
            subnets = interface.get("subnets")
            for subnet in subnets if isinstance(subnets, list) else []:
                address = text(subnet.get("ipnet")) if isinstance(subnet, dict) else ""
                if "." in address:
                    found.setdefault(key, address.partition("/")[0])
    return found


def _inner(raw: dict[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
    value = raw.get(key)
    return [(k, v) for k, v in value.items() if isinstance(v, dict)] if isinstance(value, dict) else []


def _objects(out: str, command: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(out or "[]")
    except (ValueError, RecursionError):
        found = out
    if found is None:  # an empty list, as Go writes it
        return []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise HookError(f"cannot make sense of what `{command}` says: {printable(out, 100)}")
    return found


def text(value: Any) -> str:
    """A value of a document of somebody else's, if it is text."""
    return value if isinstance(value, str) else ""


def read_json(path: str) -> dict[str, Any] | None:
    """The object in a file; None if there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def read(path: str) -> str:
    """What a small file of the kernel says; empty if it is not there."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(100).strip()
    except OSError:
        return ""


def _list(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


# --- mending ---------------------------------------------------------------------------------------------------------


def repair(manifest: Manifest, faults: Iterable[Fault], *, restart: bool = False) -> list[Fault]:
    """Mend what `check` found; returns what was mended, each with what was done about it.

    Containers are restarted only with `restart`, and only where nothing else helps. Raises NotMended (exit code 8) for
    what is still wrong afterwards, and HookError when another repair does not end (4) or podman does not work.
    """
    mended, left, troubles = _repair(manifest, list(faults), restart=restart)
    if left:
        raise NotMended(mended, left, troubles, restarted=restart)
    return mended


def up(manifest: Manifest, name: str) -> int:
    """What the network's unit does before the stack starts, and when a firewall was loaded anew: look, mend, say it.

    `name` is the network's, as the unit has it. Raises HookError (exit code 8) when the stack cannot run on it.
    """
    if name != manifest.network:
        raise HookError(
            f"the network is called {manifest.network} in {manifest.path}, not {printable(name, 80)!r}; "
            "install units and manifest from the same rendering",
            INVALID,
        )
    mended, left, troubles = _repair(manifest, check(manifest))
    for fault in mended:
        # Before the first container runs there is none, as it should be.
        if fault.kind != MISSING or fault.key:
            runtime.say(fault.mended_line())
    grave = [fault for fault in left if fault.kind != GHOST]
    if grave:
        raise NotMended([], grave, troubles)
    for fault in left:
        runtime.say(f"{fault.line()}; the start of its service removes it")
    _remember(manifest)
    return DONE


def _repair(
    manifest: Manifest, faults: list[Fault], *, restart: bool = False
) -> tuple[list[Fault], list[Fault], list[HookError]]:
    """Mend; returns what was mended, what is left, and what went wrong with that."""
    if not faults:
        return [], [], []
    from aistack.hooks import network_repair

    wanted = {fault.same for fault in faults}
    tried: dict[tuple[str, str, str], Fault] = {}
    troubles: list[HookError] = []
    with _locked(manifest) as waited:
        left = [fault for fault in check(manifest) if fault.same in wanted] if waited else faults
        for _ in range(_ROUNDS):
            if not left or troubles:
                break
            tried = {**{fault.same: fault for fault in left}, **tried}
            troubles = network_repair.mend(manifest, left, restart=restart)
            # Ghosts that nobody asked about are left alone.
            left = [fault for fault in _settled(manifest) if fault.kind != GHOST or fault.same in wanted]
        if left and restart and not troubles:
            try:
                network_repair.restart_units(manifest, [tried.get(fault.same, fault) for fault in left])
            except HookError as error:
                troubles = [error]
            left = _settled(manifest)
        if not left:
            _remember(manifest)
    still = {fault.same for fault in left}
    return [fault for fault in tried.values() if fault.same not in still], left, troubles


def _settled(manifest: Manifest) -> list[Fault]:
    """What is still wrong when all that was done had its time to show."""
    deadline = time.monotonic() + _SETTLED
    while True:
        found = check(manifest)
        if time.monotonic() > deadline or all(fault.kind in _LASTING for fault in found):
            return found


def _remember(manifest: Manifest) -> None:
    """Keep a copy of the definition, so that it can be restored under running containers. Raises HookError."""
    kept = kept_path(manifest)
    try:
        with open(definition_path(manifest), "rb") as file:
            now = file.read()
    except OSError:
        return  # podman keeps its networks elsewhere on this host
    try:
        with open(kept, "rb") as file:
            before = file.read()
    except OSError:
        before = b""
    if now != before:
        os.makedirs(manifest.runtime_dir, exist_ok=True)
        runtime.write_atomic(kept, now, 0o600)


def _locked(manifest: Manifest) -> AbstractContextManager[bool]:
    """Keep other repairs out; says whether one had to be waited for. Raises HookError (exit code 4)."""
    from aistack.hooks.locks import held

    try:
        os.makedirs(manifest.runtime_dir, exist_ok=True)
    except OSError as error:
        raise HookError(f"cannot make {manifest.runtime_dir}: {error.strerror}") from None
    return held(os.path.join(manifest.runtime_dir, "network.lock"), _LOCK_WAIT, "another repair of the network")
