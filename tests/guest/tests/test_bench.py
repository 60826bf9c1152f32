"""What the measurements make of numbers; the measurements themselves are `make bench`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import pytest
from guest import paths

if TYPE_CHECKING:
    from types import ModuleType

BENCH = paths.CHECKOUT / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the measurements be imported, as `make bench` does."""
    monkeypatch.syspath_prepend(str(BENCH))


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.usefixtures("bench")
def test_every_measurement_can_measure_and_report() -> None:
    for name in module("run").MEASUREMENTS:
        assert callable(module(name).measure)
        assert callable(module(name).report)


@pytest.mark.usefixtures("bench")
def test_an_aim_says_whether_it_is_met_and_if_not_why() -> None:
    aim = module("table").aim
    assert aim("at most 2", met=True, found="1", why="It is hard.") == "- Aim: at most 2. Found: 1: **met**.\n"
    assert aim("at most 2", met=False, found="3", why="It is hard.") == (
        "- Aim: at most 2. Found: 3: **missed**. It is hard.\n"
    )


@pytest.mark.usefixtures("bench")
def test_a_median_is_shown_with_its_range() -> None:
    assert module("table").spread([0.2, 0.1, 0.6], "ms") == "200 ms (100 - 600)"
    assert module("table").spread([2, 1, 6]) == "2.00 s (1.00 - 6.00)"


@pytest.mark.usefixtures("bench")
def test_the_peers_start_a_dependent_when_what_it_needs_is_healthy() -> None:
    peers = module("peers")
    pair = [peers.tiny("base"), peers.tiny("next", "base")]
    assert "depends_on:\n      base:\n        condition: service_healthy\n" in peers.compose(pair)
    unit = peers.quadlet(pair[1])
    assert "Requires=base.service\nAfter=base.service\n" in unit
    assert "Notify=healthy\n" in unit


@pytest.mark.usefixtures("bench")
def test_idle_is_within_its_aim_only_if_nothing_stays() -> None:
    found = {"timers": 1, "helpers": 0.1, "manager": 0.05, "all": 1.0, "resident": 0}
    assert "**met**" in module("idle").report(found)
    assert "**missed**" in module("idle").report({**found, "resident": 1})
    assert "**missed**" in module("idle").report({**found, "helpers": 0.3})
