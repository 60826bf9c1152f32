"""`aistack completion`: the script that teaches a shell this program's words."""

from __future__ import annotations

import sys

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command("completion", short_help="Print the completion script for a shell.")
@click.argument("shell", type=click.Choice(SHELLS))
def command(*, shell: str) -> None:
    """Print the completion script for bash, zsh or fish.

    \b
    bash   aistack completion bash > /etc/bash_completion.d/aistack
    zsh    aistack completion zsh > /usr/local/share/zsh/site-functions/_aistack
    fish   aistack completion fish > ~/.config/fish/completions/aistack.fish
    """  # noqa: D301  (click's mark for text it must not wrap)
    from aistack.cli.app import COMPLETION_VARIABLE, PROGRAM, cli

    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"this click knows no completion for {shell}")
    script = found(cli, {}, PROGRAM, COMPLETION_VARIABLE)
    # Not script.source(): for bash that runs bash to look at its version, of which any will do.
    sys.stdout.write(script.source_template % script.source_vars())
