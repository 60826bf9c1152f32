"""The four ways to deploy, each in a guest of its own with the same releases and the same client."""

from __future__ import annotations

import json
import shlex
from abc import ABC, abstractmethod
from typing import Any

from fault import HERE, IMAGES, Fault, good
from guest.errors import GuestError
from lab import Lab

START_TIMEOUT = 8  # seconds that a release has to get ready, whoever waits for it
PROBATION = 25  # seconds that aistack's have to stay so
BUILDS = "/tmp/campaign/builds"  # in the guest
DATA = "/mnt/campaign"  # the app's volume: 8 MB, of its own user
GATEWAY = "localhost/campaign/gateway:1"
GATEWAY_PROGRAM = """from server import body, serve

if __name__ == "__main__":
    serve(lambda path: (200, body("ready")))
"""
PATIENCE = 60  # seconds for a command that may never end
COMMAND_TIMEOUT = 240  # seconds for one deployment
SERVICES = {"app": f"{IMAGES}/app:1", "redis": f"{IMAGES}/redis:1", "postgres": f"{IMAGES}/postgres:1"}
# How much memory the app may ask for; the guest's control groups may have no memory controller.
LIMIT = "data=1073741824"


class System(ABC):
    """A way to deploy, in a running guest."""

    name: str
    label: str

    def __init__(self, lab: Lab) -> None:
        """Begin with nothing started."""
        self.lab = lab

    def open(self) -> None:
        """Start the stack with the old release, and the client."""
        for name in ("client.py", "health", "safe-deploy"):
            self.lab.machine.copy_from_host(str(HERE / name), f"/root/campaign/{name}")
        self.lab.run(
            f"mkdir -p {DATA} {BUILDS} /run/campaign; "
            f"mount -t tmpfs -o size=8m,mode=0700,uid=1000,gid=1000 tmpfs {DATA}"
        )
        gateway = Fault(name="gateway", what="", sees="", exit_code=0, says="", program=GATEWAY_PROGRAM)
        self.lab.run(f"podman build --quiet --tag {GATEWAY} {self.put(gateway)}")
        self.start(self.put(good("old")))
        self.lab.run("systemd-run --quiet --unit=campaign-client python3 -I /root/campaign/client.py")

    def put(self, fault: Fault) -> str:
        """Write what is to be built into the guest; returns the directory."""
        folder = f"{BUILDS}/{fault.name}"
        self.lab.run(f"mkdir -p {folder}")
        for name, text in fault.files().items():
            self.lab.run(f"cat > {folder}/{name} <<'END'\n{text}\nEND")
        return folder

    def seen(self) -> dict[str, Any]:
        """What the client sees now: release, for_seconds, unavailable, asked."""
        found = json.loads(
            self.lab.machine.execute("until cat /run/campaign/seen.json; do sleep 0.05; done 2>&-", timeout=30)[1]
        )
        if not isinstance(found, dict):
            raise GuestError("the client wrote nonsense")
        return found

    def runs(self, service: str) -> str:
        """Which container of a service runs, and since when; empty if none does."""
        shown = "{{if .State.Running}}{{.Id}} {{.Image}} {{.State.StartedAt}}{{end}}"
        return self.lab.machine.execute(f"podman inspect --format '{shown}' {self.container(service)}")[1].strip()

    def command(self, line: str) -> tuple[int, str]:
        """Run a deployment; returns its exit code, and all it printed."""
        code, out = self.lab.machine.execute(f"{{ {line}; }} 2>&1", timeout=COMMAND_TIMEOUT)
        return code, out

    @abstractmethod
    def start(self, old: str) -> None:
        """Start everything; `old` is the directory of the app's old release."""

    @abstractmethod
    def container(self, service: str) -> str:
        """The name of a service's container."""

    @abstractmethod
    def deploy(self, fault: Fault, folder: str) -> tuple[int, str]:
        """Deploy; returns the exit code, and all that was printed."""

    @abstractmethod
    def reset(self, fault: Fault) -> None:
        """Have the old release back."""


class Aistack(System):
    """The whole reference stack."""

    name = "aistack"
    label = "aistack deploy"

    def start(self, old: str) -> None:
        """Start it with the app's probe as strict as the others', and a gateway that depends on the app."""
        lab = self.lab
        found = lab.call("manifest")
        found["rollback"]["probationSeconds"] = PROBATION
        app = found["services"]["app"]
        app["probe"].update(startTimeoutSeconds=START_TIMEOUT, intervalSeconds=2, failures=2)
        app["deploy"]["test"]["requests"] = [
            {
                "path": "/ready",
                "method": "GET",
                "headers": {},
                "body": None,
                "status": 200,
                "contains": ['"status": "ready"'],
            }
        ]
        app.update(user=None, volumes=[f"{DATA}:/data"], extraOptions=[f"--ulimit={LIMIT}"])
        for service in ("postgres", "redis"):
            found["services"][service]["probe"]["startTimeoutSeconds"] = START_TIMEOUT
        lab.call("put_manifest", found)
        lab.call("give_health_timer", 2)
        script = lab.run(
            f"systemctl show --property ExecStart {lab.call('unit', 'app')} | sed 's/.*path=\\([^ ]*\\) .*/\\1/'"
        ).strip()
        lab.run(
            f"sed -i '/^ *-u /d; s#^ *--read-only#  --ulimit={LIMIT} -v {DATA}:/data &#' {script}; "
            f"grep -q ulimit {script}; podman tag {SERVICES['app']} localhost/campaign/app:first"
        )
        lab.call("derive", {"gateway": {"dependsOn": ["app"], "image": {"ref": GATEWAY}}})
        # Everybody reads the one with the gateway, the command line too.
        derived = json.loads(lab.run("cat /var/lib/derived/stack.json"))
        lab.call("put_manifest", derived)
        lab.call("reset_manifest")
        lab.call("start_good_stack")
        lab.run("systemctl start aistack-health-2.timer podman-aistack-gateway.service")
        lab.call("set_timer", "aistack-bless@", PROBATION)
        code, out = self.command(f"aistack deploy app --build {old}")
        if code != 0:
            raise GuestError("the old release cannot be deployed", why=out)
        self.old = {service: lab.call("current", service)["id"] for service in SERVICES}

    def container(self, service: str) -> str:
        """As the manifest says."""
        return f"aistack-{service}"

    def deploy(self, fault: Fault, folder: str) -> tuple[int, str]:
        """As the manual says."""
        what = f"--image {shlex.quote(fault.image)}" if fault.image else f"--build {folder}"
        return self.command(f"aistack deploy {fault.service} {what}")

    def reset(self, fault: Fault) -> None:
        """Nothing, unless a release went through."""
        service = fault.service
        self.lab.run("systemctl reset-failed")
        if self.lab.call("current", service)["id"] != self.old[service]:
            self.lab.run(f"aistack rollback {service} --to {self.old[service]} --yes >&2")


class Plain(System):
    """What the others share: one directory of files, three containers and the gateway."""

    def start(self, old: str) -> None:
        """Make network, volumes and images."""
        self.lab.run(
            "mkdir -p /root/campaign/redis /root/campaign/postgres; chown 999:999 /root/campaign/{redis,postgres}; "
            "chmod 700 /root/campaign/postgres; podman network create --ignore local-ai; "
            f"podman network create --ignore test-network; podman build --quiet --tag localhost/campaign/app:old {old}"
        )
        for service in ("redis", "postgres"):
            self.lab.run(f"podman tag {SERVICES[service]} localhost/campaign/{service}:old")
        for service in SERVICES:
            self.lab.run(f"podman tag localhost/campaign/{service}:old localhost/campaign/{service}:live")

    @staticmethod
    def obtain(fault: Fault, folder: str) -> str:
        """A command that has the new image as `new`, or fails: what people do first whatever comes then."""
        new = f"localhost/campaign/{fault.service}:new"
        if not fault.image:
            return f"podman build --quiet --tag {new} {folder}"
        image = shlex.quote(fault.image)
        return f"podman tag $(podman images --quiet {image} | grep . || podman pull --quiet {image}) {new}"


class Plan(Plain):
    """The plan's script."""

    name = "plan"
    label = "the plan's script"

    def container(self, service: str) -> str:
        """As in the script."""
        return f"local-ai-{service}"

    def start(self, old: str) -> None:
        """Run each by hand."""
        super().start(old)
        for service in ("postgres", "redis", "app"):
            self._run(service)
        self.lab.run(
            f"podman run --detach --name {self.container('gateway')} --hostname gateway --network local-ai {GATEWAY}"
        )

    def _run(self, service: str) -> None:
        image = f"localhost/campaign/{service}:old"
        self.lab.run(
            f"podman run --detach --name {self.container(service)} --hostname {service} --network local-ai "
            f"--network-alias {service} {' '.join(_options(service))} {image} {' '.join(_arguments(service))}"
        )

    def deploy(self, fault: Fault, folder: str) -> tuple[int, str]:
        """The script builds, so an image is what it builds from."""
        if fault.image:
            self.lab.run(f"mkdir -p {folder}; echo FROM {fault.image} > {folder}/Containerfile")
        return self.command(f"/root/campaign/safe-deploy {fault.service} {folder}")

    def reset(self, fault: Fault) -> None:
        """Run the old one anew."""
        name = self.container(fault.service)
        self.lab.run(f"podman rm --force --ignore --time 0 {name} {name}-backup test-{fault.service} >&2")
        self._run(fault.service)


class Compose(Plain):
    """podman-compose."""

    name = "compose"
    label = "podman-compose up -d"

    def container(self, service: str) -> str:
        """As the file says."""
        return f"compose-{service}"

    def start(self, old: str) -> None:
        """Bring it up."""
        super().start(old)
        self._write({})
        self.lab.run("cd /root/campaign && podman-compose up -d >&2")

    def _write(self, images: dict[str, str]) -> None:
        self.lab.run(f"cat > /root/campaign/compose.yaml <<'END'\n{compose(images)}END")

    def deploy(self, fault: Fault, folder: str) -> tuple[int, str]:
        """Write the new image into the file, and bring it up."""
        code, out = self.command(self.obtain(fault, folder))
        if code != 0:
            return code, out
        self._write({fault.service: f"localhost/campaign/{fault.service}:new"})
        return self.command(f"cd /root/campaign && timeout {PATIENCE} podman-compose up -d")

    def reset(self, fault: Fault) -> None:
        """Bring all of it up anew."""
        del fault
        self._write({})
        self.lab.run("cd /root/campaign && podman-compose down -t 0 >&2; podman-compose up -d >&2")


class AutoUpdate(Plain):
    """podman auto-update with Quadlet."""

    name = "auto-update"
    label = "podman auto-update"

    def container(self, service: str) -> str:
        """As the file says."""
        return service

    def start(self, old: str) -> None:
        """Start the units."""
        super().start(old)
        self.lab.run("mkdir -p /etc/containers/systemd")
        for service in (*SERVICES, "gateway"):
            self.lab.run(f"cat > /etc/containers/systemd/{service}.container <<'END'\n{quadlet(service)}END")
        self.lab.run("systemctl daemon-reload; systemctl start gateway.service")

    def deploy(self, fault: Fault, folder: str) -> tuple[int, str]:
        """Let the name that the unit runs mean the new image, and update."""
        code, out = self.command(self.obtain(fault, folder))
        if code != 0:
            return code, out
        new, live = (f"localhost/campaign/{fault.service}:{tag}" for tag in ("new", "live"))
        return self.command(f"podman tag {new} {live} && podman auto-update --rollback")

    def reset(self, fault: Fault) -> None:
        """Start all of it with the old images."""
        old, live = (f"localhost/campaign/{fault.service}:{tag}" for tag in ("old", "live"))
        self.lab.run(
            f"podman tag {old} {live}; systemctl reset-failed; systemctl stop gateway app {fault.service}; "
            "systemctl start gateway.service"
        )


SYSTEMS: dict[str, type[System]] = {system.name: system for system in (Aistack, Plan, Compose, AutoUpdate)}


def _environment(service: str) -> dict[str, str]:
    if service == "postgres":
        return {"POSTGRES_USER": "mcp", "POSTGRES_DB": "aidb", "POSTGRES_PASSWORD": "campaign"}
    if service == "app":
        return {"POSTGRES_HOST": "postgres", "REDIS_HOST": "redis", "POSTGRES_PASSWORD": "campaign"}
    return {}


def _volumes(service: str) -> list[str]:
    return {
        "postgres": ["/root/campaign/postgres:/var/lib/postgresql/data"],
        "redis": ["/root/campaign/redis:/data"],
        "app": [f"{DATA}:/data", "/root/campaign/health:/health:ro"],
    }.get(service, [])


def _arguments(service: str) -> list[str]:
    return ["--appendonly", "yes"] if service == "redis" else []


def _health(service: str) -> str:
    """The peers' check."""
    port = {"postgres": 5432, "redis": 6379}.get(service, 8000)
    return "/health" if service == "app" else f"bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}'"


def _options(service: str) -> list[str]:
    options = [f"--env={key}={value}" for key, value in _environment(service).items()]
    options += [f"--volume={volume}" for volume in _volumes(service)]
    return [*options, "--publish=127.0.0.1:8000:8000", f"--ulimit={LIMIT}"] if service == "app" else options


def compose(images: dict[str, str]) -> str:
    """The compose file, with another image where `images` says so."""
    text = "services:\n"
    for service in (*SERVICES, "gateway"):
        image = GATEWAY if service == "gateway" else images.get(service, f"localhost/campaign/{service}:old")
        text += f"  {service}:\n    image: {image}\n    container_name: compose-{service}\n"
        text += f'    restart: unless-stopped\n    healthcheck:\n      test: "{_health(service)}"\n'
        text += "      interval: 1s\n      timeout: 2s\n      retries: 8\n"
        text += "".join(f"    environment:\n      {line}\n" for line in [_pairs(service)] if line)
        text += "".join(f"    volumes: {json.dumps(volumes)}\n" for volumes in [_volumes(service)] if volumes)
        text += "".join(f"    command: {json.dumps(words)}\n" for words in [_arguments(service)] if words)
        if service == "app":
            text += '    ports: ["127.0.0.1:8000:8000"]\n    ulimits:\n      data: 1073741824\n'
        needs = {"app": ["postgres", "redis"], "gateway": ["app"]}.get(service)
        text += f"    depends_on: {json.dumps(needs)}\n" if needs else ""
    return text


def _pairs(service: str) -> str:
    return "\n      ".join(f"{key}: {value}" for key, value in _environment(service).items())


def quadlet(service: str) -> str:
    """The unit: updated from the local storage, and started only when healthy."""
    needs = {"app": "postgres.service redis.service", "gateway": "app.service"}.get(service, "")
    image = GATEWAY if service == "gateway" else f"localhost/campaign/{service}:live"
    text = f"[Unit]\nStartLimitIntervalSec=0\nRequires={needs}\nAfter={needs}\n"
    text += f"[Container]\nImage={image}\nContainerName={service}\nNetwork=local-ai\nAutoUpdate=local\nNotify=healthy\n"
    text += f"HealthCmd={_health(service)}\nHealthInterval=1s\nHealthTimeout=2s\nHealthRetries={START_TIMEOUT}\n"
    text += "".join(f"Environment={key}={value}\n" for key, value in _environment(service).items())
    text += "".join(f"Volume={volume}\n" for volume in _volumes(service))
    text += "".join(f"Exec={' '.join(words)}\n" for words in [_arguments(service)] if words)
    if service == "app":
        text += f"PublishPort=127.0.0.1:8000:8000\nUlimit={LIMIT}\n"
    return f"{text}[Service]\nTimeoutStartSec={2 * START_TIMEOUT}\nTimeoutStopSec=5\nRestart=on-failure\n"
