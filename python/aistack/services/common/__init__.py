"""What every service of the stack has in common: see `create_app` (app.py) and `serve` (server.py)."""

from aistack.services.common.app import create_app
from aistack.services.common.errors import ConfigurationError, ServiceError, problems
from aistack.services.common.lifecycle import Lifecycle
from aistack.services.common.ready import Dependency, NotReady
from aistack.services.common.schema import JsonInteger, RequestModel, ResponseModel
from aistack.services.common.server import main
from aistack.services.common.settings import ServiceSettings
from aistack.services.common.telemetry import Telemetry, TelemetryEvent
from aistack.services.common.tracing import Tracing

__all__ = [
    "ConfigurationError",
    "Dependency",
    "JsonInteger",
    "Lifecycle",
    "NotReady",
    "RequestModel",
    "ResponseModel",
    "ServiceError",
    "ServiceSettings",
    "Telemetry",
    "TelemetryEvent",
    "Tracing",
    "create_app",
    "main",
    "problems",
]
