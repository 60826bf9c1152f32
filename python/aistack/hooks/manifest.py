"""Reading stack.json, the manifest that Nix renders. Nothing here invents a default: a missing key is an error.

The pydantic model in `aistack.model` checks the whole document; the hooks read only what they need, because importing
pydantic would cost more than everything else they do. Of that they check the types, so that a malformed document is one
line here and not a surprise in the middle of a start.
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

_LARGEST = 2**53 - 1  # the largest whole number that every reader of JSON takes for the same (RFC 8259, section 6)
_LONGEST = 10.0**9  # seconds; longer times overflow a socket's timeout
_MARKS = str.maketrans("", "", "._-")  # what a name may have beside letters and digits


def _text(value: Any) -> bool:
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write
        return False
    return True


def _line(value: Any) -> bool:
    return _text(value) and "\n" not in value and "\r" not in value


def _path(value: Any) -> bool:
    return _line(value) and value.startswith("/")


def _label(value: Any) -> bool:
    plain = isinstance(value, str) and value.isascii() and value.replace("-", "").isalnum() and value == value.lower()
    return plain and len(value) <= 63 and not value.startswith("-") and not value.endswith("-")


def _key(value: Any) -> bool:
    return isinstance(value, str) and value.isascii() and value.isidentifier()


def _name(value: Any) -> bool:
    plain = isinstance(value, str) and value.isascii() and value.translate(_MARKS).isalnum()
    return plain and value[0] not in "._-"


def _subnet(value: Any) -> bool:
    base, _, length = value.partition("/") if isinstance(value, str) else ("", "", "")
    parts = base.split(".")
    numbers = [*parts, length]
    digits = len(parts) == 4 and all(n.isascii() and n.isdigit() and len(n) <= 3 for n in numbers)
    return digits and all(int(part) < 256 for part in parts) and int(length) <= 32


def _user(value: Any) -> bool:
    ids = value.split(":") if isinstance(value, str) and value.isascii() else []
    # The largest number stands for "unchanged" in chown(2).
    return len(ids) in (1, 2) and all(i.isdigit() and len(i) <= 10 and int(i) < 2**32 - 1 for i in ids)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST


def _integer(value: Any) -> bool:
    return type(value) is int and -_LARGEST <= value <= _LARGEST


def _port(value: Any) -> bool:
    return type(value) is int and 0 < value < 65536


def _seconds(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= _LONGEST


def _duration(value: Any) -> bool:
    return _seconds(value) and value > 0


_WORDS = {
    _text: "text",
    _line: "text on one line",
    _path: "an absolute path",
    _label: "a name of lower-case letters, digits and dashes",
    _key: "a name of letters, digits and underscores",
    _name: "a name of letters, digits, dots, dashes and underscores",
    _subnet: "a subnet of IPv4",
    _user: "a numeric user, or user:group",
    _flag: "true or false",
    _count: "a whole number",
    _integer: "an integer",
    _port: "a port",
    _seconds: "a number of seconds",
    _duration: "a number of seconds above 0",
}

# What the hooks need of the document. (x, None): x or null. [x]: a list of x. {test: x}: an object with keys that pass.
_PROBE = {
    "kind": frozenset({"http", "tcp", "postgres", "redis", "exec"}),
    "port": (_port, None),
    "path": (_line, None),
    "expect": (_text, None),
    "user": (_line, None),
    "database": (_line, None),
    "secret": (_key, None),
    "command": ([_text], None),
    "intervalSeconds": _duration,
    "timeoutSeconds": _duration,
    "failures": _count,
    "startTimeoutSeconds": _duration,
}
_SERVICE = {
    "unit": (_line, None),
    "container": (_line, None),
    "external": ({"host": _line, "port": _port}, None),
    "image": (
        {
            "ref": _line,
            "archive": (_path, None),
            "stream": (_path, None),
            "live": _line,
            "pullTimeoutSeconds": _duration,
        },
        None,
    ),
    "port": (_port, None),
    "publish": [{"address": _line, "hostPort": _port, "containerPort": _port, "protocol": frozenset({"tcp", "udp"})}],
    "dependsOn": [_label],
    "wants": [_label],
    "probe": (_PROBE, None),
    "preflight": {
        "files": [{"path": _path, "what": _line}],
        "freeDisk": [{"path": _path, "megabytes": _count}],
        "devices": [_path],
    },
    "stackEnvironment": _flag,
    "environment": {_key: _line},
    "secrets": [_key],
    "volumes": [_line],
    "command": [_text],
    "user": (_user, None),
    "hardening": {"capDrop": [_line], "capAdd": [_line]},
    "stopTimeoutSeconds": _seconds,
    "rollbackPolicy": frozenset({"image", "system", "none"}),
    "deploy": {
        "strategy": frozenset({"restart", "bridge"}),
        "test": {
            "soakSeconds": _seconds,
            "timeoutSeconds": _duration,
            "requests": [
                {
                    "method": _line,
                    "path": _line,
                    "headers": {_text: _line},
                    "body": (_text, None),
                    "status": _count,
                    "contains": [_text],
                }
            ],
            "openapi": (_path, None),
        },
    },
}
_MANIFEST = {
    "stateDir": _path,
    "runtimeDir": _path,
    "envFile": _path,
    "network": {"name": _name, "subnet": _subnet, "gateway": _line, "interface": _name},
    "startup": {"dependencyCheck": _flag, "timeoutSeconds": _seconds},
    "selfHealing": {
        "enable": _flag,
        "maxRestarts": _count,
        "windowSeconds": _duration,
        "backoffSeconds": _seconds,
    },
    "secretRotation": {"enable": _flag},
    "rollback": {"probationSeconds": _seconds, "retain": _count},
    "environment": {_key: _line},
    "environmentOptions": {_key: _line},
    "overridable": {
        _key: {
            "type": frozenset({"bool", "int", "string"}),
            "min": (_integer, None),
            "max": (_integer, None),
            "option": _line,
            "keys": [_key],
        }
    },
    "secrets": {_key: {"file": _path, "as": frozenset({"env", "file"})}},
    "services": {_label: _SERVICE},
}


class _Malformed(Exception):
    """What is wrong with a document, and where."""


def _check(value: Any, shape: Any, where: str) -> None:
    if isinstance(shape, tuple):
        if value is not None:
            _check(value, shape[0], where)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise _Malformed(f"{where} is not a list")
        for number, item in enumerate(value):
            _check(item, shape[0], f"{where}[{number}]")
    elif isinstance(shape, dict):
        if not isinstance(value, dict):
            raise _Malformed(f"{where or 'it'} is not an object")
        for key, inner in shape.items():
            if isinstance(key, str):
                if key not in value:
                    raise _Malformed(f"{where}.{key} is missing".lstrip("."))
                _check(value[key], inner, f"{where}.{key}".lstrip("."))
                continue
            for name, item in value.items():
                if not key(name):
                    raise _Malformed(f"{where} has a key {name!r}, which is not {_WORDS[key]}")
                _check(item, inner, f"{where}.{name}")
    elif isinstance(shape, frozenset):
        if not isinstance(value, str) or value not in shape:
            raise _Malformed(f"{where} is none of {', '.join(sorted(shape))}")
    elif not shape(value):
        raise _Malformed(f"{where} is not {_WORDS[shape]}")


def _check_service(name: str, raw: dict[str, Any], services: dict[str, Any]) -> None:
    """What one key of a service says about another, as far as the hooks depend on it."""
    own = ("unit", "container", "image")
    if raw["external"] is None and not all(raw[key] for key in own):
        missing = ", ".join(key for key in own if not raw[key])
        raise _Malformed(f"services.{name} is not external, and has no {missing}")
    unknown = [other for other in raw["dependsOn"] if other not in services]
    if unknown:
        raise _Malformed(f"services.{name}.dependsOn names {unknown[0]}, which is not a service")
    probe = raw["probe"]
    if probe is not None and probe["kind"] == "exec" and not probe["command"]:
        raise _Malformed(f"services.{name}.probe.command is empty")
    if probe is not None and probe["kind"] != "exec" and not (probe["port"] or raw["port"] or raw["external"]):
        raise _Malformed(f"services.{name}.probe.port is missing")


def _check_overridable(key: str, overridable: dict[str, Any], environment: dict[str, Any]) -> None:
    """That an override of this key means the same as one of the keys that move with it."""
    entry = overridable[key]
    if key not in environment:
        raise _Malformed(f"overridable.{key} is not a key of environment")
    if key not in entry["keys"] or any(overridable.get(other) != entry for other in entry["keys"]):
        raise _Malformed(f"overridable.{key}.keys is not the same for all of them")


class Override:
    """What an override of a key must be: `type` is bool, int or string; `keys` are all that move with it."""

    __slots__ = ("keys", "maximum", "minimum", "option", "type")

    def __init__(self, raw: dict[str, Any]) -> None:
        self.type: str = raw["type"]
        self.minimum: int | None = raw["min"]
        self.maximum: int | None = raw["max"]
        self.option: str = raw["option"]
        self.keys: list[str] = raw["keys"]


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
        "cap_add",
        "cap_drop",
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
        self.cap_drop: list[str] = raw["hardening"]["capDrop"]
        self.cap_add: list[str] = raw["hardening"]["capAdd"]
        self.stop_timeout: float = raw["stopTimeoutSeconds"]
        self.rollback_policy: str = raw["rollbackPolicy"]

    @property
    def identity(self) -> dict[str, Any]:
        """What of its entry makes a release another one."""
        return identity(self.raw)

    @property
    def external(self) -> bool:
        """Whether the service runs elsewhere: it is probed, never started."""
        return self.external_host is not None


def identity(entry: dict[str, Any]) -> dict[str, Any]:
    """What of a service's entry makes a release another one: all but how a deployment goes about it."""
    return {key: value for key, value in entry.items() if key != "deploy"}


class Healing:
    """How often self-healing restarts a service: `most` times within `window` s; pauses begin with `backoff` s."""

    __slots__ = ("backoff", "most", "window")

    def __init__(self, raw: dict[str, Any]) -> None:
        self.most: int = raw["maxRestarts"]
        self.window: float = raw["windowSeconds"]
        self.backoff: float = raw["backoffSeconds"]


class Manifest:
    """The stack as Nix declared it, with the overrides that `aistack env` made (`aistack.hooks.overrides`).

    `environment`, `dependency_check`, `startup_timeout` and `self_healing` are effective values; `declared` is Nix's
    environment, `overrides` what was put over it, and `overrides_problem` says what of overrides.json is no use.
    """

    __slots__ = (
        "declared",
        "dependency_check",
        "env_file",
        "environment",
        "environment_options",
        "gateway",
        "healing",
        "interface",
        "network",
        "overridable",
        "overrides",
        "overrides_problem",
        "path",
        "probation",
        "retain",
        "runtime_dir",
        "secret_rotation",
        "secrets",
        "self_healing",
        "services",
        "startup_timeout",
        "state_dir",
        "subnet",
    )

    def __init__(self, raw: dict[str, Any], path: str) -> None:
        self.path = path
        self.state_dir: str = raw["stateDir"]
        self.runtime_dir: str = raw["runtimeDir"]
        self.network: str = raw["network"]["name"]
        self.subnet: str = raw["network"]["subnet"]
        self.gateway: str = raw["network"]["gateway"]
        self.interface: str = raw["network"]["interface"]
        self.dependency_check: bool = raw["startup"]["dependencyCheck"]
        self.startup_timeout: float = raw["startup"]["timeoutSeconds"]
        self.self_healing: bool = raw["selfHealing"]["enable"]
        self.healing = Healing(raw["selfHealing"])
        self.secret_rotation: bool = raw["secretRotation"]["enable"]
        self.probation: float = raw["rollback"]["probationSeconds"]
        self.retain: int = raw["rollback"]["retain"]
        self.env_file: str = raw["envFile"]
        self.declared: dict[str, str] = raw["environment"]
        self.environment: dict[str, str] = self.declared
        self.environment_options: dict[str, str] = raw["environmentOptions"]
        self.overridable = {key: Override(entry) for key, entry in raw["overridable"].items()}
        self.overrides: dict[str, str] = {}
        self.overrides_problem: str | None = None
        self.secrets: dict[str, dict[str, str]] = raw["secrets"]
        self.services = {name: Service(name, entry) for name, entry in raw["services"].items()}

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
    """Read the manifest at `path`, and apply the overrides of its stack.

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
    except (ValueError, RecursionError) as error:
        raise HookError(
            f"the manifest {path} is not JSON: {printable(str(error))}; render it again "
            "(nixos-rebuild switch, or bundle/install)",
            INVALID,
        ) from None
    version = raw.get("schemaVersion") if isinstance(raw, dict) else None
    if isinstance(version, bool) or version != SCHEMA_VERSION:
        raise HookError(
            f"the manifest {path} has schemaVersion {printable(repr(version), 40)}, "
            f"this program reads {SCHEMA_VERSION}; install the program and the manifest from the same release",
            INVALID,
        )
    try:
        _check(raw, _MANIFEST, "")
        for name, entry in raw["services"].items():
            _check_service(name, entry, raw["services"])
        for key in raw["overridable"]:
            _check_overridable(key, raw["overridable"], raw["environment"])
    except _Malformed as error:
        raise HookError(
            f"the manifest {path} is malformed: {printable(str(error))}; "
            "render it again (nixos-rebuild switch, or bundle/install)",
            INVALID,
        ) from None
    manifest = Manifest(raw, path)
    # Most stacks have none, and need not pay for reading them.
    if os.path.lexists(os.path.join(manifest.state_dir, "overrides.json")):
        from aistack.hooks import overrides

        overrides.apply(manifest)
    return manifest
