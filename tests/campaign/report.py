"""What the campaign found, as a section of docs/benchmarks.md."""

from __future__ import annotations

from typing import Any

from fault import Fault
from sections import CAMPAIGN
from systems import LIMIT, PROBATION, START_TIMEOUT, SYSTEMS
from table import table

STOPPED = "stopped"
BACK = "rolled back"
BROKEN = "served broken"
SERVES = "serves"
UNKNOWN = "not measured"
CONTROL = "good"
OUTCOMES = (STOPPED, BACK, BROKEN, SERVES)


def sentence(out: str) -> str:
    """The line by which aistack said how it ended."""
    lines = [line for line in out.splitlines() if line.startswith(("aistack: ", "app: ", "redis: ", "postgres: "))]
    return lines[-1].removeprefix("aistack: ") if lines else out.strip().rpartition("\n")[2]


def honest(seen: dict[str, Any]) -> bool:
    """Whether the exit code said whether the new release serves."""
    return bool((seen["code"] == 0) == (seen["outcome"] == SERVES))


def section(faults: list[Fault], found: dict[str, dict[str, Any]]) -> str:
    """Everything, for the systems and faults that there are."""
    return f"""## {CAMPAIGN}

`make campaign` deploys {len(faults)} broken releases to a running stack, with aistack and with three others, each in a
guest of its own, four guests at a time{duration(found)}. A client asks the app's published port every 50 ms and wants
status 200 and the right body. *Stopped*: nothing live was touched. *Rolled back*: the old release serves
again. *Served broken*: users get no right answer at the end, or lost them again (≥: it goes on).
*Serves*: they get right ones, of the new release. The exit code is honest if it is 0 exactly when that is so.

{totals(faults, found)}
What is not alike: aistack runs its whole reference stack, and its exit codes 5 to 7 are three things to it. The others
run postgres, redis, the app and a gateway that depends on it: the same images, environment, volume and limit
(`--ulimit {LIMIT}`). They check the app's health once a second, by what the client wants (aistack: its status by the
probe, its body by the contract). A release has {START_TIMEOUT} s to get ready; with aistack it has to stay so for
{PROBATION} s. Images are built, or found, before the others touch anything. Compose: `restart: unless-stopped` and the
plain `depends_on`. Quadlet: `Notify=healthy`, `AutoUpdate=local`, `Requires=` for dependents, `Restart=on-failure`. The
plan's script asks the app's port instead of 8099, and keeps its other faults: it forgets environment, volumes and
published ports, so that not even a good release (last row) can be reached afterwards.

Below: what became of users, seconds without a right answer, exit code; † a dependent is dead; ✗ the exit code is not
honest; - not measured.

{cases(faults, found)}
What aistack printed:

{sentences(faults, found.get("aistack", {}))}"""


def duration(found: dict[str, dict[str, Any]]) -> str:
    """How long the cases took, in words."""
    minutes = {
        SYSTEMS[name].label: sum(seen.get("spent", 0.0) for seen in cases.values()) / 60
        for name, cases in found.items()
    }
    return f" (minutes: {', '.join(f'{label} {value:.0f}' for label, value in minutes.items())})"


def totals(faults: list[Fault], found: dict[str, dict[str, Any]]) -> str:
    """How many faults came to what, by system."""
    rows = []
    for name, cases in found.items():
        all_seen = [cases[fault.name] for fault in faults if fault.name in cases]
        seen = [case for case in all_seen if case["outcome"] != UNKNOWN]
        away = [case["unavailable"] for case in seen]
        rows.append(
            (
                SYSTEMS[name].label,
                f"{len(seen)} of {len(faults)}",
                *(str(sum(case["outcome"] == outcome for case in seen)) for outcome in OUTCOMES),
                f"{sum(away):.0f} s ({max(away, default=0.0):.1f} s)",
                f"{sum(case['dependents'] for case in seen)} of {len(seen)}",
                f"{sum(map(honest, seen))} of {len(seen)}",
            )
        )
    head = (
        "way",
        "measured",
        *OUTCOMES,
        "without a right answer, as far as it was watched (longest)",
        "dependents alive",
        "exit code honest",
    )
    return table(head, rows)


def cases(faults: list[Fault], found: dict[str, dict[str, Any]]) -> str:
    """A row a fault, a column a system, and the good release at the end."""
    names = [(fault.name, f"{fault.what} ({fault.service})") for fault in faults]
    rows = [
        (what, *(cell(seen.get(name)) for seen in found.values()))
        for name, what in [*names, (CONTROL, "a good release")]
    ]
    return table(("fault", *(SYSTEMS[name].label for name in found)), rows)


def cell(seen: dict[str, Any] | None) -> str:
    """One case; a dash if it was not measured."""
    if seen is None or seen["outcome"] == UNKNOWN:
        return "-"
    marks = ("" if seen["dependents"] else " †") + ("" if honest(seen) else " ✗")
    more = "≥ " if seen["outcome"] == BROKEN else ""
    return f"{seen['outcome']}, {more}{seen['unavailable']:.1f} s, {seen['code']}{marks}"


def sentences(faults: list[Fault], seen: dict[str, Any]) -> str:
    """What aistack said of each."""
    rows = [(fault.what, escaped(sentence(seen[fault.name]["out"]))) for fault in faults if fault.name in seen]
    return table(("fault", "sentence"), rows)


def escaped(text: str) -> str:
    """Text that is a cell of a table, as code."""
    shown = text.replace("|", "\\|").replace("`", "'")
    return f"`{shown}`"
