"""What becomes of a deployment whose process is gone: killed, out of memory, or the whole machine without power.

Runs before the units at boot, every few seconds while a deployment is under way, and before the next one. It always
comes to the same end: what was not blessed is reverted, what was left lying about is removed, and the journal says
which.
"""

from __future__ import annotations

import os

from aistack.hooks import deploy_lock, errors, rollback, runtime
from aistack.hooks.deploys import DEPLOYED, DOWN, INTERRUPTED, LIVE, ROLLED_BACK, Attempt, Deploys
from aistack.hooks.errors import DONE, LOCK_HELD, HookError
from aistack.hooks.releases import BAD, GOOD, Store
from aistack.hooks.start_pre import open_store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from aistack.hooks.manifest import Manifest, Service
    from aistack.hooks.releases import Release

INTERRUPTED_CODE = 130  # as a shell counts SIGINT
LABEL = "aistack.deploy"  # on every container and network that a deployment makes; its value is the attempt's number
TRIALS = "deploy"  # the folder below runtimeDir with the environment of containers under test
BUILT = "localhost/aistack-deploy/"  # the images that deployments build are called so: SERVICE:NUMBER
BRIDGE = "bridge"  # the strategy of a switch in which another container has the service's name meanwhile
TIMER = "aistack-recover-late.timer"
BEFORE_START = "before-start"  # the units wait for us: nothing may be waited for that they do


class Recovered:
    """What was done about one attempt: `line` says it; `serves` is the release to run now, if the service has one."""

    __slots__ = ("attempt", "line", "serves")

    def __init__(self, attempt: Attempt, line: str, serves: Release | None) -> None:
        self.attempt = attempt
        self.line = line
        self.serves = serves


def recover(manifest: Manifest, when: str) -> int:
    """The verb of the recovery's units: resolve every attempt that was cut off. `when` is before-start or late.

    Where a deployment is under way nothing is done: it holds the lock.
    """
    if not os.path.exists(os.path.join(manifest.state_dir, "releases.db")):
        return DONE
    try:
        held = deploy_lock.acquire(manifest, deploy_lock.RECOVERY)
    except HookError as error:
        if error.code == LOCK_HELD:
            return DONE
        raise
    with held:
        store = open_store(manifest)
        try:
            resolved = resolve(manifest, store, starting=when == BEFORE_START)
            for found in resolved:
                runtime.say(found.line)
            left = Deploys(store).unfinished()
            if when != BEFORE_START and not resolved:
                sweep(manifest, store)
        finally:
            store.close()
    watch(again=bool(left or resolved))
    return DONE


def watch(*, again: bool) -> None:
    """Let the timer look once more, or not any more. Raises HookError.

    A command of podman's outlives the deployment that began it, and may come to its end only after all was removed.
    """
    runtime.systemctl("start" if again else "stop", "--no-block", TIMER)


def resolve(manifest: Manifest, store: Store, *, starting: bool = False) -> list[Recovered]:
    """Resolve the attempts without an end. The caller holds the lock, so that none of them is under way.

    With `starting` those whose unit runs are left alone: going back restarts it, and its start would wait for us.
    """
    deploys = Deploys(store)
    unfinished = deploys.unfinished()
    if starting:
        unfinished = [attempt for attempt in unfinished if _inactive(manifest, attempt)]
    # The oldest first: where two were cut off, the later one began from what the earlier one left.
    found = [_resolve(manifest, store, deploys, attempt) for attempt in reversed(unfinished)]
    if unfinished:
        sweep(manifest, store)
    for attempt in unfinished:
        if attempt.strategy == BRIDGE and attempt.service in manifest.services:
            give_name_back(manifest, manifest.services[attempt.service])
    return found


def _inactive(manifest: Manifest, attempt: Attempt) -> bool:
    return _state(manifest.services.get(attempt.service)) == "inactive"


def _resolve(manifest: Manifest, store: Store, deploys: Deploys, attempt: Attempt) -> Recovered:
    release = store.get(attempt.service, attempt.release) if attempt.release is not None else None
    cut = f"{attempt} was cut off in phase {attempt.phase}"
    current = store.current(attempt.service)
    if release is None or attempt.phase not in LIVE:
        stays = f", {current} stays" if current is not None else ""
        line = f"{cut}: nothing live was touched{stays}"
        return _end(deploys, attempt, INTERRUPTED, INTERRUPTED_CODE, line, current)
    service = manifest.services.get(attempt.service)
    state = _state(service)
    runs = state == "active" and runtime.read_verdict(manifest, attempt.service).get("release") == release.id
    healthy = runs or state == "inactive"  # at its next start it runs again
    if release.state == GOOD and current is not None and current.id == release.id and healthy:
        return _end(deploys, attempt, DEPLOYED, DONE, f"{cut}, but {release} stayed healthy: it is good", current)
    # What was left in the journal may still run: its end was cut off, too.
    if current is not None and current.id != release.id and not runs:
        if release.state != BAD:
            store.condemn(release, cut, "", None)
        return _end(
            deploys,
            attempt,
            ROLLED_BACK,
            errors.ROLLED_BACK,
            f"{cut}: {release} was left for {current} already",
            current,
        )
    return _revert(manifest, store, deploys, attempt, release=release, cut=cut)


def _revert(
    manifest: Manifest, store: Store, deploys: Deploys, attempt: Attempt, *, release: Release, cut: str
) -> Recovered:
    service = manifest.services.get(attempt.service)
    previous = store.get(attempt.service, attempt.previous) if attempt.previous is not None else None
    previous = previous or store.last_good(attempt.service, release)
    if previous is None or service is None or service.external:
        why = "there is no release to go back to" if previous is None else "it is no container of this stack any more"
        return _end(deploys, attempt, INTERRUPTED, INTERRUPTED_CODE, f"{cut}; {why}: {release} stays", release)
    log = runtime.journal_tail(service, since=attempt.began)
    # A release that was good before is no bad one because nobody saw to the end of this deployment.
    trouble = revert(manifest, service, store, release, previous, reason=cut, log=log, condemn=not release.proven)
    if trouble is not None:
        line = (
            f"{cut}: left {release} for {previous}, which does not start: {trouble}; see: aistack status {service.name}"
        )
        return _end(deploys, attempt, DOWN, errors.DOWN, line, previous)
    line = f"{cut}: left {release} and went back to {previous}"
    return _end(deploys, attempt, ROLLED_BACK, errors.ROLLED_BACK, line, previous)


def revert(
    manifest: Manifest,
    service: Service,
    store: Store,
    release: Release,
    previous: Release,
    *,
    reason: str,
    log: str,
    condemn: bool = True,
) -> str | None:
    """Leave `release` for `previous`, restarting the unit only if need be; returns what went wrong, or None.

    It is bad from then on, if `condemn` says so. A unit that nobody has started (as at boot, before the stack) finds
    the choice at its next start.
    """
    state = _state(service)
    runs = runtime.read_verdict(manifest, service.name).get("release")
    if state == "inactive" or (state == "active" and runs == previous.id):
        if condemn:
            store.condemn(release, reason, log, previous)
        else:
            store.choose(previous)
        return None
    bad = release if condemn else None
    outcome = rollback.roll_back(manifest, service, store, previous, bad=bad, reason=reason, log=log)
    return None if outcome.serving else outcome.reason


def _state(service: Service | None) -> str:
    """The ActiveState of a service's unit; inactive where there is none."""
    if service is None or not service.unit:
        return "inactive"
    return runtime.unit_states([service.unit]).get(service.unit, {}).get("ActiveState", "inactive")


def give_name_back(manifest: Manifest, service: Service) -> None:
    """Let clients find the unit's own container again: a bridge may have taken its name for a restart that never came.

    Raises HookError.
    """
    from aistack.hooks import network

    faults = [fault for fault in network.check(manifest) if fault.container == service.container]
    for fault in network.repair(manifest, faults):
        runtime.say(f"{service.name}: {fault.mended_line()}")


def _end(  # noqa: PLR0917  (what was found, in the order in which it is told)
    deploys: Deploys, attempt: Attempt, outcome: str, code: int, line: str, serves: Release | None
) -> Recovered:
    deploys.end(attempt, outcome, code, line)
    return Recovered(attempt, line, serves)


def sweep(manifest: Manifest, store: Store) -> None:
    """Remove the containers, networks, files and names of images that deployments made and left. Raises HookError."""
    import shutil

    shutil.rmtree(os.path.join(manifest.runtime_dir, TRIALS), ignore_errors=True)
    label = f"label={LABEL}"
    containers = runtime.podman("ps", "--all", "--external", "--quiet", "--filter", label).split()
    if containers:
        command = ("rm", "--force", "--ignore", "--time", "0", *containers)
        try:
            runtime.podman(*command)
        except HookError:
            # podman fails once where a container's monitor was killed with it, and has noted its end then.
            runtime.podman(*command)
    networks = runtime.podman("network", "ls", "--quiet", "--filter", label).split()
    if networks:
        runtime.podman("network", "rm", "--force", *networks)
    used = {release.image_ref for release in store.history()}
    for name, image in runtime.images().items():
        if name.startswith(BUILT) and name not in used:
            runtime.podman("untag", image, name)
