"""`aistack lock`: who deploys right now, and what to do about one that does not end."""

from __future__ import annotations

import click

from aistack.cli import output, stack
from aistack.cli.options import json_option
from aistack.errors import AistackError, ExitCode
from aistack.hooks import deploy_lock
from aistack.hooks.deploys import Deploys
from aistack.hooks.manifest import load


class HeldError(AistackError):
    """The lock's holder lives."""

    exit_code = ExitCode.LOCK_HELD


@click.group("lock", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Show who holds the lock of deployments, or free one whose holder is gone."""
    if context.invoked_subcommand is None:
        context.exit(context.invoke(status, as_json=False))


@command.command("status")
@json_option
def status(*, as_json: bool) -> int:
    """Show who holds the lock. Exit code 0 if it is free, 4 if it is held."""
    manifest = load()
    stack.require_root(manifest, "aistack lock status")
    holder = deploy_lock.holder(manifest)
    if as_json:
        output.document({"held": holder is not None, "holder": None if holder is None else holder.data()})
    elif holder is None:
        output.line("free: no deployment is under way")
    else:
        output.line(f"held by {holder}")
    return int(ExitCode.DONE if holder is None else ExitCode.LOCK_HELD)


@command.command("release")
@json_option
def release(*, as_json: bool) -> int:
    """Free the lock of a holder that is gone, and end what it began; a holder that lives keeps it (exit code 4).

    The lock dies with its holder by itself: this only says so, and recovers what was cut off.
    """
    manifest = load()
    stack.require_root(manifest, "aistack lock release")
    holder = deploy_lock.holder(manifest)
    if holder is not None:
        raise HeldError(
            f"the lock is held by {holder}, which lives",
            hint=f"let it go back by itself: kill {holder.pid}",
        )
    unfinished = 0
    if stack.has_journal(manifest):
        with stack.journal(manifest) as store:
            unfinished = len(Deploys(store).unfinished())
    if unfinished:
        from aistack.cli.recover import recover_all

        return recover_all(manifest, as_json=as_json)
    if as_json:
        output.document({"held": False, "recovered": []})
    else:
        output.line("free already: no deployment is under way, and none was cut off")
    return int(ExitCode.DONE)
