"""What the fork server is told to do, and what its children report: plain data, standard library only."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Order:
    """One run of aider.

    Attributes:
        root: the workspace, an absolute path without links.
        prompt: what the model is asked, complete.
        subject: the subject of the commits.
        mode: `autonomous` edits, `ask` only answers.
        files: paths relative to the workspace that aider starts with.
        api_base: the model's OpenAI-compatible endpoint, as `http://llama-cpp:8080/v1`.
        model: the model's name there.
        edit_format: aider's name of one, or None for what it takes for that model.
        map_tokens: the most tokens of the repository's map; 0 for none.
        silence_seconds: how long the model may say nothing.
        environment: all that the child has.
    """

    root: str
    prompt: str
    subject: str
    mode: str
    api_base: str
    model: str
    silence_seconds: float
    map_tokens: int
    edit_format: str | None = None
    files: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, raw: bytes) -> Order:
        """From JSON."""
        return cls(**json.loads(raw))


# What a child writes to its report, a JSON object on each line, with these under `event`.
ASKED = "asked"
"""A request was sent to the model."""
ANSWERING = "answering"
"""The first of the model's answer has come."""
ANSWERED = "answered"
"""The answer is complete; `tokens` were used, or null where the endpoint did not say."""
ENDED = "ended"
"""The run is over; `kind` is whose failure it was, or null, and `error` says what."""
