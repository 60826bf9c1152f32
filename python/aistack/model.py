"""The manifest (stack.json) as pydantic models: what Nix renders, said once more in Python.

The hooks read the manifest with the standard library alone (`aistack.hooks.manifest`); this model
is the complete, strict description: it refuses unknown keys, missing keys and wrong types, checks
what one key says about another, and publishes the JSON Schema (`aistack schema`).

Names in JSON are camelCase; times are seconds and say so in their name; every key is always
present, null when unset.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import GenerateJsonSchema

from aistack.errors import ManifestError, printable

if TYPE_CHECKING:
    from pathlib import Path

# A service name is a host name, a network alias and the beginning of environment keys: a DNS label
# (RFC 1123, 2.1) that starts with a letter.
SERVICE_NAME = r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"
# The characters on which podman, systemd, python-dotenv and a POSIX shell agree (design section 6).
ENV_VALUE = r"^[A-Za-z0-9_./:@%+,=-]*$"
ENV_KEY = r"^[A-Z][A-Z0-9_]*$"

ServiceName = Annotated[str, StringConstraints(pattern=SERVICE_NAME)]
EnvKey = Annotated[str, StringConstraints(pattern=ENV_KEY)]
EnvValue = Annotated[str, StringConstraints(pattern=ENV_VALUE)]
# Inside one container only podman reads the value, and podman ends it at the line's end.
ContainerEnvValue = Annotated[str, StringConstraints(pattern=r"^[^\x00\n\r]*$")]
AbsolutePath = Annotated[str, StringConstraints(pattern=r"^/[^\x00\n\r]*$")]
Text = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\x00\n\r]*$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SecondsOrZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Model(BaseModel):
    """Strict: no unknown keys, no conversion between types, unchangeable once read."""

    model_config = ConfigDict(
        alias_generator=to_camel, extra="forbid", frozen=True, strict=True, populate_by_name=False
    )


class Network(_Model):
    """The podman network all containers share."""

    name: Text
    subnet: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F.:]+/[0-9]{1,3}$")]
    gateway: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F.:]+$")]
    interface: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$")]
    dns: bool


class Startup(_Model):
    """Whether a start waits for its dependencies, and for how long."""

    dependency_check: bool
    timeout_seconds: Seconds


class SelfHealing(_Model):
    """Whether a proven service that stops answering is restarted, and how often at most."""

    enable: bool
    max_restarts: Annotated[int, Field(ge=1)]
    window_seconds: Seconds
    backoff_seconds: SecondsOrZero


class SecretRotation(_Model):
    """Whether what uses a secret follows when its file changes."""

    enable: bool


class Rollback(_Model):
    """When a release is proven, and how many proven ones keep their images."""

    policy: Literal["image", "system", "none"]
    retain: Annotated[int, Field(ge=1)]
    probation_seconds: SecondsOrZero


class Overridable(_Model):
    """What `aistack env set` accepts for a key, the option that declares it, and all keys of that option."""

    type: Literal["bool", "int", "string"]
    min: int | None
    max: int | None
    option: Text
    keys: Annotated[list[EnvKey], Field(min_length=1)]


class Secret(_Model):
    """A secret by name: the file that holds it and how a container gets it."""

    file: AbsolutePath
    as_: Annotated[Literal["env", "file"], Field(alias="as")]


class External(_Model):
    """Where a service runs that this stack only uses."""

    host: Text
    port: Port


class Image(_Model):
    """What runs: a reference, and the archive or stream it is loaded from if it has one."""

    ref: Text
    archive: AbsolutePath | None
    stream: AbsolutePath | None
    live: Text
    pull_timeout_seconds: Seconds


class Publish(_Model):
    """One container port on one address of the host."""

    address: Text
    host_port: Port
    container_port: Port
    protocol: Literal["tcp", "udp"]


class Probe(_Model):
    """How to ask a service whether it is ready: one definition for readiness and health."""

    kind: Literal["http", "tcp", "postgres", "redis", "exec"]
    port: Port | None
    path: str | None
    expect: str | None
    user: str | None
    database: str | None
    secret: EnvKey | None
    command: list[str] | None
    interval_seconds: Seconds
    timeout_seconds: Seconds
    failures: Annotated[int, Field(ge=1)]
    start_timeout_seconds: Seconds

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> Self:
        if self.kind == "exec":
            if not self.command:
                raise ValueError("a probe of kind exec needs a command")
        elif self.port is None:
            raise ValueError(f"a probe of kind {self.kind} needs a port")
        return self


class RequiredFile(_Model):
    """A file that must exist before the container starts, and what it is."""

    path: AbsolutePath
    what: str


class FreeDisk(_Model):
    """Space that must be free on the file system of a path."""

    path: AbsolutePath
    megabytes: Annotated[int, Field(ge=0)]


class Preflight(_Model):
    """Checks of the host before the container starts, beside its dependencies."""

    files: list[RequiredFile]
    free_disk: list[FreeDisk]
    devices: list[AbsolutePath]


class Resources(_Model):
    """Limits of the container, in podman's own notation."""

    memory: str | None
    cpus: int | str | None
    pids: int | None


class Hardening(_Model):
    """What the container may not do."""

    no_new_privileges: bool
    cap_drop: list[str]
    cap_add: list[str]
    read_only: bool
    tmpfs: list[str]


class ContractRequest(_Model):
    """A request that a candidate gets in its isolated test, and what its answer must be."""

    method: Annotated[str, StringConstraints(pattern=r"^[A-Z]+$")]
    path: Annotated[str, StringConstraints(pattern=r"^/[^\s\x00]*$")]
    headers: dict[Text, Annotated[str, StringConstraints(pattern=r"^[^\x00\n\r]*$")]]
    body: str | None
    status: Annotated[int, Field(ge=100, le=599)]
    contains: list[str]


class DeployTest(_Model):
    """What a candidate must do in its isolated test beside getting ready."""

    soak_seconds: SecondsOrZero
    timeout_seconds: Seconds
    requests: list[ContractRequest]
    openapi: AbsolutePath | None


class Deploy(_Model):
    """How a deployment of a service switches, and tests before that."""

    strategy: Literal["restart", "bridge"]
    test: DeployTest


class Service(_Model):
    """One service: a container of this stack, or one that runs elsewhere (`external`)."""

    unit: Text | None
    container: Text | None
    external: External | None
    image: Image | None
    port: Port | None
    publish: list[Publish]
    depends_on: list[ServiceName]
    wants: list[ServiceName]
    probe: Probe | None
    preflight: Preflight
    stack_environment: bool
    environment: dict[EnvKey, ContainerEnvValue]
    secrets: list[EnvKey]
    volumes: list[Text]
    command: list[str]
    user: Annotated[str, StringConstraints(pattern=r"^[0-9]+(:[0-9]+)?$")] | None
    resources: Resources
    hardening: Hardening
    devices: list[Text]
    extra_options: list[str]
    stop_timeout_seconds: SecondsOrZero
    rollback_policy: Literal["image", "system", "none"]
    deploy: Deploy

    @model_validator(mode="after")
    def _external_or_container(self) -> Self:
        own = {"unit": self.unit, "container": self.container, "image": self.image}
        if self.external is not None:
            extra = [name for name, value in own.items() if value is not None]
            if extra:
                raise ValueError(f"an external service has no {', '.join(extra)}")
        else:
            missing = [name for name, value in own.items() if value is None]
            if missing:
                raise ValueError(f"a service that is not external needs {', '.join(missing)}")
        return self


class Manifest(_Model):
    """The whole stack, as Nix rendered it."""

    schema_version: Literal[1]
    state_dir: AbsolutePath
    runtime_dir: AbsolutePath
    env_file: AbsolutePath
    network: Network
    startup: Startup
    self_healing: SelfHealing
    secret_rotation: SecretRotation
    rollback: Rollback
    environment: dict[EnvKey, EnvValue]
    environment_options: dict[EnvKey, Text]
    overridable: dict[EnvKey, Overridable]
    secrets: dict[EnvKey, Secret]
    services: dict[ServiceName, Service]

    @model_validator(mode="after")
    def _names_meet_their_definitions(self) -> Self:
        problems: list[str] = []
        for name, service in self.services.items():
            problems += _unit_problems(name, service)
            for key, names in (("dependsOn", service.depends_on), ("wants", service.wants)):
                problems += [
                    f"services.{name}.{key} names {target}, which is not a service"
                    for target in names
                    if target not in self.services
                ]
            problems += [
                f"services.{name}.dependsOn names {target}, which has no probe"
                for target in service.depends_on
                if target in self.services and self.services[target].probe is None
            ]
            keys = [*service.secrets]
            if service.probe is not None and service.probe.secret is not None:
                keys.append(service.probe.secret)
            problems += [
                f"services.{name} uses the secret {key}, which is not in secrets"
                for key in dict.fromkeys(keys)
                if key not in self.secrets
            ]
        problems += _environment_problems(self)
        problems += [f"secrets.{key} is also a key of environment" for key in self.secrets if key in self.environment]
        if not problems and (loop := find_cycle(self.services)):
            problems.append(f"services.{loop[0]}.dependsOn is a cycle: {' -> '.join(loop)}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def _environment_problems(manifest: Manifest) -> list[str]:
    """Say which keys have no option, and which overrides cannot be meant."""
    environment, options = manifest.environment, manifest.environment_options
    problems = [f"environmentOptions.{key} is missing" for key in environment if key not in options]
    problems += [f"environmentOptions.{key} is not a key of environment" for key in options if key not in environment]
    for key, entry in manifest.overridable.items():
        where = f"overridable.{key}"
        if key not in environment:
            problems.append(f"{where} is not a key of environment")
        if key not in entry.keys or any(manifest.overridable.get(other) != entry for other in entry.keys):
            problems.append(f"{where}.keys is not the same for all of them")
        if entry.type != "int" and (entry.min is not None or entry.max is not None):
            problems.append(f"{where} is no int and has a range")
        if entry.min is not None and entry.max is not None and entry.min > entry.max:
            problems.append(f"{where}.min is above its max")
    return problems


def _unit_problems(name: str, service: Service) -> list[str]:
    """Say where a service's unit, container or live tag is not the one its name gives."""
    if service.external is not None or service.image is None:
        return []
    expected = (
        ("unit", service.unit, f"podman-aistack-{name}.service"),
        ("container", service.container, f"aistack-{name}"),
        ("image.live", service.image.live, f"localhost/aistack/{name}:live"),
    )
    return [f"services.{name}.{key} is {found}, not {wanted}" for key, found, wanted in expected if found != wanted]


def find_cycle(services: dict[str, Service]) -> list[str]:
    """Return one cycle of hard dependencies, first name repeated at the end, or an empty list."""
    done: set[str] = set()
    for start in services:
        path: list[str] = []
        # Depth first without recursion: a manifest may be hostile, and the stack is bounded.
        stack: list[tuple[str, bool]] = [(start, False)]
        while stack:
            name, leaving = stack.pop()
            if leaving:
                path.pop()
                done.add(name)
                continue
            if name in path:
                return [*path[path.index(name) :], name]
            if name in done or name not in services:
                continue
            path.append(name)
            stack.append((name, True))
            stack.extend((target, False) for target in reversed(services[name].depends_on))
    return []


class _SchemaOfOurs(GenerateJsonSchema):
    """Adds the dialect, so that a validator needs not guess it."""

    def generate(self, schema: Any, mode: Any = "validation") -> dict[str, Any]:  # noqa: ANN401  (pydantic's own signature)
        return {"$schema": self.schema_dialect, **super().generate(schema, mode)}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the manifest."""
    schema = Manifest.model_json_schema(by_alias=True, schema_generator=_SchemaOfOurs)
    return {**schema, "title": "aistack manifest (stack.json)", "$comment": "version 1"}


# "services.redis.port", but without the parts pydantic adds for unions and validators.
_LOCATION_NOISE = re.compile(r"^(function-|constrained-|int$|float$|str$|list\[|literal\[)")


def _problem(error: Any) -> str:  # noqa: ANN401  (pydantic_core.ErrorDetails is a private name)
    """Return one problem as `services.redis.port: Input should be …`."""
    parts = [str(part) for part in error["loc"] if not _LOCATION_NOISE.match(str(part))]
    where = ".".join(parts)
    message = str(error["msg"]).removeprefix("Value error, ")
    return printable(f"{where}: {message}" if where else message)


def problems(text: str | bytes) -> list[str]:
    """Return everything that is wrong with a manifest's text, an empty list for a valid one."""
    try:
        Manifest.model_validate_json(text)
    except ValidationError as error:
        return list(dict.fromkeys(_problem(detail) for detail in error.errors()))
    return []


def load(path: Path) -> Manifest:
    """Read and validate the manifest at a path.

    Raises:
        ManifestError: it cannot be read, or is not a valid manifest; says all that is wrong.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"cannot read the manifest {path}", why=error.strerror or str(error)) from None
    try:
        return Manifest.model_validate_json(text)
    except ValidationError:
        raise ManifestError(
            f"the manifest {path} is not valid",
            why="; ".join(problems(text)),
            hint="render it again (nixos-rebuild switch, or bundle/install)",
        ) from None
