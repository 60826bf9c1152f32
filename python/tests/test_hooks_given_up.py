"""When a release that does not start is not tried again: a start has to end, for whoever waits for it."""

from __future__ import annotations

import fakehost
import pytest

from aistack.hooks import start_pre
from aistack.hooks.manifest import load

NEVER_READY = {"phase": "not-ready", "release": 1, "decisive": True, "reason": "refused: nothing listens"}
ENDED = {"phase": "not-ready", "release": 1, "decisive": False, "reason": "exited"}
RUN = {"phase": "ready", "release": 1, "reason": "answered"}


def start(host: fakehost.FakeHost, state: str, verdict: dict[str, object], restarts: int) -> tuple[bool, str]:
    """Start an app after that verdict; returns whether its container would run, and what was said."""
    host.declare({"app": fakehost.service("app")})
    host.release("app", 1, state)
    host.images(fakehost.image(1))
    host.unit("app", "activating", NRestarts=str(restarts))
    host.verdict("app", **verdict)
    code = start_pre.start_pre(load(), "app")
    said = host.capsys.readouterr().err
    assert ("given up" in said) == (code == 1), said
    return code == 0, said


def test_a_proven_release_gets_one_start_timeout_in_a_series_of_restarts(host: fakehost.FakeHost) -> None:
    started, said = start(host, "good", NEVER_READY, 1)
    assert not started
    assert "refused: nothing listens" in said
    assert "started again in a while" in said


def test_a_proven_release_is_tried_again_when_the_series_is_over(host: fakehost.FakeHost) -> None:
    assert start(host, "good", NEVER_READY, 0)[0]


def test_an_unproven_release_is_given_up_whoever_starts_it(host: fakehost.FakeHost) -> None:
    started, said = start(host, "probation", NEVER_READY, 0)
    assert not started
    assert "its rollback comes next" in said


@pytest.mark.parametrize(("restarts", "expected"), [(2, True), (3, False)])
def test_a_proven_release_that_ends_before_it_is_ready_gets_three_starts(
    host: fakehost.FakeHost, *, restarts: int, expected: bool
) -> None:
    assert start(host, "good", ENDED, restarts)[0] is expected


def test_a_proven_release_that_was_ready_is_restarted_for_ever(host: fakehost.FakeHost) -> None:
    assert start(host, "good", RUN, 100)[0]


def test_what_another_release_did_does_not_count(host: fakehost.FakeHost) -> None:
    assert start(host, "good", {**NEVER_READY, "release": 7}, 1)[0]
