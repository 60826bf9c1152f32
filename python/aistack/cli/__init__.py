"""The command line: one file a sub-command, a thin layer over `aistack.hooks`."""

from __future__ import annotations


def main() -> int:
    """Run the command line and return its exit code; the entry point of the script `aistack`."""
    from aistack.cli.app import run

    return run()
