"""`aistack ralph`: tasks that Ralph works on in a loop."""

from __future__ import annotations

import functools
import getpass
import os
import re
import sys
from typing import TYPE_CHECKING, Any, Literal

import click

from aistack.cli import output
from aistack.cli.options import json_option
from aistack.errors import AistackError, ExitCode
from aistack.hooks.manifest import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from aistack.cli.ralph_client import Client

_ID = re.compile(r"[0-9A-Za-z-]{1,64}")
_STATES = (
    "queued",
    "awaiting_approval",
    "running",
    "waiting",
    "completed",
    "exhausted",
    "failed",
    "stopped",
    "rejected",
)
_KINDS = ("default", "simple", "medium", "complex")
_START = 60  # characters of a prompt in a table


class NotDone(AistackError):
    """A task ended otherwise than completed."""

    def __init__(self, what: str, *, code: ExitCode, why: object = None, hint: str | None = None) -> None:
        """Say so, with the exit code that tells which way."""
        super().__init__(what, why=why, hint=hint)
        self.code = int(code)


def _client() -> Client:
    # requests takes a third of the time of a whole command: only what needs it pays.
    from aistack.cli.ralph_client import Client

    return Client(load())


def _task_id(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Refuse what cannot be a task's id: it becomes a part of a path."""
    if _ID.fullmatch(value) is None:
        raise click.BadParameter("a task's id has letters, digits and hyphens only", context, parameter)
    return value


_task_argument = click.argument("task_id", metavar="TASK", callback=_task_id)


def _who(command: Callable[..., int]) -> Callable[..., int]:
    """Add what says who does something, and why."""

    @click.option("--by", metavar="NAME", help="Who does it; by default you.")
    @click.option("--reason", required=True, metavar="TEXT", help="Why.")
    @functools.wraps(command)
    def wrapped(*, by: str | None, reason: str, **options: Any) -> int:  # noqa: ANN401  (click's own)
        who = by or os.environ.get("SUDO_USER") or getpass.getuser()
        return command(said={"by": who, "reason": reason}, **options)

    return wrapped


@click.group("ralph")
def command() -> None:
    """Submit tasks to Ralph, watch them, and decide about them.

    A task is worked on in a loop, within a limit of iterations, until it is verifiably done.
    docs/ralph.md says how limits come about and what counts.
    """


@command.command("submit")
@click.argument("prompt", metavar="PROMPT")
@click.option("--complexity", type=click.Choice(["simple", "medium", "complex", "auto"]), default="auto")
@click.option("--max-iterations", type=click.IntRange(min=1), metavar="N", help="Exactly this limit.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Tokens of all iterations together.")
@click.option("--max-seconds", type=click.FloatRange(min=1), metavar="N", help="Wall time from its start.")
@click.option("--require-approval", is_flag=True, help="Do nothing before it is approved.")
@click.option("--verify", multiple=True, metavar="COMMAND", help="Must exit 0 in the workspace; may be repeated.")
@click.option("--workspace", metavar="NAME", help="A folder below the workspace root; by default one of its own.")
@click.option("--no-changes", is_flag=True, help="It may be done without any file having changed.")
@click.option("--priority", type=click.IntRange(-100, 100), default=0, help="A higher one is begun first.")
@click.option("--key", metavar="KEY", help="An idempotency key: the same one is the same task.")
@click.option("--watch", is_flag=True, help="Show what happens until it has ended.")
@json_option
def submit(
    *,
    prompt: str,
    key: str | None,
    watch: bool,
    as_json: bool,
    no_changes: bool,
    verify: tuple[str, ...],
    **options: Any,  # noqa: ANN401  (click's own)
) -> int:
    """Submit a task. PROMPT is what the agent is asked; `-` reads it from standard input."""
    text = sys.stdin.read() if prompt == "-" else prompt
    body = {name: value for name, value in options.items() if value is not None}
    body |= {"prompt": text, "verify": list(verify), "expect_changes": not no_changes}
    client = _client()
    headers = {} if key is None else {"Idempotency-Key": key}
    task = client.ask("POST", "/tasks", json=body, headers=headers)
    if watch:
        output.note(f"task {task['task_id']}: at most {task['limit']['value']} iterations")
        return _watch(client, task["task_id"], as_json=as_json)
    if as_json:
        output.document({"task": task})
    else:
        output.line(task["task_id"])
        for step in task["limit"]["steps"]:
            output.note(f"limit {step['value']}: {step['why']}")
        if task["state"] == "awaiting_approval":
            output.note(f"it waits for: aistack ralph approve {task['task_id']} --reason TEXT")
    return int(ExitCode.DONE)


@command.command("list")
@click.option("--state", type=click.Choice(_STATES), help="Only those in this state.")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True, help="How many at most.")
@json_option
def list_tasks(*, state: str | None, limit: int, as_json: bool) -> int:
    """List tasks, the newest first."""
    query: dict[str, str] = {"limit": str(limit)} | ({} if state is None else {"state": state})
    page = _client().ask("GET", "/tasks", params=query)
    if as_json:
        output.document({"tasks": page["tasks"], "next_cursor": page["next_cursor"]})
        return int(ExitCode.DONE)
    rows = [
        (
            task["task_id"],
            task["state"],
            f"{task['iterations']}/{task['limit']}",
            str(task["uncounted"]),
            task["created_at"],
            " ".join(task["prompt_start"].split())[:_START],
        )
        for task in page["tasks"]
    ]
    output.table(("task", "state", "iterations", "uncounted", "created", "prompt"), rows)
    return int(ExitCode.DONE)


@command.command("show")
@_task_argument
@json_option
def show(*, task_id: str, as_json: bool) -> int:
    """Show a task, how its limit came about, its iterations, and what was decided about it."""
    client = _client()
    task = client.ask("GET", f"/tasks/{task_id}")
    iterations = client.ask("GET", f"/tasks/{task_id}/iterations")["iterations"]
    if as_json:
        output.document({"task": task, "iterations": iterations})
        return int(ExitCode.DONE)
    reason = "" if task["reason"] is None else f" ({task['reason']})"
    output.line(f"{task['task_id']}: {task['state']}{reason}")
    if task["detail"] is not None:
        output.indented(task["detail"], 2)
    output.line(f"workspace: {task['workspace']}")
    output.line(
        f"iterations: {task['iterations']} of {task['limit']['value']}, and {task['uncounted']} uncounted calls"
    )
    for step in task["limit"]["steps"]:
        output.indented(f"{step['rule']}: {step['value']}, {step['why']}", 2)
    output.line(f"tokens: {task['tokens']}, seconds: {task['active_seconds']:.0f} of {task['max_seconds']:.0f}")
    for decision in task["decisions"]:
        output.line(f"{decision['at']} {decision['action']} by {decision['by']}: {decision['reason']}")
    if iterations:
        output.line()
        output.table(
            ("number", "attempt", "outcome", "counts", "changed", "tokens", "error"), [_row(i) for i in iterations]
        )
    return int(ExitCode.DONE)


def _row(iteration: dict[str, Any]) -> tuple[str, ...]:
    words = {None: "-", True: "yes", False: "no"}
    return (
        str(iteration["number"]),
        str(iteration["attempt"]),
        iteration["outcome"] or iteration["phase"],
        words[iteration["counted"]],
        words[iteration["changed"]],
        str(iteration["tokens"]),
        (iteration["error"] or "-").partition("\n")[0][:_START],
    )


@command.command("watch")
@_task_argument
@json_option
def watch(*, task_id: str, as_json: bool) -> int:
    """Show what happens to a task until it has ended; with --json the task in the end."""
    return _watch(_client(), task_id, as_json=as_json)


def _watch(client: Client, task_id: str, *, as_json: bool) -> int:
    for event in client.events(task_id):
        if (line := _line(event)) is not None:
            (output.note if as_json else output.line)(line)
        if event["event"] == "task.submitted" and event["state"] == "awaiting_approval":
            task = client.ask("GET", f"/tasks/{task_id}")
            if task["state"] == "awaiting_approval":
                raise NotDone(
                    f"task {task_id} waits for approval",
                    code=ExitCode.APPROVAL_REQUIRED,
                    hint=f"aistack ralph approve {task_id} --reason TEXT",
                )
    task = client.ask("GET", f"/tasks/{task_id}")
    if as_json:
        output.document({"task": task})
    if task["state"] == "completed":
        return int(ExitCode.DONE)
    raise NotDone(
        f"task {task_id} is {task['state']}",
        why=task["detail"],
        code=_code(task["state"], task["reason"]),
        hint=f"see: aistack ralph show {task_id}",
    )


def _line(event: dict[str, Any]) -> str | None:
    """An event for people, or None if it says nothing new."""
    clock = event["at"][11:19]
    detail = f": {event['detail']}" if event.get("detail") else ""
    match event["event"]:
        case "iteration.started":
            again = f", attempt {event['attempt']}" if event["attempt"] > 1 else ""
            return f"{clock} iteration {event['number']} of {event['limit']}{again}"
        case "iteration.completed":
            counts = "" if event["counted"] else ", does not count"
            seconds = f" ({event['seconds']:.1f} s)"
            return f"{clock} iteration {event['number']} {event['outcome']}{counts}{seconds}{detail}"
        case "task.state" | "task.ended":
            return f"{clock} {event['state']}{detail}"
    return None


def _code(state: str, reason: str | None) -> ExitCode:
    if state == "exhausted":
        return ExitCode.ITERATION_LIMIT
    if reason == "circuit_open":
        return ExitCode.CIRCUIT_OPEN
    return ExitCode.APPROVAL_REQUIRED if state == "rejected" else ExitCode.UNEXPECTED


def _act(task_id: str, action: str, body: dict[str, Any], *, as_json: bool) -> int:
    task = _client().ask("POST", f"/tasks/{task_id}/{action}", json=body)
    if as_json:
        output.document({"task": task})
    else:
        output.line(f"{task['task_id']}: {task['state']}")
    return int(ExitCode.DONE)


@command.command("approve")
@_task_argument
@_who
@json_option
def approve(*, task_id: str, said: dict[str, str], as_json: bool) -> int:
    """Let a task begin that waits for approval."""
    return _act(task_id, "approve", said, as_json=as_json)


@command.command("reject")
@_task_argument
@_who
@json_option
def reject(*, task_id: str, said: dict[str, str], as_json: bool) -> int:
    """Refuse a task that waits for approval, for good."""
    return _act(task_id, "reject", said, as_json=as_json)


@command.command("stop")
@_task_argument
@_who
@json_option
def stop(*, task_id: str, said: dict[str, str], as_json: bool) -> int:
    """Stop a task, whether it is queued, waits or runs."""
    return _act(task_id, "stop", said, as_json=as_json)


@command.command("resume")
@_task_argument
@click.option("--max-iterations", type=click.IntRange(min=1), metavar="N", help="The new limit of all iterations.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="The new budget of all iterations.")
@click.option("--max-seconds", type=click.FloatRange(min=1), metavar="N", help="The new budget of all its wall time.")
@_who
@json_option
def resume(*, task_id: str, said: dict[str, str], as_json: bool, **bounds: float | None) -> int:
    """Let a task go on that was stopped, gave up or ran into a bound; or try a waiting one now."""
    body = {**said, **{name: value for name, value in bounds.items() if value is not None}}
    return _act(task_id, "resume", body, as_json=as_json)


@command.command("settings")
@click.option("--default", "default", type=click.IntRange(min=1), metavar="N", help="Iterations of a task of no kind.")
@click.option("--simple", type=click.IntRange(min=1), metavar="N", help="Iterations of a simple task.")
@click.option("--medium", type=click.IntRange(min=1), metavar="N", help="Iterations of a medium task.")
@click.option("--complex", "complex", type=click.IntRange(min=1), metavar="N", help="Iterations of a complex task.")
@click.option("--adaptive", type=click.Choice(["on", "off"]), help="Whether limits follow the prompt and the history.")
@json_option
def settings(*, adaptive: Literal["on", "off"] | None, as_json: bool, **limits: int | None) -> int:
    """Show the limits that tasks begin with, or set them for tasks that are submitted from now on."""
    client = _client()
    shown, headers = client.answer("GET", "/settings")
    given = {kind: value for kind, value in limits.items() if value is not None}
    if given or adaptive is not None:
        change = {
            "max_iterations": {**shown["max_iterations"], **given},
            "adaptive": shown["adaptive"] if adaptive is None else adaptive == "on",
        }
        shown = client.ask("PUT", "/settings", json=change, headers={"If-Match": headers["ETag"]})
    if as_json:
        output.document({"settings": shown})
        return int(ExitCode.DONE)
    for kind in _KINDS:
        output.line(f"{kind}: {shown['max_iterations'][kind]}")
    output.line(f"adaptive: {'on' if shown['adaptive'] else 'off'}")
    output.line(f"ceiling: {shown['ceiling']}")
    return int(ExitCode.DONE)


@command.command("stats")
@json_option
def stats(*, as_json: bool) -> int:
    """Show how many tasks there are, and how they went."""
    found = _client().ask("GET", "/stats")
    if as_json:
        output.document({"stats": found})
        return int(ExitCode.DONE)
    for state in _STATES:
        if found["tasks"][state]:
            output.line(f"{state}: {found['tasks'][state]}")
    output.line(f"iterations: {found['iterations']}, and {found['uncounted']} uncounted calls")
    output.line(f"tokens: {found['tokens']}")
    if found["completion_rate"] is not None:
        output.line(f"completed: {found['completion_rate']:.0%}")
    if found["average_iterations"] is not None:
        output.line(f"iterations of a completed task: {found['average_iterations']:.1f}")
    output.line(f"backend: {found['backend']}")
    return int(ExitCode.DONE)
