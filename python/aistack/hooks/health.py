"""A health timer's tick: ask every service of one interval, record what was found, act only where it is certain.

One failed check is data. Only after `health.failures` failed checks in a row of a unit that is active and was ready
does anything happen, and then blame comes first: a dependency or the network that does not answer is nobody else's
fault, an unproven release goes back, a proven one is restarted where self-healing is on. Each decision is one line in
the journal, when it is made and not at each tick.

The healthy case starts no process: a unit's state is known from its verdict and from systemd's own record of running
units; only where something is wrong is systemd asked. Times that decide anything are of the clock that nobody sets
(CLOCK_BOOTTIME), so that a jump of the wall clock changes nothing.
"""

from __future__ import annotations

import json
import os
import time

from aistack.hooks import probe, runtime
from aistack.hooks.errors import DONE, INVALID, HookError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from aistack.hooks.manifest import Manifest, Service
    from aistack.hooks.preflight import Check
    from aistack.hooks.releases import Release

SCHEMA_VERSION = 1

# States of a health record. `healthy` until as many checks in a row have failed as health.failures says.
HEALTHY = "healthy"
UNHEALTHY = "unhealthy"
UNKNOWN = "unknown"  # nobody is to ask: it starts, it was stopped, it is being rolled back

# What was done about an unhealthy service. Null where nothing was.
BLAMED = "blamed"  # a dependency or the network does not answer: left alone
ROLLBACK = "rollback"
REPAIR = "repair"  # the network was mended, which is asked first
RESTART = "restart"
WAIT = "wait"  # to be restarted when its pause is over
DEGRADED = "degraded"  # nothing is done any more, until it is healthy again

_UNITS = "/run/systemd/units"  # where systemd keeps invocation:UNIT for each unit that is neither inactive nor failed
_AT_ONCE = 64  # connections that wait at the same time
_EXECS_AT_ONCE = 4  # podman exec costs processor time, not only patience


def now() -> float:
    """Seconds since boot, sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def health(manifest: Manifest, seconds: str) -> int:
    """Check the services whose health.interval is `seconds`; returns 0 whatever it finds.

    Raises HookError for what is no number of seconds.
    """
    try:
        interval = float(seconds)
    except ValueError:
        raise HookError(f"{printable(repr(seconds), 40)} is no number of seconds", INVALID) from None
    group = [s for s in manifest.services.values() if not s.external and s.probe and s.probe.interval == interval]
    tick(manifest, group)
    return DONE


def tick(manifest: Manifest, group: list[Service]) -> None:
    """Check these services once and act where it is due. What goes wrong with one keeps no other from its check."""
    watched = []
    for service in group:
        verdict = runtime.read_verdict(manifest, service.name)
        if verdict.get("phase") == runtime.READY:
            watched.append(_Watched(service, verdict, read(manifest, service.name)))
        else:
            with _Guard(service):
                rest(manifest, service, _why_not(verdict))
    _ask_all(manifest, watched)
    doubtful = [w for w in watched if not w.result.ok or not _runs(w.service.unit)]
    states = _states(doubtful) if doubtful else {}
    for one in watched:
        with _Guard(one.service):
            _judge(manifest, one, states.get(one.service.name))
    _notice_secrets(manifest, [one.service for one in watched if one.service.secrets])


def _notice_secrets(manifest: Manifest, services: list[Service]) -> None:
    """Have a changed secret followed that systemd does not see change."""
    if not services:
        return
    from aistack.hooks import rotation

    try:
        if rotation.due(manifest, services):
            runtime.systemctl("start", "--no-block", rotation.UNIT)
    except HookError as error:
        runtime.say(f"a changed secret is not followed: {error}")


class _Watched:
    """A service that was ready, its record so far, and what this tick found."""

    __slots__ = ("before", "result", "service", "took", "verdict")

    def __init__(self, service: Service, verdict: dict[str, Any], before: dict[str, Any]) -> None:
        self.service = service
        self.verdict = verdict
        self.before = before
        self.result = probe.Result(UNKNOWN, "not asked")
        self.took = 0.0


class _Guard:
    """Makes an error of one service's step a line in the journal, and nothing more."""

    __slots__ = ("service",)

    def __init__(self, service: Service) -> None:
        self.service = service

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> bool:
        if not isinstance(error, HookError):
            return False
        runtime.say(f"{self.service.name}: its health could not be looked after: {error}")
        return True


# --- asking ----------------------------------------------------------------------------------------------------------


def _ask_all(manifest: Manifest, watched: list[_Watched]) -> None:
    """Probe all at the same time, each within its own timeout."""
    if len(watched) <= 1:
        for one in watched:
            _ask(manifest, one)
        return
    import threading

    places = threading.BoundedSemaphore(_AT_ONCE), threading.BoundedSemaphore(_EXECS_AT_ONCE)

    def look(one: _Watched) -> None:
        with places[one.service.probe is not None and one.service.probe.kind == "exec"]:
            _ask(manifest, one)

    threads = [threading.Thread(target=look, args=(one,)) for one in watched]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _ask(manifest: Manifest, one: _Watched) -> None:
    began = time.monotonic()
    try:
        one.result = probe.ask_any(manifest, one.service, runtime.probe_passwords(manifest, one.service))
    except HookError as error:
        # Its probe cannot be put together (a secret is unreadable): that says nothing about the service.
        one.result = probe.Result(UNKNOWN, str(error))
    one.took = time.monotonic() - began


def _runs(unit: str) -> bool:
    """Whether systemd has the unit on record as running. No is not certain: then systemd is asked."""
    return os.path.lexists(f"{_UNITS}/invocation:{unit}")


def _states(watched: list[_Watched]) -> dict[str, str]:
    """What systemd says of the named services' units: `active`, or why nobody should judge them now."""
    units = {one.service.name: (one.service.unit, f"aistack-rollback@{one.service.name}.service") for one in watched}
    try:
        known = runtime.unit_states((unit for pair in units.values() for unit in pair), "Job")
    except HookError as error:
        return dict.fromkeys(units, f"systemd could not be asked: {error}")

    def state(unit: str, rollback: str) -> str:
        if known.get(rollback, {}).get("ActiveState") in ("activating", "active"):
            return "it is being rolled back"
        fields = known.get(unit, {})
        if fields.get("ActiveState") != "active":
            return f"its unit is {fields.get('ActiveState', 'unknown')}"
        return "it is being started or stopped" if fields.get("Job", "0") not in ("", "0") else "active"

    return {name: state(*pair) for name, pair in units.items()}


def _why_not(verdict: dict[str, Any]) -> str:
    phase = verdict.get("phase")
    return "not started since boot" if phase is None else f"not ready: {phase}"


# --- judging ---------------------------------------------------------------------------------------------------------


def rest(manifest: Manifest, service: Service, why: str) -> None:
    """Record that nobody asks the service for now; what is remembered across its starts stays."""
    before = read(manifest, service.name)
    if before.get("state") == UNKNOWN and before.get("detail") == why:
        return
    _write(manifest, service, _fresh(before, None), state=UNKNOWN, kind=UNKNOWN, detail=why)


def _fresh(before: dict[str, Any], start: float | None, ready: float | None = None) -> dict[str, Any]:
    """The record of a new start: it was healthy when it got ready, and only its restarts are remembered.

    `start` is the Unix time when it got ready, `ready` the same in seconds since boot; None where it is not known.
    """
    moment = now()
    return {
        "start": start,
        "state": HEALTHY if start is not None else UNKNOWN,
        "since": start if start is not None else time.time(),
        "sinceBoot": ready if ready is not None else moment,
        "failures": 0,
        "toward": 0,
        "action": None,
        "note": None,
        "exhausted": False,
        "restarts": before.get("restarts", []),
    }


def _judge(manifest: Manifest, one: _Watched, state: str | None) -> None:
    """Record what one tick found of a service, and act if that is due. `state` is None where nothing is doubtful."""
    service, result = one.service, one.result
    if state not in (None, "active"):
        rest(manifest, service, str(state))
        return
    start = one.verdict.get("readyAt")
    fresh = runtime.read_verdict(manifest, service.name)
    if fresh.get("phase") != runtime.READY or fresh.get("readyAt") != start:
        return  # started anew while it was asked: the next tick has its answer
    if result.kind == UNKNOWN:
        rest(manifest, service, result.detail)
        return
    before = one.before
    record = {**before} if before.get("start") == start else _fresh(before, start, one.verdict.get("readyAtBoot"))
    if result.ok:
        if before.get("state") == UNHEALTHY or record["state"] == UNHEALTHY:
            seconds = now() - float(before.get("sinceBoot", now()))
            runtime.say(f"{service.name} is healthy again, after {seconds:.0f} s")
        if record["state"] != HEALTHY:
            _enter(record, HEALTHY)
        record.update(failures=0, toward=0, action=None, note=None, exhausted=False)
        _write(manifest, service, record, kind=result.kind, detail=result.detail, took=one.took)
        return
    record["failures"] += 1
    record["toward"] += 1
    needed = service.probe.failures if service.probe is not None else 1
    if record["failures"] >= needed and record["state"] != UNHEALTHY:
        _enter(record, UNHEALTHY)
    found: dict[str, Any] = {"kind": result.kind, "detail": result.detail, "took": one.took}
    if record["toward"] < needed:
        _write(manifest, service, record, **found)
        return
    _act(manifest, one, record, found)


def _enter(record: dict[str, Any], state: str) -> None:
    record.update(state=state, since=time.time(), sinceBoot=now())


def _act(manifest: Manifest, one: _Watched, record: dict[str, Any], found: dict[str, Any]) -> None:
    """Decide whose fault it is, record that, say it if it is news, and do it."""
    service = one.service
    action, note = _decide(manifest, one)
    if action == REPAIR:
        # Once for each failing: a network that is mended again and again must not keep the service from its restart.
        mended = _mend_network(manifest, service) if record["action"] != REPAIR else None
        if mended is None and _is_the_networks(manifest, one.result):
            # The turn of another service of this tick, or another repair, may have mended it since it was asked.
            _ask(manifest, one)
            mended = "the network was to blame, and was mended meanwhile" if one.result.ok else None
        action, note = (REPAIR, mended) if mended else _healing(manifest, record)
    known = (record.get("action"), record.get("note")) == (action, note)
    # Counted anew: what is left alone is judged again after as many failures, not at each tick.
    record.update(action=action, note=note, toward=record["toward"] if action == WAIT else 0)
    if action == RESTART:
        record["restarts"] = [*record["restarts"], now()]
    # Recorded before it is done: an interrupted tick must not lose count of its restarts.
    _write(manifest, service, record, **found)
    if not known and action != WAIT:
        word = "DEGRADED" if action == DEGRADED else "unhealthy"
        seen = f"{record['failures']} checks failed, the last: {found['kind']}: {found['detail']}"
        runtime.say(f"{service.name} is {word} ({seen}): {note}")
    if action == ROLLBACK:
        runtime.systemctl("start", "--no-block", f"aistack-rollback@{service.name}.service")
    elif action == RESTART:
        runtime.systemctl("reset-failed", service.unit)
        # Only if it runs: somebody may have stopped it a moment ago.
        runtime.systemctl("try-restart", "--no-block", service.unit)


def _decide(manifest: Manifest, one: _Watched) -> tuple[str, str]:
    """What to do about a service that failed its checks, and why, in words for the journal."""
    from aistack.hooks import rollback
    from aistack.hooks.start_pre import open_store

    service = one.service
    absent = rollback.absent_dependency(manifest, service)
    if absent is not None:
        return BLAMED, _blame(absent)
    store = open_store(manifest)
    try:
        release = rollback.last_run(manifest, service, store)
        if _is_the_networks(manifest, one.result):
            if manifest.self_healing:
                return REPAIR, ""
            return BLAMED, "the network is to blame, not the service; see: aistack network check"
        if release is None:
            return DEGRADED, "its release is not known; left alone"
        if release.proven:
            if manifest.self_healing:
                return REPAIR, ""
            return DEGRADED, f"{release} is proven and self-healing is off: left alone"
        return _unproven(service, release, rollback.way_back(service, store, release))
    finally:
        store.close()


def _unproven(service: Service, release: Release, back: str | None) -> tuple[str, str]:
    if service.rollback_policy == "none":
        return DEGRADED, f"{release} is in probation and the rollback policy is none: left alone"
    if back is None:
        return DEGRADED, f"{release} is in probation and there is no good release to go back to: left alone"
    return ROLLBACK, f"{release} fails within its probation: going back to {back}"


def _blame(absent: Check) -> str:
    return f"{absent.subject} does not answer ({absent.kind}), so it is left alone"


def _is_the_networks(manifest: Manifest, result: probe.Result) -> bool:
    """Whether it was the name server that failed, not the service: its unit is active, so it must have a name."""
    return result.kind == probe.NAME_UNKNOWN or result.address == f"{manifest.gateway}:53"


def _healing(manifest: Manifest, record: dict[str, Any]) -> tuple[str, str]:
    """A restart, bounded: so many in a window, each after twice the pause of the one before."""
    bounds = manifest.healing
    moment = now()
    recent = [at for at in record["restarts"] if moment - at < bounds.window]
    record["restarts"] = recent
    within = f"{bounds.most} restarts within {bounds.window:g} s"
    if record["exhausted"] or len(recent) >= bounds.most:
        record["exhausted"] = True
        return DEGRADED, f"{within} did not help: left alone until it is healthy again"
    if recent and moment - recent[-1] < bounds.backoff * 2 ** (len(recent) - 1):
        return WAIT, f"restarted when its pause of {bounds.backoff * 2 ** (len(recent) - 1):g} s is over"
    return RESTART, f"restarted ({len(recent) + 1} of {within})"


def _mend_network(manifest: Manifest, service: Service) -> str | None:
    """Mend what is wrong with the network for this service; returns what was done, None if there was nothing to do."""
    from aistack.hooks import network

    try:
        concern = ("", service.container)
        faults = [f for f in network.check(manifest) if f.kind != network.GHOST and f.container in concern]
        done = network.repair(manifest, faults) if faults else []
    except HookError as error:
        runtime.say(f"{service.name}: its network could not be looked after: {error}")
        return None
    return f"its network was to blame: {'; '.join(fault.mended_line() for fault in done)}" if done else None


# --- records ---------------------------------------------------------------------------------------------------------


def record_path(manifest: Manifest, service: str) -> str:
    """Where a service's record is."""
    return os.path.join(manifest.runtime_dir, service, "health.json")


def read(manifest: Manifest, service: str) -> dict[str, Any]:
    """The record of a service's health; empty when there is none since boot or it is of no use."""
    try:
        with open(record_path(manifest, service), encoding="utf-8") as file:
            record = json.load(file)
    except (OSError, ValueError):
        return {}
    whole = isinstance(record, dict) and record.get("schemaVersion") == SCHEMA_VERSION
    return record if whole else {}


def _write(
    manifest: Manifest,
    service: Service,
    record: dict[str, Any],
    *,
    kind: str,
    detail: str,
    state: str | None = None,
    took: float = 0.0,
) -> None:
    found = {"kind": kind, "detail": detail, "tookSeconds": round(took, 4), "at": time.time(), "atBoot": now()}
    whole = {"schemaVersion": SCHEMA_VERSION, "service": service.name, **record, **found}
    if state is not None:
        whole["state"] = state
    runtime.service_dir(manifest, service.name)
    runtime.write_atomic(record_path(manifest, service.name), json.dumps(whole).encode(), 0o644)


def evidence(manifest: Manifest, service: str) -> str | None:
    """Why the release that runs now is to be rolled back although its unit is active; None without such a finding."""
    record = read(manifest, service)
    verdict = runtime.read_verdict(manifest, service)
    same = verdict.get("phase") == runtime.READY and verdict.get("readyAt") == record.get("start")
    if not same or record.get("state") != UNHEALTHY or record.get("action") != ROLLBACK:
        return None
    return f"{record['failures']} checks failed within its probation ({record.get('kind')}: {record.get('detail')})"
