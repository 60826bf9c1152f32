"""`make test`: lint, unit, integration, evaluation and scenario tests, each counted, every skip with its reason.

The scenarios wait a lot for their guests, so the other parts run beside them, two at a time; what those print is shown
in one piece when each has ended.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, NoReturn

from guest import paths
from guest.process import kill_group

UNITS = ("python/tests", "tests/guest/tests")
EVALUATION = ("python/tests/test_evaluation.py",)
INTEGRATION = tuple(
    f"python/tests/test_{name}.py"
    for name in ("cli_ralph", "deploy_killed", "flake", "install", "ralph_*", "scripted_endpoint", "services_*")
)
"""Those that start services, install, kill, or have Nix evaluate whole machines: half of what `unit` would take."""

BESIDE = 2
"""Parts at a time beside the scenarios: one alone has too small a share to end with them."""

SCENARIO = "scenario"

SHOWN_NAMES = 3
"""Names shown with a reason for skipping; more are counted."""

Call = Callable[..., int]
"""`call` with the output that a part writes to."""

PART_TIMEOUT = 1800.0
"""Seconds for one part; a scenario has a limit of its own."""


@dataclass
class Part:
    """What one part of the tests came to."""

    name: str
    passed: int = 0
    failed: int = 0
    skips: list[tuple[str, str]] = field(default_factory=list)
    """Names and reasons."""
    failures: list[str] = field(default_factory=list)

    @property
    def skipped(self) -> int:
        """How many were skipped."""
        return len(self.skips)

    def reasons(self) -> Iterator[str]:
        """Yield each reason for skipping once, with the names it holds for."""
        for reason in dict.fromkeys(reason for _, reason in self.skips):
            names = [name for name, other in self.skips if other == reason]
            more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
            yield f"{reason} ({', '.join(names[:SHOWN_NAMES])}{more})"

    def broken(self, reason: str) -> None:
        """Count a part that ended without saying how."""
        self.failed += 1
        self.failures.append(reason)


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; 0 only if nothing failed."""
    parser = argparse.ArgumentParser(prog="make test", description=__doc__)
    parser.add_argument("part", nargs="*", choices=[*PARTS, []], help="only these parts")
    parser.add_argument("--repeat", type=int, default=1, help="run each scenario so many times")
    parser.add_argument("--all", action="store_true", help="the slow scenarios too (`make test-all`)")
    options = parser.parse_args(arguments)
    chosen = options.part or list(PARTS)
    started = time.monotonic()
    beside = [name for name in chosen if name != SCENARIO] if SCENARIO in chosen else []
    done: dict[str, Part | Future[Part]] = {}
    pool = ThreadPoolExecutor(max_workers=BESIDE)
    _take_signals()
    try:
        for name in beside:
            done[name] = pool.submit(_in_one_piece, name, options)
        for name in chosen:
            if name not in beside:
                print(f"\n== {name}{', the others beside it' if beside else ''}", flush=True)
                done[name] = _run(name, options, None)
        parts = [part.result() if isinstance(part := done[name], Future) else part for name in chosen]
    except BaseException:
        _INTERRUPTED.set()
        for process in list(_RUNNING):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return summary(parts, time.monotonic() - started)


def _take_signals() -> None:
    """End on SIGTERM as on Ctrl-C: what we run has guests, which would go on without us.

    What is ignored here, as in `nohup make test &`, would be ignored by all that we start, and some tests are about
    signals; what has a handler here is not.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _run(name: str, options: argparse.Namespace, output: IO[str] | None) -> Part:
    """Run one part in a folder of its own; what it prints goes to `output`, or to our own where there is none."""
    with tempfile.TemporaryDirectory(prefix="aistack-test-", ignore_cleanup_errors=True) as folder:
        # Some tests run as another user, who has to get through.
        Path(folder).chmod(0o755)
        return PARTS[name](Path(folder), options, partial(call, output=output))


def _in_one_piece(name: str, options: argparse.Namespace) -> Part:
    """Run one part and then show what it printed."""
    with tempfile.TemporaryFile("w+") as output:
        part = _run(name, options, output)
        output.seek(0)
        print(f"\n== {name}\n{output.read()}", flush=True)
    return part


def summary(parts: list[Part], seconds: float) -> int:
    """Print the counts, every skip and every failure; return the exit code."""
    print(f"\n{'':12}{'passed':>8}{'failed':>8}{'skipped':>9}")
    for part in parts:
        print(f"{part.name:12}{part.passed:8}{part.failed:8}{part.skipped:9}")
    for part in parts:
        for reason in part.reasons():
            print(f"skipped  {part.name}: {reason}")
    for part in parts:
        for failure in part.failures:
            print(f"FAILED   {part.name}: {failure}")
    print(f"all of it took {seconds:.0f} s")
    passed = sum(part.passed for part in parts)
    failed = sum(part.failed for part in parts)
    skipped = sum(part.skipped for part in parts)
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return 1 if failed or not passed else 0


_RUNNING: set[subprocess.Popen[bytes]] = set()
_INTERRUPTED = threading.Event()


def call(command: list[str | Path], environment: dict[str, str] | None = None, *, output: IO[str] | None = None) -> int:
    """Run a part's command with its output on `output` or ours; kill it and return 124 after PART_TIMEOUT.

    130, and nothing is run, once the whole was interrupted.
    """
    if _INTERRUPTED.is_set():
        return 130
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=paths.CHECKOUT,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        process_group=0,
    )
    _RUNNING.add(process)
    if _INTERRUPTED.is_set():
        # Since we looked; who interrupted may not have seen this process among those that run.
        process.terminate()
    try:
        return process.wait(PART_TIMEOUT)
    except subprocess.TimeoutExpired:
        kill_group(process.pid)
        process.wait()
        print(f"no end after {PART_TIMEOUT:.0f} s: killed", file=output, flush=True)
        return 124
    except BaseException:
        # Ctrl-C reaches only us: a scenario run cleans up after SIGTERM.
        process.terminate()
        process.wait(60)
        raise
    finally:
        _RUNNING.discard(process)


def lint(folder: Path, options: argparse.Namespace, call: Call) -> Part:
    """Run scripts/lint."""
    del options
    part = Part("lint")
    report = folder / "lint.txt"
    code = call([paths.CHECKOUT / "scripts/lint"], {"AISTACK_REPORT": str(report)})
    for line in report.read_text().splitlines() if report.is_file() else ():
        result, _, rest = line.partition(" ")
        if result == "passed":
            part.passed += 1
        elif result == "failed":
            part.broken(rest)
        else:
            name, _, reason = rest.partition(": ")
            part.skips.append((name, reason))
    if code != 0 and not part.failed:
        part.broken(f"exit code {code}")
    return part


def unit(folder: Path, options: argparse.Namespace, call: Call) -> Part:
    """Run the Python tests, the guests' own among them."""
    del options
    part = Part("unit")
    for number, tests in enumerate(UNITS):
        ignored = [f"--ignore-glob={paths.CHECKOUT / pattern}" for pattern in (*EVALUATION, *INTEGRATION)]
        pytest(part, folder / f"{number}.xml", [tests, *ignored], call)
    return part


def integration(folder: Path, options: argparse.Namespace, call: Call) -> Part:
    """Run the Python tests that need processes of their own."""
    del options
    part = Part("integration")
    files = sorted(str(file.relative_to(paths.CHECKOUT)) for each in INTEGRATION for file in paths.CHECKOUT.glob(each))
    pytest(part, folder / "integration.xml", files, call)
    return part


def evaluation(folder: Path, options: argparse.Namespace, call: Call) -> Part:
    """Run the tests that evaluate the module."""
    del options
    part = Part("evaluation")
    pytest(part, folder / "evaluation.xml", list(EVALUATION), call)
    return part


def pytest(part: Part, report: Path, arguments: list[str], call: Call) -> None:
    """Add a pytest run to `part`."""
    # Named as pytest names its own: tests that run as another user let him through folders of such names.
    folder = report.with_name(f"pytest-{report.stem}")
    code = call(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *(f"--basetemp={folder}", f"--junitxml={report}", "-o", "junit_family=xunit2", *arguments),
        ],
        {"PYTHONPATH": f"{paths.CHECKOUT / 'tests'}:{paths.CHECKOUT / 'python'}"},
    )
    before = part.failed
    if report.is_file():
        count_junit(part, report.read_text())
    if code != 0 and part.failed == before:
        part.broken(f"pytest {' '.join(arguments)}: exit code {code}")


def count_junit(part: Part, text: str) -> None:
    """Add what a JUnit report says to `part`."""
    for case in ET.fromstring(text).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            part.broken(name)
        elif skipped is not None:
            part.skips.append((name, skipped.get("message") or "no reason given"))
        else:
            part.passed += 1


def scenarios(folder: Path, options: argparse.Namespace, call: Call) -> Part:
    """Run the VM tests' scripts in guests."""
    part = Part(SCENARIO)
    report = folder / "scenarios.json"
    slow = ["--slow"] if options.all else []
    code = call([sys.executable, "-m", "guest.run", f"--report={report}", f"--repeat={options.repeat}", *slow])
    for outcome in json.loads(report.read_text()) if report.is_file() else ():
        if outcome["result"] == "passed":
            part.passed += 1
        elif outcome["result"] == "failed":
            reason = str(outcome["reason"]).splitlines() or ["no reason given"]
            part.broken(f"{outcome['name']}: {reason[0]} (log: {outcome['log']})")
        else:
            part.skips.append((outcome["name"], outcome["reason"]))
    if code != 0 and not part.failed:
        part.broken(f"the runner ended with exit code {code}")
    return part


PARTS: dict[str, Callable[[Path, argparse.Namespace, Call], Part]] = {
    "lint": lint,
    "integration": integration,
    "unit": unit,
    "evaluation": evaluation,
    SCENARIO: scenarios,
}

if __name__ == "__main__":
    sys.exit(main())
