"""`aistack health`: what the health timers found, how long ago, and when they look again."""

from __future__ import annotations

import dataclasses
import re
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from aistack.cli import output, stack, status
from aistack.cli.options import json_option, services_argument
from aistack.errors import ExitCode, UsageError
from aistack.hooks import runtime
from aistack.hooks.manifest import load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aistack.hooks.manifest import Manifest, Service

# Words of this command's own, beside the states of `aistack status`.
HEALTHY = "healthy"
UNCHECKED = "unchecked"  # it is ready, and its timer has not asked it yet, or it has no probe to be asked with

_REDRAW = 1.0  # seconds
_CLEAR = "\x1b[H\x1b[2J"  # cursor home, erase display (ECMA-48)
# How systemctl prints a span: "1h 2min 3.5s".
_SPAN = re.compile(r"([0-9.]+)(us|ms|s|min|h|d|w|month|y)\b")
_UNITS = {
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1,
    "min": 60,
    "h": 3600,
    "d": 86400,
    "w": 604800,
    "month": 2629800,
    "y": 31557600,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Health:
    """One service: its row of `aistack status`, its verdict in a word, seconds until it is asked again."""

    row: status.Row
    state: str
    needed: int | None
    next_seconds: float | None

    @property
    def reason(self) -> str | None:
        """Why it is not healthy, or which checks failed lately."""
        record = self.row.health
        if self.state == HEALTHY and record is not None:
            failed = record.get("failures", 0)
            return f"{failed} of {self.needed} checks failed: {record.get('detail')}" if failed else None
        return self.row.reason

    def data(self) -> dict[str, Any]:
        """Return it for --json."""
        return {
            "service": self.row.service,
            "state": self.state,
            "reason": self.reason,
            "since": output.rfc3339(self.row.since),
            "failures_needed": self.needed,
            "next_seconds": None if self.next_seconds is None else round(self.next_seconds, 3),
            "health": status.health_data(self.row.health),
            "next": self.row.hint,
        }


@click.command("health")
@services_argument
@click.option("--watch", is_flag=True, help="Go on: redraw on a terminal, a line for each change elsewhere.")
@json_option
def command(*, services: tuple[str, ...], watch: bool, as_json: bool) -> int:
    """Show what the health checks found, when, and when they look again.

    Exit code 0 if every service is healthy, 3 if some only start, wait or suffer from a dependency,
    8 if one is down or fails its checks. Findings are root's to read; the units' states are anybody's.
    """
    if watch and as_json:
        raise UsageError("--watch and --json do not go together", hint="ask for --json as often as you need it")
    manifest = load()
    wanted = stack.chosen(manifest, services)
    if stack.has_journal(manifest) and not stack.may_use_journal(manifest):
        output.note("aistack: what the checks found is root's to read: sudo aistack health")
    if watch:
        return _watch(manifest, wanted)
    found = look(manifest, wanted)
    code = exit_code(found)
    if as_json:
        output.document(
            {"manifest": manifest.path, "exit_code": int(code), "services": [one.data() for one in found]},
        )
    else:
        _show(found)
    return int(code)


def look(manifest: Manifest, services: Sequence[Service]) -> list[Health]:
    """Return the health of services, as their timers found it; those that run elsewhere are asked now."""
    rows = status.rows_of(manifest, services)
    timers = {timer_of(service) for service in services if _has_timer(service)}
    states = runtime.unit_states(sorted(timers), "NextElapseUSecMonotonic") if timers else {}
    return [
        Health(
            row=row,
            state=_word(row),
            needed=service.probe.failures if service.probe is not None else None,
            next_seconds=_next(states.get(timer_of(service), {})) if _has_timer(service) else None,
        )
        for service, row in zip(services, rows, strict=True)
    ]


def timer_of(service: Service) -> str:
    """Return the timer that has a service checked."""
    return f"aistack-health-{service.probe.interval:g}.timer" if service.probe is not None else ""


def _has_timer(service: Service) -> bool:
    return service.probe is not None and not service.external


def _word(row: status.Row) -> str:
    if row.state != status.READY:
        return row.state
    return HEALTHY if row.external is not None or row.health is not None else UNCHECKED


def _next(timer: dict[str, str]) -> float | None:
    """Return the seconds until a timer elapses; None for one that does not run."""
    if timer.get("ActiveState") != "active":
        return None
    parts = _SPAN.findall(timer.get("NextElapseUSecMonotonic", ""))
    if not parts:
        return None
    moment = sum(float(number) * _UNITS[unit] for number, unit in parts)
    return max(0.0, moment - time.clock_gettime(time.CLOCK_MONOTONIC))


def exit_code(found: Sequence[Health]) -> ExitCode:
    """Return the exit code of these findings: as `aistack status` counts."""
    return status.exit_code([one.row for one in found], [])


def _show(found: Sequence[Health]) -> None:
    if not found:
        output.note("aistack: the manifest declares no service")
        return
    output.table(["service", "health", "since", "checked", "next"], [_cells(one) for one in found])
    for one in found:
        if one.reason is not None:
            output.line(f"{one.row.service}: {one.state}: {one.reason}")
        if one.row.hint is not None:
            output.indented(f"next: {one.row.hint}", 2)


def _cells(one: Health) -> list[str]:
    record = one.row.health
    return [
        one.row.service,
        one.state,
        output.local_time(one.row.since),
        f"{output.duration(status.seconds_ago(record, 'atBoot'))} ago" if record is not None else "-",
        f"in {output.duration(one.next_seconds)}" if one.next_seconds is not None else "-",
    ]


def _watch(manifest: Manifest, services: Sequence[Service]) -> int:
    """Show the findings again and again, until interrupted; a finding is a line only when it is another."""
    redraw = sys.stdout.isatty()
    seen: dict[str, tuple[str, str | None]] = {}
    while True:
        found = look(manifest, services)
        if redraw:
            sys.stdout.write(_CLEAR)
            _show(found)
        for one in found:
            record = one.row.health
            now = (one.state, record.get("kind") if record is not None and one.state != HEALTHY else None)
            if not redraw and seen.get(one.row.service) != now:
                why = f": {one.reason}" if one.reason is not None else ""
                output.line(f"{output.local_time(time.time())} {one.row.service}: {one.state}{why}")
            seen[one.row.service] = now
        sys.stdout.flush()
        _pause()


def _pause() -> None:
    time.sleep(_REDRAW)
