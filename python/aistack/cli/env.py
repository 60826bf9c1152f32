"""`aistack env`: the environment of the stack, and the overrides that change it while the stack runs."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from aistack.cli import output, restart, stack
from aistack.cli.options import json_option
from aistack.errors import ExitCode, StoreError, UsageError, printable
from aistack.hooks import deploy_lock, overrides, runtime
from aistack.hooks.errors import HookError
from aistack.hooks.manifest import load
from aistack.hooks.releases import BAD, fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aistack.hooks.manifest import Manifest, Override, Service
    from aistack.hooks.overrides import Document
    from aistack.hooks.releases import Release, Store

Values = dict[str, str]

# What became of a service after a change.
HAS_IT = "has it"  # it runs with these values already
NEEDS_RESTART = "needs restart"
RESTARTED = "restarted"
STOPPED = "stopped"  # its next start has them
KNOWN_BAD = "known bad"  # a release with them failed before, so that no start would try them
ROLLED_BACK = "rolled back"
DOWN = "down"
NOT_RESTARTED = "not restarted"  # because another one failed first


def complete_key(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the keys that may be overridden, with what they take."""
    del ctx, param
    try:
        known = load().overridable
    except HookError:
        # Completion has nowhere to complain.
        return []
    return [
        CompletionItem(key, help=overrides.wanted(known[key])) for key in sorted(known) if key.startswith(incomplete)
    ]


def complete_any_key(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the keys of the environment."""
    del ctx, param
    try:
        known = load().environment
    except HookError:
        return []
    return [CompletionItem(key) for key in sorted(known) if key.startswith(incomplete)]


restart_option = click.option(
    "--restart", "with_restart", is_flag=True, help="Restart the services whose environment changes, and verify."
)


@click.group("env", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Show the environment of the stack, and override it while the stack runs.

    Effective is the override of a key, else what Nix declares. A container has what was effective
    when it was started; one that fails with a new value goes back to the old one.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(int(ExitCode.USAGE))


# --- looking ---------------------------------------------------------------------------------------------------------


@command.command("show")
@json_option
def show(*, as_json: bool) -> None:
    """Print the effective environment, as an .env file. It holds no secret."""
    manifest = _load()
    if as_json:
        output.document(
            {
                "manifest": manifest.path,
                "environment": dict(sorted(manifest.environment.items())),
                "keys": [_key_data(manifest, key) for key in sorted(manifest.environment)],
            }
        )
        return
    for key, value in sorted(manifest.environment.items()):
        if key in manifest.overrides:
            output.line(f"# {key} is overridden; Nix declares {manifest.declared[key]}")
        output.raw(f"{key}={value}")


@command.command("get")
@click.argument("key", metavar="KEY", shell_complete=complete_any_key)
@json_option
def get(*, key: str, as_json: bool) -> None:
    """Print the effective value of KEY."""
    manifest = _load()
    if key not in manifest.environment:
        raise UsageError(_unknown(manifest, key))
    if as_json:
        output.document(_key_data(manifest, key))
    else:
        output.raw(manifest.environment[key])


def _key_data(manifest: Manifest, key: str) -> dict[str, Any]:
    override = manifest.overridable.get(key)
    return {
        "key": key,
        "value": manifest.environment[key],
        "declared": manifest.declared[key],
        "overridden": key in manifest.overrides,
        "option": manifest.environment_options.get(key),
        "overridable": None if override is None else _override_data(override),
        "read_by": overrides.readers(manifest, [key]),
    }


def _override_data(override: Override) -> dict[str, Any]:
    return {"type": override.type, "min": override.minimum, "max": override.maximum, "keys": override.keys}


@command.command("diff")
@json_option
def diff(*, as_json: bool) -> None:
    """Show what differs from Nix, and the Nix lines that would make it permanent."""
    manifest = _load()
    found = [
        (override, manifest.declared[override.keys[0]], manifest.overrides[override.keys[0]])
        for override in _options(manifest)
        if override.keys[0] in manifest.overrides
    ]
    differing = [(override, nix, now) for override, nix, now in found if nix != now]
    redundant = [override for override, nix, now in found if nix == now]
    if as_json:
        output.document(
            {
                "manifest": manifest.path,
                "differences": [
                    {
                        "keys": override.keys,
                        "option": override.option,
                        "declared": nix,
                        "value": now,
                        "nix": nix_line(override, now),
                    }
                    for override, nix, now in differing
                ],
                "same_as_declared": [key for override in redundant for key in override.keys],
            }
        )
        return
    if differing:
        rows = [[key, nix, now] for override, nix, now in differing for key in override.keys]
        output.table(["key", "nix", "now"], rows)
        output.line()
        output.line("# To make it permanent, in the Nix configuration; then: aistack env unset --all")
        for override, _, now in differing:
            output.line(nix_line(override, now))
    else:
        output.note("aistack: nothing differs from what Nix declares")
    for override in redundant:
        keys = ", ".join(override.keys)
        output.note(f"aistack: {keys}: overridden with what Nix declares; aistack env unset {override.keys[0]}")


def _options(manifest: Manifest) -> list[Override]:
    """Return each option that may be overridden once, in the order of its first key."""
    return [override for key, override in sorted(manifest.overridable.items()) if override.keys[0] == key]


def nix_line(override: Override, value: str) -> str:
    """Return the line of a Nix configuration that declares a value. The grammar of values needs no escaping in it."""
    return f"{override.option} = {value};" if override.type != "string" else f'{override.option} = "{value}";'


@command.command("history")
@json_option
def history(*, as_json: bool) -> None:
    """Show the changes so far, newest first. `aistack env restore N` goes back to one."""
    manifest = _load()
    document = overrides.read(manifest)
    entries = document.history[::-1]
    if as_json:
        output.document(
            {
                "manifest": manifest.path,
                "values": document.values,
                "history": [
                    {
                        "id": entry.id,
                        "at": output.rfc3339(entry.at),
                        "by": entry.by,
                        "what": entry.what,
                        "values": entry.values,
                    }
                    for entry in entries
                ],
            }
        )
    elif not entries:
        output.note("aistack: no override was ever made")
    else:
        output.table(
            ["change", "at", "by", "what"],
            [[str(entry.id), output.local_time(entry.at), entry.by, entry.what] for entry in entries],
        )


# --- changing --------------------------------------------------------------------------------------------------------


@command.command("set")
@click.argument("assignments", metavar="KEY=VALUE...", nargs=-1, required=True, shell_complete=complete_key)
@restart_option
@json_option
def set_(*, assignments: tuple[str, ...], with_restart: bool, as_json: bool) -> int:
    """Override keys: all of them, or none if one is not right.

    A container sees a new value at its next start. Exit code 0 if it is recorded (and, with
    --restart, if every service serves with it), 2 if a value is not right, 4 if it is to restart while a
    deployment is under way (nothing is recorded then), 7 if a service went back to its old
    environment, 8 if one is down.
    """
    manifest = _load()
    values = _parsed(manifest, assignments)
    what = f"set {' '.join(f'{key}={value}' for key, value in sorted(values.items()))}"

    def decide(before: Document) -> Values:
        return {**before.values, **values}

    return _change(manifest, "set", what, decide, sorted(values), with_restart=with_restart, as_json=as_json)


@command.command("unset")
@click.argument("keys", metavar="[KEY]...", nargs=-1, shell_complete=complete_key)
@click.option("--all", "everything", is_flag=True, help="Take back every override.")
@restart_option
@json_option
def unset(*, keys: tuple[str, ...], everything: bool, with_restart: bool, as_json: bool) -> int:
    """Take overrides back: what Nix declares holds again. Exit codes as for `set`."""
    if everything == bool(keys):
        raise click.UsageError("name the keys to unset, or give --all")
    manifest = _load()
    recorded = overrides.read(manifest).values
    wanted = sorted(recorded) if everything else _overridden(manifest, recorded, keys)

    def decide(before: Document) -> Values:
        return {key: value for key, value in before.values.items() if not everything and key not in wanted}

    what = "unset --all" if everything else f"unset {' '.join(wanted)}"
    return _change(manifest, "unset", what, decide, wanted, with_restart=with_restart, as_json=as_json)


def _overridden(manifest: Manifest, recorded: Values, keys: Sequence[str]) -> list[str]:
    """Return these keys with those that move with them, whether or not Nix still lets them be overridden."""
    found: set[str] = set()
    for key in keys:
        override = manifest.overridable.get(key)
        if override is None and key not in recorded:
            raise UsageError(_unknown(manifest, key), hint="nothing was changed")
        found.update(override.keys if override is not None else [key])
    return sorted(found)


@command.command("restore")
@click.argument("number", metavar="N", type=int)
@restart_option
@json_option
def restore(*, number: int, with_restart: bool, as_json: bool) -> int:
    """Make the overrides what they were after change N of the history. Exit codes as for `set`."""
    manifest = _load()
    keys: set[str] = set()

    def decide(before: Document) -> Values:
        entry = next((entry for entry in before.history if entry.id == number), None)
        if entry is None:
            known = ", ".join(str(entry.id) for entry in reversed(before.history)) or "none"
            raise UsageError(f"there is no change {number}", why=f"recorded are {known}", hint="nothing was changed")
        _, problems = overrides.usable(manifest, entry.values)
        if problems:
            raise UsageError(
                f"change {number} cannot be restored, because Nix declares otherwise now",
                why="; ".join(problems),
                hint="nothing was changed",
            )
        keys.update(key for key, _, _ in overrides.differences(before.values, entry.values))
        return dict(entry.values)

    return _change(manifest, "restore", f"restore {number}", decide, keys, with_restart=with_restart, as_json=as_json)


def _parsed(manifest: Manifest, assignments: Sequence[str]) -> Values:
    """Return the values that were asked for, for all keys that move together.

    Raises:
        UsageError: says all that is wrong.
    """
    values: Values = {}
    problems: list[str] = []
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        override = manifest.overridable.get(key)
        if not equals or not key:
            problems.append(f"{printable(repr(assignment), 80)} is not KEY=VALUE")
        elif override is None:
            problems.append(_unknown(manifest, key))
        elif (wrong := overrides.problem(override, value)) is not None:
            problems.append(f"{key} {wrong} ({override.option})")
        else:
            other = next((k for k in override.keys if values.get(k, value) != value), None)
            if other is not None:
                problems.append(f"{key} and {other} are one setting and cannot differ")
            values.update(dict.fromkeys(override.keys, value))
    if problems:
        raise UsageError("; ".join(dict.fromkeys(problems)), hint="nothing was changed")
    return values


def _unknown(manifest: Manifest, key: str) -> str:
    """Say why a key may not be overridden, or that there is no such key, and what to do."""
    shown = printable(key, 80)
    if key in manifest.secrets:
        return (
            f"{shown} is a secret, which is never shown and never overridden: it is in {manifest.secrets[key]['file']}"
        )
    option = manifest.environment_options.get(key)
    if option is not None:
        own = option == f"services.aistack.environment.{key}"
        also = ", or name it in services.aistack.overridable" if own else ""
        return f"{shown} cannot be overridden: set {option} in Nix{also}"
    holders = [name for name, service in manifest.services.items() if key in service.environment]
    if holders:
        return f"{shown} cannot be overridden: set services.aistack.services.{holders[0]}.environment.{shown} in Nix"
    near = difflib.get_close_matches(key[:80], manifest.environment, n=1)
    meant = f" (did you mean {near[0]}?)" if near else ""
    return f"there is no key {printable(repr(key), 80)} in the stack's environment{meant}"


def _change(
    manifest: Manifest,
    name: str,
    what: str,
    decide: Callable[[Document], Values],
    keys: Sequence[str] | set[str],
    *,
    with_restart: bool,
    as_json: bool,
) -> int:
    """Record a change, say what it does, and restart where that was asked for; return the exit code."""
    stack.validate(manifest)
    _require_writer(manifest, f"aistack env {name}")
    with contextlib.ExitStack() as opened:
        if with_restart:
            opened.enter_context(deploy_lock.acquire(manifest, f"aistack env {name} --restart"))
        store = _store(manifest, opened, needed=with_restart)
        before, after = overrides.change(manifest, _who(), what, decide)
        effective_before = manifest.environment
        # As a start would find it now.
        manifest = load(manifest.path)
        changed = overrides.differences(before.values, after.values)
        effects = _effects(manifest, effective_before, set(keys), store)
        if with_restart and store is not None:
            effects = _restart(manifest, effects, store)
    code = max((effect.code for effect in effects), default=ExitCode.DONE)
    hint = _next(effects, sorted(keys), name, before if changed else None, code)
    if as_json:
        output.document(
            {
                "changed": [
                    {"key": key, "from": old, "to": new, "declared": manifest.declared.get(key)}
                    for key, old, new in changed
                ],
                "change": after.history[-1].id if changed else None,
                "values": after.values,
                "services": [effect.data() for effect in effects],
                "exit_code": int(code),
                "next": hint,
            }
        )
    else:
        _show_change(manifest, changed, effects)
    if code != ExitCode.DONE:
        worst = next(effect for effect in effects if effect.code == code)
        output.error(f"{worst.service.name}: {worst.message}", hint)
    elif hint is not None and not as_json:
        output.line(f"next: {hint}")
    return int(code)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effect:
    """What a change means for one service."""

    service: Service
    state: str
    message: str
    code: ExitCode = ExitCode.DONE
    serves: Release | None = None
    seconds: float | None = None

    def data(self) -> dict[str, Any]:
        """Return it for --json."""
        return {
            "service": self.service.name,
            "unit": self.service.unit,
            "state": self.state,
            "message": self.message,
            "release": None if self.serves is None else self.serves.id,
            "seconds": None if self.seconds is None else round(self.seconds, 3),
        }


def _effects(manifest: Manifest, before: Values, keys: set[str], store: Store | None) -> list[Effect]:
    """Return what a change of these keys means for every service that reads one, dependencies first."""
    readers = overrides.readers(manifest, keys)
    if not readers:
        return []
    services = stack.chosen(manifest, readers)
    units = runtime.unit_states([service.unit for service in services])
    return [
        _effect(manifest, before, service, keys, store)
        if units.get(service.unit, {}).get("ActiveState") == "active"
        else Effect(service=service, state=STOPPED, message="does not run; its next start has it")
        for service in services
    ]


def _effect(manifest: Manifest, before: Values, service: Service, keys: set[str], store: Store | None) -> Effect:
    """Return what a change means for one service that runs."""
    should = runtime.public_environment(manifest, service)
    verdict = runtime.read_verdict(manifest, service.name)
    started = verdict.get("release")
    release = store.get(service.name, started) if store is not None and isinstance(started, int) else None
    # Without a journal, all that is known is what it would have had before.
    runs = release.environment if release is not None else {**should, **{k: before[k] for k in keys if k in before}}
    if not {key for key, _, _ in overrides.differences(runs, should)} & keys:
        return Effect(service=service, state=HAS_IT, message="runs with it already", serves=release)
    bad = _known_bad(service, should, store)
    if bad is not None:
        again = f"no start tries it again, unless you say so: aistack rollback {service.name} --to {bad.id}"
        message = f"{bad} had this environment and failed ({bad.reason}); {again}; {release} serves"
        return Effect(service=service, state=KNOWN_BAD, message=message, serves=release)
    return Effect(
        service=service,
        state=NEEDS_RESTART,
        message=f"runs with {overrides.in_words(manifest, runs, should)}",
        serves=release,
    )


def _known_bad(service: Service, environment: Values, store: Store | None) -> Release | None:
    """Return the bad release that a start with this environment would find, if there is another one to run instead."""
    declared = store.declared(service.name) if store is not None else None
    if store is None or declared is None or store.last_good(service.name) is None:
        return None
    image = runtime.images().get(service.image_ref, declared.image_id)
    running = store.current(service.name)
    if running is not None and running.deployed and running.base == image:
        image = running.image_id
    wanted = fingerprint(image, environment, service.identity)
    return next((r for r in store.history(service.name) if r.fingerprint == wanted and r.state == BAD), None)


def _restart(manifest: Manifest, effects: Sequence[Effect], store: Store) -> list[Effect]:
    """Restart what needs it, one after the other; the first that fails is the last that is restarted."""
    done: list[Effect] = []
    failed = next((effect for effect in effects if effect.state == KNOWN_BAD), None)
    for effect in effects:
        service = effect.service
        if effect.state == KNOWN_BAD:
            done.append(dataclasses.replace(effect, code=ExitCode.ROLLED_BACK))
            continue
        if effect.state != NEEDS_RESTART:
            done.append(effect)
            continue
        if failed is not None:
            message = f"{effect.message}; not restarted, because of {failed.service.name}"
            done.append(dataclasses.replace(effect, state=NOT_RESTARTED, message=message))
            continue
        result = restart.restart(manifest, service, store, runtime.public_environment(manifest, service))
        states = {ExitCode.DONE: RESTARTED, ExitCode.ROLLED_BACK: ROLLED_BACK}
        done.append(
            Effect(
                service=service,
                state=states.get(result.code, DOWN),
                message=result.message,
                code=result.code,
                serves=result.serves,
                seconds=result.seconds,
            )
        )
        failed = done[-1] if result.code != ExitCode.DONE else None
    return done


def _next(
    effects: Sequence[Effect], keys: Sequence[str], name: str, before: Document | None, code: ExitCode
) -> str | None:
    """Return the next command, or None. `before` is None where nothing was changed."""
    if code == ExitCode.DOWN:
        return f"aistack status {next(effect.service.name for effect in effects if effect.code == code)}"
    if code == ExitCode.ROLLED_BACK:
        back = f"aistack env unset {' '.join(keys)}" if name == "set" else "aistack env history"
        if before is not None and before.history:
            back = f"aistack env restore {before.history[-1].id}"
        return f"it is recorded all the same; to take it back: {back}"
    waiting = [effect.service.unit for effect in effects if effect.state in (NEEDS_RESTART, NOT_RESTARTED)]
    return f"systemctl restart {' '.join(waiting)}" if waiting else None


def _show_change(manifest: Manifest, changed: Sequence[overrides.Difference], effects: Sequence[Effect]) -> None:
    if not changed:
        output.line("nothing changes: the overrides are so already")
    for key, old, new in changed:
        nix = manifest.declared.get(key)
        was = old if old is not None else nix
        now = new if new is not None else nix
        source = "as Nix declares" if new is None else f"Nix declares {nix}"
        output.line(f"{key}: {was} -> {now} ({source})")
    if overrides.OF_HOOKS & {key for key, _, _ in changed}:
        output.line("every start and every health check uses it from now on")
    elif changed and not effects:
        output.line("no container reads it")
    for effect in effects:
        if effect.code == ExitCode.DONE:
            output.line(f"{effect.service.name}: {effect.message}")


def _load() -> Manifest:
    """Return the manifest, having said what of the overrides is no use."""
    manifest = load()
    if manifest.overrides_problem is not None:
        output.note(f"aistack: {manifest.overrides_problem}")
    return manifest


def _store(manifest: Manifest, opened: contextlib.ExitStack, *, needed: bool) -> Store | None:
    """Return the release journal if there is one; without `needed`, a damaged one is said and done without."""
    if not stack.has_journal(manifest):
        return None
    try:
        return opened.enter_context(stack.journal(manifest))
    except StoreError as error:
        if needed:
            raise
        output.note(f"aistack: {error}")
        return None


def _require_writer(manifest: Manifest, name: str) -> None:
    """Refuse a change that this user may not make, before anything is done.

    Raises:
        UsageError: says so, and how to call it (exit code 2).
    """
    folder = Path(manifest.state_dir)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise UsageError(f"`{name}` needs root: this user may not write to {folder}", hint=f"sudo {name}")


def _who() -> str:
    """Return who makes the change: whoever called sudo, else the user of this process."""
    try:
        own = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        own = str(os.geteuid())
    return printable(os.environ.get("SUDO_USER") or own, 60)


# --- checking --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that is not as it should be. `where` is env-file, overrides or container."""

    where: str
    subject: str
    detail: str
    hint: str
    code: ExitCode

    def data(self) -> dict[str, Any]:
        """Return it for --json."""
        return {"where": self.where, "subject": self.subject, "detail": self.detail, "next": self.hint}


@command.command("check")
@json_option
def check(*, as_json: bool) -> int:
    """Compare the .env on disk, the manifest, the overrides, and what each running container has.

    Exit code 0 if all agree, 2 if the .env or the overrides are not right, 3 if a container runs
    with something else.
    """
    manifest = load()
    stack.validate(manifest)
    problems = [*file_problems(manifest), *override_problems(manifest)]
    looked: list[str] = []
    if os.geteuid() == 0:
        found, looked = container_problems(manifest)
        problems += found
    else:
        output.note("aistack: not run by root: what containers run with was not looked at")
    code = min((problem.code for problem in problems), default=ExitCode.DONE)
    if as_json:
        output.document(
            {
                "manifest": manifest.path,
                "ok": not problems,
                "containers": looked,
                "problems": [problem.data() for problem in problems],
                "exit_code": int(code),
            }
        )
    elif problems:
        for problem in problems:
            output.line(f"{problem.subject}: {problem.detail}")
            output.indented(f"next: {problem.hint}", 2)
    else:
        count = len(manifest.overrides)
        output.line(
            f"ok: {manifest.env_file}, {count} overridden {'key' if count == 1 else 'keys'}, {len(looked)} containers"
        )
    return int(code)


def file_problems(manifest: Manifest) -> list[Problem]:
    """Return how the .env on disk differs from what the manifest declares."""

    def problem(detail: str) -> Problem:
        again = "render it again (nixos-rebuild switch, or bundle/install)"
        return Problem(where="env-file", subject=manifest.env_file, detail=detail, hint=again, code=ExitCode.USAGE)

    try:
        text = Path(manifest.env_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return [problem(f"cannot be read: {error}")]
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    if any("=" not in line for line in lines):
        return [problem("has a line that is no KEY=value")]
    on_disk = {key: value for key, _, value in (line.partition("=") for line in lines)}
    found = overrides.differences(on_disk, manifest.declared)
    return [problem(f"is not what the manifest declares: {_list(found)}")] if found else []


def _list(found: Sequence[overrides.Difference]) -> str:
    parts = [
        f"{printable(key, 60)} is {'missing' if is_ is None else printable(is_, 60)}, "
        f"{'not declared' if should is None else f'declared {printable(should, 60)}'}"
        for key, is_, should in found[:5]
    ]
    return "; ".join(parts) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")


def override_problems(manifest: Manifest) -> list[Problem]:
    """Return why overrides.json, or an override in it, is ignored."""
    path = overrides.location(manifest)

    def problem(detail: str, hint: str) -> Problem:
        return Problem(where="overrides", subject=path, detail=detail, hint=hint, code=ExitCode.USAGE)

    try:
        values = overrides.read(manifest).values
    except HookError as error:
        return [problem(str(error), f"mv {path} {path}.damaged")]
    _, wrong = overrides.usable(manifest, values)
    return [problem(f"ignored: {text}", f"aistack env unset {text.split()[0]}") for text in wrong]


def container_problems(manifest: Manifest) -> tuple[list[Problem], list[str]]:
    """Return how running containers differ from what a start would give them, and the names of those looked at."""
    own = [service for service in manifest.services.values() if not service.external]
    units = runtime.unit_states([service.unit for service in own])
    running = [service for service in own if units.get(service.unit, {}).get("ActiveState") == "active"]
    got = _environments(running)
    problems = []
    with contextlib.ExitStack() as opened:
        store = _store(manifest, opened, needed=False)
        for service in running:
            values = got.get(service.container)
            if values is None:
                detail, hint = "podman does not say what it runs with", f"podman container inspect {service.container}"
            elif (drift := _drift(manifest, service, store, values)) is not None:
                detail, hint = drift
            else:
                continue
            problems.append(
                Problem(
                    where="container",
                    subject=service.name,
                    detail=detail,
                    hint=hint,
                    code=ExitCode.DEPENDENCY_MISSING,
                )
            )
    return problems, [service.name for service in running]


def _environments(services: Sequence[Service]) -> dict[str, Values]:
    """Return what podman says each container was started with; it holds secrets, and must not be shown as it is."""
    if not services:
        return {}
    names = [service.container for service in services]
    command_line = ["podman", "container", "inspect", "--format", "{{.Name}}\t{{json .Config.Env}}", *names]
    # One that is missing makes it fail; the others are there all the same.
    _, out, _ = runtime.run(command_line, runtime.PODMAN_TIMEOUT)
    found: dict[str, Values] = {}
    for line in out.splitlines():
        name, _, text = line.partition("\t")
        try:
            pairs = json.loads(text)
        except ValueError:
            continue
        if isinstance(pairs, list):
            found[name] = {key: value for key, _, value in (str(pair).partition("=") for pair in pairs)}
    return found


def _drift(manifest: Manifest, service: Service, store: Store | None, values: Values) -> tuple[str, str] | None:
    """Return how a container's environment differs and the next command, or None. Only public keys are compared."""
    from aistack.cli import drift

    should = runtime.public_environment(manifest, service)
    started = runtime.read_verdict(manifest, service.name).get("release")
    release = store.get(service.name, started) if store is not None and isinstance(started, int) else None
    # An image has variables of its own: those that no release gave are not drift.
    public = set(should) | (set(release.environment) if release is not None else set())
    public -= set(service.secrets)
    runs = {key: value for key, value in values.items() if key in public}
    if runs == should:
        return None
    declared = store.declared(service.name) if store is not None else None
    known = drift.of(manifest, service, release, declared, runs=True)
    hint = known.hint if known is not None else f"systemctl restart {service.unit}"
    return f"runs with {overrides.in_words(manifest, runs, should)}", hint
