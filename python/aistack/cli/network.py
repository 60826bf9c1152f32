"""`aistack network`: what is wrong with the network that all containers share, and mending it while they run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from aistack.cli import output
from aistack.cli.options import json_option
from aistack.errors import ExitCode, UsageError
from aistack.hooks import network
from aistack.hooks.manifest import load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aistack.hooks.manifest import Manifest
    from aistack.hooks.network import Fault

REPAIR = "aistack network repair"


@click.group("network")
def command() -> None:
    """Look for what is wrong with the stack's network, and mend it while the stack runs."""


@command.command("check")
@json_option
def check(*, as_json: bool) -> int:
    """Look at the bridge, the firewall's rules, the name server and every container's name.

    Changes nothing. Exit code 0 if all is well, 8 with a line for each fault.
    """
    manifest = _manifest("aistack network check")
    found = network.check(manifest)
    code = ExitCode.DOWN if found else ExitCode.DONE
    if as_json:
        _document(manifest, code, faults=[fault.data() for fault in found])
        return int(code)
    _lines(found)
    if found:
        output.note(f"aistack: {_count(len(found), 'fault')}; next: {REPAIR}")
    else:
        output.line(f"network {manifest.network}: ok")
    return int(code)


@command.command("repair")
@click.option("--restart", is_flag=True, help="Restart the stack's containers where nothing else helps.")
@json_option
def repair(*, restart: bool, as_json: bool) -> int:
    """Mend what `aistack network check` finds, without restarting healthy containers.

    Looks again afterwards: a fault counts as mended when it is not there any more. Exit code 0 if all is well then,
    4 if another repair runs and does not end, 8 if something is left that cannot be mended, or not without --restart.
    """
    manifest = _manifest(REPAIR)
    left: list[Fault] = []
    why = None
    try:
        done = network.repair(manifest, network.check(manifest), restart=restart)
    except network.NotMended as trouble:
        done, left, why = trouble.done, trouble.left, trouble
    code = ExitCode.DOWN if left else ExitCode.DONE
    if as_json:
        _document(
            manifest,
            code,
            mended=[fault.data() for fault in done],
            left=[fault.data() for fault in left],
            why=str(why) if why is not None else None,
            restart_may_help=why is not None and why.restart,
        )
    else:
        for fault in done:
            output.line(fault.mended_line())
        if not done and not left:
            output.line(f"network {manifest.network}: nothing to mend")
    if why is not None:
        output.error(f"{_count(len(left), 'fault')} left: {why}", None)
    return int(code)


def _manifest(command: str) -> Manifest:
    """Read the manifest, for root: nobody else sees the containers, the rules and the names of root's podman."""
    if os.geteuid() != 0:
        raise UsageError(f"`{command}` needs root: containers, rules and names are root's", hint=f"sudo {command}")
    return load()


def _document(manifest: Manifest, code: ExitCode, **more: object) -> None:
    output.document({"manifest": manifest.path, "network": manifest.network, "exit_code": int(code), **more})


def _lines(faults: Sequence[Fault]) -> None:
    for fault in faults:
        output.line(fault.line())


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
