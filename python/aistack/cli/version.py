"""`aistack version`: what this program is and which documents it reads and writes."""

from __future__ import annotations

import platform

import click

from aistack import __version__
from aistack.cli import output
from aistack.cli.options import json_option


@click.command("version")
@json_option
def command(*, as_json: bool) -> None:
    """Print the versions of this program and of what it reads."""
    from aistack.hooks.manifest import SCHEMA_VERSION, manifest_path

    content = {
        "version": __version__,
        "manifest_schema_version": SCHEMA_VERSION,
        "manifest": manifest_path(),
        "python": platform.python_version(),
    }
    if as_json:
        output.document(content)
    else:
        output.line(f"aistack {__version__}")
        output.line(f"manifest {content['manifest']}, schema version {SCHEMA_VERSION}")
        output.line(f"python {content['python']}")
