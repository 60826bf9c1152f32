"""What was installed: files as they were rendered, the .env, the overrides, units as systemd knows them."""

from __future__ import annotations

import hashlib
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from aistack.cli import env
from aistack.doctor.host import ASK_TIMEOUT, ON_DEMAND, RECOVERY, Finding, fail, fine, warn
from aistack.errors import ExitCode
from aistack.hooks import runtime

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aistack.doctor.host import Host

# Written by bundle/install; NixOS needs none, because nobody can write to the Nix store.
SUMS = "/usr/lib/aistack/SHA256SUMS"
_BY = "# Installed by: "
# Named one by one, so that a broken disk does not fill the screen.
_MOST = 5


def files(host: Host) -> Iterator[Finding]:
    """Compare installed files with what was installed, and the .env and the overrides with the manifest."""
    path = Path(SUMS)
    if path.exists():
        yield from _compared(path)
    problems = [*env.file_problems(host.manifest), *env.override_problems(host.manifest)]
    for problem in problems:
        yield fail("files", f"{problem.subject} {problem.detail}", problem.hint)
    if not problems:
        yield fine("files", f"{host.manifest.env_file} is what the manifest declares")


def _compared(path: Path) -> Iterator[Finding]:
    lines = path.read_text(encoding="utf-8").splitlines()
    by = next((line.removeprefix(_BY) for line in lines if line.startswith(_BY)), "")
    again = by if by and os.access(by.split()[0], os.X_OK) else "bundle/install"
    wrong = []
    total = 0
    for line in lines:
        digest, _, name = line.partition("  ")
        if line.startswith("#") or not name:
            continue
        total += 1
        if (state := _state(Path(name), digest)) is not None:
            wrong.append(f"{name} {state}")
    if not wrong:
        yield fine("files", f"{total} installed files are as they were installed")
    for text in wrong[:_MOST]:
        yield fail("files", text, again)
    if len(wrong) > _MOST:
        yield fail("files", f"and {len(wrong) - _MOST} more files", again)


def _state(path: Path, digest: str) -> str | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if hashlib.sha256(content).hexdigest() == digest else "was edited since it was installed"


def units(host: Host) -> Iterator[Finding]:
    """Compare the units that systemd knows with those that there have to be."""
    known = host.units()
    stopped = host.is_stopped()
    good = 0
    for name in host.unit_names:
        found = list(_unit(name, known.get(name, {}), stopped=stopped))
        good += not found
        yield from found
    yield from _failed(host)
    if stopped:
        yield warn("units", "the stack is stopped", "systemctl start aistack.target")
    if good:
        yield fine("units", f"{good} of {len(host.unit_names)} units are installed, enabled and up to date")


def _unit(name: str, state: dict[str, str], *, stopped: bool) -> Iterator[Finding]:
    if state.get("LoadState", "not-found") != "loaded":
        yield fail("units", f"{name} is {state.get('LoadState', 'not-found')}", f"systemctl cat {name}; bundle/install")
        return
    if state.get("NeedDaemonReload") == "yes":
        yield warn("units", f"{name} was changed on disk, and systemd uses the old one", "systemctl daemon-reload")
    # A service is wanted by its dependents too, and the network by nobody else: whoever needs it starts it.
    starter = "multi-user.target" if name == "aistack.target" else "aistack.target"
    started_by_others = ("aistack-network.service", *ON_DEMAND)
    if name not in started_by_others and starter not in state.get("WantedBy", "").split():
        yield fail(
            "units", f"{name} is not enabled: it is not started at boot", f"systemctl enable {shlex.quote(name)}"
        )
    stays = name.endswith((".timer", ".target", ".path")) or name == "aistack-network.service"
    runs = state.get("ActiveState") in ("active", "activating", "reloading")
    if stays and name not in ON_DEMAND and not stopped and not runs:
        word = "armed" if name.endswith((".timer", ".path")) else "active"
        yield fail("units", f"{name} is not {word} ({state.get('ActiveState')})", f"systemctl restart {name}")


def _failed(host: Host) -> Iterator[Finding]:
    """Failed units beside the services' own: rollbacks, retries, health checks."""
    listing = ["systemctl", "list-units", "--failed", "--plain", "--no-legend", "aistack-*"]
    _, out, _ = runtime.run(listing, ASK_TIMEOUT)
    for line in out.splitlines():
        name = line.split()[0] if line.split() else ""
        if name and (name in RECOVERY or name not in host.unit_names):
            yield fail("units", f"{name} failed", f"journalctl -u {name} -n 20; systemctl reset-failed {name}")


def changed(host: Host) -> Iterator[Finding]:
    """Compare what running containers were started with and what a start would give them now."""
    problems, looked = env.container_problems(host.manifest)
    for problem in problems:
        mark = fail if problem.code == ExitCode.DOWN else warn
        yield mark("environment", f"{problem.subject} {problem.detail}", problem.hint)
    if looked and not problems:
        yield fine("environment", f"{len(looked)} containers run with what is declared and overridden")
