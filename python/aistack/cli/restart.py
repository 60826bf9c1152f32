"""Restart a service, verify that it serves, and say what became of it where it does not.

A start that fails is handed to the service's rollback unit by systemd; what serves then is looked at here, not decided.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

from aistack.cli import output
from aistack.errors import ExitCode
from aistack.hooks import rollback, runtime
from aistack.hooks.errors import HookError
from aistack.hooks.overrides import in_words
from aistack.hooks.releases import BAD, PROBATION

if TYPE_CHECKING:
    from aistack.hooks.manifest import Manifest, Service
    from aistack.hooks.releases import Release, Store


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """How a restart ended; `serves` is the release that answers now, or None."""

    code: ExitCode
    message: str
    serves: Release | None = None
    seconds: float | None = None
    hint: str | None = None


def restart(manifest: Manifest, service: Service, store: Store, environment: dict[str, str]) -> Result:
    """Restart a service that is to run with `environment` then, and wait until that is so, or until something else is.

    Exit code 0 if it is, 7 if the service went back to another release, 8 if it does not serve.
    """
    output.note(f"aistack: restarting {service.unit}")
    began = time.monotonic()
    trouble = rollback.restart(manifest, service)
    serves = serving(manifest, service, store) if trouble is None else None
    if serves is None:
        serves = after_automatic_rollback(manifest, service, store)
    seconds = time.monotonic() - began
    if serves is None:
        declared = store.declared(service.name)
        found = why(manifest, store, declared, trouble or "its unit does not run")
        return Result(
            code=ExitCode.DOWN,
            message=f"DOWN: {found}",
            seconds=seconds,
            hint=f"aistack status {service.name}",
        )
    if serves.environment == environment:
        note = f", in probation for {manifest.probation:g} s" if serves.state == PROBATION else ""
        return Result(
            code=ExitCode.DONE, message=f"{serves} serves after {seconds:.1f} s{note}", serves=serves, seconds=seconds
        )
    failed = store.declared(service.name)
    if failed is None or failed.id == serves.id:
        # Its image could not be had, or somebody changed the environment once more.
        message = f"{serves} serves with {in_words(manifest, serves.environment, environment)}"
        return Result(
            code=ExitCode.ROLLED_BACK,
            message=message,
            serves=serves,
            seconds=seconds,
            hint=f"aistack status {service.name}",
        )
    found = why(manifest, store, failed, trouble or "another one runs")
    return Result(
        code=ExitCode.ROLLED_BACK,
        message=f"{failed} did not serve ({found}); {serves} serves",
        serves=serves,
        seconds=seconds,
        hint=f"aistack releases {service.name} --log {failed.id}",
    )


def why(manifest: Manifest, store: Store, release: Release | None, otherwise: str) -> str:
    """Say why a release does not serve: what the journal or the verdict knows beats what systemctl says."""
    if release is None:
        return otherwise
    recorded = store.get(release.service, release.id)
    if recorded is not None and recorded.state == BAD and recorded.reason:
        return recorded.reason
    verdict = runtime.read_verdict(manifest, release.service)
    found = verdict.get("reason") if verdict.get("phase") in {runtime.PREFLIGHT, runtime.NOT_READY} else None
    return str(found) if found else otherwise


def active(service: Service) -> bool:
    """Whether the service's unit runs."""
    return runtime.unit_states([service.unit]).get(service.unit, {}).get("ActiveState") == "active"


def after_automatic_rollback(manifest: Manifest, service: Service, store: Store) -> Release | None:
    """Wait for what systemd does about the failed start; return the release that serves then.

    A failed unit has its rollback unit started. Starting that unit once more joins the run that is
    under way, and so waits for its end.
    """
    # What that unit may do: ask the dependencies, then a whole series of starts of another release.
    bound = rollback.restart_bound(manifest, service) + runtime.SYSTEMCTL_TIMEOUT
    try:
        runtime.systemctl("start", f"aistack-rollback@{service.name}.service", timeout=bound)
    except HookError as error:
        output.note(f"aistack: {error}")
    return serving(manifest, service, store)


def serving(manifest: Manifest, service: Service, store: Store) -> Release | None:
    """Return the release that the running unit was started with, or None if it does not run."""
    if not active(service):
        return None
    started = runtime.read_verdict(manifest, service.name).get("release")
    return store.get(service.name, started) if isinstance(started, int) else None
