"""The isolated test: the candidate beside throw-away copies of what it depends on, where it can touch nothing real.

An internal network of its own, in which the copies have the services' own names; their last good images, the same
environment and secrets, and empty volumes in memory. The same probe that decides a start decides here, and then the
service's contract (`deploy.test.requests`, `deploy.test.openapi`). Whatever happens, `aistack.hooks.recover.sweep`
removes it all.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
import time
from typing import TYPE_CHECKING, Any

from aistack.deploy import container, contract
from aistack.deploy.failure import TestFailed
from aistack.errors import printable
from aistack.hooks import await_ready, probe, runtime
from aistack.hooks.errors import HookError
from aistack.hooks.recover import LABEL, TRIALS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aistack.hooks.manifest import Manifest, Service
    from aistack.hooks.releases import Store

_SHOWN_LINES = 15  # of the candidate's log, with a failure
_SOAK_PAUSE = 0.25  # seconds between two looks while it has to stay ready
_MARGIN = 120.0  # seconds by which a container outlives the test at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passed:
    """A candidate that passed: seconds until it was ready, and the contract's checks."""

    ready_seconds: float
    checks: list[str]


def hindrance(manifest: Manifest, service: Service) -> str | None:
    """Why a service cannot be tested in isolation, in words; None if it can."""
    if service.probe is None:
        return f"it has no probe (services.aistack.services.{service.name}.health), so nobody can tell whether it works"
    needed = [manifest.services[name] for name in _closure(manifest, service)]
    for other in (service, *needed):
        if other.external:
            return f"it needs {other.name}, which is external: a copy of it is not to be had"
        option = container.misplaced(other)
        if option is not None:
            return f"services.aistack.services.{other.name}.extraOptions has {printable(option, 80)}"
    return None


def _closure(manifest: Manifest, service: Service) -> list[str]:
    """The hard dependencies, direct or not, each after those that it needs itself."""
    found: list[str] = []

    def add(name: str) -> None:
        if name not in found:
            for other in manifest.services[name].depends_on:
                add(other)
            found.append(name)

    for name in service.depends_on:
        add(name)
    return found


class Trial:
    """One isolated test; `run` does it, and cleans up after itself."""

    def __init__(
        self,
        manifest: Manifest,
        service: Service,
        store: Store,
        *,
        deployment: int,
        image: str,
        environment: dict[str, str],
        say: Callable[[str], None],
        others: Mapping[str, tuple[str, dict[str, str]]] | None = None,
    ) -> None:
        """`image` is the candidate's id, `environment` its own without secrets, `say` is told what is being done.

        `others` are the image and environment of what it depends on, where those are not the last good ones.
        """
        self._others = others or {}
        self._settings: dict[str, Any] = service.raw["deploy"]["test"]
        self._live = manifest
        self._store = store
        self._deployment = deployment
        self._image = image
        self._environment = environment
        self._say = say
        self._network = f"aistack-trial-{deployment}"
        self._manifest = self._copied(manifest, [service.name, *_closure(manifest, service)])
        self._service = self._manifest.services[service.name]
        starts = sum(s.probe.start_timeout for s in self._manifest.services.values() if s.probe is not None)
        self._lifetime = starts + self._settings["soakSeconds"] + self._settings["timeoutSeconds"] + _MARGIN

    def _copied(self, manifest: Manifest, names: list[str]) -> Manifest:
        """The manifest of a stack of these services alone, in its own network and folder."""
        found = copy.copy(manifest)
        found.network = self._network
        found.runtime_dir = os.path.join(manifest.runtime_dir, TRIALS, str(self._deployment))
        found.services = {}
        for name in names:
            service = copy.copy(manifest.services[name])
            service.container = f"aistack-trial-{self._deployment}-{name}"
            service.unit = ""
            found.services[name] = service
        return found

    def run(self) -> Passed:
        """Test the candidate.

        Raises:
            TestFailed: it did not pass, or what it needs could not be had; says what was seen of it.
        """
        began = time.monotonic()
        try:
            self._prepare()
            for layer in self._layers():
                self._bring_up(layer)
            self._say(f"starting the candidate beside {', '.join(_closure(self._live, self._service)) or 'nothing'}")
            ready = self._candidate()
            self._soak()
            checks = self._contract()
        except HookError as error:
            if isinstance(error, TestFailed):
                raise
            raise TestFailed(f"the isolated test could not be made: {error}") from None
        finally:
            self.clean_up()
        self._say(f"took {time.monotonic() - began:.1f} s")
        return Passed(ready_seconds=ready, checks=checks)

    def clean_up(self) -> None:
        """Remove all that the test made; what cannot be removed now is removed by the next recovery."""
        for service in self._manifest.services.values():
            runtime.run(
                ["podman", "rm", "--force", "--ignore", "--time", "0", service.container], runtime.PODMAN_TIMEOUT
            )
        runtime.run(["podman", "network", "rm", "--force", self._network], runtime.PODMAN_TIMEOUT)
        shutil.rmtree(self._manifest.runtime_dir, ignore_errors=True)

    def _prepare(self) -> None:
        runtime.podman("network", "create", "--internal", f"--label={LABEL}={self._deployment}", self._network)
        (found,) = json.loads(runtime.podman("network", "inspect", self._network))
        self._manifest.gateway = found["subnets"][0]["gateway"]
        os.makedirs(self._manifest.runtime_dir, mode=0o700, exist_ok=True)

    def _layers(self) -> list[list[Service]]:
        """What it depends on, in groups that can start at the same time."""
        waiting = [self._manifest.services[name] for name in _closure(self._live, self._service)]
        done: set[str] = set()
        layers: list[list[Service]] = []
        while waiting:
            layer = [service for service in waiting if done.issuperset(service.depends_on)]
            layers.append(layer)
            done.update(service.name for service in layer)
            waiting = [service for service in waiting if service.name not in done]
        return layers

    def _bring_up(self, layer: list[Service]) -> None:
        for service in layer:
            if service.name in self._others:
                self._start(service, *self._others[service.name])
                continue
            release = self._store.current(service.name)
            if release is None or not release.proven:
                release = self._store.last_good(service.name) or release
            if release is None:
                raise TestFailed(
                    f"{service.name}, which it needs, was never started: there is no image to make a copy of"
                )
            self._start(service, release.image_id, release.environment)
        for service in layer:
            process = container.monitor(service.container)
            result = await_ready.wait(self._manifest, service, process)
            if not result.ok:
                seen = container.look(service.container)
                raise TestFailed(
                    f"the copy of {service.name}, which it needs, did not get ready ({result.kind}: {result.detail})",
                    hint=f"is the real one well? aistack status {service.name}",
                    detail=_last(seen.log),
                )

    def _start(self, service: Service, image: str, environment: dict[str, str]) -> None:
        runtime.write_environment(self._manifest, service, environment)
        container.run(
            service,
            image=image,
            deployment=self._deployment,
            networks=[self._network],
            alias=service.name,
            runtime_dir=self._manifest.runtime_dir,
            mounts=_mounts(service, self._live.state_dir),
            lifetime=self._lifetime,
        )

    def _candidate(self) -> float:
        service = self._service
        began = time.monotonic()
        try:
            self._start(service, self._image, self._environment)
        except HookError as error:
            raise TestFailed(f"podman cannot start it: {error}") from None
        result = await_ready.wait(self._manifest, service, container.monitor(service.container))
        spent = time.monotonic() - began
        if not result.ok:
            raise self._failed(result, f"was not ready within {spent:.1f} s")
        return spent

    def _soak(self) -> None:
        """Let it show that it stays ready."""
        seconds = float(self._settings["soakSeconds"])
        self._say(f"ready; has to stay so for {seconds:g} s")
        deadline = time.monotonic() + seconds
        password = runtime.probe_password(self._manifest, self._service)
        while time.monotonic() < deadline:
            time.sleep(_SOAK_PAUSE)
            result = probe.ask(self._manifest, self._service, password)
            if not result.ok:
                raise self._failed(result, "was ready, and is not any more")

    def _contract(self) -> list[str]:
        found = contract.check(self._manifest, self._service, self._settings)
        failed = [check for check in found if not check.ok]
        if failed:
            seen = container.look(self._service.container)
            raise TestFailed(
                f"it does not keep its contract: {'; '.join(check.line for check in failed)}",
                hint=f"services.aistack.services.{self._service.name}.deploy.test says what is expected",
                detail=_last(seen.log),
                evidence={"contract": [check.line for check in found], **seen.data()},
            )
        return [check.line for check in found]

    def _failed(self, result: probe.Result, what: str) -> TestFailed:
        seen = container.look(self._service.container)
        return TestFailed(
            f"the candidate {what}: {explain(self._service, result, seen)}",
            detail=_last(seen.log),
            evidence={"probe": {"kind": result.kind, "detail": result.detail}, **seen.data()},
        )


def explain(service: Service, result: probe.Result, seen: container.Seen) -> str:
    """Say why a container is not ready, from what its probe found and what is to be seen of it."""
    last = _last_words(seen.log)
    said = f"; last it said: {last}" if last else ""
    if seen.out_of_memory:
        return f"it was killed for want of memory{said}"
    if not seen.running:
        return f"it ended with exit code {seen.exit_code}{said}"
    port = service.probe.port or service.port if service.probe is not None else service.port
    if result.kind == probe.REFUSED and port is not None:
        own = [place for place in seen.listening if place.rpartition(":")[2] == str(port)]
        if own:
            places = ", ".join(own)
            return f"it listens on {places} only, which nobody else reaches: it has to listen on 0.0.0.0:{port}{said}"
        others = [place for place in seen.listening if not place.startswith("127.0.0.11:")]
        if others:
            return f"it listens on {', '.join(others)}, not on port {port}{said}"
        return f"it listens nowhere, and should on port {port}{said}"
    return f"{result.kind}: {result.detail}{said}"


def _last(log: str) -> list[str]:
    return [printable(line, 300) for line in log.strip().splitlines()[-_SHOWN_LINES:]]


def _last_words(log: str) -> str:
    lines = [line for line in log.strip().splitlines() if line.strip()]
    return printable(lines[-1], 200) if lines else ""


def _mounts(service: Service, state_dir: str) -> list[str]:
    """The service's volumes: what it may only read as it is, everything else empty and in memory."""
    found = []
    for volume in service.volumes:
        source, target, *options = volume.split(":")
        read_only = bool(options) and "ro" in options[0].split(",")
        if read_only and source.startswith("/") and not source.startswith(f"{state_dir}/volumes/"):
            found.append(f"--volume={volume}")
        else:
            found.append(f"--mount=type=tmpfs,dst={target},tmpfs-mode=0700,U=true")
    return found
