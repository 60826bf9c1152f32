"""`aistack doctor`: everything that an administrator would check, and the command that mends what is wrong."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from aistack.cli import output, stack
from aistack.cli.options import json_option
from aistack.doctor import host as hosts
from aistack.doctor import installed, serving, stored, system
from aistack.errors import ExitCode
from aistack.hooks.manifest import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aistack.doctor.host import Finding, Host

# In the order in which one explains another.
CHECKS: dict[str, Callable[[Host], Iterable[Finding]]] = {
    "versions": system.versions,
    "files": installed.files,
    "units": installed.units,
    "disk": system.disk,
    "secrets": stored.secrets,
    "network": serving.network,
    "services": serving.services,
    "ports": serving.ports,
    "releases": stored.releases,
    "images": stored.images,
    "containers": serving.containers,
    "environment": installed.changed,
    "clock": serving.clock,
}
# What anybody may ask; podman, the secrets and the journal are root's.
FOR_ANYBODY = ("files", "units")
# Seconds for one check: more than its questions are given, all together.
LIMIT = 90.0


@click.command("doctor")
@json_option
def command(*, as_json: bool) -> int:
    """Check everything that an administrator would, and say how to mend it.

    Versions, files, units, disk, secrets, network, services, ports, releases, images, drift. Nothing is
    changed. Exit code 0 if nothing is broken (there may be warnings), 8 if something is, 2 if the
    manifest is not valid.
    """
    manifest = load()
    stack.validate(manifest)
    host = hosts.Host(manifest)
    areas = CHECKS if os.geteuid() == 0 else FOR_ANYBODY
    found = [finding for area in areas for finding in hosts.look(area, CHECKS[area], host, LIMIT)]
    if left := [area for area in CHECKS if area not in areas]:
        found.append(hosts.warn("rights", f"not run by root: no look at {', '.join(left)}", "sudo aistack doctor"))
    code = ExitCode.DOWN if any(finding.mark == hosts.FAIL for finding in found) else ExitCode.DONE
    if as_json:
        output.document(
            {"manifest": manifest.path, "exit_code": int(code), "findings": [finding.data() for finding in found]}
        )
    else:
        _show(found)
    return int(code)


def _show(found: Sequence[Finding]) -> None:
    width = max(len(finding.area) for finding in found)
    for finding in found:
        output.line(f"{finding.mark:<4}  {finding.area:<{width}}  {finding.what}")
        if finding.fix is not None:
            output.indented(f"fix: {finding.fix}", 8 + width)
    counts = {mark: sum(finding.mark == mark for finding in found) for mark in (hosts.OK, hosts.WARN, hosts.FAIL)}
    output.note(f"aistack: {counts[hosts.OK]} ok, {counts[hosts.WARN]} to look at, {counts[hosts.FAIL]} broken")
