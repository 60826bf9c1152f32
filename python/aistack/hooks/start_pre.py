"""ExecStartPre: choose the release, write what the container will see, check what it needs.

Exit codes: 0 start it · 1 unexpected, or left to rollback · 2 invalid configuration · 3 something it needs is absent
"""

from __future__ import annotations

import os
import threading
import time

from aistack.hooks import architecture, preflight, runtime
from aistack.hooks.errors import DEPENDENCY_MISSING, DONE, UNEXPECTED, HookError
from aistack.hooks.overrides import in_words
from aistack.hooks.preflight import IMAGE_MISSING, WRONG_MACHINE, Check
from aistack.hooks.releases import BAD, Damaged, Release, Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from aistack.hooks.manifest import Manifest, Service


STARTS = 3  # of a release that ends by itself, before it is given up; as many as StartLimitBurst= allows at once
# Where oci-containers lets podman write the id: until 25.05, and since.
_IDENTITIES = ("/run/podman-{}.ctr-id", "/run/{}/ctr-id")
_SAME_SERIES = 5.0  # seconds; systemd's own restart follows a failure within RestartSec= (100 ms)


def start_pre(manifest: Manifest, name: str) -> int:
    """Prepare the start of `name`; returns the hook's exit code. Raises HookError."""
    service = manifest.container_service(name)
    try:
        return _prepare(manifest, service)
    except HookError as error:
        # Else an older verdict would stay, and the release be judged by it.
        try:
            runtime.write_verdict(
                manifest, name, phase=runtime.PREFLIGHT, ok=False, release=None, checks=[], reason=str(error)
            )
        except HookError as other:
            runtime.say(f"{name}: {other}")
        raise


def _prepare(manifest: Manifest, service: Service) -> int:
    name = service.name
    if manifest.overrides_problem is not None:
        runtime.say(f"{name}: {manifest.overrides_problem}")
    began, began_boot = time.time(), runtime.boot_seconds()
    before = runtime.read_verdict(manifest, name)
    try:
        store = open_store(manifest)
    except HookError as error:
        return _unrecorded(manifest, service, error)
    try:
        current = store.current(name)
        if current is not None and _given_up(service, current, before):
            then = "it is started again in a while" if current.proven else "its rollback comes next"
            runtime.say(f"{name}: {current} is given up ({before.get('reason')}); {then}")
            return UNEXPECTED
        # Podman takes longer to say what it has than all of the dependencies to answer.
        images = _Beside(runtime.images)
        checks = preflight.run(manifest, service, wait=False)
        names = images.result()
        release, trouble, notice = choose(manifest, service, store, names)
    except HookError as error:
        return _unrecorded(manifest, service, error)
    finally:
        store.close()
    # A start that follows a failed preflight within seconds is systemd's own second try: what it lacked already had its
    # full time, so the unit fails soon, for whoever waits for it, and aistack-retry@ starts it again later.
    recent = before.get("phase") == runtime.PREFLIGHT and began_boot - before.get("atBoot", 0) < _SAME_SERIES
    again = recent and _restarts(service) > 0
    if release is not None and not again and not all(check.ok for check in checks):
        checks = preflight.run(manifest, service, wait=True)
    if trouble is not None:
        checks.append(trouble)
    failed = [check for check in checks if not check.ok]
    if release is None or failed:
        _refuse(manifest, name, release, checks)
        return DEPENDENCY_MISSING
    runtime.write_environment(manifest, service, release.environment)
    put_live(service, release, names)
    _clear_identity(service)
    runtime.write_verdict(
        manifest,
        name,
        phase=runtime.STARTING,
        ok=False,
        release=release.id,
        proven=release.proven,
        beganAt=began,
        beganAtBoot=began_boot,
        preflightSeconds=round(runtime.boot_seconds() - began_boot, 3),
        checks=[check.data() for check in checks],
        notice=notice,
        reason="the container is being started",
    )
    return DONE


class _Beside:
    """A call that runs in a thread of its own until its result is wanted."""

    def __init__(self, call: Callable[[], dict[str, str]]) -> None:
        self._call = call
        self._found: dict[str, str] = {}
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found = self._call()
        except Exception as error:  # noqa: BLE001  (raised by `result`: a thread has nobody to raise it to)
            self._error = error

    def result(self) -> dict[str, str]:
        """Wait for the call, which has a bound of its own; returns its result or raises its error."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._found


def open_store(manifest: Manifest) -> Store:
    """The releases database. A damaged one is set aside, never deleted, and a new one begun: the stack has to start.

    What runs now is adopted as it is; only the history is elsewhere. Raises HookError.
    """
    path = os.path.join(manifest.state_dir, "releases.db")
    try:
        return Store.open(path)
    except Damaged as damaged:
        aside = damaged.set_aside()
        if aside is not None:
            runtime.say(f"{path} was damaged; it is kept as {aside}, and a new one begun (it knows no older release)")
        return Store.open(path)


def choose(
    manifest: Manifest, service: Service, store: Store, names: dict[str, str]
) -> tuple[Release | None, Check | None, str | None]:
    """The release to run, what keeps it from running, and what an administrator should know about the choice.

    A declared image that cannot be had does not take a working service down: the release that ran before runs on.
    """
    environment = runtime.public_environment(manifest, service)
    try:
        identifier = declared_image(service, store, names)
        if all(release.image_id != identifier for release in store.history(service.name)):
            architecture.check(identifier)
    except HookError as error:
        wrong = isinstance(error, architecture.WrongMachine)
        running = _available(store, service, names)
        if running is None:
            fix = f"podman pull {service.image_ref}, or correct services.aistack.services.{service.name}.image"
            kind = WRONG_MACHINE if wrong else IMAGE_MISSING
            return None, Check(f"image {service.image_ref}", kind, str(error), fix=fix), None
        cannot = "cannot run here" if wrong else "cannot be had"
        lost = f"the declared image {service.image_ref} {cannot}: {error}; {running} runs on"
        runtime.say(f"{service.name}: {lost}")
        return running, None, lost
    release = store.declare(service.name, identifier, service.image_ref, environment, service.identity)
    notice: str | None = None
    if release.image_id not in names.values() and runtime.image_id(release.image_id) is None:
        other = _available(store, service, names)
        if other is None:
            fix = f"load it again, or declare another; aistack releases {service.name}"
            missing = Check(f"image of {release}", IMAGE_MISSING, "is not in podman's storage any more", fix=fix)
            return None, missing, None
        notice = f"the image of {release} is gone; {other} runs instead"
        runtime.say(f"{service.name}: {notice}")
        store.choose(other)
        release = other
    declared = store.declared(service.name)
    if declared is not None and declared.id != release.id:
        why = f": {declared.reason}" if declared.reason else ""
        differs = in_words(manifest, release.environment, declared.environment)
        differs = f"; with {differs}" if differs else ""
        runtime.say(f"{service.name}: {release} runs, not the declared {declared} ({declared.state}{why}){differs}")
    return release, None, notice


def _available(store: Store, service: Service, names: dict[str, str]) -> Release | None:
    """What can run instead of a release whose image is not here: the current one, else the newest good one."""
    current = store.current(service.name)
    candidates = [current] if current is not None and current.state != BAD else []
    candidates += [release for release in store.history(service.name) if release.proven]
    return next((release for release in candidates if release.image_id in names.values()), None)


def declared_image(service: Service, store: Store, names: dict[str, str]) -> str:
    """The id of the image that Nix declares; loaded or pulled if it is not here yet. Raises HookError."""
    source = service.image_archive or service.image_stream
    if source is not None:
        known = store.loaded(source)
        if known is not None and known in names.values():
            return known
        identifier = _load(service, source)
        store.remember_loaded(source, identifier)
        names[service.image_ref] = identifier
        return identifier
    identifier_or_none = names.get(service.image_ref) or runtime.image_id(service.image_ref)
    if identifier_or_none is None:
        if service.image_ref.startswith("localhost/"):
            raise HookError("it is not in podman's storage, and no registry has a name under localhost/")
        runtime.say(f"{service.name}: pulling {service.image_ref}")
        runtime.podman("pull", "--quiet", service.image_ref, timeout=service.pull_timeout)
        identifier_or_none = runtime.image_id(service.image_ref)
        if identifier_or_none is None:
            raise HookError("podman pulled it, and still does not know it")
        names[service.image_ref] = identifier_or_none
    return identifier_or_none.removeprefix("sha256:")


def _load(service: Service, source: str) -> str:
    runtime.say(f"{service.name}: loading {service.image_ref} from {source}")
    if service.image_archive is not None:
        out = runtime.podman("load", "--quiet", "--input", source, timeout=service.pull_timeout)
    else:
        out = runtime.pipe([source], ["podman", "load", "--quiet"], service.pull_timeout)
    identifier = runtime.image_id(service.image_ref)
    if identifier is None:
        raise HookError(f"{source} holds another image than {service.image_ref}: {out.strip()}")
    return identifier.removeprefix("sha256:")


def put_live(service: Service, release: Release, names: dict[str, str]) -> None:
    """Point the tag that the unit runs, and the tag that keeps the image, at the release's image. Raises HookError."""
    kept = runtime.kept_tag(service.name, release.image_id)
    tags = [tag for tag in (service.image_live, kept) if names.get(tag) != release.image_id]
    if tags:
        runtime.podman("tag", release.image_id, *tags)


def _clear_identity(service: Service) -> None:
    """Remove the file with the last container's id, which a start that was killed leaves: podman would refuse to run.

    Where it cannot be removed, podman says so.
    """
    for place in _IDENTITIES:
        try:
            os.unlink(place.format(service.container))
        except OSError:
            continue


def _given_up(service: Service, current: Release, before: dict[str, Any]) -> bool:
    """Whether this release had its chance: a full start timeout, or three starts that ended by themselves.

    Failing at once then uses up the start limit, so the start ends for whoever waits for it, and OnFailure= acts: an
    unproven release goes to its rollback, which replaces the verdict, so a later start by hand is a real one. A proven
    one is given up for this series of systemd's own restarts only, and aistack-retry@ begins the next.
    """
    if before.get("release") != current.id:
        return False
    phase = before.get("phase")
    decisive = phase == runtime.NOT_READY and before.get("decisive") is True
    if decisive and not current.proven:
        return True
    # A proven release that was ready and ended is restarted for as long as it comes back.
    if phase not in (runtime.STARTING, runtime.NOT_READY) and (current.proven or phase != runtime.READY):
        return False
    return _restarts(service) >= (1 if decisive else STARTS)


def _restarts(service: Service) -> int:
    """How often systemd restarted the unit by itself since somebody, or something, last started it."""
    state = runtime.unit_states([service.unit], "NRestarts").get(service.unit, {})
    return int(state.get("NRestarts", "0"))


def _unrecorded(manifest: Manifest, service: Service, error: HookError) -> int:
    """A start whose release could not be written down: for want of disk, say, which is what has to be reported then.

    Raises the error where nothing else is wrong.
    """
    checks = preflight.local(manifest, service)
    if all(check.ok for check in checks):
        raise error
    runtime.say(f"{service.name}: {error}")
    _refuse(manifest, service.name, None, checks)
    return DEPENDENCY_MISSING


def _refuse(manifest: Manifest, name: str, release: Release | None, checks: list[Check]) -> None:
    failed = [check for check in checks if not check.ok]
    summary = "; ".join(f"{check.subject}: {check.kind}" for check in failed)
    details = [f"{check.subject}: {check.kind}: {check.detail}" for check in failed]
    before = runtime.read_verdict(manifest, name)
    known = [
        f"{c.get('subject')}: {c.get('kind')}: {c.get('detail')}" for c in before.get("checks", []) if not c.get("ok")
    ]
    if before.get("phase") == runtime.PREFLIGHT and known == details:
        runtime.say(f"{name} still cannot start: {'; '.join(details)}")
    else:
        runtime.say(preflight.report(name, checks))
    runtime.write_verdict(
        manifest,
        name,
        phase=runtime.PREFLIGHT,
        ok=False,
        release=release.id if release is not None else None,
        checks=[check.data() for check in checks],
        reason=summary,
    )
