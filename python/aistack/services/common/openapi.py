"""The OpenAPI document: what FastAPI knows, and the errors that every route can answer with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi.openapi.utils import get_openapi

from aistack.services.common.auth import HEADER, OPEN
from aistack.services.common.errors import FieldError, Problem, described

if TYPE_CHECKING:
    from fastapi import FastAPI


def install(app: FastAPI, *, secured: bool) -> None:
    """Have `GET /openapi.json` say all of it."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, secured=secured)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI, *, secured: bool) -> dict[str, Any]:
    made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = made.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for model in (Problem, FieldError):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schema.pop("$defs", None)
        schemas[model.__name__] = schema
    if secured:
        components["securitySchemes"] = {"ApiKey": {"type": "apiKey", "in": "header", "name": HEADER}}
    for path, operations in made["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                parameter["schema"] = _never_null(parameter["schema"])
            closed = secured and path not in OPEN
            if closed:
                operation["security"] = [{"ApiKey": []}]
            _complete(operation, closed=closed)
    return made


def _never_null(schema: dict[str, Any]) -> dict[str, Any]:
    """What a header or a part of an address can be: it is there or not, and never null."""
    kinds: list[dict[str, Any]] = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    return {key: value for key, value in schema.items() if key != "anyOf"} | kinds[0]


def _complete(operation: dict[str, Any], *, closed: bool) -> None:
    statuses = {500}
    if closed:
        statuses |= {401, 503}
    # A body may be sent to any route, and is bounded on all of them; only some read it.
    statuses.add(413)
    if "requestBody" in operation:
        statuses |= {400, 408, 415, 422}
    elif operation.get("parameters"):
        statuses.add(422)
    responses = operation["responses"]
    # FastAPI's own 422 has another body than ours.
    responses.pop("422", None)
    for status in sorted(statuses):
        responses.setdefault(str(status), described(status))
