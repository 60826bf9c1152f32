"""ExecStartPost: the unit counts as started when the service answers, not when its process exists.

A start that fails or is stopped removes its container first: systemd runs no ExecStop for a start that never finished,
and a process that ignores SIGTERM would hold the unit until TimeoutStopSec.
"""

from __future__ import annotations

import os
import select
import signal
import time

from aistack.hooks import probe, runtime
from aistack.hooks.errors import DONE, UNEXPECTED, HookError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from aistack.hooks.manifest import Manifest, Service

EXITED = "exited"


class _Stopped(Exception):
    """systemd stops the unit while it starts: somebody asked for it, so it is no failure."""


def await_ready(manifest: Manifest, name: str) -> int:
    """Wait until `name` answers its probe; returns the hook's exit code."""
    service = manifest.container_service(name)
    began = time.monotonic()
    try:
        signal.signal(signal.SIGTERM, _stop)
        result = wait(manifest, service, _main_process())
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except _Stopped:
        try:
            runtime.remove_container(service.container, service.stop_timeout)
        except HookError as error:
            runtime.say(f"{name} is stopped, but its container is not removed: {error}")
        return DONE
    spent = time.monotonic() - began
    verdict = runtime.read_verdict(manifest, name)
    if not result.ok:
        return _fail(manifest, service, result, spent, verdict)
    for step in (
        lambda: _record(manifest, name, verdict, spent, result.detail),
        lambda: _enter_probation(manifest, service, verdict),
        lambda: revive_dependents(manifest, name),
        lambda: _forget_failed_rollback(manifest, name),
    ):
        try:
            step()
        except HookError as error:
            # It serves. What cannot be written down or started beside it is no reason to take it away again.
            runtime.say(f"{name} is ready, but {error}")
    return DONE


def _stop(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Stopped


def _record(manifest: Manifest, name: str, verdict: dict[str, Any], spent: float, detail: str) -> None:
    now = runtime.boot_seconds()
    runtime.write_verdict(
        manifest,
        name,
        phase=runtime.READY,
        ok=True,
        release=verdict.get("release"),
        proven=verdict.get("proven"),
        readyAt=time.time(),
        readyAtBoot=now,
        startSeconds=round(now - verdict.get("beganAtBoot", now), 3),
        preflightSeconds=verdict.get("preflightSeconds", 0.0),
        readySeconds=round(spent, 3),
        checks=[],
        notice=verdict.get("notice"),
        reason=detail,
    )


def _main_process() -> int | None:
    """A descriptor that becomes readable when the container's monitor, the unit's main process, ends."""
    pid = os.environ.get("MAINPID", "")
    if not pid.isdigit():
        return None
    try:
        return os.pidfd_open(int(pid))
    except ProcessLookupError:
        return -1
    except OSError:
        return None


def wait(manifest: Manifest, service: Service, process: int | None) -> probe.Result:
    """Probe until ready, until the container ends, or until the probe's start timeout is over.

    `process` is a pidfd of the container's monitor, -1 if that has ended already, None if it is not known.
    """
    if service.probe is None:
        return probe.Result(probe.READY, "has no probe: taken as ready when its process runs")
    if process == -1:
        return probe.Result(EXITED, "the container ended before it was ready")
    try:
        password = runtime.probe_password(manifest, service)
    except HookError as error:
        return probe.Result(probe.AUTH_REFUSED, str(error))
    began = time.monotonic()
    waiter = select.poll()
    if process is not None:
        waiter.register(process, select.POLLIN)
    followed = False
    while True:
        asked = time.monotonic()
        result = probe.ask(manifest, service, password)
        if result.kind == probe.AUTH_REFUSED and password is not None and not followed:
            # The secret may have changed since the database was made, or since the role followed it last.
            followed = True
            trouble = _follow_secret(manifest, service, password)
            if trouble is None:
                continue
            result = probe.Result(probe.AUTH_REFUSED, f"{result.detail}{trouble}", result.address)
        if result.ok or result.permanent:
            return result
        now = time.monotonic()
        left = began + service.probe.start_timeout - now
        if left <= 0:
            return result
        if waiter.poll(min(probe.pause(now - began, now - asked), left) * 1000):
            # A name that is gone is what an end looks like; anything else seen before may say why it ended.
            seen = "" if result.kind == probe.NAME_UNKNOWN else f" (last seen: {result.detail})"
            return probe.Result(EXITED, f"the container ended before it was ready{seen}")


def _follow_secret(manifest: Manifest, service: Service, password: str) -> str | None:
    """Give a PostgreSQL's role the password of its secret; returns None, or what to add to its refusal."""
    from aistack.hooks import postgres_role

    key = service.probe.secret if service.probe is not None else None
    if key is None or not postgres_role.keeps(service, key):
        return ""
    if not manifest.secret_rotation:
        return f"; the secret {key} is not what the database was given, and services.aistack.secretRotation is off"
    trouble = postgres_role.set_password(service, password)
    if trouble is None:
        runtime.say(postgres_role.said(service, key))
        # Whoever else uses it may run with the old value, which worked until now.
        from aistack.hooks.rotation import UNIT

        runtime.systemctl("start", "--no-block", UNIT)
        return None
    return f"; the secret {key} is not what the database was given, and that cannot be changed: {trouble}"


def _fail(manifest: Manifest, service: Service, result: probe.Result, spent: float, verdict: Mapping[str, Any]) -> int:
    release = verdict.get("release")
    if result.kind == EXITED:
        # It may have said them before this process began to look: on a busy machine seconds before.
        since = time.time() - spent - 1
        if verdict.get("phase") == runtime.STARTING:
            since = min(since, verdict.get("at", since))
        if words := runtime.last_words(service, since):
            result = probe.Result(EXITED, f"{result.detail}; its last words: {words}")
    reason = f"{result.kind}: {result.detail}"
    asked = service.probe
    # Its data has another password than its secret: no image mends that, so no release is judged by it.
    blameless = asked is not None and (asked.kind, result.kind) == ("postgres", probe.AUTH_REFUSED)
    check = {"subject": f"secret {asked.secret}" if asked is not None else "", "kind": result.kind, "ok": False}
    if blameless:
        reason = f"{check['subject']}: {reason}"
    runtime.say(f"{service.name} is not ready after {spent:.1f} s: {reason}; removing its container")
    try:
        runtime.write_verdict(
            manifest,
            service.name,
            phase=runtime.PREFLIGHT if blameless else runtime.NOT_READY,
            ok=False,
            release=release,
            readySeconds=round(spent, 3),
            # An exit may be an accident and is tried again; a full start timeout or a permanent answer is not.
            decisive=result.kind != EXITED or _is_being_deployed(manifest, service, release),
            checks=[{**check, "permanent": True, "detail": result.detail}] if blameless else [],
            reason=reason,
        )
    finally:
        runtime.remove_container(service.container)
    return UNEXPECTED


def _is_being_deployed(manifest: Manifest, service: Service, release: int | None) -> bool:
    """Whether a deployment waits for this very start, can go back, and nothing that the service needs is missing.

    What served before is back sooner without two more tries, and whoever deploys sees the failure and can try again.
    """
    from aistack.hooks.deploys import SWITCH, Deploys
    from aistack.hooks.rollback import absent_dependency
    from aistack.hooks.start_pre import open_store

    try:
        store = open_store(manifest)
        try:
            attempts = Deploys(store).unfinished()
        finally:
            store.close()
    except HookError:
        return False
    its = [a for a in attempts if (a.service, a.release, a.phase) == (service.name, release, SWITCH)]
    return any(a.previous is not None for a in its) and absent_dependency(manifest, service) is None


def _enter_probation(manifest: Manifest, service: Service, verdict: dict[str, Any]) -> None:
    release = verdict.get("release")
    # The journal is for what is not proven yet: opening it would double what the usual start costs.
    if release is None or verdict.get("proven") is True:
        return
    from aistack.hooks.releases import PROBATION
    from aistack.hooks.start_pre import open_store

    store = open_store(manifest)
    try:
        running = store.get(service.name, release)
        if running is None or running.proven:
            return
        if running.state != PROBATION:
            store.probation(running)
    finally:
        store.close()
    runtime.systemctl("restart", "--no-block", f"aistack-bless@{service.name}.timer")


def _forget_failed_rollback(manifest: Manifest, name: str) -> None:
    """What could not be mended by a rollback has been mended: its unit is no failed one any more."""
    path = os.path.join(manifest.runtime_dir, name, runtime.ROLLBACK_FAILED)
    if os.path.exists(path):
        runtime.systemctl("reset-failed", f"aistack-rollback@{name}.service")
        os.unlink(path)


def revive_dependents(manifest: Manifest, name: str) -> list[str]:
    """Start again, without waiting, the dependents whose start failed only because `name` was not there.

    Returns their names. A dependent that somebody stopped, or that failed for another reason, is left alone.
    """
    blaming = []
    for dependent in manifest.dependents(name):
        verdict = runtime.read_verdict(manifest, dependent)
        blamed = any(c.get("subject") == f"dependency {name}" and not c.get("ok") for c in verdict.get("checks", []))
        if verdict.get("phase") == runtime.PREFLIGHT and blamed:
            blaming.append(dependent)
    waiting = runtime.waiting(manifest, blaming) if blaming else []
    if waiting:
        runtime.start_again(manifest, waiting)
        runtime.say(f"{name} is back: starting {', '.join(waiting)} again")
    return waiting
