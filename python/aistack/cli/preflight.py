"""`aistack preflight`: every check of a start, now, without starting anything."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from aistack.cli import output, stack
from aistack.cli.options import json_option, services_argument
from aistack.errors import ExitCode
from aistack.hooks import preflight, probe, runtime
from aistack.hooks.errors import HookError
from aistack.hooks.manifest import load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aistack.hooks.manifest import Manifest, Service
    from aistack.hooks.preflight import Check

# Checks spend their time waiting for sockets, so more of them than processors is right.
_WORKERS = 16


@click.command("preflight")
@services_argument
@click.option("--wait", is_flag=True, help="Give dependencies the time a start gives them, not one try.")
@json_option
def command(*, services: tuple[str, ...], wait: bool, as_json: bool) -> int:
    """Run every check of a start now, without starting anything.

    Shows every problem of every service: what kind it is, where, how long it was waited for, and
    what to do. Exit code 0 if every check passes, 3 if one does not.
    """
    manifest = load()
    stack.validate(manifest)
    wanted = stack.chosen(manifest, services)
    if not manifest.dependency_check:
        output.note(f"aistack: dependencies are not checked: startup.dependencyCheck is false in {manifest.path}")
    if os.geteuid() != 0:
        output.note("aistack: not run by root: a secret that only root may read counts as missing")
    found = _run(manifest, wanted, wait=wait)
    ok = all(check.ok for checks in found.values() for check in checks)
    if as_json:
        output.document(
            {
                "manifest": manifest.path,
                "ok": ok,
                "dependency_check": manifest.dependency_check,
                "services": [_data(service, found[service.name]) for service in wanted],
            }
        )
    else:
        _show(wanted, found)
    return int(ExitCode.DONE if ok else ExitCode.DEPENDENCY_MISSING)


def _run(manifest: Manifest, services: Sequence[Service], *, wait: bool) -> dict[str, list[Check]]:
    """Check all services at the same time; each check has a bound of its own."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=_WORKERS) as pool:
        images = pool.submit(_local_images)
        found = {service.name: pool.submit(_checks, manifest, service, wait=wait) for service in services}
        return {
            service.name: [
                *_image_check(service, images.result()),
                *found[service.name].result(),
            ]
            for service in services
        }


def _checks(manifest: Manifest, service: Service, *, wait: bool) -> list[Check]:
    if not service.external:
        return preflight.run(manifest, service, wait=wait)
    # It is not started here, but whatever depends on it will ask it: so ask it now.
    timeout = manifest.startup_timeout if wait else 0
    return preflight.dependencies(manifest, [service.name], timeout)


def _local_images() -> dict[str, str] | str:
    """Return podman's images by name, or the reason why they cannot be had."""
    try:
        return runtime.images()
    except HookError as error:
        return str(error)


def _image_check(service: Service, images: dict[str, str] | str) -> list[Check]:
    """Say whether the declared image can be had, without fetching it."""
    if service.external:
        return []
    subject = f"image {service.image_ref}"
    missing = preflight.IMAGE_MISSING
    if isinstance(images, str):
        return [preflight.Check(subject, missing, images, fix="podman info")]
    if service.image_ref in images:
        return [preflight.Check(subject, probe.READY, "present")]
    source = service.image_archive or service.image_stream
    if source is not None:
        if os.access(source, os.R_OK):
            return [preflight.Check(subject, probe.READY, f"is loaded from {source}")]
        return [preflight.Check(subject, missing, f"{source} does not exist or is unreadable", fix=f"ls -l {source}")]
    if service.image_ref.startswith("localhost/"):
        return [
            preflight.Check(
                subject,
                missing,
                "it is not in podman's storage, and no registry has a name under localhost/",
                fix="podman image list",
            )
        ]
    if runtime.image_id(service.image_ref) is not None:
        return [preflight.Check(subject, probe.READY, "present")]
    return [preflight.Check(subject, probe.READY, "is pulled at the start")]


def _data(service: Service, checks: Sequence[Check]) -> dict[str, Any]:
    return {
        "service": service.name,
        "ok": all(check.ok for check in checks),
        "checks": [check.data() for check in checks],
    }


def _show(services: Sequence[Service], found: dict[str, list[Check]]) -> None:
    shared = _shared(found)
    for line in shared:
        output.line(line)
    for service in services:
        checks = found[service.name]
        failed = [check for check in checks if not check.ok]
        if not failed:
            output.line(f"{service.name}: ok ({len(checks)} checks)")
            continue
        output.line(f"{service.name}: {len(failed)} of {len(checks)} checks failed")
        for line in map(_line, failed):
            if line not in shared:
                output.indented(line, 2)


def _shared(found: dict[str, list[Check]]) -> list[str]:
    """Return what is wrong with the network that all services are on: said once, not once for each of them."""
    kinds = {preflight.NETWORK_MISSING, preflight.NETWORK_DIFFERS}
    lines = [_line(check) for checks in found.values() for check in checks if check.kind in kinds]
    return list(dict.fromkeys(line for line in lines if lines.count(line) > 1))


def _line(check: Check) -> str:
    spent = f"{check.seconds:.2f} s" if check.seconds else ""
    place = check.address if check.address and check.address not in check.detail else ""
    extra = ", ".join(part for part in (place, spent) if part)
    line = f"{check.subject}: {check.kind}: {check.detail}"
    line += f" ({extra})" if extra else ""
    return f"{line}; next: {check.fix}" if check.fix else line
