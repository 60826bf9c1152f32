"""A container of a deployment's own: the service's image and settings, under another name, on another network.

The options are those that Nix renders for the service's unit (nix/modules/containers.nix), made from the same manifest;
a test compares the two. Every such container bears a label, by which `aistack.hooks.recover` finds what was left over,
and ends by itself after a while, even if nobody lives who would end it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any

from aistack.errors import printable
from aistack.hooks import probe, runtime
from aistack.hooks.errors import HookError
from aistack.hooks.recover import LABEL

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aistack.hooks.manifest import Manifest, Service

LOG_LINES = 40
_START_TIMEOUT = 120.0  # seconds for podman to start a container

# Options that say where a container is in a network, or what it is called: those of a deployment are other ones.
_PLACE = ("--network", "--net", "--name", "--publish", "-p", "--ip", "--ip6", "--mac-address", "--hostname", "--pod")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """What is to be seen of a container: whether it runs, how it ended, where it listens, what it printed last."""

    running: bool
    exit_code: int
    out_of_memory: bool
    listening: tuple[str, ...]
    log: str

    def data(self) -> dict[str, Any]:
        """The same as plain data."""
        return {**dataclasses.asdict(self), "listening": list(self.listening)}


def settings(service: Service) -> list[str]:
    """The options that the service's unit has too: user, limits, hardening, devices, and the administrator's own."""
    raw = service.raw
    hardening, resources = raw["hardening"], raw["resources"]
    found = [f"--hostname={service.name}", "--no-healthcheck", "--pull=never"]
    if service.user is not None:
        found.append(f"--user={service.user}")
    if hardening["noNewPrivileges"]:
        found.append("--security-opt=no-new-privileges")
    found += [f"--cap-drop={name}" for name in hardening["capDrop"]]
    found += [f"--cap-add={name}" for name in hardening["capAdd"]]
    if hardening["readOnly"]:
        found.append("--read-only")
    found += [f"--tmpfs={mount}" for mount in hardening["tmpfs"]]
    limits = {"memory": "--memory", "cpus": "--cpus", "pids": "--pids-limit"}
    found += [f"{option}={resources[name]}" for name, option in limits.items() if resources[name] is not None]
    found += [f"--device={device}" for device in raw["devices"]]
    return [*found, *raw["extraOptions"]]


def misplaced(service: Service) -> str | None:
    """An option of the administrator's own that would put the container in the place of the real one, or None."""
    own: list[str] = service.raw["extraOptions"]
    return next((option for option in own if option.partition("=")[0] in _PLACE), None)


def run(
    service: Service,
    *,
    image: str,
    deployment: int,
    networks: Iterable[str],
    alias: str | None,
    runtime_dir: str,
    mounts: Sequence[str],
    lifetime: float,
) -> None:
    """Start `service.container` with an image id. It is killed after `lifetime` seconds, whatever happens to us.

    `runtime_dir` has the environment that `runtime.write_environment` wrote, and its file secrets. Raises HookError.
    """
    folder = os.path.join(runtime_dir, service.name)
    secrets = os.path.join(folder, "secrets")
    files = sorted(os.listdir(secrets)) if os.path.isdir(secrets) else []
    runtime.podman(
        "run",
        "--detach",
        f"--name={service.container}",
        f"--label={LABEL}={deployment}",
        f"--timeout={lifetime:.0f}",
        f"--stop-timeout={service.stop_timeout:.0f}",
        "--log-driver=k8s-file",
        "--log-opt=max-size=10mb",
        *settings(service),
        *(f"--network={name}" for name in networks),
        *([f"--network-alias={alias}"] if alias is not None else []),
        f"--env-file={os.path.join(folder, 'env')}",
        *(f"--volume={os.path.join(secrets, key)}:/run/secrets/{key}:ro" for key in files),
        *mounts,
        image,
        *service.command,
        timeout=_START_TIMEOUT,
    )


def monitor(container: str) -> int | None:
    """A descriptor that becomes readable when the container ends; -1 if it has ended, None if that cannot be told."""
    code, out, _ = runtime.run(
        ["podman", "container", "inspect", "--format", "{{.State.ConmonPid}} {{.State.Running}}", container],
        runtime.PODMAN_TIMEOUT,
    )
    pid, _, running = out.strip().partition(" ")
    if code != 0 or not pid.isdigit():
        return None
    if running != "true":
        return -1
    try:
        return os.pidfd_open(int(pid))
    except ProcessLookupError:
        return -1
    except OSError:
        return None


def look(container: str) -> Seen:
    """See what a container does, or did. Raises HookError if it is gone."""
    (found,) = json.loads(runtime.podman("container", "inspect", container))
    state: dict[str, Any] = found["State"]
    running = state.get("Running") is True
    return Seen(
        running=running,
        exit_code=int(state.get("ExitCode") or 0),
        out_of_memory=state.get("OOMKilled") is True,
        listening=_listening(int(state.get("Pid") or 0)) if running else (),
        log=_log(container),
    )


def _log(container: str) -> str:
    command = ["podman", "logs", "--tail", str(LOG_LINES), container]
    code, out, errors = runtime.run(command, runtime.PODMAN_TIMEOUT)
    # What it printed on standard error is, of the two, what explains an end.
    return (out + errors)[-20000:] if code == 0 else f"(no log: {printable(errors, 200)})"


def _listening(pid: int) -> tuple[str, ...]:
    """The TCP addresses on which a process's network namespace listens, as ADDRESS:PORT (proc_net_tcp(5))."""
    found = []
    for name, v6 in (("tcp", False), ("tcp6", True)):
        try:
            with open(f"/proc/{pid}/net/{name}", encoding="ascii") as file:
                rows = [line.split() for line in file.read().splitlines()[1:]]
        except OSError:
            continue
        listening = "0A"
        for row in rows:
            if row[3] == listening:
                address, _, port = row[1].partition(":")
                found.append(f"{_address(address, v6=v6)}:{int(port, 16)}")
    return tuple(sorted(set(found)))


def _address(raw: str, *, v6: bool) -> str:
    import ipaddress

    # Words of 32 bits, each in the machine's own byte order.
    data = b"".join(int(raw[i : i + 8], 16).to_bytes(4, "little") for i in range(0, len(raw), 8))
    address = ipaddress.ip_address(data)
    return f"[{address}]" if v6 else str(address)


def addresses(name: str, manifest: Manifest) -> list[str]:
    """The addresses that the stack network's name server has for a name. Raises HookError if it does not answer."""
    try:
        return probe.resolve(name, manifest.gateway)
    except OSError as error:
        raise HookError(
            f"the name server of {manifest.network} ({manifest.gateway}) does not answer: {printable(error)}; "
            "see: aistack network check"
        ) from None
