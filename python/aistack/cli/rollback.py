"""`aistack rollback`: an administrator goes back to an earlier release of one service."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from aistack.cli import output, stack
from aistack.cli.options import complete_container_service, json_option
from aistack.cli.restart import active, after_automatic_rollback, serving, why
from aistack.errors import ExitCode, UsageError
from aistack.hooks import deploy_lock, rollback, runtime
from aistack.hooks.manifest import load

if TYPE_CHECKING:
    from aistack.hooks.manifest import Manifest, Service
    from aistack.hooks.releases import Release, Store


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """How a rollback ended; `serves` is the release that answers now, or None."""

    code: ExitCode
    message: str
    serves: Release | None = None
    seconds: float | None = None
    restored: tuple[str, ...] = ()
    hint: str | None = None


@click.command("rollback")
@click.argument("service", metavar="SVC", shell_complete=complete_container_service)
@click.option("--to", type=int, metavar="N", help="The release to go to (see `aistack releases`).")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
def command(*, service: str, to: int | None, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Go back to the previous good release of SVC, or to release N, and verify that it is ready.

    Restarts the unit, and starts failed services that depend on it again. What Nix declares stays
    recorded, and the choice holds until Nix declares something new. Exit code 0 if the release
    serves, 4 if a deployment is under way (nothing is changed then), 7 if it failed and an earlier
    one serves, 8 if the service is down.
    """
    manifest = load()
    entry = manifest.container_service(service)
    stack.validate(manifest)
    stack.require_root(manifest, f"aistack rollback {service}")
    if not stack.has_journal(manifest):
        raise _nothing(service, "no release of it is recorded yet")
    with stack.journal(manifest) as store:
        current = store.current(service)
        target = _target(store, service, current, to)
        if current is not None and target.id == current.id and active(entry):
            result = Result(code=ExitCode.DONE, message=f"{target} runs already: nothing to do", serves=target)
        elif dry_run:
            _require_image(entry, target)
            result = Result(code=ExitCode.DONE, message=f"would go from {current} to {target}")
        else:
            _require_image(entry, target)
            output.confirm(
                f"Restart {entry.unit} with {target} ({target.state}) instead of {current}?",
                yes=yes,
            )
            with deploy_lock.acquire(manifest, f"aistack rollback {service}"):
                # Nobody held the lock while it was asked for.
                now = store.current(service)
                if now is not None and (current is None or now.id != current.id):
                    raise _nothing(service, f"{now} was chosen meanwhile")
                result = _go(manifest, entry, store, target)
    if as_json:
        output.document(
            {
                "service": service,
                "dry_run": dry_run,
                "from": _data(current),
                "to": _data(target),
                "serves": _data(result.serves),
                "message": result.message,
                "seconds": None if result.seconds is None else round(result.seconds, 3),
                "restored": list(result.restored),
                "exit_code": int(result.code),
                "next": result.hint,
            }
        )
    elif result.code == ExitCode.DONE:
        output.line(f"{service}: {result.message}")
    if result.code != ExitCode.DONE:
        output.error(f"{service}: {result.message}", result.hint)
    return int(result.code)


def _nothing(service: str, why: str) -> UsageError:
    return UsageError(f"cannot roll back {service}", why=why, hint=f"aistack releases {service} shows what there is")


def _target(store: Store, service: str, current: Release | None, to: int | None) -> Release:
    """Return the release to go to.

    Raises:
        UsageError: there is no such release, or no earlier good one.
    """
    releases = store.history(service)
    if to is not None:
        found = next((release for release in releases if release.id == to), None)
        if found is None:
            known = ", ".join(str(release.id) for release in releases) or "none"
            raise _nothing(service, f"it has no release {to}; it has {known}")
        return found
    if current is None:
        raise _nothing(service, "no release of it is recorded yet")
    others = store.good(service, current)
    # The administrator counts backwards; what ran last may be a newer one that was left on purpose.
    older = [release for release in others if release.id < current.id]
    good = max(older or others, key=lambda release: release.id, default=None)
    if good is None and current.proven:
        raise _nothing(service, f"no release of it but the current one ({current.id}) was ever good")
    if good is None:
        raise _nothing(service, f"none of its releases was ever good (current is {current.id}, {current.state})")
    if good.id > current.id:
        why = f"no good release is older than the current one ({current.id}); {good.id} is newer"
        raise _nothing(service, f"{why}: --to {good.id}")
    return good


def _require_image(service: Service, target: Release) -> None:
    """Refuse a release whose image is gone: the start would silently choose another.

    Raises:
        UsageError: the image is not in podman's storage.
    """
    if target.image_id not in runtime.images().values() and not runtime.image_id(target.image_id):
        raise _nothing(service.name, f"the image of {target} is not in podman's storage any more")


def _go(manifest: Manifest, service: Service, store: Store, target: Release) -> Result:
    output.note(f"aistack: restarting {service.unit} with {target}")
    outcome = rollback.roll_back(manifest, service, store, target)
    serves = serving(manifest, service, store) if outcome.serving else None
    if serves is not None and serves.id == target.id:
        again = f"; started again: {', '.join(outcome.restored)}" if outcome.restored else ""
        return Result(
            code=ExitCode.DONE,
            message=f"{target} serves after {outcome.seconds:.1f} s{again}",
            serves=serves,
            seconds=outcome.seconds,
            restored=tuple(outcome.restored),
        )
    if serves is None:
        serves = after_automatic_rollback(manifest, service, store)
    # The target itself may run and not answer; that is no rollback to something that serves.
    if serves is not None and serves.id != target.id:
        return Result(
            code=ExitCode.ROLLED_BACK,
            message=f"{target} did not start ({why(manifest, store, target, outcome.reason)}); {serves} serves",
            serves=serves,
            seconds=outcome.seconds,
            hint=f"aistack releases {service.name} --log {target.id}",
        )
    return Result(
        code=ExitCode.DOWN,
        message=f"DOWN: {target} does not serve: {why(manifest, store, target, outcome.reason)}",
        seconds=outcome.seconds,
        hint=f"aistack status {service.name}",
    )


def _data(release: Release | None) -> dict[str, Any] | None:
    if release is None:
        return None
    return {
        "id": release.id,
        "state": release.state,
        "image_id": release.image_id,
        "image_ref": release.image_ref,
    }
