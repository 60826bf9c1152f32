"""A host with a stack on it, in one directory: manifest, journal, verdicts, and stand-ins for programs.

Only systemctl, podman and journalctl are stand-ins (small executables on PATH, which answer from
files); SQLite, sockets, files and the command line itself are real.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

from aistack.hooks import runtime
from aistack.hooks.manifest import load
from aistack.hooks.releases import Release, Store

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

Document = dict[str, Any]

# Answers from files below $FAKE_HOST and writes down how it was called.
_SYSTEMCTL = r"""#!/bin/sh
printf 'systemctl %s\n' "$*" >> "$FAKE_HOST/calls"
verb=$1
case $verb in
show)
  while [ "$1" != -- ]; do shift; done
  shift
  for unit in "$@"; do
    if [ -f "$FAKE_HOST/units/$unit" ]; then cat "$FAKE_HOST/units/$unit"
    else printf 'Id=%s\nLoadState=loaded\nActiveState=inactive\nSubState=dead\nResult=success\n' "$unit"
    fi
    echo
  done ;;
*)
  for last in "$@"; do :; done
  if [ -x "$FAKE_HOST/on/$verb/$last" ]; then exec "$FAKE_HOST/on/$verb/$last"; fi ;;
esac
"""
_PODMAN = r"""#!/bin/sh
printf 'podman %s\n' "$*" >> "$FAKE_HOST/calls"
case "$1 $2" in
"image list") cat "$FAKE_HOST/images" ;;
"image inspect") exit 1 ;;
"container inspect") cat "$FAKE_HOST/containers" ;;
exec*) if [ -f "$FAKE_HOST/not-ready" ]; then echo 'not yet'; exit 1; fi ;;
esac
"""
_JOURNALCTL = """#!/bin/sh
printf 'journalctl %s\\n' "$*" >> "$FAKE_HOST/calls"
[ ! -f "$FAKE_HOST/journal" ] || cat "$FAKE_HOST/journal"
"""


def service(name: str, **changes: Any) -> Document:  # noqa: ANN401  (any JSON value)
    """Return the manifest entry of a container without probe, with some keys changed."""
    entry: Document = {
        "unit": f"podman-aistack-{name}.service",
        "container": f"aistack-{name}",
        "external": None,
        "image": {
            "ref": f"registry.example/{name}:1",
            "archive": None,
            "stream": None,
            "live": f"localhost/aistack/{name}:live",
            "pullTimeoutSeconds": 900,
        },
        "port": None,
        "publish": [],
        "dependsOn": [],
        "wants": [],
        "probe": None,
        "preflight": {"files": [], "freeDisk": [], "devices": []},
        "stackEnvironment": True,
        "environment": {},
        "secrets": [],
        "volumes": [],
        "command": [],
        "user": None,
        "resources": {"memory": None, "cpus": None, "pids": None},
        "hardening": {
            "noNewPrivileges": True,
            "capDrop": [],
            "capAdd": [],
            "readOnly": False,
            "tmpfs": [],
        },
        "devices": [],
        "extraOptions": [],
        "stopTimeoutSeconds": 10,
        "rollbackPolicy": "image",
        "deploy": {
            "strategy": "restart",
            "test": {"soakSeconds": 0, "timeoutSeconds": 5, "requests": [], "openapi": None},
        },
    }
    return {**entry, **changes}


def probe(kind: str, port: int | None, **changes: Any) -> Document:  # noqa: ANN401  (any JSON value)
    """Return a probe of the manifest that is quick to give up, with some keys changed."""
    return {
        "kind": kind,
        "port": port,
        "path": "/" if kind == "http" else None,
        "expect": None,
        "user": None,
        "database": None,
        "secret": None,
        "command": None,
        "intervalSeconds": 5,
        "timeoutSeconds": 0.5,
        "failures": 3,
        "startTimeoutSeconds": 2,
        **changes,
    }


def external(port: int, kind: str = "tcp", **changes: Any) -> Document:  # noqa: ANN401  (any JSON value)
    """Return the manifest entry of a service that runs elsewhere: on this machine's loopback."""
    entry = service(
        "elsewhere",
        unit=None,
        container=None,
        image=None,
        external={"host": "127.0.0.1", "port": port},
        port=port,
        probe=probe(kind, port),
    )
    return {**entry, **changes}


def manifest(root: Path, services: Document) -> Document:
    """Return a whole manifest whose directories are below `root`."""
    return {
        "schemaVersion": 1,
        "stateDir": str(root / "state"),
        "runtimeDir": str(root / "run"),
        "envFile": str(root / ".env"),
        "network": {
            "name": "local-ai",
            "subnet": "10.89.100.0/24",
            "gateway": "127.0.0.1",
            "interface": "aistack0",
            "dns": True,
        },
        "startup": {"dependencyCheck": True, "timeoutSeconds": 1},
        "selfHealing": {"enable": False, "maxRestarts": 3, "windowSeconds": 3600, "backoffSeconds": 10},
        "secretRotation": {"enable": True},
        "rollback": {"policy": "image", "retain": 5, "probationSeconds": 60},
        "environment": {"REDIS_HOST": "redis"},
        "environmentOptions": {"REDIS_HOST": "services.aistack.services.redis.external.host"},
        "overridable": {},
        "secrets": {},
        "services": copy.deepcopy(services),
    }


@dataclasses.dataclass
class Answer:
    """What a run of the command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401  (any JSON value)
        """The document on standard output."""
        return json.loads(self.out)


@dataclasses.dataclass
class FakeHost:
    """The host; `run` runs the command line on it in this process."""

    root: Path
    capsys: pytest.CaptureFixture[str]
    document: Document

    @property
    def manifest_path(self) -> Path:
        """Where the manifest is."""
        return self.root / "stack.json"

    @property
    def journal_path(self) -> Path:
        """Where the releases are."""
        return self.root / "state" / "releases.db"

    def declare(self, services: Document, **changes: Any) -> None:  # noqa: ANN401  (any JSON value)
        """Install a manifest with these services, and every unit inactive."""
        self.document = {**manifest(self.root, services), **changes}
        self.manifest_path.write_text(json.dumps(self.document))

    def run(self, *arguments: str) -> Answer:
        """Run the command line."""
        from aistack.cli.app import run

        self.capsys.readouterr()
        code = run(arguments)
        out, err = self.capsys.readouterr()
        return Answer(code, out, err)

    def unit(self, name: str, active: str, **properties: str) -> None:
        """Let systemd say this of a service's unit."""
        self._write_unit(self.root / "units", f"podman-aistack-{name}.service", active, properties)

    def rollback_unit(self, name: str, active: str) -> None:
        """Let systemd say this of a service's rollback unit."""
        self._write_unit(self.root / "units", f"aistack-rollback@{name}.service", active, {})

    def retry_timer(self, name: str, active: str) -> None:
        """Let systemd say this of the timer that starts a failed service again."""
        self._write_unit(self.root / "units", f"aistack-retry@{name}.timer", active, {})

    @staticmethod
    def _write_unit(folder: Path, unit: str, active: str, properties: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        sub = {"active": "running", "failed": "failed", "inactive": "dead"}.get(active, active)
        fields = {
            "Id": unit,
            "LoadState": "loaded",
            "ActiveState": active,
            "SubState": sub,
            "Result": "exit-code" if active == "failed" else "success",
            **properties,
        }
        text = "".join(f"{key}={value}\n" for key, value in fields.items())
        (folder / unit).write_text(text)

    def verdict(self, name: str, **fields: Any) -> None:  # noqa: ANN401  (any JSON value)
        """Write what the last step of a start found."""
        folder = self.root / "run" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "verdict.json").write_text(json.dumps({"schemaVersion": 1, **fields}))

    def when(self, verb: str, unit: str, *, service: str, active: str, release: int | None, code: int = 0) -> None:
        """Let `systemctl VERB UNIT` leave a service's unit in a state, started with a release."""
        after = self.root / "after" / verb / unit
        self._write_unit(after, f"podman-aistack-{service}.service", active, {})
        phase = "ready" if active == "active" else "not-ready"
        verdict = {"schemaVersion": 1, "phase": phase, "release": release, "reason": "as arranged"}
        (after / "verdict.json").write_text(json.dumps(verdict))
        (self.root / "run" / service).mkdir(parents=True, exist_ok=True)
        script = self.root / "on" / verb / unit
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(
            "#!/bin/sh\n"
            f"cp '{after}/podman-aistack-{service}.service' '{self.root}/units/'\n"
            f"cp '{after}/verdict.json' '{self.root}/run/{service}/verdict.json'\n"
            f"[ {code} = 0 ] || echo 'Job for {unit} failed.' >&2\n"
            f"exit {code}\n"
        )
        script.chmod(0o755)

    def journal(self, text: str) -> None:
        """Let the journal answer every question with this."""
        (self.root / "journal").write_text(text + "\n")

    def images(self, *identifiers: str) -> None:
        """Let podman have these images, each under a name of its own."""
        lines = [f"localhost/kept/{number}:1\t{i}\n" for number, i in enumerate(identifiers)]
        (self.root / "images").write_text("".join(lines))

    def calls(self) -> list[str]:
        """Return how systemctl, podman and journalctl were called so far."""
        path = self.root / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def environment(self, name: str) -> dict[str, str]:
        """Return what a release of a service remembers of its environment, if it were made now."""
        manifest = load(str(self.manifest_path))
        return runtime.public_environment(manifest, manifest.service(name)) if name in manifest.services else {}

    def release(self, name: str, number: int, state: str, *, reason: str = "", log: str = "") -> Release:
        """Record a release whose image is `number` repeated, make it current, and give it a state."""
        store = Store.open(str(self.journal_path))
        try:
            reference = f"registry.example/{name}:{number}"
            release = store.declare(name, image(number), reference, self.environment(name), {"number": number})
            if state in {"probation", "good"}:
                store.probation(release)
            if state == "good":
                store.bless(release)
            if state == "bad":
                store.condemn(release, reason, log, store.last_good(name, release))
            return release
        finally:
            store.close()


def image(number: int) -> str:
    """Return the image id of the release that was recorded with a number."""
    return f"{number:064x}"


def make(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> FakeHost:
    """Return a host without services below `root`, and make this process see it."""
    programs = root / "fake-programs"
    programs.mkdir()
    for name, text in (
        ("systemctl", _SYSTEMCTL),
        ("podman", _PODMAN),
        ("journalctl", _JOURNALCTL),
    ):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (root / "units").mkdir()
    (root / "images").write_text("")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_HOST", str(root))
    monkeypatch.setenv("AISTACK_MANIFEST", str(root / "stack.json"))
    monkeypatch.delenv("AISTACK_DEBUG", raising=False)
    host = FakeHost(root, capsys, {})
    host.declare({})
    return host


class Server:
    """A TCP server on a loopback port that answers every connection with the same bytes."""

    def __init__(self, answer: bytes = b"") -> None:
        """Listen at once, so that `port` is known and answers."""
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self._socket.accept()
            except OSError:
                return  # closed
            with link:
                if self._answer:
                    link.recv(4096)
                    link.sendall(self._answer)

    def close(self) -> None:
        """Stop listening: the port refuses connections from now on."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


def free_port() -> int:
    """Return a port of the loopback on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
