"""A service with a route for each thing that one can do; `python -m small_service` serves it."""

import asyncio
import sys
from typing import Annotated, ClassVar

from fastapi import FastAPI, Header, Request
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from aistack.services.common import (
    Dependency,
    JsonInteger,
    NotReady,
    RequestModel,
    ResponseModel,
    ServiceError,
    ServiceSettings,
    create_app,
    main,
    problems,
)


class Settings(ServiceSettings):
    """Of the small service."""

    service: ClassVar[str] = "small"
    model_config = SettingsConfigDict(env_prefix="SMALL_")

    port: int = Field(8000, ge=1, le=65535)
    missing: str = ""
    """Names of dependencies that do not answer; a `?` behind one lets it hang."""


class Thing(RequestModel):
    """A request's body."""

    name: str = Field(min_length=1, max_length=10_000_000)
    count: JsonInteger = Field(1, ge=0, le=100)


class Answer(ResponseModel):
    """What comes back."""

    length: int
    count: int


def make(settings: Settings) -> FastAPI:
    """The application."""

    def dependency(name: str) -> Dependency:
        async def check() -> None:
            if name.endswith("?"):
                await asyncio.Event().wait()
            raise NotReady(f"{name} is down")

        return Dependency(name.rstrip("?"), check)

    names = [name for name in settings.missing.split(",") if name]
    app = create_app(
        settings,
        title="small",
        description="For tests.",
        dependencies=[dependency(name) for name in names],
    )

    @app.post("/things/{number}", responses=problems(409))
    async def things(number: int, thing: Thing) -> Answer:
        """Take one, or refuse it."""
        if number == 9:
            raise ServiceError(409, "nine is taken", kind="taken", next_step="take another", number=number)
        return Answer(length=len(thing.name), count=thing.count)

    @app.get("/things/{number}/name")
    async def get_name(number: int, if_none_match: Annotated[str | None, Header()] = None) -> str:
        """One of two methods of a path."""
        return f"{number} {if_none_match}"

    @app.delete("/things/{number}/name")
    async def delete_name(number: int) -> str:
        """The other."""
        return str(number)

    @app.get("/broken", include_in_schema=False)
    async def broken() -> None:
        """Fail as nobody expected."""
        raise RuntimeError("the secret is hunter2")

    @app.get("/slow", include_in_schema=False)
    async def slow(request: Request) -> dict[str, str]:
        """Answer when the service is asked to end."""
        await request.app.state.lifecycle.wait_stopping()
        return {"status": "interrupted"}

    @app.get("/stuck", include_in_schema=False)
    async def stuck() -> None:
        """Never answer, and refuse to be cancelled."""
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue

    return app


if __name__ == "__main__":
    sys.exit(main(Settings, make))
