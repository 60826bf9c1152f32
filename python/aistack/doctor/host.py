"""What checks find, and what several of them ask the host, each thing once."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import traceback
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from aistack.cli import stack, status
from aistack.errors import StoreError, printable
from aistack.hooks import runtime
from aistack.hooks.errors import HookError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aistack.hooks.manifest import Manifest, Service
    from aistack.hooks.releases import Release

OK = "ok"
WARN = "warn"  # it works, and will not for ever, or not as declared
FAIL = "fail"  # it does not work, or is not safe

# Seconds for a question that is answered in a tenth of one: a podman that hangs must not hang this.
ASK_TIMEOUT = 20.0

# They end deployments that were cut off: one at every start of the stack, the others while a deployment is under way.
ON_DEMAND = ("aistack-recover-late.service", "aistack-recover-late.timer")
RECOVERY = ("aistack-recover.service", *ON_DEMAND)

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line: the mark, the area, what was found, and for all but ok the command that mends it or shows more."""

    mark: str
    area: str
    what: str
    fix: str | None = None

    def data(self) -> dict[str, Any]:
        """Return it for --json."""
        return dataclasses.asdict(self)


def fine(area: str, what: str) -> Finding:
    """Return a finding that needs nobody."""
    return Finding(OK, area, what)


def warn(area: str, what: str, fix: str) -> Finding:
    """Return a finding that somebody should look at by day."""
    return Finding(WARN, area, what, fix)


def fail(area: str, what: str, fix: str) -> Finding:
    """Return a finding that somebody has to act on."""
    return Finding(FAIL, area, what, fix)


def _once(method: Callable[[Host], T]) -> Callable[[Host], T]:
    """Ask the host only the first time; what went wrong then goes wrong the same way again."""

    @wraps(method)
    def asked(self: Host) -> T:
        with self.lock:
            if method.__name__ not in self.answers:
                try:
                    self.answers[method.__name__] = method(self)
                except HookError as error:
                    self.answers[method.__name__] = error
            answer = self.answers[method.__name__]
        if isinstance(answer, HookError):
            raise answer
        found: T = answer
        return found

    return asked


@dataclasses.dataclass(frozen=True)
class Releases:
    """What the journal knows of one service."""

    current: Release | None
    declared: Release | None
    history: Sequence[Release]


@dataclasses.dataclass
class Host:
    """The host as the checks see it. Each method raises HookError when the host cannot be asked."""

    manifest: Manifest
    answers: dict[str, Any] = dataclasses.field(default_factory=dict)
    lock: threading.RLock = dataclasses.field(default_factory=threading.RLock)

    @property
    def containers(self) -> list[Service]:
        """The services that are containers of this stack."""
        return [service for service in self.manifest.services.values() if not service.external]

    @property
    def timers(self) -> list[str]:
        """The health timers there have to be."""
        intervals = {service.probe.interval for service in self.containers if service.probe is not None}
        return [f"aistack-health-{seconds:g}.timer" for seconds in sorted(intervals)]

    @property
    def secrets(self) -> list[str]:
        """The unit that watches the files of secrets, if there are any to watch."""
        used = any(service.secrets for service in self.containers)
        return ["aistack-secrets.path"] if self.manifest.secret_rotation and used else []

    @property
    def unit_names(self) -> list[str]:
        """The units that are there all the time; those of retries and rollbacks come and go."""
        own = [service.unit for service in self.containers]
        return ["aistack.target", "aistack-network.service", *RECOVERY, *self.secrets, *own, *self.timers]

    @_once
    def units(self) -> dict[str, dict[str, str]]:
        """What systemd says of them."""
        return runtime.unit_states(self.unit_names, "NeedDaemonReload", "Wants", "WantedBy")

    @_once
    def rows(self) -> list[status.Row]:
        """The rows of `aistack status`; external services are asked for this."""
        return status.rows_of(self.manifest, list(self.manifest.services.values()))

    @_once
    def running(self) -> list[Service]:
        """The containers whose units are active."""
        units = self.units()
        return [one for one in self.containers if units.get(one.unit, {}).get("ActiveState") == "active"]

    def is_stopped(self) -> bool:
        """Whether somebody stopped the whole stack: then what does not run is no fault."""
        up = ("active", "activating", "reloading", "failed")
        states = [self.units().get(name, {}).get("ActiveState") for name in self._members()]
        return bool(states) and not any(state in up for state in states)

    def _members(self) -> list[str]:
        return ["aistack.target", *(service.unit for service in self.containers)]

    @_once
    def podman(self) -> dict[str, Any]:
        """What `podman info` says of itself, its storage and its network."""
        try:
            found = json.loads(runtime.podman("info", "--format", "json", timeout=ASK_TIMEOUT))
        except ValueError as error:
            raise HookError(f"podman info failed: {printable(error)}") from None
        return found if isinstance(found, dict) else {}

    @_once
    def images(self) -> dict[str, str]:
        """Every image name in podman's storage, with the id of its image."""
        return runtime.images()

    def releases(self) -> dict[str, Releases]:
        """What the journal knows of every container; nothing where it is of no use, which its own check says."""
        try:
            return self.journal()
        except StoreError:
            return {}

    @_once
    def journal(self) -> dict[str, Releases]:
        """The same; raises StoreError where the journal is of no use."""
        if not stack.has_journal(self.manifest):
            return {}
        with stack.journal(self.manifest) as store:
            return {
                service.name: Releases(
                    store.current(service.name), store.declared(service.name), store.history(service.name)
                )
                for service in self.containers
            }

    def ran(self, service: Service) -> Release | None:
        """The release that a running container was started with, as far as the journal knows it."""
        known = self.releases().get(service.name)
        number = runtime.read_verdict(self.manifest, service.name).get("release")
        return next((one for one in known.history if one.id == number), None) if known is not None else None


def look(area: str, check: Callable[[Host], Iterable[Finding]], host: Host, limit: float) -> list[Finding]:
    """Run one check; whatever happens in it becomes a finding, after `limit` seconds at the latest."""
    found: list[Finding] = []
    trouble: list[tuple[str, str]] = []

    def run() -> None:
        try:
            found.extend(check(host))
        except HookError as error:
            trouble.append((str(error), "podman info; systemctl is-system-running"))
        except Exception as error:  # noqa: BLE001  (a check that nobody foresaw to fail must not take the others along)
            if os.environ.get("AISTACK_DEBUG") == "1":
                traceback.print_exc()
            trouble.append((f"unexpected {type(error).__name__}: {printable(error)}", "AISTACK_DEBUG=1 aistack doctor"))

    # A daemon: one that hangs, on a dead mount for example, is left behind.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit)
    if thread.is_alive():
        trouble.append((f"no answer within {limit:g} s", "podman info; systemctl is-system-running"))
    return [*found, *(fail(area, f"could not be checked: {what}", fix) for what, fix in trouble)]
