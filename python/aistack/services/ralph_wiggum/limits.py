"""How many iterations a task may have, and how that number comes about.

Every step is kept as evidence: who reads a limit can see which rule made it, and from what.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LONG_PROMPT = 200  # characters
_WORDS = re.compile(r"\w+")
_MOST_WORDS = 400  # of a prompt that are compared with another's
SIMILAR = 0.5  # shared words of all words of two prompts, from which they are similar
FEWEST = 3  # similar tasks before history says anything
_MOST_SHOWN = 10
_FLOOR = 5  # iterations below which history lowers no limit
_MARGIN = 1.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One rule, the limit after it, and what it went by."""

    rule: str
    value: int
    why: str
    evidence: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """A task that ended by itself: what history is made of."""

    task_id: str
    words: frozenset[str]
    iterations: int
    completed: bool  # else its limit ended it


def words(prompt: str) -> frozenset[str]:
    """The words of a prompt, in lower case; at most the first few hundred different ones."""
    found: dict[str, None] = {}
    for match in _WORDS.finditer(prompt.lower()):
        found[match[0]] = None
        if len(found) == _MOST_WORDS:
            break
    return frozenset(found)


def score(prompt: str) -> tuple[int, list[str]]:
    """The complexity of a prompt, 0 to 4, and what it was counted for.

    +2 for the word "implement" or "create", +1 for more than 200 characters, +1 for the word "test". Words, not parts
    of words: "latest" is none of them.
    """
    found = set(_WORDS.findall(prompt.lower()))
    total, counted = 0, []
    if named := sorted(found & {"implement", "create"}):
        total += 2
        counted.append(f"+2 for the word {' and '.join(named)}")
    if len(prompt) > LONG_PROMPT:
        total += 1
        counted.append(f"+1 for {len(prompt)} characters, more than {LONG_PROMPT}")
    if "test" in found:
        total += 1
        counted.append("+1 for the word test")
    return total, counted


def adapted(base: int, points: int) -> int:
    """The limit for a complexity: half of the base more for each point, rounded down."""
    return int(base * (1 + 0.5 * points))


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """Shared words of all words, 0 to 1."""
    return len(one & other) / len(one | other) if one and other else 0.0


def from_history(prompt: str, finished: Iterable[Finished]) -> tuple[int, dict[str, Any]] | None:
    """What similar tasks needed, with the evidence; None if too few were similar.

    A task that its limit ended needed more than that: it stands for half as many again. The suggestion is half as many
    again as nine of ten of them needed.
    """
    mine = words(prompt)
    similar = [task for task in finished if similarity(mine, task.words) >= SIMILAR]
    if len(similar) < FEWEST:
        return None
    needed = sorted(task.iterations if task.completed else math.ceil(task.iterations * _MARGIN) for task in similar)
    ninth = needed[math.ceil(0.9 * len(needed)) - 1]
    suggestion = max(_FLOOR, math.ceil(ninth * _MARGIN))
    evidence = {
        "similar_tasks": len(similar),
        "completed": sum(task.completed for task in similar),
        "needed": ninth,
        "tasks": [
            {"task_id": task.task_id, "iterations": task.iterations, "completed": task.completed}
            for task in similar[:_MOST_SHOWN]
        ],
    }
    return suggestion, evidence


def effective(
    prompt: str,
    *,
    complexity: str,
    asked: int | None,
    bases: dict[str, int],
    ceiling: int,
    adaptive: bool,
    finished: Iterable[Finished],
) -> list[Step]:
    """Every step from the setting to the limit; the last one's value holds: from 1 to the ceiling."""
    if asked is not None:
        steps = [Step(rule="asked", value=asked, why="max_iterations of the request")]
        return _bounded(steps, ceiling)
    kind = "default" if complexity == "auto" else complexity
    steps = [Step(rule="base", value=bases[kind], why=f"RALPH_MAX_ITERATIONS_{kind.upper()}")]
    if not adaptive:
        return _bounded(steps, ceiling)
    points, counted = score(prompt)
    steps.append(
        Step(
            rule="adaptive",
            value=adapted(bases[kind], points),
            why=f"{bases[kind]} x (1 + 0.5 x {points}), rounded down",
            evidence={"score": points, "counted": counted},
        )
    )
    steps = _bounded(steps, ceiling)
    if (found := from_history(prompt, finished)) is not None:
        suggestion, evidence = found
        why = f"half as many again as the {evidence['needed']} that nine of ten similar tasks needed at most"
        steps.append(Step(rule="history", value=suggestion, why=why, evidence=evidence))
        steps = _bounded(steps, ceiling)
    return steps


def _bounded(steps: Sequence[Step], ceiling: int) -> list[Step]:
    if steps[-1].value <= ceiling:
        return list(steps)
    return [*steps, Step(rule="ceiling", value=ceiling, why="RALPH_MAX_ITERATIONS_CEILING")]
