"""`aistack deploy`: another image for a service, tested before it is live, and gone back from if it does not hold."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

from aistack.cli import output, stack
from aistack.cli.options import complete_container_service, json_option
from aistack.errors import ExitCode, UsageError, printable
from aistack.hooks.manifest import load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aistack.deploy.engine import Result
    from aistack.deploy.events import Event, Listener
    from aistack.hooks.releases import Release

_SPAN = re.compile(r"(\d+(?:\.\d+)?)(s|m|min|h)?")
_UNITS = {None: 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_MARKS = {"done": "✓", "failed": "✗", "skipped": "-", "started": "…", "note": " "}
_PLAIN = {"done": "ok", "failed": "FAILED", "skipped": "skipped", "started": "…", "note": " "}


def _seconds(context: click.Context, parameter: click.Parameter, value: str) -> float:
    """Return the seconds of a time span: 300, 300s, 5m, 1h."""
    match = _SPAN.fullmatch(value)
    if match is None:
        raise click.BadParameter(f"{value!r} is no time span (300, 300s, 5m, 1h)", context, parameter)
    return float(match[1]) * _UNITS[match[2]]


@click.command("deploy")
@click.argument("service", metavar="SVC", shell_complete=complete_container_service)
@click.option("--image", "reference", metavar="REF", help="The image to deploy; pulled if it is not here.")
@click.option(
    "--build",
    "directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Build this directory, which has a Containerfile, and deploy that.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--no-test", is_flag=True, help="Leave out the isolated test; asks for confirmation.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option(
    "--wait", callback=_seconds, default="0", metavar="SPAN", help="Wait so long for another deployment to end (5m)."
)
@click.option("--jsonl", "as_lines", is_flag=True, help="Print each event as a line of JSON, the result last.")
@json_option
def command(
    *,
    service: str,
    reference: str | None,
    directory: Path | None,
    dry_run: bool,
    no_test: bool,
    yes: bool,
    wait: float,
    as_lines: bool,
    as_json: bool,
) -> int:
    """Deploy another image of SVC: validate, build or pull, test in isolation, switch, verify, keep or go back.

    Up to the switch nothing that serves is touched. Exit code 0 if the new release serves and is
    good, 5 if it is not valid or cannot be built, 6 if it failed its isolated test (both: nothing was
    touched), 7 if it was gone back from, 8 if the service is down, 4 if another deployment is under way.
    The choice holds until Nix declares another image.
    """
    from aistack.deploy.engine import Engine, Request

    if (reference is None) == (directory is None):
        raise UsageError("say what to deploy: --image REF or --build DIR, and not both")
    manifest = load()
    entry = manifest.container_service(service)
    stack.validate(manifest)
    stack.require_root(manifest, f"aistack deploy {service}")
    if os.geteuid() != 0 and not stack.has_journal(manifest):
        raise UsageError("`aistack deploy` needs root", hint=f"sudo aistack deploy {service}")
    request = Request(reference=reference, directory=directory, test=not no_test, wait=wait)
    with _display(service, as_lines=as_lines, as_json=as_json) as listener, stack.journal_or_new(manifest) as store:
        engine = Engine(manifest, entry, store, listener)
        if dry_run:
            return _show_plan(engine.plan(request), service, as_json=as_json or as_lines)
        if no_test:
            output.confirm(f"Deploy {request.source} as {service} without testing it first?", yes=yes)
        result = engine.deploy(request)
    try:
        _show(result, service, as_json=as_json, as_lines=as_lines)
        sys.stdout.flush()
    except OSError:
        # Nobody reads any more; the exit code says what became of it all the same.
        output.discard()
    return int(result.code)


def _show_plan(lines: list[str], service: str, *, as_json: bool) -> int:
    if as_json:
        output.document({"service": service, "dry_run": True, "plan": lines})
        return int(ExitCode.DONE)
    for number, line in enumerate(lines, 1):
        output.line(f"{number}. {line}")
    return int(ExitCode.DONE)


@contextlib.contextmanager
def _display(service: str, *, as_lines: bool, as_json: bool) -> Iterator[Listener]:
    """Yield what shows events: lines of JSON, a live table on a terminal, or plain lines."""
    if as_lines:

        def print_line(event: Event) -> None:
            sys.stdout.write(json.dumps(event.document(None, service)) + "\n")
            sys.stdout.flush()

        yield print_line
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not as_json:
        with _Live(service) as live:
            yield live
    else:
        yield _plain


def _plain(event: Event) -> None:
    """One line for each phase that ended, and for each note."""
    if event.status == "started":
        return
    if event.status == "note":
        output.note(f"  {event.phase}: {event.message}")
        return
    seconds = "" if event.seconds is None else f" ({event.seconds:.1f} s)"
    message = f": {event.message}" if event.message else ""
    output.note(f"{event.phase}: {_PLAIN[event.status]}{seconds}{message}")


class _Live:
    """The phases on a terminal: those that ended above, the current one with its seconds below."""

    def __init__(self, service: str) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._status: Any = None
        self._service = service

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def _clear(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def __call__(self, event: Event) -> None:
        """Show an event."""
        from rich.text import Text

        if event.status == "started":
            self._clear()
            from rich.status import Status

            self._status = Status(Text(f"{event.phase} {self._service}"), console=self._console)
            self._status.start()
            return
        message = printable(event.message)
        if event.status == "note":
            if self._status is not None:
                self._status.update(Text(f"{event.phase}: {message}"))
            self._console.print(Text(f"    {message}", style="dim"))
            return
        self._clear()
        style = {"done": "green", "failed": "bold red"}.get(event.status, "yellow")
        seconds = "" if event.seconds is None else f" {event.seconds:.1f} s"
        text = Text(f"{_MARKS[event.status]} {event.phase:<10}", style=style)
        self._console.print(text, Text(f"{seconds}{f'  {message}' if message else ''}"), sep="")


def _show(result: Result, service: str, *, as_json: bool, as_lines: bool) -> None:
    if as_json or as_lines:
        document = {
            "event": "end",
            "service": service,
            "deployment": result.deployment,
            "outcome": result.outcome,
            "exit_code": int(result.code),
            "message": result.message,
            "detail": result.detail,
            "release": _data(result.release),
            "previous": _data(result.previous),
            "serves": _data(result.serves),
            "seconds": round(result.seconds, 3),
            "phases": result.phases,
            "unavailable_seconds": None if result.unavailable is None else round(result.unavailable, 3),
            "next": result.hint,
        }
        if as_lines:
            sys.stdout.write(json.dumps({"schema_version": output.SCHEMA_VERSION, **document}) + "\n")
        else:
            output.document(document)
    for line in result.detail:
        output.note(f"  | {line}")
    gone = "" if result.unavailable is None else f", {result.unavailable:.2f} s without an answer"
    if result.code == ExitCode.DONE:
        text = f"{service}: {result.message} after {result.seconds:.1f} s{gone}; next: {result.hint}"
        output.note(text) if as_json or as_lines else output.line(text)
        return
    serves = f"; {result.serves} serves" if result.serves is not None and result.code != ExitCode.ROLLED_BACK else ""
    output.error(f"{service}: {result.message}{serves}", result.hint)


def _data(release: Release | None) -> dict[str, Any] | None:
    if release is None:
        return None
    return {"id": release.id, "state": release.state, "image_id": release.image_id, "image_ref": release.image_ref}
