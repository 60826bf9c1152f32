"""Which release a service goes back to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aistack.hooks.releases import BAD, GOOD, PROBATION, STAGED, Release, Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(str(tmp_path / "releases.db"))
    yield opened
    opened.close()


def put(store: Store, number: int, state: str) -> Release:
    release = store.declare("app", f"image{number}", f"app:{number}", {}, {})
    if state in (PROBATION, GOOD):
        store.probation(release)
    if state == GOOD:
        store.bless(release)
    if state == BAD:
        store.condemn(release, "it broke", "", None)
    return release


def test_the_newest_good_one_before_it(store: Store) -> None:
    put(store, 1, GOOD)
    second = put(store, 2, GOOD)
    third = put(store, 3, PROBATION)
    found = store.last_good("app", third)
    assert found is not None
    assert found.id == second.id


def test_one_that_was_ready_where_none_is_good(store: Store) -> None:
    first = put(store, 1, PROBATION)
    broken = put(store, 2, STAGED)
    found = store.last_good("app", broken)
    assert found is not None
    assert found.id == first.id


def test_a_good_one_before_a_newer_one_that_was_only_ready(store: Store) -> None:
    first = put(store, 1, GOOD)
    put(store, 2, PROBATION)
    broken = put(store, 3, STAGED)
    found = store.last_good("app", broken)
    assert found is not None
    assert found.id == first.id


def test_nothing_where_none_was_ever_ready(store: Store) -> None:
    put(store, 1, BAD)
    broken = put(store, 2, STAGED)
    assert store.last_good("app", broken) is None
