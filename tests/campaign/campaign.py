"""`make campaign`: deploy broken releases in four ways, and write down what became of each.

Exits with 0 only if no fault reached users through aistack, and aistack said of each what the table wants to be said.
Each system has a guest of its own, four at a time. What was found is kept in the cache (logs/campaign-SYSTEM.json):
a part of the campaign renews its part of the section in docs/benchmarks.md, if all of aistack's was found before.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import report
import sections
from fault import Fault, good, table
from guest import host, images, paths, root
from guest.errors import GuestError
from guest.guest import known
from lab import opened
from systems import DATA, START_TIMEOUT, SYSTEMS, System

TIME_LIMIT = 2300.0  # seconds for one system; all of it has 40 minutes
GUESTS = 4  # at a time: a case mostly waits
STEADY = 1.0  # seconds of right answers that count as serving
SETTLE = START_TIMEOUT + 2.0  # seconds that a release has for that after the command
LOST = 0.5  # seconds without a right answer, of a release that served already, that make it a broken one
DOCUMENT = paths.CHECKOUT / "docs" / "benchmarks.md"


def main() -> int:
    """Run the campaign."""
    parser = argparse.ArgumentParser(prog="make campaign", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="FAULT", default=[], help="these faults")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), help="these ways")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        faults = table(options.only)
        host.require(disk_megabytes=4000)
        root.ensure()
        images.ensure()
        found = deploy_everywhere(options.systems, faults)
    except GuestError as error:
        print(f"campaign: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("campaign: interrupted; the guests are gone", file=sys.stderr)
        return 130
    print(report.section(faults, found))
    whole = {name: kept(name) for name in SYSTEMS}
    if all(fault.name in whole["aistack"] for fault in table()):
        write(DOCUMENT, report.section(table(), whole))
        print(f"written: {DOCUMENT.relative_to(paths.CHECKOUT)}")
    cases = [*faults, good(report.CONTROL)] if "aistack" in found else []
    wrong = [line for fault in cases for line in judge(fault, found["aistack"][fault.name])]
    for line in wrong:
        print(f"campaign: {line}", file=sys.stderr)
    return 1 if wrong else 0


def raw(system: str) -> Path:
    """Where the last findings of a system are kept; those of faults that are left out in a run stay."""
    return paths.cache() / "logs" / f"campaign-{system}.json"


def kept(system: str) -> dict[str, Any]:
    """The last findings of a system, by fault."""
    found = json.loads(raw(system).read_text(encoding="utf-8")) if raw(system).is_file() else {}
    return dict(found)


def write(document: Path, text: str) -> None:
    """Renew the section of the campaign."""
    before = document.read_text(encoding="utf-8") if document.is_file() else "# Benchmarks\n"
    document.write_text(sections.put(before, sections.CAMPAIGN, text), encoding="utf-8")


def deploy_everywhere(names: list[str], faults: list[Fault]) -> dict[str, Any]:
    """What was seen, by system and fault; if anything goes wrong, no guest is left."""
    with ThreadPoolExecutor(GUESTS) as pool:
        running = {name: pool.submit(deploy_all, SYSTEMS[name], faults) for name in names}
        try:
            return {name: future.result() for name, future in running.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for guest in known():
                # A guest that is gone ends whatever is waited for in it.
                if guest.name.startswith("campaign-") and guest.name.endswith(f"-{os.getpid()}"):
                    guest.kill()
            raise


def deploy_all(kind: type[System], faults: list[Fault]) -> dict[str, Any]:
    """Deploy each fault, and a good release at the end, in one way; returns what was seen, by fault."""
    found: dict[str, Any] = {}
    with opened(TIME_LIMIT, f"campaign-{kind.name}") as lab:
        system = kind(lab)
        system.open()
        for fault in (*faults, good(report.CONTROL)):
            began = time.monotonic()
            try:
                steady(system, 120)
                found[fault.name] = seen = case(system, fault)
                system.reset(fault)
            except GuestError as error:
                # The others are worth to be known; this one is no success.
                found[fault.name] = seen = {
                    "outcome": report.UNKNOWN,
                    "code": -1,
                    "unavailable": 0.0,
                    "dependents": False,
                    "out": str(error),
                }
                print(f"{kind.name}: {fault.name}: {error}", file=sys.stderr, flush=True)
            seen["spent"] = spent = time.monotonic() - began
            print(
                f"{kind.name}: {fault.name}: {seen['outcome']}, exit code {seen['code']}, "
                f"{seen['unavailable']:.1f} s without a right answer ({spent:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
            raw(kind.name).write_text(json.dumps({**kept(kind.name), **found}, indent=1), encoding="utf-8")
    return found


def case(system: System, fault: Fault) -> dict[str, Any]:
    """Deploy one fault, and watch."""
    lab = system.lab
    if fault.prepare:
        lab.run(f"({fault.prepare.strip()}) >&2")
    folder = system.put(fault)
    lab.run(f"find {DATA} -mindepth 1 -delete")
    lab.run("systemctl restart campaign-client.service; rm --force /run/campaign/seen.json")
    steady(system, 30)
    before = {name: system.runs(name) for name in ("app", "redis", "postgres")}
    began = time.monotonic()
    code, out = system.deploy(fault, folder)
    spent = time.monotonic() - began
    settled(system)
    seen, after = system.seen(), {name: system.runs(name) for name in before}
    became = outcome(fault, seen, before, after)
    if became in (report.SERVES, report.BROKEN):
        # What it is up to yet, or whether it comes at last.
        time.sleep(fault.watch)
        later, after = system.seen(), {name: system.runs(name) for name in before}
        lost = later["unavailable"] > seen["unavailable"] + LOST
        became = report.BROKEN if became == report.SERVES and lost else outcome(fault, later, before, after)
        seen = later
    dependents = ("gateway",) if fault.service == "app" else ("app", "gateway")
    return {
        "outcome": became,
        "code": code,
        "seconds": spent,
        "unavailable": seen["unavailable"],
        "dependents": all(system.runs(name) for name in dependents),
        "out": out[-6000:],
    }


def outcome(fault: Fault, seen: dict[str, Any], before: dict[str, str], after: dict[str, str]) -> str:
    """Name what became of users: `before` and `after` are what `System.runs` said of each service."""
    if seen["release"] is None:
        return report.BROKEN
    if fault.service == "app":
        new = seen["release"] != "old"
    else:
        new = image(after[fault.service]) != image(before[fault.service])
    if new:
        return report.SERVES
    return report.STOPPED if before == after else report.BACK


def image(shown: str) -> str:
    """The image of what `System.runs` said; empty if nothing runs."""
    return shown.split()[1] if shown else ""


def steady(system: System, timeout: float) -> None:
    """Wait until users have got right answers for a while; raises GuestError."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        seen = system.seen()
        if seen["release"] is not None and seen["for_seconds"] >= STEADY:
            return
        time.sleep(0.1)
    raise GuestError(f"{system.name}: the old release does not serve", why=str(system.seen()))


def settled(system: System) -> None:
    """Wait until users get right answers, or long enough for nobody to hope for it."""
    try:
        steady(system, SETTLE)
    except GuestError:
        return


def judge(fault: Fault, seen: dict[str, Any]) -> list[str]:
    """What is wrong with what aistack made of a fault, or of the good release."""
    wrong = []
    if fault.name == report.CONTROL and seen["outcome"] != report.SERVES:
        wrong.append(f"not even a good release: {seen['outcome']}")
    if fault.name != report.CONTROL and seen["outcome"] not in (report.STOPPED, report.BACK):
        wrong.append(f"{fault.name} reached users: {seen['outcome']}")
    if seen["code"] != fault.exit_code:
        wrong.append(f"{fault.name}: exit code {seen['code']}, not {fault.exit_code}: {report.sentence(seen['out'])}")
    if fault.says not in seen["out"]:
        wrong.append(f"{fault.name}: {fault.says!r} is not in what was printed: {report.sentence(seen['out'])}")
    if not seen["dependents"]:
        wrong.append(f"{fault.name}: a dependent is dead")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
