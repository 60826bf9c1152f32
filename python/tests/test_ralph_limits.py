"""How many iterations a task may have: the rule, its bounds, and what similar tasks say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aistack.services.ralph_wiggum.limits import Finished, adapted, effective, from_history, score, words

if TYPE_CHECKING:
    from aistack.services.ralph_wiggum import limits

BASES = {"default": 20, "simple": 10, "medium": 30, "complex": 50}
LONG = "x" * 201


@pytest.mark.parametrize(
    ("prompt", "points"),
    [
        ("fix the typo", 0),
        ("implement it", 2),
        ("Create it", 2),
        ("IMPLEMENT and create it", 2),
        ("test it", 1),
        ("use the latest greatest protest", 0),
        ("reimplement the creator", 0),
        ("implemented tests", 0),
        ("create a test", 3),
        ("x" * 200, 0),
        (LONG, 1),
        (f"implement a test {LONG}", 4),
        ("test-driven", 1),
    ],
)
def test_the_score_is_of_words_not_of_parts_of_words(prompt: str, points: int) -> None:
    assert score(prompt)[0] == points


@pytest.mark.parametrize(
    ("base", "points", "limit"),
    [(20, 0, 20), (10, 1, 15), (15, 1, 22), (20, 2, 40), (10, 3, 25), (50, 4, 150), (1, 1, 1)],
)
def test_each_point_adds_half_of_the_base(base: int, points: int, limit: int) -> None:
    assert adapted(base, points) == limit


def limit(prompt: str, **changes: object) -> list[limits.Step]:
    """The steps for a prompt; what is not said is usual."""
    usual: dict[str, object] = {
        "complexity": "auto",
        "asked": None,
        "bases": BASES,
        "ceiling": 100,
        "adaptive": True,
        "finished": [],
    }
    return effective(prompt, **{**usual, **changes})  # type: ignore[arg-type]


def rules(steps: list[limits.Step]) -> list[tuple[str, int]]:
    """The rules and the limits after them."""
    return [(step.rule, step.value) for step in steps]


def test_the_plan_s_rule_and_then_the_ceiling() -> None:
    steps = limit(f"implement a test {LONG}", complexity="complex")
    assert rules(steps) == [("base", 50), ("adaptive", 150), ("ceiling", 100)]
    assert steps[1].evidence["score"] == 4
    assert len(steps[1].evidence["counted"]) == 3


@pytest.mark.parametrize(("kind", "base"), [("auto", 20), ("simple", 10), ("medium", 30), ("complex", 50)])
def test_each_kind_has_its_own_base(kind: str, base: int) -> None:
    assert limit("fix it", complexity=kind)[-1].value == base


def test_what_is_asked_for_is_given_up_to_the_ceiling() -> None:
    assert rules(limit("implement it", asked=3)) == [("asked", 3)]
    assert rules(limit("implement it", asked=500)) == [("asked", 500), ("ceiling", 100)]


def test_without_the_flag_nothing_is_adapted() -> None:
    history = done("implement a parser", 40, 40, 40)
    assert rules(limit("implement a parser", adaptive=False, finished=history)) == [("base", 20)]


def done(prompt: str, *iterations: int, completed: bool = True) -> list[Finished]:
    """Tasks of one prompt that ended after so many iterations."""
    return [
        Finished(task_id=f"task-{number}", words=words(prompt), iterations=each, completed=completed)
        for number, each in enumerate(iterations)
    ]


def test_history_says_what_similar_tasks_needed_and_shows_them() -> None:
    steps = limit("add a parser for dates", finished=done("add a parser for times", 4, 6, 8))
    assert rules(steps)[-1] == ("history", 12)
    evidence = steps[-1].evidence
    assert evidence["similar_tasks"] == 3
    assert evidence["needed"] == 8
    assert [task["iterations"] for task in evidence["tasks"]] == [4, 6, 8]


def test_history_raises_a_limit_that_others_ran_into() -> None:
    steps = limit("add a parser for dates", finished=done("add a parser for times", 20, 20, 20, completed=False))
    assert steps[-1].value == 45


def test_history_never_goes_beyond_the_ceiling_or_below_five() -> None:
    assert limit("a parser", finished=done("a parser", 90, 95, 99))[-1].value == 100
    assert limit("a parser", finished=done("a parser", 1, 1, 1))[-1].value == 5


@pytest.mark.parametrize(
    "finished", [done("add a parser for times", 4, 6), done("mend the roof of the house", 4, 6, 8), []]
)
def test_history_is_silent_without_three_similar_tasks(finished: list[Finished]) -> None:
    assert from_history("add a parser for dates", finished) is None


@given(
    prompt=st.text(min_size=1, max_size=300),
    asked=st.none() | st.integers(1, 10_000),
    ceiling=st.integers(1, 200),
    base=st.integers(1, 200),
    needed=st.lists(st.integers(1, 10_000), max_size=5),
)
def test_a_limit_is_finite_positive_and_below_the_ceiling(
    prompt: str, asked: int | None, ceiling: int, base: int, needed: list[int]
) -> None:
    steps = limit(
        prompt, asked=asked, ceiling=ceiling, bases={**BASES, "default": base}, finished=done(prompt, *needed)
    )
    assert 1 <= steps[-1].value <= ceiling
