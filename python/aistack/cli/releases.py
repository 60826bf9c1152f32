"""`aistack releases`: what each service ran, and what became of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from aistack.cli import drift, output, stack
from aistack.cli.options import complete_container_service, json_option
from aistack.cli.status import permanent
from aistack.errors import UsageError
from aistack.hooks import runtime
from aistack.hooks.manifest import load
from aistack.hooks.overrides import differences, in_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aistack.hooks.manifest import Manifest
    from aistack.hooks.releases import Release, Store


_TOLERANCE = 2.0  # seconds; what setting a clock right may take away


@click.command("releases")
@click.argument("service", metavar="[SVC]", required=False, shell_complete=complete_container_service)
@click.option("--log", "log", type=int, metavar="N", help="Show why release N is bad, with its log.")
@json_option
def command(*, service: str | None, log: int | None, as_json: bool) -> None:
    """Show the releases of each service, or of one, newest first.

    The current release is marked with *: it is what runs, or what the next start will run. One
    that Nix declares but that does not run is marked with !.
    """
    manifest = load()
    if service is not None:
        manifest.container_service(service)
    stack.require_root(manifest, "aistack releases")
    if not stack.has_journal(manifest):
        if log is not None:
            raise _no_release(log, service, [])
        _show(manifest, [], [], as_json=as_json)
        return
    with stack.journal(manifest) as store:
        found = store.history(service)
        if log is None:
            _show(manifest, found, [_entry(manifest, store, release) for release in found], as_json=as_json)
            return
        release = next((release for release in found if release.id == log), None)
        if release is None:
            raise _no_release(log, service, found)
        _show_log(manifest, store, release, as_json=as_json)


def _no_release(number: int, service: str | None, found: Sequence[Release]) -> UsageError:
    whose = f" of {service}" if service is not None else ""
    known = ", ".join(str(release.id) for release in found) or "none"
    return UsageError(f"there is no release {number}{whose}", why=f"recorded are {known}")


def _entry(manifest: Manifest, store: Store, release: Release) -> dict[str, Any]:
    """Return a release for --json, with what its environment has other than a new one would."""
    service = manifest.services.get(release.service)
    should = runtime.public_environment(manifest, service) if service is not None else release.environment
    current, declared = store.current(release.service), store.declared(release.service)
    return {
        "id": release.id,
        "service": release.service,
        "state": release.state,
        "current": current is not None and current.id == release.id,
        "declared": declared is not None and declared.id == release.id,
        "deployed": release.deployed,
        "image_id": release.image_id,
        "image_ref": release.image_ref,
        "source": release.source,
        "created": output.rfc3339(release.created),
        "changed": output.rfc3339(release.changed),
        "reason": release.reason or None,
        "has_log": bool(release.log),
        "environment": release.environment,
        "environment_differs": drift.data(manifest, differences(release.environment, should)),
    }


def _show(manifest: Manifest, releases: Sequence[Release], entries: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        output.document({"manifest": manifest.path, "releases": list(entries)})
        return
    if not entries:
        output.note("aistack: no releases yet: the first start of a service records one")
        return
    output.table(
        ["service", "release", "state", "created", "image", "reference", "reason"],
        [
            [
                release.service,
                f"{release.id}{_mark(entry)}",
                release.state,
                output.local_time(release.created),
                release.image_id[:12],
                release.image_ref,
                release.reason or "-",
            ]
            for release, entry in zip(releases, entries, strict=True)
        ],
    )
    ahead = [str(release.id) for release in releases if release.created > time.time() + _TOLERANCE]
    if ahead:
        output.note(
            f"aistack: the clock was set back: created in the future, as it is now: release {', '.join(ahead)}; "
            "their order is right all the same"
        )
    for release, entry in zip(releases, entries, strict=True):
        service = manifest.services.get(release.service)
        if entry["current"] and entry["deployed"]:
            output.line(f"{release.service}: {release} was deployed: {permanent(release)}")
        if entry["current"] and entry["environment_differs"] and service is not None:
            words = in_words(manifest, release.environment, runtime.public_environment(manifest, service))
            output.line(f"{release.service}: release {release.id} has {words}")


def _mark(entry: dict[str, Any]) -> str:
    if entry["current"]:
        return " *"
    return " !" if entry["declared"] else ""


def _show_log(manifest: Manifest, store: Store, release: Release, *, as_json: bool) -> None:
    if as_json:
        output.document({"release": {**_entry(manifest, store, release), "log": release.log}})
        return
    output.line(f"{release.service} release {release.id}: {release.state}")
    output.line(f"reason: {release.reason or '-'}")
    for text in release.log.splitlines():
        output.line(text)
    if not release.log:
        output.note("aistack: this release has no log: only a bad one keeps the end of it")
