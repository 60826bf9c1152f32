"""A contract against a service that runs: every example is asked, and its answer looked at. A missing service fails."""

from __future__ import annotations

import dataclasses
import json
import uuid
from typing import TYPE_CHECKING, Any

import requests

from aistack.contracts.compare import value_misfits
from aistack.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aistack.contracts import Contract, Example, Interaction

_SHOWN = 200  # characters of an answer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """What became of one example. `missing` means that nobody answered."""

    interaction: str
    example: str
    wrong: list[str]
    missing: bool = False


def check(contract: Contract, url: str, *, key: str | None = None) -> Iterator[Found]:
    """Ask every example of a contract, one after the other."""
    kept: dict[str, str] = {}
    with requests.Session() as session:
        # What this machine's environment says about proxies is about the world, not about a service next door.
        session.trust_env = False
        if key is not None:
            session.headers["X-API-Key"] = key
        for interaction in contract.interactions:
            for example in interaction.examples:
                yield _ask(session, url.rstrip("/"), interaction, example, kept)


def _ask(
    session: requests.Session, url: str, interaction: Interaction, example: Example, kept: dict[str, str]
) -> Found:
    name = f"{interaction.method} {interaction.path}"
    headers = dict(example.headers)
    if "Idempotency-Key" in interaction.headers:
        headers["Idempotency-Key"] = f"contract.check.{uuid.uuid4()}"
    body = example.raw.encode() if example.raw is not None else None
    if example.body is not None:
        body = json.dumps(example.body).encode()
    if body is not None:
        headers["Content-Type"] = "application/json"
    try:
        path = interaction.path.format(**{key: value.format(**kept) for key, value in example.parameters.items()})
    except KeyError as error:
        return Found(interaction=name, example=example.name, wrong=[f"nothing before it gave a {error.args[0]}"])
    try:
        answer = session.request(
            interaction.method,
            url + path,
            data=body,
            headers=headers,
            timeout=example.timeout_seconds,
            allow_redirects=False,
        )
    except requests.RequestException as error:
        missing = isinstance(error, requests.ConnectionError)
        wrong = [f"{'nobody answers' if missing else 'it failed'}: {printable(error, _SHOWN)}"]
        return Found(interaction=name, example=example.name, wrong=wrong, missing=missing)
    return Found(interaction=name, example=example.name, wrong=_judged(interaction, example, answer, kept))


def _judged(interaction: Interaction, example: Example, answer: requests.Response, kept: dict[str, str]) -> list[str]:
    shown = printable(answer.text, _SHOWN)
    if answer.status_code not in example.status:
        wanted = " or ".join(str(status) for status in example.status)
        return [f"it was answered with {answer.status_code}, not {wanted}: {shown}"]
    try:
        document: Any = answer.json()
    except ValueError:
        return [f"its answer is no JSON: {shown}"]
    wrong = value_misfits(document, interaction.responses[answer.status_code])
    if not wrong:
        kept.update({name: str(document[key]) for name, key in example.keep.items()})
    return wrong
