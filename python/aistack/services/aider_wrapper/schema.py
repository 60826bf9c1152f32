"""What is asked of aider-wrapper, and what it answers."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue, StringConstraints

from aistack.services.common import JsonInteger, RequestModel, ResponseModel

ErrorKind = Literal["agent", "infrastructure", "limit", "policy", "budget"]
PathText = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00]+$")]
LONGEST_PROMPT = 3_000_000
"""Characters."""


class ExecuteRequest(RequestModel):
    """One message to aider."""

    prompt: str = Field(min_length=1, max_length=LONGEST_PROMPT, description="What to do.")
    context: dict[str, JsonValue] = Field(
        default_factory=dict, description="What else the model should know; it is put behind the prompt."
    )
    iteration: JsonInteger = Field(1, ge=1, le=1_000_000, description="Which attempt this is; the model is told.")
    mode: Literal["autonomous", "ask"] = Field(
        "autonomous", description="`autonomous` edits files and commits them; `ask` only answers."
    )
    files: list[PathText] = Field(
        default_factory=list,
        max_length=200,
        description="Files that aider starts with, relative to the workspace. Others it finds by their names.",
    )
    workspace: PathText | None = Field(
        None, description="A folder below the workspace root, relative to it or absolute. Without one: `default`."
    )
    timeout_seconds: float | None = Field(
        None, ge=1, le=3600, description="How long it may take. Then aider is killed, with all that it started."
    )


class ExecuteResult(ResponseModel):
    """What became of it.

    A run that counts (`error_kind` is null or `agent`, and it was not killed) leaves its files and commits. Any other
    leaves the workspace as it was before; what it had done is kept under `refs/aistack/aider-wrapper/`.
    """

    exit_code: int = Field(
        description="0: aider came to its end with an answer that it could use. 1: it could not use the model's "
        "answers. 70: aider failed. 75: the model was not there, or asked too often. 77: the model's endpoint refuses "
        "this. 124: the time was over. 128 and more: a signal ended it."
    )
    output: str = Field(description="The end of what aider printed.")
    completed: bool = Field(
        description="Whether aider came to its end with an answer that it could use. Whether anything changed is in "
        "`files_modified`."
    )
    error: str | None = Field(description="What went wrong, in a sentence that is the same for the same mistake.")
    error_kind: ErrorKind | None = Field(
        description="Whose failure it was. `agent`: the model's, or aider's with its answer. `infrastructure`: the "
        "model was not there (refused, timed out, 5xx, unknown name), or the run was cut off. `limit`: the model is "
        "asked too often. `policy`: the model's endpoint refuses this. `budget` is reserved."
    )
    files_modified: list[str] = Field(description="By comparing the files before and after; relative to the workspace.")
    git_commits: list[str] = Field(description="New commits, the oldest first.")
    duration_seconds: float = Field(ge=0)
    tokens: int | None = Field(ge=0, description="As the model's endpoint counted them; null if it did not.")


class ExecutionState(ResponseModel):
    """What is known of an execution."""

    state: Literal["running", "finished", "cancelled"]
    result: ExecuteResult | None = Field(description="Of a finished one.")
