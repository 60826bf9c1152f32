"""What services promise each other: one JSON file for each edge, checked against both sides.

A file names the consumer, the provider, and each interaction with the schema of its request and, by status, of its
answers. `compare.py` checks them against an OpenAPI document, `live.py` against a service that runs.
"""

from __future__ import annotations

import dataclasses
import json
from importlib import resources
from typing import Any

from aistack.errors import UsageError

Schema = dict[str, Any]


class NoContract(UsageError):
    """There is no contract of this name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A request that can be made of a service that runs, and the statuses that it may be answered with."""

    name: str
    status: list[int]
    body: Any = None
    raw: str | None = None
    parameters: dict[str, str] = dataclasses.field(default_factory=dict)
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    keep: dict[str, str] = dataclasses.field(default_factory=dict)
    """Keys of the answer that later examples may name in their parameters, by the name they use."""
    timeout_seconds: float = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interaction:
    """One route as the consumer uses it; schemas are complete, without references."""

    name: str
    method: str
    path: str
    request: Schema | None
    headers: dict[str, Schema]
    responses: dict[int, Schema]
    examples: list[Example]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contract:
    """One edge."""

    name: str
    version: int
    consumer: str
    provider: str
    semantics: list[str]
    interactions: list[Interaction]

    def interaction(self, name: str) -> Interaction:
        """One by its name; KeyError if there is none."""
        return {each.name: each for each in self.interactions}[name]


def names() -> list[str]:
    """The names of all contracts."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json"))


def load(name: str) -> Contract:
    """Read a contract.

    Raises:
        NoContract: there is none of this name.
    """
    if name not in names():
        raise NoContract(f"there is no contract {name}", hint=f"there are: {', '.join(names())}")
    document = json.loads(resources.files(__name__).joinpath(f"{name}.json").read_text(encoding="utf-8"))

    def whole(schema: Any) -> Any:  # noqa: ANN401  (whatever JSON has)
        """A schema with what its references name in their place."""
        if isinstance(schema, dict):
            if "$ref" in schema:
                found = document
                for part in schema["$ref"].removeprefix("#/").split("/"):
                    found = found[int(part)] if isinstance(found, list) else found[part]
                return whole(found)
            return {key: whole(value) for key, value in schema.items()}
        return [whole(each) for each in schema] if isinstance(schema, list) else schema

    return Contract(
        name=document["contract"],
        version=document["version"],
        consumer=document["consumer"],
        provider=document["provider"],
        semantics=document["semantics"],
        interactions=[
            Interaction(
                name=each["name"],
                method=each["method"],
                path=each["path"],
                request=whole(each.get("request", {}).get("schema")),
                headers=whole(each.get("request", {}).get("headers", {})),
                responses={int(status): whole(schema) for status, schema in each["responses"].items()},
                examples=[Example(**example) for example in each["examples"]],
            )
            for each in document["interactions"]
        ],
    )
