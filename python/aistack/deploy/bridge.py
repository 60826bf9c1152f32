"""A second container that answers under the service's name while its unit restarts, so that no client notices.

For services without data of their own (`deploy.strategy = "bridge"`). It joins the stack's network under a name nobody
asks for, gets the service's name when it is ready, and leaves when the unit serves again. Clients that try every
address of a name, as libc and most libraries do, never meet a closed door.
"""

from __future__ import annotations

import contextlib
import copy
import os
import select
import shutil
import time
from typing import TYPE_CHECKING

from aistack.deploy import container
from aistack.hooks import aardvark, await_ready, recover, runtime
from aistack.hooks.errors import HookError

if TYPE_CHECKING:
    from aistack.hooks.manifest import Manifest, Service

_MARGIN = 300.0  # seconds that the bridge outlives a restart at most
_KNOWN = 5.0  # seconds for a name to be known after it was given
_GRACE = 1.0  # seconds between a container's last lookup and its end: for requests that are under way


class Bridge:
    """One bridge: `build` it before the restart, `remove` it afterwards."""

    def __init__(
        self, manifest: Manifest, service: Service, *, deployment: int, image: str, environment: dict[str, str]
    ) -> None:
        """`image` is the candidate's id, `environment` its own without secrets."""
        self._live = manifest
        self._manifest = copy.copy(manifest)
        self._manifest.runtime_dir = os.path.join(manifest.runtime_dir, recover.TRIALS, f"bridge-{deployment}")
        self._name = service.name
        self._service = copy.copy(service)
        self._service.container = f"aistack-bridge-{deployment}-{service.name}"
        # Its probe asks for the container itself, not for whoever has the service's name.
        self._asked = copy.copy(self._service)
        self._asked.name = self._service.container
        self._deployment = deployment
        self._image = image
        self._environment = environment
        self._taken_from = ""

    def build(self, lifetime: float) -> None:
        """Let it answer under the service's name. Raises HookError, and leaves nothing, if it does not get ready."""
        try:
            os.makedirs(self._manifest.runtime_dir, mode=0o700, exist_ok=True)
            runtime.write_environment(self._manifest, self._service, self._environment)
            container.run(
                self._service,
                image=self._image,
                deployment=self._deployment,
                networks=[self._live.network],
                alias=None,
                runtime_dir=self._manifest.runtime_dir,
                mounts=[f"--volume={volume}" for volume in self._service.volumes],
                lifetime=lifetime + _MARGIN,
            )
            self._wait("did not get ready on the stack's network")
            # A name can only be given to a container that joins.
            runtime.podman("network", "disconnect", self._live.network, self._service.container)
            runtime.podman("network", "connect", f"--alias={self._name}", self._live.network, self._service.container)
            self._wait("was not ready any more when it had the service's name")
            self._wait_for_name()
        except HookError:
            self.remove(gently=False)
            raise

    def _wait(self, what: str) -> None:
        result = await_ready.wait(self._manifest, self._asked, container.monitor(self._service.container))
        if not result.ok:
            from aistack.deploy.trial import explain

            seen = container.look(self._service.container)
            raise HookError(f"the bridge {what}: {explain(self._service, result, seen)}")

    def _wait_for_name(self) -> None:
        deadline = time.monotonic() + _KNOWN
        own = set(container.addresses(self._service.container, self._live))
        while not own & set(container.addresses(self._name, self._live)):
            if time.monotonic() > deadline:
                raise HookError(f"the bridge has no address under the name {self._name}: aistack network check")
            time.sleep(0.02)

    def take_over(self) -> None:
        """Take the service's name from the container that is about to end, and let it finish what it does.

        Raises HookError.
        """
        own = self._live.services[self._name].container
        self._taken_from = _identifier(own)
        forget(self._live, self._name, own)

    def remove(self, *, gently: bool) -> None:
        """Take the name from it, let it finish what it does, and remove it. What fails is left to the next recovery."""
        if gently:
            with contextlib.suppress(HookError):
                forget(self._live, self._name, self._service.container)
        grace = int(self._service.stop_timeout) if gently else 0
        runtime.run(
            ["podman", "rm", "--force", "--ignore", "--time", str(grace), self._service.container],
            runtime.PODMAN_TIMEOUT + grace,
        )
        shutil.rmtree(self._manifest.runtime_dir, ignore_errors=True)
        with contextlib.suppress(HookError):
            service = self._live.services[self._name]
            if self._taken_from and _identifier(service.container) == self._taken_from:
                # The restart never came.
                recover.give_name_back(self._live, service)


def _identifier(container_name: str) -> str:
    """The id of a container. Raises HookError if there is none."""
    return runtime.podman("container", "inspect", "--format", "{{.Id}}", container_name).strip()


def forget(manifest: Manifest, name: str, container_name: str) -> None:
    """Let nobody find a container any more, and wait until requests that are under way have had their time.

    Its names are taken from the name server alone: taking the container off the network would cut its connections.
    Raises HookError.
    """
    identifier = _identifier(container_name)
    own = set(container.addresses(container_name, manifest))
    aardvark.forget(manifest.network, {identifier})
    deadline = time.monotonic() + _KNOWN
    while own & set(container.addresses(name, manifest)) and time.monotonic() < deadline:
        time.sleep(0.02)
    descriptor = container.monitor(container_name)
    if descriptor is not None and descriptor >= 0:
        # Until it ends by itself, if it does so sooner.
        select.select([descriptor], [], [], _GRACE)
        os.close(descriptor)
