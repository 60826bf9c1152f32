"""One deployment from its plan to its end. Every step is in the journal before it is done.

Whoever kills this process at any point finds, after `aistack recover` (which a timer calls while a deployment is under
way, and the next boot before the units), either the new release blessed or the old one serving.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from typing import TYPE_CHECKING, Any

from aistack.cli import restart
from aistack.deploy import checks, image, sources
from aistack.deploy.bridge import Bridge
from aistack.deploy.events import Event
from aistack.deploy.failure import Refused, TestFailed
from aistack.deploy.outage import Outage
from aistack.deploy.trial import Trial, hindrance
from aistack.errors import AistackError, ExitCode, UsageError, printable
from aistack.hooks import deploy_lock, deploys, probe, recover, rollback, runtime, start_pre
from aistack.hooks.errors import HookError
from aistack.hooks.releases import BAD, GOOD, PROBATION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aistack.deploy.events import Listener, Status
    from aistack.hooks.deploys import Attempt, Deploys
    from aistack.hooks.manifest import Manifest, Service
    from aistack.hooks.releases import Release, Store

_LOOK = 0.2  # seconds between two looks during the probation
_PATIENCE = 60.0  # seconds beyond the probation for its end to be decided
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """Somebody asked the deployment to end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be deployed: an image's name, or a directory to build."""

    reference: str | None = None
    directory: Path | None = None
    test: bool = True
    wait: float = 0.0
    """Seconds to wait for another deployment to end."""

    @property
    def source(self) -> str:
        """What to call it."""
        return str(self.directory) if self.directory is not None else str(self.reference)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """How a deployment ended. `serves` is the release that answers now, or None; `hint` the next command."""

    code: ExitCode
    outcome: str
    message: str
    deployment: int | None = None
    release: Release | None = None
    previous: Release | None = None
    serves: Release | None = None
    seconds: float = 0.0
    unavailable: float | None = None
    phases: dict[str, float] = dataclasses.field(default_factory=dict)
    hint: str | None = None
    detail: list[str] = dataclasses.field(default_factory=list)


class _Failed(Exception):
    """The new release does not serve, after the switch."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Engine:
    """Deploys one service of a stack."""

    def __init__(self, manifest: Manifest, service: Service, store: Store, listener: Listener) -> None:
        """`listener` is told each event as it happens."""
        self._manifest = manifest
        self._service = service
        self._store = store
        self._deploys: Deploys = deploys.Deploys(store)
        self._listener = listener
        self._attempt: Attempt | None = None
        self._entered = time.monotonic()
        self._phase_name = deploys.PLAN
        self._release: Release | None = None
        self._previous: Release | None = None
        self._outage: Outage | None = None
        self._evidence: dict[str, Any] = {}
        self._well: list[Service] = []
        self._result: Result | None = None
        self._was_interrupted = False

    # --- the phases as such --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Walk into a phase, in the journal first."""
        if self._attempt is not None and self._attempt.phase != name:
            self._deploys.enter(self._attempt, name, time.monotonic() - self._entered)
        self._phase_name = name
        self._entered = began = time.monotonic()
        self._tell("started")
        try:
            yield
        except _Failed as failed:
            self._tell("failed", failed.reason, seconds=time.monotonic() - began)
            raise
        except HookError as error:
            message = error.message if isinstance(error, AistackError) else str(error)
            self._tell("failed", message, seconds=time.monotonic() - began)
            raise
        except Interrupted:
            self._tell("failed", "interrupted", seconds=time.monotonic() - began)
            raise
        self._tell("done", seconds=time.monotonic() - began)

    def _tell(self, status: Status, message: str = "", *, seconds: float | None = None) -> None:
        self._show(Event(phase=self._phase_name, status=status, message=message, seconds=seconds))

    def _note(self, message: str) -> None:
        self._tell("note", message)

    def _skip(self, phase: str, message: str) -> None:
        self._show(Event(phase=phase, status="skipped", message=message))

    def _show(self, event: Event) -> None:
        try:
            self._listener(event)
        except (OSError, SystemExit):
            # The terminal is gone, or whoever read the pipe; rich wants to end the program then.
            self._listener = _nobody

    # --- from the plan to the end ----------------------------------------------------------------------------------

    def plan(self, request: Request) -> list[str]:
        """Say what a deployment would do, and do nothing.

        Raises:
            UsageError: it cannot be deployed at all.
        """
        service = self._service
        current = self._store.current(service.name)
        strategy = service.raw["deploy"]["strategy"]
        why_not = hindrance(self._manifest, service)
        if request.directory is not None and not request.directory.is_dir():
            raise UsageError(f"{request.directory} is not a directory", hint="--build wants one with a Containerfile")
        test = (
            "not tested, as asked"
            if not request.test
            else f"not tested: {why_not}"
            if why_not
            else "tested in isolation"
        )
        dependents = self._manifest.dependents(service.name)
        return [
            f"{'build' if request.directory else 'take'} {request.source}",
            f"validate it; {test}",
            f"switch {service.unit} from {current or 'nothing'} by {strategy}, verify it"
            + (f" and {', '.join(dependents)}" if dependents else ""),
            f"keep it if it stays healthy for {self._manifest.probation:g} s, else go back",
        ]

    def deploy(self, request: Request) -> Result:
        """Deploy; returns how it ended. Raises HookError only where nothing was begun (the lock is held, say)."""
        began = time.monotonic()
        with self._phase(deploys.PLAN):
            for line in self.plan(request):
                self._note(line)
        with self._phase(deploys.LOCK):
            held = deploy_lock.acquire(self._manifest, f"aistack deploy {self._service.name}", request.wait)
        with held, _interruptible():
            try:
                attempt = self._begin(request)
                result = self._run(request)
            except Interrupted:
                self._was_interrupted = True
                if self._attempt is None:
                    raise KeyboardInterrupt from None
                attempt, result = self._attempt, self._interrupted()
            finally:
                _ignore_signals()
                self._leave()
            return dataclasses.replace(
                result,
                deployment=attempt.id,
                release=self._release,
                previous=self._previous,
                seconds=time.monotonic() - began,
                phases=dict(attempt.seconds),
            )

    def _begin(self, request: Request) -> Attempt:
        """End what another deployment left, and begin."""
        for found in recover.resolve(self._manifest, self._store):
            self._note(found.line)
            runtime.note(found.line)
        # Whatever becomes of this process, that timer finishes what it leaves.
        recover.watch(again=True)
        strategy = self._service.raw["deploy"]["strategy"]
        self._attempt = self._deploys.begin(self._service.name, request.source, strategy)
        return self._attempt

    def _leave(self) -> None:
        """Remove what the deployment made. What fails, or is not ended, is left to the recovery's timer."""
        try:
            recover.sweep(self._manifest, self._store)
            recover.watch(again=self._was_interrupted or bool(self._deploys.unfinished()))
        except HookError as error:
            self._note(f"not all of it could be removed: {error}; aistack recover does it")

    def _run(self, request: Request) -> Result:
        try:
            found = self._prepare(request)
        except (Refused, TestFailed) as error:
            return self._untouched(error)
        except HookError as error:
            return self._untouched(Refused(str(error)))
        if found is None:
            return self._end(
                deploys.DEPLOYED, ExitCode.DONE, f"{self._release} serves already: nothing to do", self._release
            )
        try:
            self._switch(found)
            return self._settle()
        except _Failed as failed:
            return self._revert(failed.reason)
        except HookError as error:
            return self._revert(str(error))

    # --- before anything live is touched ---------------------------------------------------------------------------

    def _prepare(self, request: Request) -> Release | None:
        """Validate, build and test; returns the release to switch to, None if it serves already."""
        service = self._service
        attempt = self._attempt
        if attempt is None:
            raise HookError("a deployment has to begin before it goes on")
        with self._phase(deploys.VALIDATE):
            if request.directory is not None:
                self._refuse(sources.check_build(request.directory, self._manifest))
            else:
                self._note(f"{request.source} is looked into when it is here")
        with self._phase(deploys.BUILD):
            environment = runtime.public_environment(self._manifest, service)
            candidate = self._image(request, attempt.id)
            self._refuse(checks.check(self._manifest, service, candidate, environment, attempt.id))
            self._release = release = self._stage(candidate, environment, attempt)
        if release.proven and self._serves(release):
            return None
        why_not = hindrance(self._manifest, service)
        if not request.test or why_not is not None:
            self._skip(deploys.TEST, why_not or "as asked")
            return release
        with self._phase(deploys.TEST):
            trial = Trial(
                self._manifest,
                service,
                self._store,
                deployment=attempt.id,
                image=candidate.id,
                environment=environment,
                say=self._note,
            )
            passed = trial.run()
            self._note(f"ready after {passed.ready_seconds:.1f} s" + "".join(f"; {line}" for line in passed.checks))
        return release

    def _refuse(self, found: checks.Found) -> None:
        for note in found.notes:
            self._note(note)
        if found.problems:
            raise Refused("; ".join(found.problems), detail=found.problems if len(found.problems) > 1 else [])

    def _image(self, request: Request, attempt: int) -> image.Image:
        if request.directory is not None:
            self._note(f"building {request.directory}")
            return image.build(request.directory, f"{recover.BUILT}{self._service.name}:{attempt}")
        return image.pull(str(request.reference))

    def _stage(self, candidate: image.Image, environment: dict[str, str], attempt: Attempt) -> Release:
        name = self._service.name
        try:
            base = start_pre.declared_image(self._service, self._store, runtime.images())
        except HookError as error:
            self._note(f"what Nix declares cannot be had: {error}")
            base = ""
        release = self._store.stage(
            name,
            candidate.id,
            candidate.reference,
            environment,
            self._service.identity,
            source=f"deployment {attempt.id}",
            base=base,
        )
        self._previous = self._store.current(name)
        self._deploys.candidate(attempt, release, self._previous)
        # Kept as evidence, too, if it fails.
        runtime.podman("tag", candidate.id, runtime.kept_tag(name, candidate.id))
        return release

    def _serves(self, release: Release) -> bool:
        found = restart.serving(self._manifest, self._service, self._store)
        return found is not None and found.id == release.id

    def _untouched(self, error: Refused | TestFailed) -> Result:
        """End a deployment that touched nothing live; what was seen of its release is kept with it."""
        release = self._release
        tested = isinstance(error, TestFailed)
        if tested and release is not None and release.state not in (GOOD, PROBATION):
            self._store.condemn(release, f"failed its isolated test: {error.message}", "\n".join(error.detail), None)
        self._evidence = error.evidence if isinstance(error, TestFailed) else {"lines": error.detail}
        serves = restart.serving(self._manifest, self._service, self._store)
        return self._end(
            deploys.TEST_FAILED if tested else deploys.REFUSED,
            ExitCode.TEST_FAILED if tested else ExitCode.VALIDATION_FAILED,
            error.message,
            serves,
            hint=error.hint,
            detail=error.detail,
        )

    # --- the switch ------------------------------------------------------------------------------------------------

    def _switch(self, release: Release) -> None:
        service, attempt = self._service, self._attempt
        if attempt is None:
            raise HookError("a deployment has to begin before it switches")
        self._well = self._ready_dependents()
        bridge: Bridge | None = None
        if attempt.strategy == recover.BRIDGE:
            bridge = Bridge(
                self._manifest,
                service,
                deployment=attempt.id,
                image=release.image_id,
                environment=release.environment,
            )
        self._outage = Outage(self._manifest, service)
        with self._outage:
            if bridge is not None:
                bridge.build(rollback.restart_bound(self._manifest, service))
                self._note(f"a bridge answers as {service.name} meanwhile")
            self._deploys.switch(attempt, release, time.monotonic() - self._entered)
            try:
                with self._phase(deploys.SWITCH):
                    if bridge is not None:
                        bridge.take_over()
                    trouble = rollback.restart(self._manifest, service)
                    if trouble is not None or not self._serves(release):
                        raise _Failed(restart.why(self._manifest, self._store, release, trouble or "another one runs"))
                with self._phase(deploys.VERIFY):
                    self._verify()
            finally:
                if bridge is not None:
                    bridge.remove(gently=True)

    def _ready_dependents(self) -> list[Service]:
        """The dependents that answer now: those that have to answer afterwards, too."""
        names = self._manifest.closure(self._service.name)
        found = [self._manifest.services[name] for name in names if not self._manifest.services[name].external]
        return [service for service in found if service.probe is not None and self._ask(service) is None]

    def _ask(self, service: Service) -> str | None:
        """What is wrong with a service now, or None."""
        try:
            password = runtime.probe_password(self._manifest, service)
        except HookError as error:
            return str(error)
        result = probe.ask(self._manifest, service, password)
        return None if result.ok else f"{result.kind}: {result.detail}"

    def _verify(self) -> None:
        trouble = self._settled(self._service)
        if trouble is not None:
            raise _Failed(f"it was started, and does not answer: {trouble}")
        for dependent in self._well:
            trouble = self._settled(dependent)
            if trouble is not None:
                raise _Failed(f"{dependent.name}, which depends on it, does not answer any more ({trouble})")

    def _settled(self, service: Service) -> str | None:
        """What is still wrong with a service when it had the time that its own health checks would give it."""
        if service.probe is None:
            return None
        deadline = time.monotonic() + service.probe.timeout * service.probe.failures
        while (trouble := self._ask(service)) is not None and time.monotonic() < deadline:
            if service is self._service and not restart.active(service):
                break
            time.sleep(_LOOK)
        return trouble

    # --- afterwards ------------------------------------------------------------------------------------------------

    def _settle(self) -> Result:
        """Wait for the end of the probation, which its own timer decides, with or without us."""
        service, name = self._service, self._service.name
        release = self._current_state()
        if release.state == PROBATION:
            with self._phase(deploys.PROBATION):
                self._note(f"has to stay healthy for {self._manifest.probation:g} s")
                deadline = time.monotonic() + self._manifest.probation + _PATIENCE
                started = runtime.read_verdict(self._manifest, name).get("readyAt")
                while release.state == PROBATION and time.monotonic() < deadline:
                    time.sleep(_LOOK)
                    current = self._store.current(name)
                    if current is None or current.id != release.id:
                        break
                    release = self._current_state()
                    if runtime.read_verdict(self._manifest, name).get("readyAt") != started:
                        # systemd would start it some times more before it is given up.
                        words = runtime.last_words(service, since=release.changed)
                        said = f"; its last words: {words}" if words else ""
                        raise _Failed(f"it was ready and ended again within its probation{said}")
                self._watch_end(release)
        if release.state == GOOD:
            with self._phase(deploys.BLESS):
                self._note(f"{release} is good")
        return self._end(deploys.DEPLOYED, ExitCode.DONE, f"{release} serves ({release.state})", release)

    def _watch_end(self, release: Release) -> None:
        current = self._store.current(self._service.name)
        if release.state == BAD or current is None or current.id != release.id:
            raise _Failed(release.reason or "it was left within its probation")

    def _current_state(self) -> Release:
        found = self._store.get(self._service.name, self._release.id) if self._release is not None else None
        if found is None:
            raise HookError("the release is not in the journal any more")
        self._release = found
        return found

    def _revert(self, reason: str) -> Result:
        """Go back to what served before, unless systemd's own rollback has done so already."""
        # Nothing may cut off the way back; it has its own bounds.
        _ignore_signals()
        service, release, previous = self._service, self._release, self._previous
        if release is None or self._attempt is None:
            raise HookError("there is nothing to revert")
        self._outage = self._outage or Outage(self._manifest, service)
        with self._phase(deploys.REVERT):
            serves = self._back(release, previous, reason)
        # What the automatic rollback saw first-hand says more than what this process saw of it.
        reason = restart.why(self._manifest, self._store, self._current_state(), reason)
        hint = f"aistack releases {service.name} --log {release.id}"
        if serves is not None and serves.id != release.id:
            message = f"{release} does not serve ({reason}); {serves} serves"
            return self._end(deploys.ROLLED_BACK, ExitCode.ROLLED_BACK, message, serves, hint=hint)
        return self._end(
            deploys.DOWN,
            ExitCode.DOWN,
            f"DOWN: {release} does not serve: {reason}",
            None,
            hint=f"aistack status {service.name}",
        )

    def _back(self, release: Release, previous: Release | None, reason: str) -> Release | None:
        """Return the release that serves after the way back, or None."""
        manifest, service, store = self._manifest, self._service, self._store
        state = runtime.unit_states([service.unit]).get(service.unit, {}).get("ActiveState")
        current = store.current(service.name)
        if state != "active" or current is None or current.id != release.id:
            # Its start failed, so systemd has had its rollback started: wait for the end of that.
            serves = restart.after_automatic_rollback(manifest, service, store)
            if serves is not None and serves.id != release.id:
                return serves
        if previous is None or previous.id == release.id:
            return restart.serving(manifest, service, store)
        log = runtime.journal_tail(service, since=release.changed)
        # Whoever interrupts says nothing against a release that was good before.
        condemn = not (self._was_interrupted and release.proven)
        trouble = recover.revert(manifest, service, store, release, previous, reason=reason, log=log, condemn=condemn)
        if trouble is not None:
            self._note(f"{previous} does not start either: {trouble}")
            return None
        return restart.serving(manifest, service, store)

    def _interrupted(self) -> Result:
        """Leave the live service as it was, or put it back; what has ended already has ended."""
        attempt = self._attempt
        if attempt is None:
            raise HookError("interrupted")
        if self._result is not None:
            return self._result
        self._store.abandon()
        if attempt.phase in deploys.LIVE:
            release = self._current_state()
            if release.state == GOOD and self._serves(release):
                return self._end(deploys.DEPLOYED, ExitCode.DONE, f"{self._release} serves (good)", self._release)
            result = self._revert("the deployment was interrupted")
            return dataclasses.replace(result, code=max(result.code, ExitCode.ROLLED_BACK))
        serves = restart.serving(self._manifest, self._service, self._store)
        message = f"interrupted in phase {attempt.phase}: nothing live was touched"
        return self._end(deploys.INTERRUPTED, ExitCode.INTERRUPTED, message, serves)

    def _end(
        self,
        outcome: str,
        code: ExitCode,
        message: str,
        serves: Release | None,
        *,
        hint: str | None = None,
        detail: list[str] | None = None,
    ) -> Result:
        _ignore_signals()
        unavailable = self._outage.seconds if self._outage is not None else None
        if self._attempt is not None:
            # First: what is cut off in between is told twice, and not never.
            self._record(self._attempt, outcome, message, serves)
            self._deploys.end(
                self._attempt,
                outcome,
                int(code),
                message,
                spent=time.monotonic() - self._entered,
                unavailable=unavailable,
                evidence=self._evidence,
            )
        self._result = Result(
            code=code,
            outcome=outcome,
            message=printable(message),
            serves=serves,
            unavailable=unavailable,
            hint=hint or f"aistack status {self._service.name}",
            detail=detail or [],
        )
        return self._result

    def _record(self, attempt: Attempt, outcome: str, message: str, serves: Release | None) -> None:
        """Say in the journal how it ended, for whoever asks later: the terminal is gone then."""
        release = self._store.get(self._service.name, self._release.id) if self._release is not None else None
        reason = release.reason if release is not None and release.reason else message
        what = f"{release}: {reason}" if release is not None else reason
        now = f"{serves} serves" if serves is not None else "nothing serves"
        runtime.note(f"{self._service.name}: {attempt}: {outcome}: {what}; {now}")


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Turn the first signal that asks for an end into Interrupted, and put the handlers back afterwards."""

    def stop(*_: object) -> None:
        # Whoever asks again would cut off the way back.
        _ignore_signals()
        raise Interrupted

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore_signals() -> None:
    """Let nobody interrupt from here to the end of the deployment."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _nobody(event: Event) -> None:
    """Take an event that nobody is there to see."""
