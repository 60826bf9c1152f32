"""Ralph's settings: keys of the `.env`."""

from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from aistack.services.common import ServiceSettings


class RalphSettings(ServiceSettings):
    """What Ralph reads once, when it starts. Limits and the adaptive flag can be changed later: PUT /settings."""

    service: ClassVar[str] = "ralph-wiggum"
    model_config = SettingsConfigDict(env_prefix="RALPH_WIGGUM_")

    port: int = Field(8098, ge=1, le=65535)
    data_path: Path = Path("/data")
    """Where the database is; on a volume."""
    workspace_path: Path = Field(Path("/workspace"), validation_alias="RALPH_WORKSPACE_PATH")
    """The folder that has all workspaces; the backend sees the same one."""

    loop_enabled: bool = Field(default=True, validation_alias="RALPH_LOOP_ENABLED")
    adaptive_iterations: bool = Field(default=True, validation_alias="RALPH_ADAPTIVE_ITERATIONS")
    exit_code_block: int = Field(2, ge=0, le=255, validation_alias="RALPH_EXIT_CODE_BLOCK")
    max_iterations_default: int = Field(20, ge=1, validation_alias="RALPH_MAX_ITERATIONS_DEFAULT")
    max_iterations_simple: int = Field(10, ge=1, validation_alias="RALPH_MAX_ITERATIONS_SIMPLE")
    max_iterations_medium: int = Field(30, ge=1, validation_alias="RALPH_MAX_ITERATIONS_MEDIUM")
    max_iterations_complex: int = Field(50, ge=1, validation_alias="RALPH_MAX_ITERATIONS_COMPLEX")
    max_iterations_ceiling: int = Field(100, ge=1, validation_alias="RALPH_MAX_ITERATIONS_CEILING")

    max_concurrent_tasks: int = Field(2, ge=1, le=64, validation_alias="RALPH_MAX_CONCURRENT_TASKS")
    iteration_timeout_seconds: float = Field(900.0, ge=1, le=3600, validation_alias="RALPH_ITERATION_TIMEOUT_SECONDS")
    verify_timeout_seconds: float = Field(600.0, gt=0, le=3600, validation_alias="RALPH_VERIFY_TIMEOUT_SECONDS")
    approval_timeout_seconds: float = Field(86400.0, gt=0, validation_alias="RALPH_APPROVAL_TIMEOUT_SECONDS")
    task_timeout_seconds: float = Field(86400.0, gt=0, validation_alias="RALPH_TASK_TIMEOUT_SECONDS")
    """A task's wall time, where the task itself names none."""
    retry_seconds: float = Field(0.5, gt=0, validation_alias="RALPH_RETRY_SECONDS")
    retry_most_seconds: float = Field(30.0, gt=0, validation_alias="RALPH_RETRY_MOST_SECONDS")
    """Pauses while the backend is unreachable: the first, doubled each time up to the second, less some jitter."""
    retained_tasks: int = Field(10_000, ge=1, validation_alias="RALPH_RETAINED_TASKS")
    """How many tasks that have ended are remembered."""

    aider_wrapper_host: str = Field("aider-wrapper", validation_alias="AIDER_WRAPPER_HOST")
    aider_wrapper_port: int = Field(8099, ge=1, le=65535, validation_alias="AIDER_WRAPPER_PORT")
    aider_wrapper_api_key_file: Path | None = Field(None, validation_alias="AIDER_WRAPPER_API_KEY_FILE")

    @model_validator(mode="after")
    def _limits_fit(self) -> Self:
        for kind, value in self.bases().items():
            if value > self.max_iterations_ceiling:
                raise ValueError(
                    f"RALPH_MAX_ITERATIONS_{kind.upper()} ({value}) is more than RALPH_MAX_ITERATIONS_CEILING"
                    f" ({self.max_iterations_ceiling})"
                )
        return self

    def bases(self) -> dict[str, int]:
        """Limits that tasks begin with, by kind."""
        return {
            "default": self.max_iterations_default,
            "simple": self.max_iterations_simple,
            "medium": self.max_iterations_medium,
            "complex": self.max_iterations_complex,
        }
