"""What Ralph's routes take and give. The JSON Schemas of these are its OpenAPI document."""

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, StringConstraints

from aistack.services.common import RequestModel, ResponseModel
from aistack.services.common.schema import WHOLE
from aistack.services.ralph_wiggum.states import FailureClass, Outcome, Phase, Reason, State

MOST_ITERATIONS = 10_000  # that may be asked for; the ceiling bounds them further
LONGEST_PROMPT = 100_000  # characters
_LONGEST_TIME = 30 * 86400.0  # seconds

# NUL ends a string for the programs that get it in the end. A blank one says nothing.
Text = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\x00]*[^\x00\s][^\x00]*$")]
Name = Annotated[
    str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]*[^\x00-\x20][^\x00-\x1f]*$")
]
Why = Annotated[str, StringConstraints(min_length=1, max_length=2000, pattern=r"^[^\x00]*[^\x00\s][^\x00]*$")]
Iterations = Annotated[int, Field(ge=1, le=MOST_ITERATIONS), WHOLE]
Tokens = Annotated[int, Field(ge=1, le=10**12), WHOLE]
Seconds = Annotated[float, Field(ge=1, le=_LONGEST_TIME)]

Complexity = Literal["simple", "medium", "complex", "auto"]


class Submission(RequestModel):
    """A task."""

    prompt: Annotated[Text, Field(max_length=LONGEST_PROMPT, description="What the agent is asked to do.")]
    backend: Annotated[Literal["aider"], Field(description="Who works on it.")] = "aider"
    complexity: Annotated[Complexity, Field(description="Which limit it begins with; auto is the default one.")] = (
        "auto"
    )
    max_iterations: Annotated[
        Iterations | None, Field(description="Exactly this limit (the ceiling still bounds it); 0 is refused.")
    ] = None
    max_tokens: Annotated[Tokens | None, Field(description="Tokens that all its iterations may use together.")] = None
    max_seconds: Annotated[
        Seconds | None, Field(description="Seconds of wall time from its start, waits included.")
    ] = None
    require_approval: Annotated[
        bool, Field(description="Wait for POST /tasks/{id}/approve before anything is run.")
    ] = False
    verify: Annotated[
        list[Annotated[Text, Field(max_length=4000)]],
        Field(
            default_factory=list,
            max_length=20,
            description="Shell commands, run in the workspace; all must exit 0 for it to be done.",
        ),
    ]
    workspace: Annotated[
        str | None,
        StringConstraints(
            min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$"
        ),
        Field(description="A folder below the workspace root; by default one of its own."),
    ] = None
    expect_changes: Annotated[bool, Field(description="Whether it is only done if files in the workspace changed.")] = (
        True
    )
    context: Annotated[
        dict[str, JsonValue], Field(default_factory=dict, description="Passed on to the backend as it is.")
    ]
    priority: Annotated[int, Field(ge=-100, le=100, description="A higher one is begun first."), WHOLE] = 0


class Action(RequestModel):
    """Who does something to a task, and why."""

    by: Annotated[Name, Field(description="Who.")]
    reason: Annotated[Why, Field(description="Why.")]


class Resumption(Action):
    """A task goes on, with other bounds if need be."""

    max_iterations: Annotated[Iterations | None, Field(description="The new limit of all its iterations.")] = None
    max_tokens: Annotated[Tokens | None, Field(description="The new budget of all its iterations.")] = None
    max_seconds: Annotated[Seconds | None, Field(description="The new budget of all its wall time.")] = None


class LimitStep(ResponseModel):
    """A rule, and the limit after it."""

    rule: Literal["asked", "base", "adaptive", "ceiling", "history", "resumed"]
    value: int
    why: str
    evidence: dict[str, Any]


class Limit(ResponseModel):
    """How many iterations a task may have, and how that came about."""

    value: int
    steps: list[LimitStep]


class Decision(ResponseModel):
    """What somebody did to a task."""

    at: str
    action: Literal["approve", "reject", "expire", "stop", "resume"]
    by: str
    reason: str


class Task(ResponseModel):
    """A task as it is now. Times are RFC 3339 in UTC."""

    task_id: str
    state: State
    reason: Annotated[Reason | None, Field(description="Why it is in this state.")]
    detail: Annotated[str | None, Field(description="The same for people.")]
    prompt: str
    backend: str
    complexity: Complexity
    workspace: str
    priority: int
    expect_changes: bool
    verify: list[str]
    context: dict[str, JsonValue]
    limit: Limit
    max_tokens: int | None
    max_seconds: float
    iterations: Annotated[int, Field(description="Those that counted.")]
    uncounted: Annotated[int, Field(description="Calls that did not count: infrastructure, rate limits, cut off.")]
    tokens: int
    active_seconds: Annotated[float, Field(description="Wall time since it began, stops excluded.")]
    approval_expires_at: str | None
    retry_at: Annotated[str | None, Field(description="When a waiting task is tried again at the latest.")]
    created_at: str
    started_at: str | None
    updated_at: str
    finished_at: str | None
    decisions: list[Decision]


class TaskSummary(ResponseModel):
    """A task in a list."""

    task_id: str
    state: State
    reason: Reason | None
    detail: str | None
    prompt_start: Annotated[str, Field(description="The first 200 characters of the prompt.")]
    backend: str
    workspace: str
    priority: int
    iterations: int
    limit: int
    uncounted: int
    tokens: int
    created_at: str
    updated_at: str
    finished_at: str | None


class TaskPage(ResponseModel):
    """Tasks, the newest first."""

    tasks: list[TaskSummary]
    next_cursor: Annotated[str | None, Field(description="Pass it as `cursor` for those before.")]


class Verification(ResponseModel):
    """What a verify command came to."""

    command: str
    ok: bool
    exit_code: Annotated[int | None, Field(description="None if it was stopped because it took too long.")]
    seconds: float
    output: Annotated[str, Field(description="The end of what it printed.")]


class Iteration(ResponseModel):
    """One call of the backend. Those with the same number are the same iteration, tried again."""

    number: int
    attempt: int
    idempotency_key: str
    phase: Phase
    outcome: Outcome | None
    counted: bool
    failure_class: FailureClass | None
    checkpoint: Annotated[str | None, Field(description="The commit its workspace was before it.")]
    exit_code: int | None
    error_kind: str | None
    error: str | None
    output: Annotated[str, Field(description="The end of what the agent printed.")]
    files_modified: list[str]
    git_commits: list[str]
    tokens: int
    changed: Annotated[bool | None, Field(description="Whether the workspace differs from before it.")]
    verify: list[Verification]
    backend_seconds: float | None
    opened_at: str
    closed_at: str | None


class IterationList(ResponseModel):
    """All iterations of a task, the first one first."""

    task_id: str
    iterations: list[Iteration]


class Limits(RequestModel):
    """Limits that tasks begin with."""

    default: Iterations
    simple: Iterations
    medium: Iterations
    complex: Iterations


class SettingsChange(RequestModel):
    """All that can be set while Ralph runs."""

    max_iterations: Limits
    adaptive: Annotated[bool, Field(description="Whether limits follow the prompt and what similar tasks needed.")]


class Settings(ResponseModel):
    """What holds for tasks that are submitted from now on."""

    max_iterations: Limits
    adaptive: bool
    ceiling: Annotated[int, Field(description="No limit is above it; set by RALPH_MAX_ITERATIONS_CEILING alone.")]
    updated_at: Annotated[str | None, Field(description="When they were last set here; None if the .env's hold.")]


class Stats(ResponseModel):
    """Numbers of all tasks that are known."""

    tasks: dict[State, int]
    iterations: Annotated[int, Field(description="That counted.")]
    uncounted: int
    tokens: int
    average_iterations: Annotated[float | None, Field(description="Of completed tasks.")]
    completion_rate: Annotated[float | None, Field(description="Completed of all that ended without being stopped.")]
    backend: Annotated[Literal["up", "down", "unknown"], Field(description="What the last question to it found.")]
