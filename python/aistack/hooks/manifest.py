"""Reading stack.json, the manifest that Nix renders. Nothing here invents a default: a missing key is an error.

The pydantic model in `aistack.model` checks the whole document; the hooks read only what they need, because importing
pydantic would cost more than everything else they do.
"""

from __future__ import annotations

import json
import os

from aistack.hooks.errors import INVALID, HookError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SCHEMA_VERSION = 1
DEFAULT_PATH = "/etc/aistack/stack.json"


class Probe:
    """How a service is asked whether it is ready. Times in seconds."""

    __slots__ = (
        "command",
        "database",
        "expect",
        "failures",
        "interval",
        "kind",
        "path",
        "port",
        "secret",
        "start_timeout",
        "timeout",
        "user",
    )

    def __init__(self, raw: dict[str, Any]) -> None:
        self.kind: str = raw["kind"]
        self.port: int | None = raw["port"]
        self.path: str | None = raw["path"]
        self.expect: str | None = raw["expect"]
        self.user: str | None = raw["user"]
        self.database: str | None = raw["database"]
        self.secret: str | None = raw["secret"]
        self.command: list[str] = raw["command"] or []
        self.interval: float = raw["intervalSeconds"]
        self.timeout: float = raw["timeoutSeconds"]
        self.failures: int = raw["failures"]
        self.start_timeout: float = raw["startTimeoutSeconds"]


class Service:
    """One service of the stack; `raw` is its entry in the manifest, unchanged."""

    __slots__ = (
        "command",
        "container",
        "depends_on",
        "environment",
        "external_host",
        "external_port",
        "image_archive",
        "image_live",
        "image_ref",
        "image_stream",
        "name",
        "port",
        "preflight_devices",
        "preflight_disk",
        "preflight_files",
        "probe",
        "publish",
        "pull_timeout",
        "raw",
        "rollback_policy",
        "secrets",
        "stack_environment",
        "stop_timeout",
        "unit",
        "user",
        "volumes",
        "wants",
    )

    def __init__(self, name: str, raw: dict[str, Any]) -> None:
        self.name = name
        self.raw = raw
        external = raw["external"]
        self.external_host: str | None = external["host"] if external else None
        self.external_port: int | None = external["port"] if external else None
        self.unit: str = raw["unit"] or ""
        self.container: str = raw["container"] or ""
        image = raw["image"] or {"ref": "", "archive": None, "stream": None, "live": "", "pullTimeoutSeconds": 0}
        self.image_ref: str = image["ref"]
        self.image_archive: str | None = image["archive"]
        self.image_stream: str | None = image["stream"]
        self.image_live: str = image["live"]
        self.pull_timeout: float = image["pullTimeoutSeconds"]
        self.port: int | None = raw["port"]
        self.publish: list[dict[str, Any]] = raw["publish"]
        self.depends_on: list[str] = raw["dependsOn"]
        self.wants: list[str] = raw["wants"]
        self.probe = Probe(raw["probe"]) if raw["probe"] else None
        self.preflight_files: list[dict[str, str]] = raw["preflight"]["files"]
        self.preflight_disk: list[dict[str, Any]] = raw["preflight"]["freeDisk"]
        self.preflight_devices: list[str] = raw["preflight"]["devices"]
        self.stack_environment: bool = raw["stackEnvironment"]
        self.environment: dict[str, str] = raw["environment"]
        self.secrets: list[str] = raw["secrets"]
        self.volumes: list[str] = raw["volumes"]
        self.command: list[str] = raw["command"]
        self.user: str | None = raw["user"]
        self.stop_timeout: float = raw["stopTimeoutSeconds"]
        self.rollback_policy: str = raw["rollbackPolicy"]

    @property
    def external(self) -> bool:
        """Whether the service runs elsewhere: it is probed, never started."""
        return self.external_host is not None


class Manifest:
    """The stack as Nix declared it."""

    __slots__ = (
        "dependency_check",
        "environment",
        "gateway",
        "network",
        "path",
        "probation",
        "retain",
        "runtime_dir",
        "secrets",
        "services",
        "startup_timeout",
        "state_dir",
    )

    def __init__(self, raw: dict[str, Any], path: str) -> None:
        self.path = path
        self.state_dir: str = raw["stateDir"]
        self.runtime_dir: str = raw["runtimeDir"]
        self.network: str = raw["network"]["name"]
        self.gateway: str = raw["network"]["gateway"]
        self.dependency_check: bool = raw["startup"]["dependencyCheck"]
        self.startup_timeout: float = raw["startup"]["timeoutSeconds"]
        self.probation: float = raw["rollback"]["probationSeconds"]
        self.retain: int = raw["rollback"]["retain"]
        self.environment: dict[str, str] = raw["environment"]
        self.secrets: dict[str, dict[str, str]] = raw["secrets"]
        self.services: dict[str, Service] = {}
        for name, entry in raw["services"].items():
            try:
                self.services[name] = Service(name, entry)
            except KeyError as error:
                raise KeyError(f"services.{name}: {error.args[0]}") from None

    def service(self, name: str) -> Service:
        """The service called `name`.

        Raises HookError (exit code 2) that lists the declared names when there is none.
        """
        found = self.services.get(name)
        if found is None:
            known = ", ".join(sorted(self.services)) or "none"
            raise HookError(f"no service is called {printable(name, 80)!r}; declared in {self.path}: {known}", INVALID)
        return found

    def container_service(self, name: str) -> Service:
        """Like `service`, but refuses one that runs elsewhere (exit code 2): it has no unit here."""
        found = self.service(name)
        if found.external:
            raise HookError(
                f"{name} runs at {found.external_host}:{found.external_port}, outside this stack; "
                "there is no container here to act on",
                INVALID,
            )
        return found

    def dependents(self, name: str) -> list[str]:
        """Names of the services with a hard dependency on `name`, sorted."""
        return sorted(s.name for s in self.services.values() if name in s.depends_on)

    def closure(self, name: str) -> list[str]:
        """Every service that depends on `name`, directly or not, nearest first."""
        found: list[str] = []
        front = [name]
        while front:
            front = [d for f in front for d in self.dependents(f) if d not in found and d != name]
            front = list(dict.fromkeys(front))
            found.extend(front)
        return found


def manifest_path() -> str:
    """Where the manifest is read from: AISTACK_MANIFEST, or /etc/aistack/stack.json."""
    return os.environ.get("AISTACK_MANIFEST") or DEFAULT_PATH


def load(path: str | None = None) -> Manifest:
    """Read the manifest at `path`.

    Raises HookError (exit code 2) when it is missing, unreadable, not JSON, of another schema version or incomplete.
    """
    path = path or manifest_path()
    try:
        with open(path, encoding="utf-8") as file:
            raw = json.load(file)
    except FileNotFoundError:
        raise HookError(
            f"no manifest at {path}: is the stack installed? NixOS: services.aistack.enable = true; "
            "elsewhere: bundle/install",
            INVALID,
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise HookError(f"cannot read the manifest {path}: {printable(str(error))}", INVALID) from None
    except ValueError as error:
        raise HookError(
            f"the manifest {path} is not JSON: {printable(str(error))}; render it again "
            "(nixos-rebuild switch, or bundle/install)",
            INVALID,
        ) from None
    version = raw.get("schemaVersion") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise HookError(
            f"the manifest {path} has schemaVersion {printable(repr(version), 40)}, "
            f"this program reads {SCHEMA_VERSION}; install the program and the manifest from the same release",
            INVALID,
        )
    try:
        return Manifest(raw, path)
    except (KeyError, TypeError, AttributeError) as error:
        what = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise HookError(
            f"the manifest {path} is malformed: {printable(what)}; "
            "render it again (nixos-rebuild switch, or bundle/install)",
            INVALID,
        ) from None
