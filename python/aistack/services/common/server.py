"""Serving: uvicorn, told of SIGTERM before it cuts requests off, and over within five seconds of it."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from typing import TYPE_CHECKING, TypeVar

import uvicorn
from pydantic import ValidationError

from aistack.services.common import logs
from aistack.services.common.errors import ConfigurationError
from aistack.services.common.lifecycle import GRACE_SECONDS, STOP_SECONDS
from aistack.services.common.settings import ServiceSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from fastapi import FastAPI


CONFIGURATION_ERROR = 78
"""Exit code where the service cannot run as it is configured (EX_CONFIG of sysexits.h)."""

SettingsT = TypeVar("SettingsT", bound=ServiceSettings)


class Server(uvicorn.Server):
    """A server that ends with exit code 0 after SIGTERM."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._application = app
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, *arguments: object, **options: object) -> None:
        """Remember the loop that the signal must wake."""
        self._loop = asyncio.get_running_loop()
        await super().startup(*arguments, **options)  # type: ignore[arg-type]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; a second signal ends at once."""
        del sig, frame
        if self.should_exit:
            self.force_exit = True
            return
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._application.state.lifecycle.stop)
        # Whatever hangs then, the service has ended in time.
        end = threading.Timer(STOP_SECONDS - 0.5, os._exit, [1])
        end.daemon = True
        end.start()


def serve(app: FastAPI, settings: ServiceSettings) -> int:
    """Serve until SIGTERM; return the exit code."""
    config = uvicorn.Config(
        app,
        host=settings.bind_address,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(GRACE_SECONDS),
        timeout_keep_alive=30,
        ws="none",
    )
    server = Server(config, app)
    server.run()
    return 0 if server.started else 1


def main(settings_class: type[SettingsT], make: Callable[[SettingsT], FastAPI]) -> int:
    """Read the settings, make the application and serve it; 78 where the configuration does not let it."""
    service = settings_class.service
    try:
        settings = settings_class()
    except ValidationError as error:
        wrong = "; ".join(f"{_key(settings_class, each['loc'][0])}: {each['msg']}" for each in error.errors())
        print(f"{service}: the settings are not valid: {wrong}", file=sys.stderr, flush=True)  # noqa: T201
        return CONFIGURATION_ERROR
    logs.configure(service, settings.log_level)
    try:
        app = make(settings)
    except ConfigurationError as error:
        print(f"{service}: {error}", file=sys.stderr, flush=True)  # noqa: T201
        return CONFIGURATION_ERROR
    return serve(app, settings)


def _key(settings_class: type[ServiceSettings], place: object) -> str:
    """Return the environment's key of a field."""
    name = str(place)
    return name if name.isupper() else f"{settings_class.model_config.get('env_prefix', '')}{name}".upper()
