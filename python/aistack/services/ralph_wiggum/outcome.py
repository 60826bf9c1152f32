"""What an iteration is worth: an agent's failure counts, everything else does not.

A task is done if the agent ended with exit code 0, says that it is done, the workspace really changed (unless the task
says it need not), and every verify command passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aistack.services.ralph_wiggum.breaker import fingerprint
from aistack.services.ralph_wiggum.records import Closing
from aistack.services.ralph_wiggum.states import FailureClass, Outcome, Reason

if TYPE_CHECKING:
    from aistack.services.ralph_wiggum.backend import Reply, Trouble
    from aistack.services.ralph_wiggum.records import Task

_KEPT = 8192  # characters of output that are kept
_FEEDBACK = 4000  # characters of it that the agent is told


def tail(text: str, most: int) -> str:
    """The end of a text, marked if something is missing."""
    return text if len(text) <= most else f"[…]{text[-most:]}"


def claims_done(reply: Reply) -> bool:
    """Whether the agent says that the task is done."""
    return reply.error_kind is None and reply.exit_code == 0 and reply.completed


def of_trouble(trouble: Trouble, *, retry_at: float) -> Closing:
    """There was no reply: nothing counts."""
    if trouble.refused:
        outcome = Outcome.REFUSED
    else:
        outcome = {FailureClass.LIMIT: Outcome.RATE_LIMITED, FailureClass.POLICY: Outcome.POLICY}.get(
            trouble.failure_class, Outcome.INFRASTRUCTURE
        )
    return Closing(
        outcome=outcome,
        failure_class=trouble.failure_class,
        error_kind=trouble.kind,
        error=trouble.detail,
        detail=trouble.detail,
        retry_at=retry_at,
    )


def of_reply(
    task: Task,
    reply: Reply,
    *,
    block: int,
    tree_before: str,
    tree_after: str,
    seen: set[str],
    verified: list[dict[str, Any]],
    retry_at: float,
) -> Closing:
    """What a reply is worth; `verified` is what the verify commands came to, if the agent says that it is done.

    `block` is the exit code that keeps the loop going, `seen` what the workspace held after earlier iterations.
    """
    outcome, failure_class, said = _judged(task, reply, block, tree_after, verified)
    counted = failure_class in {None, FailureClass.AGENT}
    moved = tree_after != tree_before and tree_after not in seen
    failed = counted and outcome not in {Outcome.DONE, Outcome.INCOMPLETE}
    return Closing(
        outcome=outcome,
        failure_class=failure_class,
        exit_code=reply.exit_code,
        error_kind=reply.error_kind,
        error=None if reply.error is None else tail(reply.error, _KEPT),
        output=tail(reply.output, _KEPT),
        files_modified=reply.files_modified,
        git_commits=reply.git_commits,
        tokens=max(0, reply.tokens or 0),
        backend_seconds=reply.duration_seconds,
        tree_after=tree_after,
        verify=verified,
        fingerprint=fingerprint(outcome, said) if failed else None,
        progressed=moved if task.expect_changes else None,
        feedback=said if counted and outcome != Outcome.DONE else None,
        detail=said.partition("\n")[0][:500],
        retry_at=retry_at,
        done_reason=Reason.VERIFIED if verified else Reason.DONE,
    )


def _judged(
    task: Task, reply: Reply, block: int, tree_after: str, verified: list[dict[str, Any]]
) -> tuple[Outcome, FailureClass | None, str]:
    """The outcome, whose failure it was, and what is said of it, to people and to the agent."""
    why = tail(reply.error or "", _FEEDBACK)
    match reply.error_kind:
        case FailureClass.INFRASTRUCTURE:
            return (
                Outcome.INFRASTRUCTURE,
                FailureClass.INFRASTRUCTURE,
                why or "the backend could not let the agent work",
            )
        case FailureClass.LIMIT:
            return Outcome.RATE_LIMITED, FailureClass.LIMIT, why or "the backend is asked too often"
        case FailureClass.POLICY:
            return Outcome.POLICY, FailureClass.POLICY, why or "the backend will not do this"
        case FailureClass.BUDGET:
            return Outcome.BUDGET, FailureClass.BUDGET, why or "the backend's budget is used up"
    if reply.exit_code == block:
        return Outcome.BLOCKED, FailureClass.AGENT, why or tail(reply.output, _FEEDBACK) or "it was kept from ending"
    if reply.exit_code != 0 or reply.error_kind == FailureClass.AGENT:
        said = why or tail(reply.output, _FEEDBACK)
        return Outcome.FAILED, FailureClass.AGENT, f"The attempt ended with exit code {reply.exit_code}: {said}"
    if not reply.completed:
        return Outcome.INCOMPLETE, None, "The task is not done yet: go on."
    if task.expect_changes and tree_after == task.base_tree:
        return (
            Outcome.UNCHANGED,
            FailureClass.AGENT,
            "It was said to be done, but no file in the workspace has changed.",
        )
    wrong = next((each for each in verified if not each["ok"]), None)
    if wrong is not None:
        ended = "did not end in time" if wrong["exit_code"] is None else f"ended with exit code {wrong['exit_code']}"
        said = f"It was said to be done, but `{wrong['command']}` {ended}:\n{tail(wrong['output'], _FEEDBACK)}"
        return Outcome.VERIFY_FAILED, FailureClass.AGENT, said
    return Outcome.DONE, None, f"done after {task.iterations + 1} iterations" if task.iterations else "done at once"


def prompt_with(prompt: str, feedback: str | None) -> str:
    """The same prompt, with what the last attempt came to."""
    return prompt if feedback is None else f"{prompt}\n\nAbout the last attempt:\n{feedback}"
