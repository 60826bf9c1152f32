"""The settings of aider-wrapper: `AIDER_WRAPPER_*`, and where the model is."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from aistack.services.common import ServiceSettings


class Settings(ServiceSettings):
    """Of aider-wrapper."""

    service: ClassVar[str] = "aider-wrapper"
    model_config = SettingsConfigDict(env_prefix="AIDER_WRAPPER_")

    port: int = Field(8099, ge=1, le=65535)
    workspace_root: Path = Path("/workspace")
    """Every workspace is a folder below it."""
    state_dir: Path = Path("/data")
    """Where it keeps what became of executions."""
    max_concurrent: int = Field(2, ge=1, le=64)
    """Runs of aider at a time; each takes some 100 MB."""
    max_queued: int = Field(8, ge=0, le=1000)
    """Callers who wait for one of these runs to end."""
    queue_seconds: float = Field(5.0, ge=0, le=600)
    """How long they wait, before they are told to come again."""
    default_timeout_seconds: float = Field(300.0, ge=1, le=3600)
    silence_seconds: float = Field(180.0, ge=0.1, le=3600)
    """How long the model may say nothing before it counts as not there."""
    map_tokens: int = Field(1024, ge=0, le=65536)
    """The most tokens of the map of the repository that the model is shown; 0 for none."""
    edit_format: Literal["whole", "diff", "diff-fenced", "udiff"] | None = None
    """How the model writes its edits; unset: what aider takes for a model of this name."""

    llama_cpp_host: str = Field("llama-cpp", validation_alias="LLAMA_CPP_HOST")
    llama_cpp_port: int = Field(8080, ge=1, le=65535, validation_alias="LLAMA_CPP_PORT")
    llama_cpp_model_file: str = Field("local", validation_alias="LLAMA_CPP_MODEL_FILE")

    @property
    def endpoint(self) -> str:
        """The address of the model's server."""
        return f"http://{self.llama_cpp_host}:{self.llama_cpp_port}"

    @property
    def model(self) -> str:
        """The model's name: its file's, without the ending."""
        return Path(self.llama_cpp_model_file).stem
