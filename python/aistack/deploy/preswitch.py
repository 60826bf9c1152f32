"""Before a NixOS generation is activated: every image that it changes is looked into and tested in isolation.

Called by `system.preSwitchChecks` with the incoming system's path. What fails refuses the switch while the old system
serves. What was good before needs no test, and where nothing serves yet there is nothing to protect.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from aistack.deploy import checks, image
from aistack.deploy.failure import Refused, TestFailed
from aistack.deploy.trial import Trial, hindrance
from aistack.hooks import deploy_lock, recover, runtime, start_pre
from aistack.hooks.deploys import INCOMING, Deploys
from aistack.hooks.errors import HookError
from aistack.hooks.releases import BAD, GOOD, fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable

    from aistack.hooks.manifest import Manifest, Service
    from aistack.hooks.releases import Store


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found out about one service of the incoming generation; `ok` is None where it was not tested."""

    service: str
    ok: bool | None
    line: str
    detail: list[str] = dataclasses.field(default_factory=list)


def test(incoming: Manifest, store: Store, *, wait: float, say: Callable[[str], None]) -> list[Finding]:
    """Test what a generation changes. Raises HookError, exit code 4, when a deployment does not end within `wait` s."""
    with deploy_lock.acquire(incoming, "aistack preswitch", wait):
        for found in recover.resolve(incoming, store):
            say(found.line)
        attempt = Deploys(store).begin(INCOMING, incoming.path, "restart")
        try:
            findings, changed = _changed(incoming, store)
            for service, identifier in changed.items():
                say(f"{service}: testing the image that the incoming generation declares")
                findings.append(_tested(incoming, store, attempt.id, service, changed, identifier, say))
        finally:
            recover.sweep(incoming, store)
            Deploys(store).forget(attempt)
    return findings


def _changed(incoming: Manifest, store: Store) -> tuple[list[Finding], dict[str, str]]:
    """What need not be tested, or cannot be; and the images of what has to be."""
    names = runtime.images()
    findings: list[Finding] = []
    changed: dict[str, str] = {}
    for name, service in incoming.services.items():
        if service.external or not store.good(name):
            continue
        try:
            identifier = start_pre.declared_image(service, store, names)
        except HookError as error:
            line = f"its image {service.image_ref} cannot be had: {error}"
            findings.append(Finding(service=name, ok=False, line=line))
            continue
        environment = runtime.public_environment(incoming, service)
        known = store.by_fingerprint(name, fingerprint(identifier, environment, service.identity))
        if known is not None and known.state == GOOD:
            continue
        if known is not None and known.state == BAD:
            line = f"{known} was bad before ({known.reason}): what runs now runs on"
            findings.append(Finding(service=name, ok=None, line=line))
            continue
        changed[name] = identifier
    return findings, changed


def _tested(  # noqa: PLR0917  (all of one test)
    incoming: Manifest,
    store: Store,
    number: int,
    name: str,
    changed: dict[str, str],
    identifier: str,
    say: Callable[[str], None],
) -> Finding:
    service = incoming.services[name]
    environment = runtime.public_environment(incoming, service)
    try:
        candidate = image.inspect(identifier, service.image_ref)
        found = checks.check(incoming, service, candidate, environment, number)
        if found.problems:
            return Finding(service=name, ok=False, line="; ".join(found.problems), detail=found.problems)
        why_not = hindrance(incoming, service)
        if why_not is not None:
            return Finding(service=name, ok=None, line=f"not tested: {why_not}")
        Trial(
            incoming,
            service,
            store,
            deployment=number,
            image=identifier,
            environment=environment,
            say=lambda text: say(f"{name}: {text}"),
            others={other: (changed[other], _environment(incoming, other)) for other in changed if other != name},
        ).run()
    except (Refused, TestFailed) as error:
        return Finding(service=name, ok=False, line=error.message, detail=error.detail)
    except HookError as error:
        return Finding(service=name, ok=False, line=str(error))
    return Finding(service=name, ok=True, line=f"image {identifier[:12]} passed its isolated test")


def _environment(incoming: Manifest, name: str) -> dict[str, str]:
    service: Service = incoming.services[name]
    return runtime.public_environment(incoming, service)
