"""`aistack metrics`: how deployments went, as a table and for Prometheus."""

from __future__ import annotations

import os
from pathlib import Path

import click

from aistack.cli import output, stack
from aistack.cli.options import complete_container_service, json_option
from aistack.errors import AistackError
from aistack.hooks import runtime
from aistack.hooks.deploys import Deploys
from aistack.hooks.errors import HookError
from aistack.hooks.manifest import load


@click.command("metrics")
@click.argument("service", metavar="[SVC]", required=False, shell_complete=complete_container_service)
@click.option(
    "--textfile",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write them for the textfile collector of Prometheus' node exporter.",
)
@json_option
def command(*, service: str | None, textfile: Path | None, as_json: bool) -> None:
    """Show how deployments went: at the first try, rolled back by themselves, how long, how long without an answer.

    A change is all attempts of one service up to the one that succeeded; its rebuild cycles are their number.
    """
    from aistack.deploy import metrics

    manifest = load()
    if service is not None:
        manifest.container_service(service)
    stack.require_root(manifest, "aistack metrics")
    attempts = []
    if stack.has_journal(manifest):
        with stack.journal(manifest) as store:
            attempts = Deploys(store).history(service)
    found = metrics.summarize(attempts)
    if textfile is not None:
        try:
            runtime.write_atomic(os.fspath(textfile), metrics.prometheus(attempts).encode(), 0o644)
        except HookError as error:
            raise AistackError(f"cannot write {textfile}", why=error) from None
    if as_json:
        output.document({"service": service, **metrics.data(found)})
    elif not attempts:
        output.note("aistack: no deployments yet: aistack deploy SVC --image REF")
    else:
        output.table(["what", "value", "aim"], metrics.rows(found))
