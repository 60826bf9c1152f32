"""What requests and answers are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict


class RequestModel(BaseModel):
    """A request's body: no unknown keys, and no conversion between types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ResponseModel(BaseModel):
    """An answer's body: all keys are always present."""

    model_config = ConfigDict(extra="forbid", json_schema_serialization_defaults_required=True)


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
"""Takes 3.0 for 3. Bounds stand before it in an `Annotated`: behind it they are none of JSON Schema's."""

JsonInteger = Annotated[int, WHOLE]
"""An integer of a request, as JSON Schema means it: 3.0 is one, "3" and true are none."""
