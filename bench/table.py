"""Numbers as Markdown: medians with their range, ratios, and whether an aim is met."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def median(values: Sequence[float]) -> float:
    """The median; 0 for none."""
    return statistics.median(values) if values else 0.0


def spread(values: Sequence[float], unit: str = "s") -> str:
    """`median (lowest - highest)`, in s or ms as `unit` says; values are in seconds."""
    factor, digits = (1000.0, 0) if unit == "ms" else (1.0, 2)
    low, middle, high = (factor * value for value in (min(values), median(values), max(values)))
    return f"{middle:.{digits}f} {unit} ({low:.{digits}f} - {high:.{digits}f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def aim(text: str, *, met: bool, found: str, why: str = "") -> str:
    """One line: the aim, what was found, and, where it is missed, why."""
    verdict = "**met**" if met else "**missed**"
    return f"- Aim: {text}. Found: {found}: {verdict}.{f' {why}' if why and not met else ''}\n"
