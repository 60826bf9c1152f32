"""How deployments went: what the journal of attempts comes to."""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from aistack.hooks.deploys import DEPLOYED, DOWN, INCOMING, OUTCOMES, ROLLED_BACK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aistack.hooks.deploys import Attempt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What attempts come to. Times are in seconds.

    A change is a series of attempts of one service that ends with a success; `lost` is the time spent on attempts that
    did not succeed, `unavailable` that in which a service did not answer.
    """

    attempts: int
    changes: int
    first_try: int
    cycles: float | None
    outcomes: dict[str, int]
    lost: float
    unavailable: float
    median: float | None


def summarize(attempts: Sequence[Attempt]) -> Summary:
    """Summarize attempts, in any order; those that have not ended, or are of no service, are left out."""
    ended = sorted((attempt for attempt in _of_services(attempts) if attempt.ended is not None), key=lambda a: a.id)
    series: defaultdict[str, int] = defaultdict(int)
    cycles: list[int] = []
    for attempt in ended:
        series[attempt.service] += 1
        if attempt.outcome == DEPLOYED:
            cycles.append(series.pop(attempt.service))
    good = [_seconds(attempt) for attempt in ended if attempt.outcome == DEPLOYED]
    return Summary(
        attempts=len(ended),
        changes=len(cycles) + len(series),
        first_try=sum(number == 1 for number in cycles),
        cycles=statistics.mean(cycles) if cycles else None,
        outcomes={outcome: sum(attempt.outcome == outcome for attempt in ended) for outcome in OUTCOMES},
        lost=sum(_seconds(attempt) for attempt in ended if attempt.outcome != DEPLOYED),
        unavailable=sum(attempt.unavailable or 0.0 for attempt in ended),
        median=statistics.median(good) if good else None,
    )


def _of_services(attempts: Sequence[Attempt]) -> list[Attempt]:
    # The test of an incoming generation is in the journal only where it was cut off.
    return [attempt for attempt in attempts if attempt.service != INCOMING]


def _seconds(attempt: Attempt) -> float:
    return sum(attempt.seconds.values())


def rows(found: Summary) -> list[list[str]]:
    """The summary as a table: what, value, the plan's aim."""
    rate = f"{100 * found.first_try / found.changes:.0f} %" if found.changes else "-"
    cycles = "-" if found.cycles is None else f"{found.cycles:.1f}"
    median = "-" if found.median is None else f"{found.median:.1f} s"
    return [
        ["changes deployed at the first try", f"{rate} ({found.first_try} of {found.changes})", "95 %"],
        ["rebuild cycles of a change", cycles, "1"],
        ["rolled back by themselves", str(found.outcomes[ROLLED_BACK]), "every failure"],
        ["left a service down", str(found.outcomes[DOWN]), "0"],
        ["stopped before anything was touched", str(found.outcomes["refused"] + found.outcomes["test-failed"]), "-"],
        ["time of a good deployment (median)", median, "-"],
        ["time lost with attempts that failed", f"{found.lost:.0f} s", "-"],
        ["time without an answer", f"{found.unavailable:.1f} s", "-"],
    ]


def data(found: Summary) -> dict[str, Any]:
    """The summary as plain data."""
    return {
        "attempts": found.attempts,
        "changes": found.changes,
        "first_try": found.first_try,
        "first_try_rate": found.first_try / found.changes if found.changes else None,
        "rebuild_cycles": found.cycles,
        "outcomes": found.outcomes,
        "lost_seconds": round(found.lost, 3),
        "unavailable_seconds": round(found.unavailable, 3),
        "median_seconds": found.median,
    }


def prometheus(attempts: Sequence[Attempt]) -> str:
    """The attempts in Prometheus' text format, by service and outcome."""
    services = sorted({attempt.service for attempt in _of_services(attempts)})
    lines = []

    def metric(name: str, kind: str, text: str, values: list[tuple[str, float]]) -> None:
        lines.extend([f"# HELP {name} {text}", f"# TYPE {name} {kind}"])
        lines.extend(f"{name}{{{labels}}} {value:g}" for labels, value in values)

    of = {name: summarize([attempt for attempt in attempts if attempt.service == name]) for name in services}
    metric(
        "aistack_deploy_attempts_total",
        "counter",
        "Deployments that ended, by outcome.",
        [
            (f'service="{name}",outcome="{outcome}"', number)
            for name in services
            for outcome, number in of[name].outcomes.items()
        ],
    )
    for name, text, values in (
        ("changes_total", "Changes: attempts up to the one that succeeded.", [f.changes for f in of.values()]),
        ("first_try_total", "Changes that succeeded at the first attempt.", [f.first_try for f in of.values()]),
        ("lost_seconds_total", "Time spent on attempts that did not succeed.", [f.lost for f in of.values()]),
        ("unavailable_seconds_total", "Time without an answer while switching.", [f.unavailable for f in of.values()]),
    ):
        labelled = [(f'service="{service}"', value) for service, value in zip(of, values, strict=True)]
        metric(f"aistack_deploy_{name}", "counter", text, labelled)
    return "\n".join(lines) + "\n"
