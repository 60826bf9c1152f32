"""A service's settings: the keys of the generated `.env`, as its container's environment has them."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

MEBIBYTE = 1024 * 1024


class ServiceSettings(BaseSettings):
    """Keys that every service reads.

    A service's class adds its own fields and a prefix: `SettingsConfigDict(env_prefix="AIDER_WRAPPER_")` makes `port`
    the key `AIDER_WRAPPER_PORT`. Keys that services share have a `validation_alias`. An empty value counts as unset.
    """

    model_config = SettingsConfigDict(
        env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True, populate_by_name=True
    )

    service: ClassVar[str]
    """The service's name, as `aider-wrapper`."""

    port: int = Field(ge=1, le=65535)
    bind_address: str = "0.0.0.0"  # noqa: S104 (a container's own network)
    api_key_file: Path | None = None
    """A file with the key that every caller must send; without one the service is open."""
    max_request_bytes: int = Field(4 * MEBIBYTE, ge=1024)
    request_body_timeout_seconds: float = Field(30.0, gt=0, le=600)
    """How long a caller may take to send its request."""
    ready_timeout_seconds: float = Field(2.0, gt=0, le=60)
    """How long `GET /ready` waits for each dependency."""

    telemetry_path: Path | None = Field(None, validation_alias="TELEMETRY_PATH")
    otel_tracing_enabled: bool = Field(default=False, validation_alias="OTEL_TRACING_ENABLED")
    otel_exporter_otlp_endpoint: str | None = Field(None, validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", validation_alias="LOG_LEVEL")
