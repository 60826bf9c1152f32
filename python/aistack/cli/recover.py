"""`aistack recover`: end what a deployment left that was cut off, now rather than in a few seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from aistack.cli import output, stack
from aistack.cli.options import json_option
from aistack.errors import ExitCode
from aistack.hooks import deploy_lock, recover, runtime
from aistack.hooks.manifest import load

if TYPE_CHECKING:
    from aistack.hooks.manifest import Manifest


@click.command("recover")
@json_option
def command(*, as_json: bool) -> int:
    """End every deployment that was cut off: what was not blessed is gone back from, what was left over is removed.

    A timer does so while a deployment is under way, and the next boot before the units start. Exit
    code 4 if a deployment is under way, 8 if a service that was gone back from does not serve.
    """
    manifest = load()
    stack.require_root(manifest, "aistack recover")
    return recover_all(manifest, as_json=as_json)


def recover_all(manifest: Manifest, *, as_json: bool) -> int:
    """Recover now and show what was done; return the exit code. Raises HookError."""
    found: list[recover.Recovered] = []
    if stack.has_journal(manifest):
        with deploy_lock.acquire(manifest, deploy_lock.RECOVERY), stack.journal(manifest) as store:
            found = recover.resolve(manifest, store)
            for each in found:
                runtime.note(each.line)
            recover.sweep(manifest, store)
        recover.watch(again=bool(found))
    if as_json:
        output.document(
            {
                "recovered": [
                    {
                        "deployment": each.attempt.id,
                        "service": each.attempt.service,
                        "outcome": each.attempt.outcome,
                        "exit_code": each.attempt.code,
                        "message": each.line,
                        "serves": each.serves.id if each.serves is not None else None,
                    }
                    for each in found
                ]
            }
        )
    else:
        for each in found:
            output.line(each.line)
        if not found:
            output.note("aistack: no deployment was cut off: nothing to do")
    down = [each for each in found if each.attempt.code == ExitCode.DOWN]
    return int(ExitCode.DOWN if down else ExitCode.DONE)
