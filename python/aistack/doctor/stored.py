"""What is kept: secrets, the journal of releases, images."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from aistack.cli import stack
from aistack.doctor.host import Finding, fail, fine, warn
from aistack.errors import StoreError
from aistack.hooks import runtime
from aistack.hooks.errors import HookError
from aistack.hooks.releases import BAD, GOOD, PROBATION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aistack.doctor.host import Host, Releases
    from aistack.hooks.manifest import Service


def secrets(host: Host) -> Iterator[Finding]:
    """Read every secret as a start does, and look who else may read its file."""
    for key, declared in sorted(host.manifest.secrets.items()):
        path = declared["file"]
        try:
            runtime.read_secret(host.manifest, key)
            mode = stat.S_IMODE(Path(path).stat().st_mode)
        except HookError as error:
            # It reads the value from the terminal, so that none is in a history of commands.
            yield fail("secrets", str(error), f"install -m 0400 /dev/stdin {path}")
            continue
        if mode & 0o007:
            yield fail("secrets", f"secret {key}: everybody may use {path} (mode {mode:04o})", f"chmod 0400 {path}")
        else:
            yield fine("secrets", f"secret {key} is there, and not everybody's to read")


def releases(host: Host) -> Iterator[Finding]:
    """Look whether the journal is whole, and what runs against what is declared."""
    path = stack.journal_path(host.manifest)
    running = host.running()
    # The start of a service records its release, and puts a damaged journal aside.
    again = (
        " ".join(["systemctl restart", *(service.unit for service in running)])
        if running
        else "systemctl start aistack.target"
    )
    if not os.path.lexists(path):
        if running:
            yield fail("releases", f"{path} is gone, and with it the history: there is nothing to roll back to", again)
        else:
            yield fine("releases", "none yet: the first start of a service records one")
        return
    try:
        known = host.journal()
    except StoreError as error:
        yield fail("releases", str(error), again)
        return
    unknown = [service for service in running if known[service.name].current is None]
    if unknown:
        names = ", ".join(service.name for service in unknown)
        units = " ".join(service.unit for service in unknown)
        yield fail(
            "releases", f"{path} does not know what runs of {names}: the history is gone", f"systemctl restart {units}"
        )
    else:
        count = sum(len(each.history) for each in known.values())
        yield fine("releases", f"{path} is whole, with {count} releases")
    for name, each in known.items():
        if each.current is not None and each.declared is not None and each.current.id != each.declared.id:
            why = f": {each.declared.reason}" if each.declared.reason else ""
            yield warn(
                "releases",
                f"{name}: {each.current} runs, not the declared {each.declared} ({each.declared.state}{why})",
                f"aistack releases {name} --log {each.declared.id}"
                if each.declared.state == BAD
                else f"aistack rollback {name} --to {each.declared.id}",
            )


def images(host: Host) -> Iterator[Finding]:
    """Look whether each release that may be started has its image, under the names that keep it."""
    names = host.images()
    known = host.releases()
    good = 0
    for service in host.containers:
        found = (
            list(_images(service, known[service.name], names, host.manifest.retain)) if service.name in known else []
        )
        good += not found
        yield from found
    if good:
        yield fine("images", f"{good} of {len(host.containers)} services have the images of their releases")


def _images(service: Service, known: Releases, names: dict[str, str], retain: int) -> Iterator[Finding]:
    current = known.current
    if current is None:
        return
    show = f"podman image list --all | grep {service.name}"
    if current.image_id not in names.values():
        fix = show if current.image_ref.startswith("localhost/") else f"podman pull {current.image_ref}"
        yield fail("images", f"{service.name}: the image of {current} is gone, and the next start needs it", fix)
        return
    live = names.get(service.image_live)
    if live != current.image_id:
        what = "is missing" if live is None else f"is image {live[:12]}, not that of {current}"
        yield warn(
            "images",
            f"{service.name}: the tag {service.image_live} {what}",
            f"podman tag {current.image_id[:12]} {service.image_live}",
        )
    kept = [one for one in known.history if one.state in (GOOD, PROBATION)][:retain]
    for release in kept:
        tag = runtime.kept_tag(service.name, release.image_id)
        if release.image_id not in names.values():
            yield warn("images", f"{service.name}: the image of {release} is gone: there is no way back to it", show)
        elif names.get(tag) != release.image_id:
            yield warn(
                "images",
                f"{service.name}: the tag {tag}, which keeps the image of {release}, is missing",
                f"podman tag {release.image_id[:12]} {tag}",
            )
