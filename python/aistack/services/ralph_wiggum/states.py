"""The words of a task's life: its states, why it is in one, and what an iteration came to."""

from __future__ import annotations

import enum


class State(enum.StrEnum):
    """Where a task is. Exhausted is not completed: a bound was reached before the work was done."""

    QUEUED = "queued"
    AWAITING_APPROVAL = "awaiting_approval"
    RUNNING = "running"
    WAITING = "waiting"  # for the backend; nothing that happens meanwhile counts
    COMPLETED = "completed"
    EXHAUSTED = "exhausted"
    FAILED = "failed"
    STOPPED = "stopped"
    REJECTED = "rejected"


ENDED = frozenset({State.COMPLETED, State.EXHAUSTED, State.FAILED, State.STOPPED, State.REJECTED})
ACTIVE = frozenset({State.RUNNING, State.WAITING})


class Reason(enum.StrEnum):
    """Why a task is in its state, where the state alone does not say."""

    VERIFIED = "verified"  # completed: every verify command passed
    DONE = "done"  # completed: the agent said so, the workspace changed, and there was nothing to verify
    ITERATION_LIMIT = "iteration_limit"
    TOKEN_BUDGET = "token_budget"  # noqa: S105  (the name of a budget)
    TIME_BUDGET = "time_budget"
    CIRCUIT_OPEN = "circuit_open"
    POLICY = "policy"  # the backend will not do this at all
    REFUSED = "refused"  # the backend says that the request itself is wrong
    WORKSPACE = "workspace"  # no workspace that may be used
    INFRASTRUCTURE = "infrastructure"
    RATE_LIMIT = "rate_limit"
    STOPPED = "stopped"
    REJECTED = "rejected"
    APPROVAL_EXPIRED = "approval_expired"


class FailureClass(enum.StrEnum):
    """Whose failure it was. Only an agent's counts as an iteration."""

    AGENT = "agent"
    INFRASTRUCTURE = "infrastructure"
    LIMIT = "limit"
    POLICY = "policy"
    BUDGET = "budget"


class Outcome(enum.StrEnum):
    """What an iteration came to."""

    DONE = "done"
    INCOMPLETE = "incomplete"  # exit 0, and the agent does not claim to be done
    BLOCKED = "blocked"  # the exit code that keeps the loop going
    FAILED = "failed"  # another exit code
    UNCHANGED = "unchanged"  # said to be done, and nothing in the workspace changed
    VERIFY_FAILED = "verify_failed"  # said to be done, and a verify command disagrees
    INFRASTRUCTURE = "infrastructure"
    RATE_LIMITED = "rate_limited"
    POLICY = "policy"
    REFUSED = "refused"
    BUDGET = "budget"
    STOPPED = "stopped"
    UNKNOWN = "unknown"  # cut off, and nobody knows what it came to: its workspace was put back


COUNTED = frozenset(
    {Outcome.DONE, Outcome.INCOMPLETE, Outcome.BLOCKED, Outcome.FAILED, Outcome.UNCHANGED, Outcome.VERIFY_FAILED}
)


class Phase(enum.StrEnum):
    """How far an iteration has come."""

    OPEN = "open"  # written down before the backend is asked
    ANSWERED = "answered"  # the backend's answer is written down; what it is worth is being found out
    CLOSED = "closed"
