"""The VM tests' scripts: found, prepared and run against a guest."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from guest import images, installed, paths, root, stack
from guest.deadline import Deadline, wait_until
from guest.errors import GuestError, Skipped
from guest.guest import Guest
from guest.log import Log
from guest.machine import Machine, subtest

TIME_LIMIT = 600.0
"""Seconds for one scenario, the guest's boot and the installation included: for a machine that is busy or slow."""

PRELUDE = "_prelude.py"
"""Helpers that every script may use; read before it, here as in the NixOS driver."""

EPILOGUE = "_epilogue.py"
"""What has to hold after every script; read after it, here as in the NixOS driver."""

JOURNAL_FOLLOWS = "the whole journal:"
"""The line of a log after which the guest's journal stands."""

STACK = re.compile(r"^# stack of examples/(?P<name>[a-z]+)\.nix$", re.MULTILINE)
"""Names another stack than the reference one, for the NixOS driver too."""

HEADER = re.compile(r"^# guest: (?P<key>skip|slow|time-limit) (?P<value>.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Scenario:
    """A test script and what its header says about guests.

    `# guest: skip REASON` where it needs what no guest has; `# guest: slow REASON` where it takes too
    long for every run of the tests; `# guest: time-limit SECONDS`; `# stack of examples/NAME.nix`.
    """

    name: str
    script: Path
    skip: str | None
    time_limit: float
    slow: str | None = None
    stack: str = images.REFERENCE

    @classmethod
    def read(cls, script: Path) -> Scenario:
        """Read a script's header."""
        text = script.read_text()
        found = {match["key"]: match["value"] for match in HEADER.finditer(text)}
        limit = float(found.get("time-limit", TIME_LIMIT))
        other = STACK.search(text)
        stack = other["name"] if other else images.REFERENCE
        return cls(script.stem, script, found.get("skip"), limit, found.get("slow"), stack)


def discover(folder: Path = paths.SCENARIOS) -> list[Scenario]:
    """Return every scenario of a folder: adding one is adding a file."""
    scripts = sorted(folder.glob("*.py")) if folder.is_dir() else []
    return [Scenario.read(script) for script in scripts if not script.name.startswith("_")]


def names(machine: Machine, log: Log) -> dict[str, Any]:
    """Return the global names that a NixOS test script may use."""
    import unittest

    return {
        "machine": machine,
        "machines": [machine],
        "subtest": partial(subtest, log),
        "start_all": machine.start,
        "log": log,
        "retry": _retry,
        "t": unittest.TestCase(),
        "Machine": Machine,
        "__name__": "__scenario__",
    }


def _retry(fn: Callable[[bool], bool], timeout: int = 900) -> None:
    """Repeat `fn` until it is true; as the NixOS driver's function of this name."""
    if not wait_until(fn, timeout):
        raise GuestError(f"not true after {timeout} s of trying")


def run(scenario: Scenario, guest: Guest, log: Log, deadline: Deadline, *, keep: bool = False) -> None:
    """Run a scenario in a fresh guest in which the stack is installed and not started.

    Raises what the script raises. The guest is removed afterwards unless `keep`. `deadline` bounds
    all of it; cancelling it from another thread ends the scenario.
    """
    if scenario.skip:
        raise Skipped(scenario.skip)
    machine = Machine(guest, log, deadline)
    with root.entry().in_use() as lower, images.entry(scenario.stack).in_use() as storage:
        try:
            guest.create(lower, storage)
            units = installed.place(guest, stack.rendered(scenario.stack))
            machine.start()
            machine.wait_for_unit("basic.target")
            installed.enable(machine, units)
            known = names(machine, log)
            for script in (paths.SCENARIOS / PRELUDE, scenario.script, paths.SCENARIOS / EPILOGUE):
                exec(compile(script.read_text(), str(script), "exec"), known)
        except BaseException as error:
            _explain(error, machine, log, {str(scenario.script), str(paths.SCENARIOS / EPILOGUE)})
            raise
        finally:
            log.line(JOURNAL_FOLLOWS)
            log.line(machine.journal_tail(100_000) if guest.folder.is_dir() else "(none)")
            if not keep:
                guest.destroy()


def _explain(error: BaseException, machine: Machine, log: Log, scripts: set[str]) -> None:
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in scripts]
    for frame in own:
        log.line(f"at {Path(frame.filename).name}:{frame.lineno}: {frame.line}")
        error.add_note(f"at {Path(frame.filename).name}:{frame.lineno}: {frame.line}")
    log.line(f"{type(error).__name__}: {error}")
    if machine.booted:
        overview = "systemctl list-units --all --no-pager 'podman-aistack-*' 'aistack*'; podman ps -a"
        log.line(machine.execute(overview, timeout=20)[1])
