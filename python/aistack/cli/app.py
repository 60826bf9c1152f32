"""The group of all sub-commands, and the one place where errors become a line and an exit code.

Sub-commands are imported when they run: `aistack --help` imports click and nothing else.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import TYPE_CHECKING

import click

from aistack import __version__
from aistack.cli import output
from aistack.errors import AistackError, ExitCode, printable
from aistack.hooks.errors import HookError

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "aistack"
# Set by the scripts of `aistack completion` when the shell wants to know what fits.
COMPLETION_VARIABLE = "_AISTACK_COMPLETE"

# Name -> its line in `--help`; the module aistack.cli.<name> holds the command `command`.
COMMANDS = {
    "status": "Show what serves, what does not, and why.",
    "health": "Show what the health checks found, when, and what follows.",
    "doctor": "Check everything, and say how to mend what is wrong.",
    "preflight": "Run every check of a start now, without starting anything.",
    "deploy": "Deploy another image of a service, tested first, and gone back from if it fails.",
    "releases": "Show the releases of each service and what became of them.",
    "network": "Look for what is wrong with the stack's network, and mend it.",
    "rollback": "Go back to an earlier release of a service.",
    "recover": "End deployments that were cut off.",
    "lock": "Show who deploys right now.",
    "validate": "Check Containerfiles, Python, Nix, shell and .env files.",
    "preswitch": "Test what an incoming NixOS generation changes, before it is activated.",
    "metrics": "Show how deployments went.",
    "env": "Show the environment, and override it while the stack runs.",
    "ralph": "Submit tasks to Ralph, watch them, and decide about them.",
    "schema": "Print the JSON Schema of the manifest, or check a manifest.",
    "completion": "Print the completion script for a shell.",
    "version": "Print the versions of this program and of what it reads.",
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and first lines without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        """Return the names in the order they are shown."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command, or return None for a name that is none."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        command = importlib.import_module(f"aistack.cli.{cmd_name}").command
        if not isinstance(command, click.Command):
            raise TypeError(f"aistack.cli.{cmd_name}.command is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the commands and their lines."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(
    name=PROGRAM,
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=(
        "Exit codes: 0 done, 1 unexpected, 2 usage or configuration, 3 dependency missing, "
        "4 lock held, 5 not valid or not built, 6 isolated test failed, 7 rolled back, 8 down, "
        "9 approval required, 10 limit reached, 11 circuit open, 124 timed out. Data goes to standard output, "
        "everything else to standard error. AISTACK_MANIFEST names another manifest than "
        "/etc/aistack/stack.json, AISTACK_DEBUG=1 shows where an error came from."
    ),
)
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Look after a local AI stack: what serves, what is missing, and back to what worked."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(int(ExitCode.USAGE))


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. Never raises, whatever goes wrong.

    A failure is one line on standard error, and with `--json` a document on standard output too.
    AISTACK_DEBUG=1 shows the traceback as well.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    output.prepare_streams()
    try:
        code = _invoke(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader went away (`aistack releases | head`): nothing to say, and nobody to say it to.
        output.discard()
        return int(ExitCode.DONE)
    except (KeyboardInterrupt, click.Abort):
        _show_traceback()
        output.error("interrupted", None)
        return int(ExitCode.INTERRUPTED)
    except Exception as error:  # noqa: BLE001  (the promise is: one line, never a traceback)
        _show_traceback()
        return _fail(error, as_json=as_json)
    return code


def _invoke(arguments: list[str]) -> int:
    """Parse and run, and return the exit code.

    Not click's own `main`: that answers a closed pipe, an interrupt and an error in ways of its own.
    """
    if (instruction := os.environ.get(COMPLETION_VARIABLE)) is not None:
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, PROGRAM, COMPLETION_VARIABLE, instruction)
    try:
        with cli.make_context(PROGRAM, arguments) as context:
            result = cli.invoke(context)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    return result if isinstance(result, int) else int(ExitCode.DONE)


def _fail(error: Exception, *, as_json: bool) -> int:
    """Say what went wrong and return the exit code."""
    message, hint, code = _explain(error)
    if as_json:
        document = {
            "schema_version": output.SCHEMA_VERSION,
            "error": {"code": code.word, "exit_code": int(code), "message": message, "hint": hint},
        }
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    output.error(message, hint)
    try:
        sys.stdout.flush()
    except OSError:
        output.discard()
    return int(code)


def _explain(error: Exception) -> tuple[str, str | None, ExitCode]:
    """Return the message, the hint and the exit code of an error."""
    if isinstance(error, AistackError):
        return error.message, error.hint, ExitCode.of(error.code)
    if isinstance(error, HookError):
        return printable(error), None, ExitCode.of(error.code)
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        path = context.command_path if isinstance(context, click.Context) else PROGRAM
        hint = f"see {path} --help"
        return printable(error.format_message()).removesuffix("."), hint, ExitCode.USAGE
    if isinstance(error, OSError):
        return printable(f"unexpected {error}"), None, ExitCode.UNEXPECTED
    if (problem := _manifest_problem()) is not None:
        return problem, None, ExitCode.USAGE
    return (
        printable(f"unexpected {type(error).__name__}: {error}"),
        "run again with AISTACK_DEBUG=1 to see where, and report it",
        ExitCode.UNEXPECTED,
    )


def _manifest_problem() -> str | None:
    """Say what is wrong with the manifest when an error nobody foresaw may come from it.

    Commands read the manifest with the hooks' quick reader, which trusts the types in it; when that
    trust was misplaced this finds the cause, at a price (pydantic) that only a failure pays.
    """
    from pathlib import Path

    from aistack import model
    from aistack.hooks.manifest import manifest_path

    try:
        model.load(Path(manifest_path()))
    except AistackError as error:
        return str(error)
    return None


def _show_traceback() -> None:
    if os.environ.get("AISTACK_DEBUG") == "1":
        import traceback

        traceback.print_exc()
