"""What the model is asked, and what its commits are called."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aistack.services.aider_wrapper.schema import ExecuteRequest

SUBJECT_LENGTH = 72


def compose(request: ExecuteRequest) -> str:
    """Return the prompt with its context and iteration."""
    parts = [request.prompt]
    if request.context:
        lines = [f"- {key}: {_shown(value)}" for key, value in request.context.items()]
        parts.append("\n".join(["Context:", *lines]))
    if request.iteration > 1:
        parts.append(
            f"This is attempt {request.iteration}. What earlier attempts changed is in the files already: "
            "look at them, and do what is still missing."
        )
    return "\n\n".join(parts)


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def subject(request: ExecuteRequest) -> str:
    """Return the subject of the commits: the prompt's first line, as far as it fits."""
    words = " ".join(request.prompt.split())
    line = "".join(character for character in words[: 2 * SUBJECT_LENGTH] if character.isprintable())
    line = line if len(line) <= SUBJECT_LENGTH else f"{line[: SUBJECT_LENGTH - 1]}…"
    return f"aider: {line}" if line else "aider"
