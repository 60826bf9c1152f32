"""`aistack schema`: the manifest's JSON Schema, and whether a manifest keeps to it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from aistack.cli import output
from aistack.cli.options import json_option


@click.command("schema")
@click.option("--check", is_flag=True, help="Check a manifest instead; exit 2 if it is not valid.")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@json_option
def command(*, check: bool, file: Path | None, as_json: bool) -> None:
    """Print the JSON Schema of the manifest, or check a manifest (FILE, or the installed one).

    The check knows more than the schema can say: dependencies that exist, no cycles, secrets that
    are declared.
    """
    from aistack import model
    from aistack.hooks.manifest import manifest_path

    if not check:
        if file is not None:
            raise click.UsageError("a file is only read with --check")
        # The schema is a JSON document by itself; a version around it would make it another one.
        sys.stdout.write(json.dumps(model.json_schema(), indent=2) + "\n")
        return
    path = file or Path(manifest_path())
    manifest = model.load(path)
    if as_json:
        output.document(
            {
                "manifest": str(path),
                "valid": True,
                "manifest_schema_version": manifest.schema_version,
                "services": sorted(manifest.services),
            }
        )
    else:
        output.line(f"{path}: a valid manifest of version {manifest.schema_version}, {len(manifest.services)} services")
