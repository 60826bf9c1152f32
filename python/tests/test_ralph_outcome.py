"""What an answer is worth: whose failure it was, what counts, when it is done, and when the circuit opens."""

from __future__ import annotations

import dataclasses
import email.utils
import json
import socket
import time
from typing import Any

import httpx
import pytest

from aistack.services.ralph_wiggum import outcome
from aistack.services.ralph_wiggum.backend import Reply, Trouble, _unreachable, retry_after, understood
from aistack.services.ralph_wiggum.breaker import Streak, fingerprint, normalised
from aistack.services.ralph_wiggum.records import Closing, Task
from aistack.services.ralph_wiggum.states import COUNTED, FailureClass, Outcome, Reason, State

TASK = Task(
    seq=1,
    id="one",
    prompt="do it",
    backend="aider",
    complexity="auto",
    workspace="one",
    priority=0,
    expect_changes=True,
    verify=[],
    context={},
    limit=20,
    limit_steps=[],
    max_tokens=None,
    max_seconds=100.0,
    state=State.RUNNING,
    reason=None,
    detail=None,
    created=0.0,
    updated=0.0,
    started=0.0,
    finished=None,
    approval_expires=None,
    retry_at=None,
    active_seconds=0.0,
    active_since=0.0,
    iterations=0,
    uncounted=0,
    failures=0,
    tokens=0,
    streak=Streak(),
    feedback=None,
    base_tree="base",
)


def reply(**changes: object) -> Reply:
    """An answer of an agent that is done."""
    usual: dict[str, Any] = {
        "exit_code": 0,
        "output": "some words: ERROR, TODO, FAILED, Connection refused",
        "completed": True,
        "error": None,
        "error_kind": None,
        "files_modified": ["a"],
        "git_commits": ["c"],
        "duration_seconds": 1.0,
        "tokens": 7,
    }
    return Reply.model_validate({**usual, **changes})


def closing(
    answer: Reply,
    task: Task = TASK,
    *,
    after: str = "after",
    verified: list[dict[str, Any]] | None = None,
    block: int = 2,
) -> Closing:
    """What it is worth."""
    return outcome.of_reply(
        task,
        answer,
        block=block,
        tree_before="before",
        tree_after=after,
        seen={"seen"},
        verified=verified or [],
        retry_at=1.0,
    )


PASSED = {"command": "true", "ok": True, "exit_code": 0, "seconds": 0.1, "output": ""}
WRONG = {"command": "pytest", "ok": False, "exit_code": 1, "seconds": 0.1, "output": "1 failed"}


@pytest.mark.parametrize(
    ("changes", "more", "expected"),
    [
        ({}, {}, Outcome.DONE),
        ({}, {"verified": [PASSED]}, Outcome.DONE),
        ({}, {"verified": [PASSED, WRONG]}, Outcome.VERIFY_FAILED),
        ({}, {"after": "base"}, Outcome.UNCHANGED),
        ({"completed": False}, {}, Outcome.INCOMPLETE),
        ({"exit_code": 1}, {}, Outcome.FAILED),
        ({"exit_code": 2}, {}, Outcome.BLOCKED),
        ({"exit_code": 2}, {"block": 3}, Outcome.FAILED),
        ({"exit_code": 3}, {"block": 3}, Outcome.BLOCKED),
        ({"exit_code": 2, "error_kind": "agent"}, {}, Outcome.BLOCKED),
        ({"error_kind": "agent"}, {}, Outcome.FAILED),
        ({"exit_code": 1, "error_kind": "infrastructure"}, {}, Outcome.INFRASTRUCTURE),
        ({"exit_code": 124, "error_kind": "infrastructure"}, {}, Outcome.INFRASTRUCTURE),
        ({"error_kind": "limit"}, {}, Outcome.RATE_LIMITED),
        ({"error_kind": "policy"}, {}, Outcome.POLICY),
        ({"error_kind": "budget"}, {}, Outcome.BUDGET),
    ],
)
def test_an_answer_is_judged_by_its_fields(changes: dict[str, Any], more: dict[str, Any], expected: Outcome) -> None:
    found = closing(reply(**changes), **more)
    assert found.outcome == expected
    counts = expected in {
        Outcome.DONE,
        Outcome.UNCHANGED,
        Outcome.INCOMPLETE,
        Outcome.FAILED,
        Outcome.BLOCKED,
        Outcome.VERIFY_FAILED,
    }
    assert (found.outcome in COUNTED) == counts


def test_a_task_that_need_not_change_anything_is_done_without() -> None:
    assert closing(reply(), dataclasses.replace(TASK, expect_changes=False), after="base").outcome == Outcome.DONE


def test_done_says_whether_it_was_verified() -> None:
    assert closing(reply()).done_reason == Reason.DONE
    assert closing(reply(), verified=[PASSED]).done_reason == Reason.VERIFIED


def test_the_prompt_is_the_same_with_the_reason_behind_it() -> None:
    found = closing(reply(exit_code=2, error="the tests are not green"))
    assert found.feedback == "the tests are not green"
    assert outcome.prompt_with("do it", found.feedback).startswith("do it\n\n")
    assert "the tests are not green" in outcome.prompt_with("do it", found.feedback)
    assert outcome.prompt_with("do it", None) == "do it"


def test_what_fails_to_verify_is_told_with_the_end_of_its_output() -> None:
    found = closing(reply(), verified=[WRONG])
    assert found.feedback is not None
    assert "`pytest` ended with exit code 1" in found.feedback
    assert "1 failed" in found.feedback


@pytest.mark.parametrize(("after", "progressed"), [("before", False), ("seen", False), ("after", True)])
def test_progress_is_a_workspace_that_was_not_like_this_before(after: str, *, progressed: bool) -> None:
    assert closing(reply(completed=False), after=after).progressed is progressed


# --- answers that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind", "failure", "expected"),
    [
        (401, "unauthenticated", FailureClass.INFRASTRUCTURE, Outcome.INFRASTRUCTURE),
        (403, "forbidden", FailureClass.POLICY, Outcome.POLICY),
        (404, "http_404", FailureClass.INFRASTRUCTURE, Outcome.INFRASTRUCTURE),
        (408, "timeout", FailureClass.INFRASTRUCTURE, Outcome.INFRASTRUCTURE),
        (409, "busy", FailureClass.INFRASTRUCTURE, Outcome.INFRASTRUCTURE),
        (413, "refused", FailureClass.POLICY, Outcome.REFUSED),
        (422, "refused", FailureClass.POLICY, Outcome.REFUSED),
        (429, "rate_limit", FailureClass.LIMIT, Outcome.RATE_LIMITED),
        (500, "http_500", FailureClass.INFRASTRUCTURE, Outcome.INFRASTRUCTURE),
        (502, "http_502", FailureClass.INFRASTRUCTURE, Outcome.INFRASTRUCTURE),
        (503, "http_503", FailureClass.INFRASTRUCTURE, Outcome.INFRASTRUCTURE),
        (504, "timeout", FailureClass.INFRASTRUCTURE, Outcome.INFRASTRUCTURE),
        (301, "http_301", FailureClass.INFRASTRUCTURE, Outcome.INFRASTRUCTURE),
    ],
)
def test_a_status_says_whose_failure_it_was(status: int, kind: str, failure: FailureClass, expected: Outcome) -> None:
    body = json.dumps({"detail": "exit code 0, completed"}).encode()
    found = understood(status, {}, body)
    assert isinstance(found, Trouble)
    assert (found.kind, found.failure_class) == (kind, failure)
    assert "exit code 0, completed" in found.detail
    closed = outcome.of_trouble(found, retry_at=1.0)
    assert closed.outcome == expected
    assert closed.outcome not in COUNTED


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"output": "", "completed": true}',
        json.dumps({**reply().model_dump(), "exit_code": "0"}).encode(),
        json.dumps({**reply().model_dump(), "completed": "yes"}).encode(),
        json.dumps({**reply().model_dump(), "error_kind": "another"}).encode(),
        json.dumps({key: value for key, value in reply().model_dump().items() if key != "exit_code"}).encode(),
    ],
)
def test_an_answer_outside_the_contract_counts_for_nothing_and_nothing_is_made_up(body: bytes) -> None:
    found = understood(200, {}, body)
    assert isinstance(found, Trouble)
    assert (found.kind, found.failure_class) == ("malformed", FailureClass.INFRASTRUCTURE)


def test_an_answer_may_have_more_keys_than_the_contract() -> None:
    assert isinstance(understood(200, {}, json.dumps({**reply().model_dump(), "new": 1}).encode()), Reply)


def because(error: Exception, cause: BaseException | None = None) -> Exception:
    """The error with its cause."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (because(httpx.ConnectError("x"), ConnectionRefusedError(111, "refused")), "refused"),
        (because(httpx.ConnectError("x"), socket.gaierror(-2, "unknown")), "name_unknown"),
        (httpx.ConnectTimeout("x"), "timeout"),
        (httpx.ReadTimeout("x"), "timeout"),
        (httpx.RemoteProtocolError("x"), "unreachable"),
        (httpx.ReadError(""), "unreachable"),
    ],
)
def test_a_connection_that_fails_is_infrastructure_by_its_kind(error: Exception, kind: str) -> None:
    found = _unreachable(error, "http://aider-wrapper:8099")
    assert (found.kind, found.failure_class) == (kind, FailureClass.INFRASTRUCTURE)
    assert found.detail.startswith("http://aider-wrapper:8099: ")


def test_retry_after_is_understood_as_a_number_and_as_a_date_and_bounded() -> None:
    assert retry_after({}) is None
    assert retry_after({"Retry-After": "soon"}) is None
    assert retry_after({"Retry-After": "7"}) == 7
    assert retry_after({"Retry-After": "999999999"}) == 3600
    later = retry_after({"Retry-After": email.utils.formatdate(time.time() + 60, usegmt=True)})
    assert later is not None
    assert 30 < later <= 60


# --- the circuit breaker ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("failed at 2026-11-22T10:11:12.345Z", "failed at 2025-01-02 03:04:05"),
        ("object at 0x7f12ab34cd56", "object at 0x7f99ffffffff"),
        ("1 failed in 0.12s", "1 failed in 3.4 seconds"),
        ("cannot read /tmp/abc123/file", "cannot read /tmp/xyz/other"),
        ("id 123e4567-e89b-12d3-a456-426614174000", "id 00000000-e89b-12d3-a456-426614174fff"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("pid 123 died", "pid 99999 died"),
        ("a   b\n\nc", "a b c"),
    ],
)
def test_errors_are_the_same_without_what_differs_from_run_to_run(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)
    assert fingerprint("failed", one) == fingerprint("failed", other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("5 failed", "3 failed"), ("line 10", "line 20"), ("no module a", "no module b"), ("deadbeefs", "feedbeads")],
)
def test_errors_that_say_something_else_are_not(one: str, other: str) -> None:
    assert fingerprint("failed", one) != fingerprint("failed", other)
    assert fingerprint("failed", one) != fingerprint("blocked", one)


def test_the_circuit_opens_at_the_third_same_error_in_a_row() -> None:
    streak = Streak()
    for found in ("a", "a", "b", "a", "a"):
        streak = streak.after(found, progressed=True)
        assert streak.open_because() is None
    assert streak.after("a", progressed=True).open_because() == "the same error 3 times in a row"
    assert streak.after(None, progressed=True).same_error == 0


def test_the_circuit_opens_at_the_third_standstill_in_a_row() -> None:
    streak = Streak()
    for progressed in (False, False, True, False, False):
        streak = streak.after(None, progressed=progressed)
        assert streak.open_because() is None
    assert streak.after(None, progressed=False).open_because() == "no progress in 3 iterations in a row"


def test_standing_still_is_fine_where_nothing_need_change() -> None:
    streak = Streak()
    for _ in range(10):
        streak = streak.after(None, progressed=None)
    assert streak.open_because() is None
