"""`aistack status`: what serves, what does not and why, what runs against what is declared."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from typing import TYPE_CHECKING, Any

import click

from aistack.cli import drift, output, stack
from aistack.cli.options import json_option, services_argument
from aistack.errors import ExitCode, StoreError
from aistack.hooks import health, probe, runtime
from aistack.hooks.errors import HookError
from aistack.hooks.manifest import load
from aistack.hooks.releases import BAD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aistack.hooks.manifest import Manifest, Service
    from aistack.hooks.releases import Release, Store

# States of a service, in the words of the table and of --json.
READY = "ready"
DEGRADED = "degraded"  # it runs, and fails its health checks
STARTING = "starting"
WAITING = "waiting"  # only a dependency is missing; it is started again when that is back
ROLLING_BACK = "rolling back"
STOPPED = "stopped"
FAILED = "failed"
UNKNOWN = "unknown"  # runs elsewhere, and this user may not read what its probe needs

# Neither serving nor down: time, or a dependency, will tell.
NOT_YET = frozenset({STARTING, WAITING, ROLLING_BACK})
DOWN = frozenset({STOPPED, FAILED})
# Its unit is active.
SERVING = frozenset({READY, DEGRADED})

# What of a dependency mends itself when the dependency comes back.
_TEMPORARY = frozenset({probe.NAME_UNKNOWN, probe.REFUSED, probe.TIMED_OUT, probe.NOT_READY})
# What the retry timer gives a failed service, in seconds (nix/modules/rollback.nix).
RETRY_SECONDS = 30
# Of the monotonic stamps systemd has for each unit these need no parsing of dates.
_ENTERED = {"active": "ActiveEnterTimestampMonotonic", "other": "StateChangeTimestampMonotonic"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What is known of one service. Times are Unix times in seconds."""

    service: str
    state: str
    unit: dict[str, str] | None = None
    external: dict[str, Any] | None = None
    since: float | None = None
    start_seconds: float | None = None
    release: Release | None = None
    declared: Release | None = None
    reason: str | None = None
    notice: str | None = None  # what is right with the service and wrong beside it
    checks: Sequence[dict[str, Any]] = ()
    hint: str | None = None
    drift: drift.Drift | None = None  # how its environment differs from the one that it should have
    health: dict[str, Any] | None = None  # the record of its last checks, of the container that runs

    @property
    def blames_another(self) -> bool:
        """Whether it is not at fault itself that it fails its health checks."""
        return self.health is not None and self.health.get("action") == health.BLAMED

    @property
    def off_course(self) -> bool:
        """Whether another release runs than the one Nix declares."""
        return self.release is not None and self.declared is not None and self.release.id != self.declared.id

    @property
    def deployed(self) -> bool:
        """Whether a deployed image runs in place of the one that Nix still declares."""
        release, declared = self.release, self.declared
        if release is None or not release.deployed:
            return False
        return declared is None or declared.id == release.id or release.base in (declared.base, declared.image_id)

    def data(self) -> dict[str, Any]:
        """Return the row for --json."""
        return {
            "service": self.service,
            "state": self.state,
            "unit": self.unit,
            "external": self.external,
            "since": output.rfc3339(self.since),
            "start_seconds": self.start_seconds,
            "release": _release_data(self.release),
            "declared_release": _release_data(self.declared),
            "runs_declared": None if self.release is None else not self.off_course,
            "runs_deployed": None if self.release is None else self.deployed,
            "environment_differs": [] if self.drift is None else list(self.drift.data),
            "reason": self.reason,
            "notice": self.notice,
            "failed_checks": list(self.checks),
            "health": health_data(self.health),
            "next": self.hint,
        }


def health_data(record: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a health record for --json."""
    if record is None:
        return None
    return {
        "state": record.get("state"),
        "kind": record.get("kind"),
        "detail": record.get("detail"),
        "since": output.rfc3339(record.get("since")),
        "checked_at": output.rfc3339(record.get("at")),
        "seconds_ago": round(seconds_ago(record, "atBoot"), 3),
        "took_seconds": record.get("tookSeconds"),
        "failures": record.get("failures"),
        "action": record.get("action"),
        "note": record.get("note"),
    }


def seconds_ago(record: dict[str, Any], key: str) -> float:
    """Return how long ago something of a record was, whatever somebody did to the clock meanwhile."""
    moment = record.get(key)
    return max(0.0, health.now() - moment) if isinstance(moment, int | float) else 0.0


def _release_data(release: Release | None) -> dict[str, Any] | None:
    if release is None:
        return None
    return {
        "id": release.id,
        "state": release.state,
        "image_id": release.image_id,
        "image_ref": release.image_ref,
        "reason": release.reason or None,
    }


@click.command("status")
@services_argument
@json_option
def command(*, services: tuple[str, ...], as_json: bool) -> int:
    """Show what serves, what does not, and why.

    Exit code 0 if every service serves, 3 if some only start or wait for a dependency, or one that
    runs elsewhere does not answer, 8 if one is down or fails its health checks. Reasons and releases
    are root's to read; the states are anybody's.
    """
    manifest = load()
    wanted = stack.chosen(manifest, services)
    units = _unit_states(wanted)
    problems: list[str] = []
    if manifest.overrides_problem is not None:
        problems.append(manifest.overrides_problem)
    try:
        if not stack.has_journal(manifest):
            rows = _rows(manifest, wanted, units, None)
        elif not stack.may_use_journal(manifest):
            output.note("aistack: reasons and releases are root's to read: sudo aistack status")
            rows = _rows(manifest, wanted, units, None)
        else:
            with stack.journal(manifest) as store:
                rows = _rows(manifest, wanted, units, store)
    except StoreError as error:
        # A damaged journal takes no service down, so the states are still worth showing.
        problems.append(str(error))
        rows = _rows(manifest, wanted, units, None)
    code = exit_code(rows, problems)
    if as_json:
        output.document(
            {
                "manifest": manifest.path,
                "exit_code": int(code),
                "problems": problems,
                "services": [row.data() for row in rows],
            }
        )
    else:
        _show(rows)
    for problem in problems:
        output.error(problem, None)
    return int(code)


def exit_code(rows: Sequence[Row], problems: Sequence[str]) -> ExitCode:
    """Return what a command that shows these rows ends with."""
    states = {row.state for row in rows}
    degraded = [row for row in rows if row.state == DEGRADED]
    # What runs elsewhere is not down here: it is missing, and whoever needs it suffers.
    down = any(row.state in DOWN and row.external is None for row in rows)
    if down or not all(row.blames_another for row in degraded):
        return ExitCode.DOWN
    if states & (NOT_YET | DOWN) or degraded:
        return ExitCode.DEPENDENCY_MISSING
    return ExitCode.UNEXPECTED if problems else ExitCode.DONE


def rollback_unit(service: Service) -> str:
    """Return the unit that takes a service back to its last good release."""
    return f"aistack-rollback@{service.name}.service"


def retry_timer(service: Service) -> str:
    """Return the timer that starts a failed service again."""
    return f"aistack-retry@{service.name}.timer"


def rows_of(manifest: Manifest, services: Sequence[Service]) -> list[Row]:
    """Return the rows of services, without their releases."""
    return _rows(manifest, services, _unit_states(services), None)


def _unit_states(services: Sequence[Service]) -> dict[str, dict[str, str]]:
    """Ask systemd once about every unit there is to ask about."""
    own = [service for service in services if not service.external]
    names = [name for one in own for name in (one.unit, rollback_unit(one), retry_timer(one))]
    return runtime.unit_states(names, *_ENTERED.values())


def _rows(
    manifest: Manifest,
    services: Sequence[Service],
    units: dict[str, dict[str, str]],
    store: Store | None,
) -> list[Row]:
    elsewhere = _ask_external(manifest, [service for service in services if service.external])
    return [
        elsewhere[service.name] if service.external else _container_row(manifest, service, units, store)
        for service in services
    ]


def _ask_external(manifest: Manifest, services: Sequence[Service]) -> dict[str, Row]:
    """Probe the services that run elsewhere, all at once, one try each: nobody watches them here."""
    if not services:
        return {}
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=len(services)) as pool:
        rows = pool.map(lambda service: _external_row(manifest, service), services)
        return {row.service: row for row in rows}


def _external_row(manifest: Manifest, service: Service) -> Row:
    place = {"host": service.external_host, "port": service.external_port}
    try:
        password = runtime.probe_password(manifest, service)
    except HookError as error:
        state = UNKNOWN if os.geteuid() != 0 else FAILED
        return Row(service=service.name, state=state, external=place, reason=str(error))
    result = probe.ask(manifest, service, password)
    if result.ok:
        return Row(service=service.name, state=READY, external=place, since=None)
    return Row(
        service=service.name,
        state=FAILED,
        external=place,
        reason=f"{result.kind}: {result.detail}",
        hint=f"it runs elsewhere: look at {service.external_host}",
    )


def _container_row(manifest: Manifest, service: Service, units: dict[str, dict[str, str]], store: Store | None) -> Row:
    unit = units.get(service.unit, {})
    rollback = units.get(rollback_unit(service), {})
    verdict = runtime.read_verdict(manifest, service.name)
    failed = _failed_checks(verdict)
    state = _state(unit, rollback, verdict, failed)
    retried = state == FAILED and units.get(retry_timer(service), {}).get("ActiveState") == "active"
    record = _health(manifest, service, verdict) if state == READY else None
    if record is not None and record.get("state") == health.UNHEALTHY:
        state = DEGRADED
    release = _release(service, state, verdict, store)
    declared = store.declared(service.name) if store is not None else None
    return Row(
        service=service.name,
        state=state,
        unit={
            "name": service.unit,
            "load": unit.get("LoadState", "unknown"),
            "active": unit.get("ActiveState", "unknown"),
            "sub": unit.get("SubState", "unknown"),
            "result": unit.get("Result", "unknown"),
        },
        since=_since(state, unit, verdict) if state != DEGRADED or record is None else record.get("since"),
        start_seconds=verdict.get("startSeconds") if state in SERVING else None,
        release=release,
        declared=declared,
        drift=drift.of(manifest, service, release, declared, runs=state in SERVING),
        reason=_reason(state, unit, verdict, record, retried=retried),
        notice=verdict.get("notice") if state in (READY, STARTING) else None,
        checks=failed if state not in SERVING else (),
        hint=_hint(state, service, unit, verdict, failed),
        health=record,
    )


def _health(manifest: Manifest, service: Service, verdict: dict[str, Any]) -> dict[str, Any] | None:
    """Return what the last health check found of the container that runs now; None where it was not checked yet."""
    record = health.read(manifest, service.name)
    return record if record and record.get("start") == verdict.get("readyAt") else None


def _failed_checks(verdict: dict[str, Any]) -> list[dict[str, Any]]:
    checks = verdict.get("checks")
    if not isinstance(checks, list):
        return []
    return [check for check in checks if isinstance(check, dict) and not check.get("ok")]


def _release(service: Service, state: str, verdict: dict[str, Any], store: Store | None) -> Release | None:
    """Return the release that runs, or else the one that the next start will run."""
    if store is None:
        return None
    started = verdict.get("release")
    ran = store.get(service.name, started) if state in SERVING and isinstance(started, int) else None
    return ran or store.current(service.name)


def _state(
    unit: dict[str, str],
    rollback: dict[str, str],
    verdict: dict[str, Any],
    failed: Sequence[dict[str, Any]],
) -> str:
    active = unit.get("ActiveState", "unknown")
    if active == "active":
        return READY
    if rollback.get("ActiveState") == "activating":
        return ROLLING_BACK
    waiting = verdict.get("phase") == runtime.PREFLIGHT and only_dependencies(failed)
    if active in {"activating", "reloading", "refreshing"}:
        return WAITING if waiting else STARTING
    if active == "failed":
        return WAITING if waiting else FAILED
    if active in {"inactive", "deactivating"}:
        return FAILED if unit.get("LoadState") == "not-found" else STOPPED
    return FAILED


def only_dependencies(failed: Sequence[dict[str, Any]]) -> bool:
    """Whether nothing but dependencies that may come back keeps a service from starting."""
    return bool(failed) and all(
        str(check.get("subject", "")).startswith("dependency ") and check.get("kind") in _TEMPORARY for check in failed
    )


def _since(state: str, unit: dict[str, str], verdict: dict[str, Any]) -> float | None:
    if state == READY and isinstance(verdict.get("readyAt"), int | float):
        return float(verdict["readyAt"])
    stamp = unit.get(_ENTERED["active" if state == READY else "other"], "")
    if not stamp.isdigit() or int(stamp) == 0:
        return None
    # Microseconds of the monotonic clock, which stands still while the machine sleeps.
    return time.time() - (time.monotonic() - int(stamp) / 1e6)


def _reason(
    state: str,
    unit: dict[str, str],
    verdict: dict[str, Any],
    record: dict[str, Any] | None = None,
    *,
    retried: bool = False,
) -> str | None:
    if state == READY:
        return None
    if state == DEGRADED and record is not None:
        return unhealthy_reason(record)
    if unit.get("LoadState") == "not-found":
        return "systemd knows no such unit"
    if state == STOPPED:
        return None if verdict else "not started since boot"
    reason = verdict.get("reason")
    result = unit.get("Result", "unknown")
    soon = f"; it is started again within {RETRY_SECONDS} s" if retried else ""
    if state == FAILED and verdict.get("phase") == runtime.READY:
        return f"it was ready and its unit failed then ({result}){soon}"
    if reason:
        return f"{reason}{soon}"
    return None if state in NOT_YET else f"its unit failed ({result}){soon}"


def unhealthy_reason(record: dict[str, Any]) -> str:
    """Return, in one sentence, why a service counts as unhealthy, for how long, and what is done about it."""
    since = output.duration(seconds_ago(record, "sinceBoot"))
    done = f"; {record['note']}" if record.get("note") else ""
    return f"{record.get('kind')}: {record.get('detail')} (for {since}, {record.get('failures')} checks){done}"


def _hint(
    state: str,
    service: Service,
    unit: dict[str, str],
    verdict: dict[str, Any],
    failed: Sequence[dict[str, Any]],
) -> str | None:
    if state == READY:
        return None
    if state == DEGRADED:
        return f"journalctl -u {service.unit} -n 50"
    if unit.get("LoadState") == "not-found":
        return "render and install the units (nixos-rebuild switch, or bundle/install)"
    if state == STOPPED:
        return f"systemctl start {service.unit}"
    if state == ROLLING_BACK:
        return f"journalctl -f -u {rollback_unit(service)}"
    if state == WAITING:
        names = [str(check["subject"]).removeprefix("dependency ") for check in failed]
        return f"aistack status {' '.join(names)}"
    if verdict.get("phase") == runtime.PREFLIGHT:
        return f"aistack preflight {service.name}"
    if verdict.get("phase") == runtime.DOWN_NO_RELEASE:
        return f"aistack releases {service.name} --log {verdict.get('release')}"
    return f"journalctl -u {service.unit} -n 50"


def _show(rows: Sequence[Row]) -> None:
    if not rows:
        output.note("aistack: the manifest declares no service")
        return
    output.table(
        ["service", "state", "since", "start", "release", "image"],
        [
            [
                row.service,
                row.state,
                output.local_time(row.since),
                f"{row.start_seconds:.2f} s" if row.start_seconds is not None else "-",
                _release_cell(row),
                row.release.image_id[:12] if row.release is not None else "-",
            ]
            for row in rows
        ],
    )
    for row in rows:
        _show_details(row)


def _release_cell(row: Row) -> str:
    if row.external is not None:
        return f"external {row.external['host']}:{row.external['port']}"
    if row.release is None:
        return "-"
    mark = f" (not {row.declared.id})" if row.off_course and row.declared is not None else ""
    return f"{row.release.id} {row.release.state}{mark}"


def _show_details(row: Row) -> None:
    """Print what the table has no room for: why, and what to do."""
    if row.deployed and row.release is not None:
        runs = "runs" if row.state in SERVING else "is what the next start runs"
        output.line(f"{row.service}: {row.release} {runs}, deployed in place of the image that Nix declares")
        output.indented(f"next: {permanent(row.release)}; to go back: aistack rollback {row.service}", 2)
    elif row.off_course and row.release is not None and row.declared is not None:
        why = f": {row.declared.reason}" if row.declared.reason else ""
        runs = "runs" if row.state in SERVING else "is what the next start runs"
        output.line(
            f"{row.service}: release {row.release.id} {runs}, not the declared {row.declared.id} "
            f"({row.declared.state}{why})"
        )
        show = f"aistack releases {row.service} --log {row.declared.id}"
        go = f"aistack rollback {row.service} --to {row.declared.id}"
        output.indented(f"next: {show if row.declared.state == BAD else go}", 2)
    if row.drift is not None:
        runs = "runs" if row.state in SERVING else "the next start runs"
        output.line(f"{row.service}: {runs} with {row.drift.words}")
        output.indented(f"next: {row.drift.hint}", 2)
    if row.notice is not None:
        output.line(f"{row.service}: {row.notice}")
    if row.state == READY:
        return
    output.line(f"{row.service}: {row.state}" + (f": {row.reason}" if row.reason else ""))
    for check in row.checks:
        output.indented(check_line(check), 2)
    if row.hint is not None:
        output.indented(f"next: {row.hint}", 2)


def permanent(release: Release) -> str:
    """Return how a deployed image becomes the declared one."""
    return (
        f"it stays until Nix declares another image; to make it permanent: "
        f"services.aistack.services.{release.service}.image = {json.dumps(release.image_ref)}"
    )


def check_line(check: dict[str, Any]) -> str:
    """Return one failed check as a line: what, kind, why, time spent, what to do."""
    line = f"{check.get('subject')}: {check.get('kind')}: {check.get('detail')}"
    if check.get("tries", 1) > 1:
        line += f" after {check.get('seconds', 0):.1f} s and {check.get('tries')} tries"
    return f"{line}; {check['fix']}" if check.get("fix") else line
