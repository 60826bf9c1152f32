"""What requests and answers are made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class RequestModel(BaseModel):
    """A request's body: no unknown keys, and no conversion between types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ResponseModel(BaseModel):
    """An answer's body: all keys are always present."""

    model_config = ConfigDict(extra="forbid", json_schema_serialization_defaults_required=True)
