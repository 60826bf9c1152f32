"""`GET /ready`: whether all that the service needs answers now."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from aistack.services.common.schema import ResponseModel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence


class NotReady(Exception):
    """What a dependency's check raises, with the reason."""


@dataclass(frozen=True)
class Dependency:
    """Something the service needs: its name, and a check that raises `NotReady` or an OSError."""

    name: str
    check: Callable[[], Awaitable[None]]


class DependencyState(ResponseModel):
    """What became of one check."""

    ok: bool
    milliseconds: float
    reason: str | None = Field(description="Why it is not ok.")


class Readiness(ResponseModel):
    """The answer of a service that is ready."""

    status: Literal["ready"]
    service: str
    dependencies: dict[str, DependencyState]


async def ask(dependencies: Sequence[Dependency], seconds: float) -> dict[str, DependencyState]:
    """Ask all of them at once, each for at most `seconds`."""
    states = await asyncio.gather(*(_ask(dependency, seconds) for dependency in dependencies))
    return {dependency.name: state for dependency, state in zip(dependencies, states, strict=True)}


async def _ask(dependency: Dependency, seconds: float) -> DependencyState:
    began = time.monotonic()
    reason = None
    try:
        async with asyncio.timeout(seconds):
            await dependency.check()
    except TimeoutError:
        reason = f"no answer within {seconds:g} s"
    except (NotReady, OSError) as error:
        reason = str(error) or type(error).__name__
    return DependencyState(ok=reason is None, milliseconds=round((time.monotonic() - began) * 1000, 1), reason=reason)
