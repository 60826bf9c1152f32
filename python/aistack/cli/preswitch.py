"""`aistack preswitch`: what `system.preSwitchChecks` calls before a NixOS generation is activated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from aistack.cli import output, stack
from aistack.cli.options import json_option
from aistack.errors import ExitCode
from aistack.hooks.manifest import load

if TYPE_CHECKING:
    from aistack.deploy import preswitch

WAIT = 300.0  # seconds for a deployment that is under way
_MANIFEST = "etc/aistack/stack.json"
# With these nothing is activated, so there is nothing to refuse.
_HARMLESS = {"dry-activate", "check"}


@click.command("preswitch")
@click.argument("toplevel", metavar="SYSTEM", type=click.Path(path_type=Path))
@click.argument("action", metavar="[ACTION]", default="switch")
@json_option
def command(*, toplevel: Path, action: str, as_json: bool) -> int:
    """Test every image that the incoming NixOS system at SYSTEM changes, before ACTION activates it.

    Exit code 0 if all may be activated, 6 if one failed: the switch is refused and the old system
    serves on. A service that was never good on this machine is not tested: nothing of it serves yet.
    """
    from aistack.deploy import preswitch

    path = toplevel / _MANIFEST
    if action in _HARMLESS or not path.exists():
        return _show([], as_json=as_json)
    incoming = load(str(path))
    stack.require_root(incoming, f"aistack preswitch {toplevel}")
    if not stack.has_journal(incoming):
        return _show([], as_json=as_json)
    with stack.journal(incoming) as store:
        findings = preswitch.test(incoming, store, wait=WAIT, say=lambda text: output.note(f"aistack: {text}"))
    return _show(findings, as_json=as_json)


def _show(findings: list[preswitch.Finding], *, as_json: bool) -> int:
    failed = [finding for finding in findings if finding.ok is False]
    if as_json:
        output.document(
            {
                "findings": [
                    {"service": finding.service, "ok": finding.ok, "message": finding.line, "detail": finding.detail}
                    for finding in findings
                ]
            }
        )
    for finding in findings:
        output.note(f"aistack: {finding.service}: {finding.line}")
        for line in finding.detail:
            output.note(f"  | {line}")
    if failed:
        names = ", ".join(finding.service for finding in failed)
        output.error(f"the incoming generation is refused: {names}", "mend it and build again; what runs now runs on")
    return int(ExitCode.TEST_FAILED if failed else ExitCode.DONE)
