"""`python -m aistack.contracts`: the contracts there are, and one of them against a service that runs."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from aistack import contracts
from aistack.cli import output
from aistack.cli.ralph_client import read_key
from aistack.contracts import live
from aistack.errors import AistackError, ExitCode


@click.group()
def main() -> None:
    """Look at what services promise each other."""


@main.command("list")
def list_contracts() -> None:
    """Print the names of all contracts."""
    for name in contracts.names():
        output.line(name)


@main.command()
@click.option("--edge", required=True, help="The contract's name.")
@click.option("--url", required=True, help="Where the provider answers, as http://10.89.0.5:8099.")
@click.option("--key-file", type=click.Path(path_type=Path), help="A file with the API key.")
def check(edge: str, url: str, key_file: Path | None) -> int:
    """Ask a service that runs all that a contract has. A service that is not there fails it: exit code 3."""
    contract = contracts.load(edge)
    key = None if key_file is None else read_key(key_file)
    code = ExitCode.DONE
    for found in live.check(contract, url, key=key):
        output.line(f"{'failed' if found.wrong else 'ok':7} {found.interaction} ({found.example})")
        for wrong in found.wrong:
            output.indented(wrong, 8)
        if found.missing:
            code = ExitCode.DEPENDENCY_MISSING
        elif found.wrong and code == ExitCode.DONE:
            code = ExitCode.VALIDATION_FAILED
    return int(code)


def run() -> int:
    """Run it; an error that the user can act on is one line."""
    try:
        code = main(standalone_mode=False)
    except click.ClickException as error:
        output.error(error.format_message(), None)
        return int(ExitCode.USAGE)
    except AistackError as error:
        output.error(error.message, error.hint)
        return error.code
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(run())
