"""OnFailure: who decides that a release is bad, and what happens then.

A unit that failed for good comes here once. Only a release that has never been good is to blame, and only if what it
needs is there: a failed preflight, a dependency that does not answer or a proven release that crashes are not mended by
another image, so those are started again after a pause instead.
"""

from __future__ import annotations

import os
import time

from aistack.hooks import locks, preflight, probe, runtime
from aistack.hooks.errors import DONE, DOWN, HookError
from aistack.hooks.overrides import in_words
from aistack.hooks.releases import PROBATION, Release, Store
from aistack.hooks.start_pre import STARTS, open_store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from aistack.hooks.generation import Generation
    from aistack.hooks.manifest import Manifest, Service

# What to do with a unit that failed for good.
ROLL_BACK = "roll back"
TRY_AGAIN = "try again"
STAY_DOWN = "stay down"

_DEPENDENCY_GRACE = 2.0  # seconds a dependency has to answer before it, not the release, takes the blame
_LOG_LINES = 40
_LOCK = "way-back.lock"


class Decision:
    """What to do about a failed unit and why; `target` is the release to go back to, `absent` what it waits for."""

    __slots__ = ("absent", "action", "reason", "target")

    def __init__(
        self, action: str, reason: str, target: Release | None = None, absent: preflight.Check | None = None
    ) -> None:
        self.action = action
        self.reason = reason
        self.target = target
        self.absent = absent


class Outcome:
    """How a rollback ended. `seconds` from the decision until the old release was ready.

    `environment` says how the environment that serves now differs from the one that was left; often it does not.
    """

    __slots__ = ("environment", "reason", "restored", "seconds", "serving")

    def __init__(
        self, *, serving: bool, reason: str, seconds: float, restored: list[str], environment: str = ""
    ) -> None:
        self.serving = serving
        self.reason = reason
        self.seconds = seconds
        self.restored = restored
        self.environment = environment


def on_failure(manifest: Manifest, name: str) -> int:
    """Act on the failed unit of `name`; returns the hook's exit code (8: down, nothing to go back to)."""
    code = _on_failure(manifest, name)
    if code == DOWN:
        # The rollback's own unit is failed now, until the service is ready again.
        path = os.path.join(runtime.service_dir(manifest, name), runtime.ROLLBACK_FAILED)
        runtime.write_atomic(path, b"", 0o644)
    return code


def _on_failure(manifest: Manifest, name: str) -> int:
    service = manifest.container_service(name)
    state = runtime.unit_states([service.unit], "NRestarts").get(service.unit, {})
    if state.get("ActiveState") == "active":
        from aistack.hooks import health

        found = health.evidence(manifest, name)
        if found is not None:
            return _unhealthy(manifest, service, found)
    if _under_way(name, state):
        return DONE
    if runtime.stopped(service.unit):
        runtime.systemctl("reset-failed", service.unit)
        runtime.say(f"{name} was stopped, and did not end well ({state.get('Result')}): nothing to do")
        return DONE
    was_ready = runtime.read_verdict(manifest, name).get("phase") == runtime.READY
    if state.get("NRestarts") == "0" and (was_ready or state.get("Result") == "start-limit-hit"):
        # It did not end by itself, or systemd would have restarted it. Restarts by hand count as much as crashes, and
        # the last one was refused. Where a program answers each stop with an error, systemd keeps that as the result.
        _start(service)
        runtime.say(f"{name} was restarted by hand more often than its start limit allows: started once more")
        return DONE
    try:
        return _act(manifest, service, state.get("Result", "unknown"))
    except HookError as error:
        # A full disk, say: no release is to blame for it, and the service has to come back when there is room again.
        return _later(name, str(error))


def _act(manifest: Manifest, service: Service, result: str) -> int:
    """Decide what to do about a unit that failed for good, and do it. Raises HookError."""
    name = service.name
    store = open_store(manifest)
    try:
        release = last_run(manifest, service, store)
        decision = decide(manifest, service, store, release, result)
        # Asking the dependencies takes a while, in which somebody may have started it.
        if _under_way(name, runtime.unit_states([service.unit]).get(service.unit, {})):
            return DONE
        if decision.action == TRY_AGAIN:
            if decision.absent is not None:
                _wait_for(manifest, service, release, decision.absent)
            return _later(name, decision.reason)
        log = runtime.journal_tail(service, _LOG_LINES, release.changed if release is not None else None)
        if decision.action == STAY_DOWN or release is None:
            return _stay_down(manifest, service, store, release, reason=decision.reason, log=log)
        return go_back(manifest, service, store, decision.target, bad=release, reason=decision.reason, log=log)
    finally:
        store.close()


def _unhealthy(manifest: Manifest, service: Service, found: str) -> int:
    """Roll back a release that runs and fails its health checks within its probation, if that is still so."""
    store = open_store(manifest)
    try:
        release = last_run(manifest, service, store)
        if release is None or release.state != PROBATION or way_back(service, store, release) is None:
            runtime.say(f"{service.name}: not rolled back: {release} is not in probation, or there is no way back")
            return DONE
        trouble = _verify(manifest, service)
        absent = absent_dependency(manifest, service) if trouble is not None else None
        if trouble is None or absent is not None:
            why = f"{absent.subject} does not answer" if absent is not None else "it answers again"
            runtime.say(f"{service.name}: not rolled back: {why}")
            return DONE
        # Asking took a while, in which somebody may have stopped it or started it anew.
        if runtime.unit_states([service.unit]).get(service.unit, {}).get("ActiveState") != "active":
            runtime.say(f"{service.name} does not run any more: nothing to do")
            return DONE
        log = runtime.journal_tail(service, _LOG_LINES, release.changed)
        target = store.last_good(service.name, release)
        return go_back(manifest, service, store, target, bad=release, reason=found, log=log)
    finally:
        store.close()


def _under_way(name: str, state: dict[str, str]) -> bool:
    if state.get("ActiveState") == "failed":
        return False
    runtime.say(f"{name} is {state.get('ActiveState', 'unknown')} again: nothing to do")
    return True


def _later(name: str, reason: str) -> int:
    runtime.systemctl("restart", "--no-block", f"aistack-retry@{name}.timer")
    runtime.say(f"{name}: not rolled back: {reason}; tried again in a while")
    return DONE


def _start(service: Service) -> None:
    runtime.systemctl("reset-failed", service.unit)
    runtime.systemctl("start", "--no-block", service.unit)


def last_run(manifest: Manifest, service: Service, store: Store) -> Release | None:
    """The release that runs, or that failed. Not always the current one: it may not have been there to run."""
    started = runtime.read_verdict(manifest, service.name).get("release")
    ran = store.get(service.name, started) if isinstance(started, int) else None
    return ran or store.current(service.name)


def _wait_for(manifest: Manifest, service: Service, release: Release | None, absent: preflight.Check) -> None:
    """Record that the service waits for a dependency, as if it had been missing before the start.

    What the start itself found is no evidence against the release, and the dependency's return starts it again.
    """
    runtime.write_verdict(
        manifest,
        service.name,
        phase=runtime.PREFLIGHT,
        ok=False,
        release=release.id if release is not None else None,
        checks=[absent.data()],
        reason=f"{absent.subject}: {absent.kind}",
    )


def decide(manifest: Manifest, service: Service, store: Store, release: Release | None, result: str) -> Decision:
    """Whose fault a failed start is. `result` is systemd's Result= of the unit."""
    verdict = runtime.read_verdict(manifest, service.name)
    phase = verdict.get("phase")
    if phase == runtime.PREFLIGHT:
        return Decision(TRY_AGAIN, f"what it needs is missing ({verdict.get('reason')})")
    if release is None:
        return Decision(TRY_AGAIN, "it has no release yet")
    if release.proven:
        return Decision(TRY_AGAIN, f"{release} is proven, so it is restarted ({verdict.get('reason', result)})")
    absent = absent_dependency(manifest, service)
    if absent is not None:
        why = f"{absent.subject} does not answer ({absent.kind}), not the release's fault"
        return Decision(TRY_AGAIN, why, absent=absent)
    if phase == runtime.NOT_READY:
        reason = f"never ready ({verdict.get('reason')})"
    elif phase == runtime.READY:
        reason = f"was ready and ended again within its probation ({result})"
    else:
        words = runtime.last_words(service, verdict.get("at"))
        reason = f"its container could not be started ({result}{f': {words}' if words else ''})"
    if service.rollback_policy == "none":
        return Decision(STAY_DOWN, f'{reason}; services.aistack.services.{service.name}.rollback.policy is "none"')
    if way_back(service, store, release) is None:
        return Decision(STAY_DOWN, f"{reason}; there is no good release to go back to")
    return Decision(ROLL_BACK, reason, store.last_good(service.name, release))


def way_back(service: Service, store: Store, release: Release) -> str | None:
    """Where a rollback of `release` would lead, in words; None where there is nothing to go back to."""
    if service.rollback_policy == "none":
        return None
    if service.rollback_policy == "system":
        from aistack.hooks import generation

        found = generation.previous(service, release)
        if isinstance(found, generation.Generation):
            return str(found)
    target = store.last_good(service.name, release)
    return str(target) if target is not None else None


def go_back(
    manifest: Manifest,
    service: Service,
    store: Store,
    target: Release | None,
    *,
    bad: Release,
    reason: str,
    log: str,
) -> int:
    """Leave a bad release as the policy says, verify and report; returns the exit code. `target`: the last good one.

    "system" is the previous NixOS generation, once for each bad release, and the last good image where that cannot be.
    """
    if service.rollback_policy == "system":
        found = _previous_system(manifest, service, store, target, bad=bad, reason=reason, log=log)
        if found is not None and _ready_in(found, service.name, store, bad, reason):
            return DONE
    if target is None:
        return _stay_down(manifest, service, store, bad, reason=reason, log=log)
    outcome = roll_back(manifest, service, store, target, bad=bad, reason=reason, log=log)
    return report(service.name, bad, target, outcome)


def _previous_system(
    manifest: Manifest,
    service: Service,
    store: Store,
    target: Release | None,
    *,
    bad: Release,
    reason: str,
    log: str,
) -> Generation | None:
    """Activate the NixOS generation before this one; returns it, or None where that cannot be."""
    from aistack.hooks import generation

    name = service.name
    with generation.alone(manifest):
        found = generation.previous(service, bad)
        if isinstance(found, str):
            runtime.say(f'{name}: the rollback policy is "system", but {found}: the last good image instead')
            return None
        # First: whatever happens to this process, the release is not tried again.
        store.condemn(bad, reason, log, target)
        runtime.say(f"{name}: {bad}: {reason}: activating {found}")
        code = generation.activate(found)
    if code != 0:
        runtime.say(f"{name}: activating {found} ended with exit code {code}: see journalctl -u {generation.UNIT}")
    return found


def _ready_in(found: Generation, name: str, store: Store, bad: Release, reason: str) -> bool:
    """Whether the service is ready in the generation that was activated; says so, or why not."""
    from aistack.hooks.manifest import load

    began = time.monotonic()
    manifest = load()
    service = manifest.services.get(name)
    if service is None or service.external:
        runtime.say(f"{name} is no container of {found}: the last good image instead")
        return False
    state = runtime.unit_states([service.unit]).get(service.unit, {}).get("ActiveState")
    trouble = restart(manifest, service) if state != "active" else None
    trouble = trouble or _verify(manifest, service)
    if trouble is not None:
        runtime.say(f"{name} is not ready in {found} ({trouble}): the last good image instead")
        return False
    restored = restore_dependents(manifest, name)
    again = f"; started again: {', '.join(restored)}" if restored else ""
    runtime.say(
        f"{name} ROLLED BACK to {found} ({last_run(manifest, service, store)}), ready after "
        f"{time.monotonic() - began:.1f} s; left {bad}: {reason}{again}. A reboot brings the declared system back; "
        "to keep this one: nixos-rebuild boot --rollback"
    )
    return True


def absent_dependency(manifest: Manifest, service: Service) -> preflight.Check | None:
    """A hard dependency that does not answer now, if the stack checks dependencies at all."""
    if not manifest.dependency_check:
        return None
    checks = preflight.dependencies(manifest, service.depends_on, _DEPENDENCY_GRACE)
    return next((check for check in checks if not check.ok), None)


def roll_back(
    manifest: Manifest,
    service: Service,
    store: Store,
    target: Release,
    *,
    bad: Release | None = None,
    reason: str = "",
    log: str = "",
) -> Outcome:
    """Run `target` instead of what runs now, verify that it is ready, start the failed dependents again.

    `bad` is marked so, with `reason` and `log`; without it (an administrator's rollback) nothing is condemned. The
    choice is one transaction: a crash after it starts `target` at the next start. One at a time for each service: the
    end of a probation and a deployment may find out at once. Raises HookError when another does not end (exit code 4).
    """
    began = time.monotonic()
    lock = os.path.join(runtime.service_dir(manifest, service.name), _LOCK)
    with locks.held(lock, restart_bound(manifest, service), f"another way back of {service.name}") as waited:
        # What another has just done need not be done again, and would only interrupt the service.
        done = waited and _runs(manifest, service, target)
        if bad is not None:
            store.condemn(bad, reason, log, target)
        else:
            store.choose(target)
        trouble = None if done else restart(manifest, service)
        if trouble is None:
            trouble = _verify(manifest, service)
    seconds = time.monotonic() - began
    if trouble is not None:
        return Outcome(serving=False, reason=trouble, seconds=seconds, restored=[])
    try:
        restored = restore_dependents(manifest, service.name)
    except HookError as error:
        runtime.say(f"{service.name} serves again, but its dependents could not be started: {error}")
        restored = []
    differs = in_words(manifest, target.environment, bad.environment) if bad is not None else ""
    return Outcome(serving=True, reason=reason, seconds=seconds, restored=restored, environment=differs)


def _runs(manifest: Manifest, service: Service, release: Release) -> bool:
    """Whether the unit runs, and was started with `release`."""
    state = runtime.unit_states([service.unit]).get(service.unit, {}).get("ActiveState")
    return state == "active" and runtime.read_verdict(manifest, service.name).get("release") == release.id


def restart_bound(manifest: Manifest, service: Service) -> float:
    """Seconds after which a restart of the service has ended one way or the other: all its starts at their slowest."""
    ready = service.probe.start_timeout if service.probe is not None else 0
    return STARTS * (manifest.startup_timeout + ready + service.stop_timeout + 30)


def restart(manifest: Manifest, service: Service) -> str | None:
    """Restart the unit and wait for its start to end; returns what went wrong, or None."""
    try:
        # It would be restarted with the unit, for a release that may not need it.
        runtime.systemctl("stop", f"aistack-bless@{service.name}.timer")
        runtime.systemctl("reset-failed", service.unit)
        runtime.systemctl("restart", service.unit, timeout=restart_bound(manifest, service))
    except HookError as error:
        return str(error)
    return None


def _verify(manifest: Manifest, service: Service) -> str | None:
    try:
        passwords = runtime.probe_passwords(manifest, service)
    except HookError as error:
        return str(error)
    result = probe.ask_any(manifest, service, passwords)
    return None if result.ok else f"{result.kind}: {result.detail}"


def restore_dependents(manifest: Manifest, name: str) -> list[str]:
    """Start again every failed service that depends on `name`, directly or not; returns those that were started.

    A service that somebody stopped stays stopped.
    """
    waiting = runtime.waiting(manifest, manifest.closure(name))
    runtime.start_again(manifest, waiting)
    return waiting


def report(name: str, bad: Release | None, target: Release, outcome: Outcome) -> int:
    """Say in one line how a rollback ended; returns the exit code."""
    if outcome.serving:
        left = f"left {bad}: {outcome.reason}" if bad is not None else "as asked"
        environment = f"; with {outcome.environment}" if outcome.environment else ""
        restored = f"; started again: {', '.join(outcome.restored)}" if outcome.restored else ""
        runtime.say(
            f"{name} ROLLED BACK to {target}, ready after {outcome.seconds:.1f} s; {left}{environment}{restored}"
        )
        return DONE
    left = f"; left {bad}: {bad.reason}" if bad is not None else ""
    runtime.say(f"{name} is DOWN: {target} does not start either: {outcome.reason}{left}; see: aistack status {name}")
    return DOWN


def _stay_down(
    manifest: Manifest, service: Service, store: Store, release: Release | None, *, reason: str, log: str
) -> int:
    if release is not None:
        store.condemn(release, reason, log, None)
    runtime.write_verdict(
        manifest,
        service.name,
        phase=runtime.DOWN_NO_RELEASE,
        ok=False,
        release=release.id if release is not None else None,
        checks=[],
        reason=reason,
    )
    runtime.say(
        f"{service.name} is DOWN: {release}: {reason}; mend it, then: "
        f"systemctl reset-failed {service.unit}; systemctl start {service.unit} "
        f"(its log: aistack releases {service.name} --log {release.id if release is not None else ''})"
    )
    return DOWN


def bless(manifest: Manifest, name: str) -> int:
    """The probation window of `name` is over: its release is good if it is still ready, and rolled back if not."""
    service = manifest.container_service(name)
    try:
        return _end_probation(manifest, service)
    except HookError as error:
        # A full disk, say: what cannot be written down is not so yet.
        try:
            runtime.systemctl("restart", "--no-block", f"aistack-bless@{name}.timer")
        except HookError:
            raise error from None
        runtime.say(f"{name}: the end of its probation cannot be recorded: {error}; probation goes on")
        return DONE


def _end_probation(manifest: Manifest, service: Service) -> int:
    name = service.name
    store = open_store(manifest)
    try:
        release = store.current(name)
        active = runtime.unit_states([service.unit]).get(service.unit, {}).get("ActiveState") == "active"
        verdict = runtime.read_verdict(manifest, name)
        running = release is not None and verdict.get("phase") == runtime.READY and verdict.get("release") == release.id
        if release is None or release.state != PROBATION or not active or not running:
            return DONE  # it was stopped or replaced, or is being restarted, which begins a new window
        patience = service.probe.timeout * service.probe.failures if service.probe is not None else 0.0
        (check,) = preflight.dependencies(manifest, [name], patience, as_started=True)
        if check.ok:
            store.bless(release)
            runtime.say(f"{name}: {release} stayed ready for {manifest.probation:g} s: good")
            forget(manifest, service, store)
            return DONE
        return _failed_probation(manifest, service, store, release, f"{check.kind}: {check.detail}")
    finally:
        store.close()


def _failed_probation(manifest: Manifest, service: Service, store: Store, release: Release, found: str) -> int:
    absent = absent_dependency(manifest, service)
    if absent is not None or way_back(service, store, release) is None:
        why = f"{absent.subject} does not answer" if absent is not None else "there is nothing to go back to"
        runtime.say(
            f"{service.name}: {release} is not ready after its probation ({found}), but {why}; probation goes on"
        )
        runtime.systemctl("restart", "--no-block", f"aistack-bless@{service.name}.timer")
        return DONE
    reason = f"not ready at the end of its probation ({found})"
    log = runtime.journal_tail(service, _LOG_LINES, release.changed)
    target = store.last_good(service.name, release)
    return go_back(manifest, service, store, target, bad=release, reason=reason, log=log)


def forget(manifest: Manifest, service: Service, store: Store) -> None:
    """Drop the releases beyond `rollback.retain`, and the tags that kept their images."""
    gone = store.prune(service.name, manifest.retain)
    kept = {release.image_id for release in store.history(service.name)}
    for release in gone:
        if release.image_id not in kept:
            runtime.run(["podman", "untag", release.image_id, runtime.kept_tag(service.name, release.image_id)], 60.0)


def retry(manifest: Manifest, name: str) -> int:
    """Start a unit that failed for want of something else. One that runs, or that somebody stopped, is left alone."""
    service = manifest.container_service(name)
    state = runtime.unit_states([service.unit]).get(service.unit, {})
    if state.get("ActiveState") == "failed":
        _start(service)
    return DONE
