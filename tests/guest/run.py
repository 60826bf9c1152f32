"""Run VM test scripts in guests: `python3 -m guest.run [SCRIPT or NAME …]`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from guest import host, images, paths, root, scenario
from guest.cache import fingerprint
from guest.deadline import Deadline
from guest.errors import GuestError, Skipped
from guest.guest import Guest, known
from guest.log import Log
from guest.scenario import Scenario

PREFIX = "test-"
"""Names of the guests that scenarios run in begin so; another run's are known by its process id."""

_JOBS = 2 * (os.cpu_count() or 1)
"""A scenario waits for most of its time."""

SHOWN_LINES = 400
SHOWN_JOURNAL_LINES = 60
"""Of a failed scenario's log; the file has all of it."""


@dataclass(frozen=True)
class Outcome:
    """How one scenario ended."""

    name: str
    result: str
    seconds: float
    log: Path
    reason: str = ""
    kept: str = ""
    """The guest's name, if it was left running."""


class Interrupted(Exception):
    """Ctrl-C, or a termination signal."""


def main(arguments: list[str] | None = None) -> int:
    """Run the scenarios; the exit code is 0 only if none failed and there was one to run."""
    options = _parse(arguments)
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, _interrupt)
    try:
        chosen = _chosen(options.scenario, slow=options.slow)
        if options.list:
            print("\n".join(item.name for item in chosen))
            return 0
        host.require(disk_megabytes=4000)
        reap()
        if any(item.skip is None for item in chosen):
            _say(f"preparing the root and the images in {paths.cache()}")
            started = time.monotonic()
            root.ensure()
            # The one with the most images first: it has the others made on the way, side by side.
            for stack in sorted(_stacks(chosen), key=lambda name: name == images.REFERENCE):
                images.ensure(stack)
            _say(f"ready after {time.monotonic() - started:.1f} s")
        before = _cache_state(_stacks(chosen))
        outcomes = Runner(options).run(chosen * options.repeat)
        outcomes += _cache_unchanged(before)
    except GuestError as error:
        print(f"guest: {error}", file=sys.stderr)
        return 1
    except Interrupted:
        _say("interrupted; the guests are gone")
        return 130
    if options.report:
        rows = [{**asdict(outcome), "log": str(outcome.log)} for outcome in outcomes]
        options.report.write_text(json.dumps(rows))
    return _summary(outcomes)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="guest.run", description=__doc__)
    add = parser.add_argument
    add("scenario", nargs="*", help="path of a script, or part of its name (default: all)")
    add("--jobs", type=int, default=_JOBS, help="guests at a time (default: %(default)s)")
    add("--repeat", type=int, default=1, help="run each scenario so many times")
    add("--slow", action="store_true", help="also those that say they are slow (one that is named runs anyway)")
    add("--keep", action="store_true", help="leave the guests running to look into them")
    add("--list", action="store_true", help="list the scenarios and end")
    add("--report", type=Path, metavar="FILE", help="write the outcomes to FILE, as JSON")
    add("-v", "--verbose", action="store_true", help="show the log while it is written")
    return parser.parse_args(arguments)


def _chosen(wanted: list[str], *, slow: bool) -> list[Scenario]:
    every = scenario.discover()
    if not wanted:
        return [item if slow else left_out_if_slow(item) for item in every]
    found: list[Scenario] = []
    for word in wanted:
        if word.endswith(".py"):
            path = Path(word).resolve()
            if not path.is_file():
                raise GuestError(f"no such script: {word}")
            found.append(Scenario.read(path))
        else:
            fitting = [item for item in every if word in item.name]
            if not fitting:
                names = ", ".join(item.name for item in every) or "none at all"
                raise GuestError(f"no scenario is called *{word}*", why=f"there are: {names}")
            found += fitting
    return found


def left_out_if_slow(item: Scenario) -> Scenario:
    """Return the scenario, to be skipped if it is slow and has no other reason to be."""
    if item.slow is None or item.skip is not None:
        return item
    return replace(item, skip=f"slow, `make test-all` runs it: {item.slow}")


def reap() -> None:
    """Remove the guests of runs that were killed."""
    for guest in known():
        if guest.name.startswith(PREFIX):
            owner = guest.name.removeprefix(PREFIX).split("-")[0]
            if not owner.isdigit() or not Path(f"/proc/{owner}").is_dir():
                guest.destroy()


class Runner:
    """Runs scenarios, some at a time, until they are done or somebody interrupts."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._deadlines: list[Deadline] = []
        self._stopped = threading.Event()

    def run(self, items: list[Scenario]) -> list[Outcome]:
        """Run `items` and report each as it ends; raise Interrupted when all guests are gone."""
        outcomes: list[Outcome] = []
        with ThreadPoolExecutor(max(1, self._options.jobs)) as pool:
            running = {pool.submit(self._one, item, number) for number, item in enumerate(items)}
            try:
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        outcomes.append(future.result())
                        _report(outcomes[-1])
            except Interrupted:
                self._stop(running)
                raise
        return outcomes

    def _stop(self, running: set[Future[Outcome]]) -> None:
        _say("interrupted: removing the guests")
        self._stopped.set()
        for future in running:
            future.cancel()
        for deadline in self._deadlines:
            deadline.cancel()
        # A guest that is gone ends whatever its scenario waits for.
        for guest in known():
            if guest.name.startswith(f"{PREFIX}{os.getpid()}-"):
                guest.kill()

    def _one(self, item: Scenario, number: int) -> Outcome:
        started = time.monotonic()
        suffix = f"-{number}" if self._options.repeat > 1 else ""
        log = Log(paths.logs() / f"{item.name}{suffix}.log", verbose=self._options.verbose)
        deadline = Deadline(item.time_limit)
        self._deadlines.append(deadline)
        if self._stopped.is_set():
            deadline.cancel()
        guest = Guest(f"{PREFIX}{os.getpid()}-{number}")
        try:
            scenario.run(item, guest, log, deadline, keep=self._options.keep)
            result, reason = "passed", ""
        except Skipped as skipped:
            result, reason = "skipped", str(skipped)
        except Exception as error:  # noqa: BLE001
            # Whatever a test script raises is a failure of that scenario, and the others go on.
            notes = getattr(error, "__notes__", [])
            result, reason = "failed", "\n".join([f"{type(error).__name__}: {error}", *notes])
        finally:
            log.close()
        kept = guest.name if self._options.keep and guest.running else ""
        return Outcome(item.name, result, time.monotonic() - started, log.path, reason, kept)


def _interrupt(*_: object) -> None:
    # Once: a second Ctrl-C must not cut the cleaning up short.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.SIG_IGN)
    raise Interrupted


def _stacks(chosen: list[Scenario]) -> set[str]:
    return {item.stack for item in chosen if item.skip is None}


def _cache_state(stacks: set[str]) -> dict[Path, str]:
    made = [entry.path for entry in (root.entry(), *map(images.entry, stacks)) if entry.present]
    return {path: fingerprint(path) for path in made}


def _cache_unchanged(before: dict[Path, str]) -> list[Outcome]:
    """Guests share the cached root and image layers: none of them may have changed either."""
    if not before:
        return []
    started = time.monotonic()
    changed = [str(path) for path, state in before.items() if fingerprint(path) != state]
    reason = f"changed: {', '.join(changed)}; remove it with `make clean`" if changed else ""
    outcome = Outcome(
        "the guests left the cache as it was",
        "failed" if changed else "passed",
        time.monotonic() - started,
        paths.logs() / "cache.log",
        reason,
    )
    outcome.log.write_text(reason)
    _report(outcome)
    return [outcome]


def _report(outcome: Outcome) -> None:
    line = f"{outcome.result:8}{outcome.name}  ({outcome.seconds:.1f} s)"
    if outcome.kept:
        line += f"  kept: AISTACK_GUEST={outcome.kept} scripts/shell"
    if outcome.result == "skipped":
        line += f"  {outcome.reason}"
    _say(line)
    if outcome.result == "failed":
        body = shortened(outcome.log.read_text(errors="replace").splitlines())
        _say("\n".join(f"    | {text}" for text in body))
        _say("\n".join(f"    {text}" for text in outcome.reason.splitlines()))
        _say(f"    whole log: {outcome.log}")


def shortened(log: list[str]) -> list[str]:
    """Return what of a failed scenario's log is shown: the script's part, and the journal's end."""
    cut = next((i for i, line in enumerate(log) if line.endswith(scenario.JOURNAL_FOLLOWS)), len(log))
    script, journal = log[:cut], log[cut:]
    if len(script) > SHOWN_LINES:
        script = ["(…)", *script[-SHOWN_LINES:]]
    if len(journal) > SHOWN_JOURNAL_LINES:
        journal = [journal[0], "(…)", *journal[-SHOWN_JOURNAL_LINES:]]
    return [*script, *journal]


def _summary(outcomes: list[Outcome]) -> int:
    count = {
        result: sum(outcome.result == result for outcome in outcomes) for result in ("passed", "failed", "skipped")
    }
    _say(", ".join(f"{number} {result}" for result, number in count.items()))
    if not outcomes:
        print("guest: no scenario was found", file=sys.stderr)
        return 1
    return 1 if count["failed"] else 0


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
