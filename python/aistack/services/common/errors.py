"""The one error body of all services: RFC 9457 problem details, with a `kind` to go by and the next step."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import FastAPI, Request

MEDIA_TYPE = "application/problem+json"
URN = "urn:aistack:problem:"

KINDS = {
    400: ("malformed", "The request cannot be read", "send one complete JSON document in UTF-8"),
    401: ("unauthenticated", "An API key is needed", "send the service's API key in the header X-API-Key"),
    403: ("forbidden", "This is not allowed", "read the detail"),
    404: ("not-found", "There is no such thing", "look at GET /openapi.json for the routes, and check the name"),
    405: ("method-not-allowed", "The route has no such method", "use one of those that the header Allow names"),
    408: ("request-timeout", "The request took too long to arrive", "send it again"),
    409: ("conflict", "This is in conflict with the present state", "look at the present state, then decide"),
    412: ("precondition-failed", "It has changed since it was read", "read it again, then decide"),
    413: ("too-large", "The request is too large", "send less, or raise the limit of the service"),
    415: ("unsupported-media-type", "The request is not JSON", "send the header Content-Type: application/json"),
    422: ("invalid", "The request is not valid", "correct the fields that `errors` names"),
    428: ("precondition-required", "The request must say what it goes by", "send the header If-Match"),
    429: ("too-many", "Too much is asked at a time", "try again after the seconds of the header Retry-After"),
    500: ("internal", "The service failed", "look for the incident in the service's log"),
    501: ("not-implemented", "The service cannot do this", "look at GET /openapi.json for what it can"),
    502: ("bad-gateway", "Another service answered with an error", "look at that service"),
    503: ("unavailable", "The service cannot do this now", "look at GET /ready, and try again later"),
    504: ("gateway-timeout", "Another service did not answer in time", "look at that service"),
}
"""By status: the kind, the title and the next step, where an error names none of its own."""


class ConfigurationError(Exception):
    """The service cannot run as it is configured; said at its start on one line."""


class FieldError(BaseModel):
    """One field of a request that is not valid."""

    model_config = ConfigDict(extra="forbid")

    location: str = Field(description="Where: `body.prompt`, `query.limit`.")
    message: str = Field(description="What is wrong with it.")


class Problem(BaseModel):
    """RFC 9457 problem details; a kind may have members of its own beside these."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="The kind as a URI.", examples=[f"{URN}invalid"])
    kind: str = Field(description="What happened, as a word that does not change.", examples=["invalid"])
    title: str = Field(description="The kind in words.")
    status: int = Field(description="The HTTP status.", ge=400, le=599)
    detail: str = Field(description="What happened this time.")
    next_step: str = Field(description="What to do about it.")
    errors: list[FieldError] | None = Field(None, description="Each field that is not valid.")
    incident: str | None = Field(None, description="What to look for in the log, for kind `internal`.")


class ServiceError(HTTPException):
    """An error that the caller is told of.

    Attributes:
        status_code: the HTTP status; it gives `kind`, `title` and `next_step` where none is named.
        body: the problem as JSON.
        headers: more headers of the answer, as Retry-After.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        kind: str | None = None,
        title: str | None = None,
        next_step: str | None = None,
        headers: Mapping[str, str] | None = None,
        **members: Any,  # noqa: ANN401 (whatever JSON has)
    ) -> None:
        """Make the problem; `members` are further keys of its body."""
        super().__init__(status, detail, dict(headers) if headers else None)
        phrase = HTTPStatus(status).phrase
        usual = KINDS.get(status, (phrase.lower().replace(" ", "-"), phrase, "read the detail"))
        kind = kind or usual[0]
        self.body: dict[str, Any] = {
            "type": f"{URN}{kind}",
            "kind": kind,
            "title": title or usual[1],
            "status": status,
            "detail": detail,
            "next_step": next_step or usual[2],
            **members,
        }

    def response(self) -> JSONResponse:
        """Return the answer."""
        return JSONResponse(self.body, self.status_code, self.headers, MEDIA_TYPE)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what a route's `responses=` says about the errors of these statuses."""
    return {status: described(status) for status in statuses}


def described(status: int) -> dict[str, Any]:
    """Return one error of a route in OpenAPI's words."""
    schema = {"$ref": "#/components/schemas/Problem"}
    answer: dict[str, Any] = {"description": KINDS[status][1], "content": {MEDIA_TYPE: {"schema": schema}}}
    if status in {429, 503}:
        seconds = {"type": "integer", "minimum": 0}
        answer["headers"] = {"Retry-After": {"description": "Seconds to wait.", "schema": seconds}}
    return answer


def install(app: FastAPI) -> None:
    """Have every error of the application answered as a problem."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)


async def _http(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, ServiceError):
        return error.response()
    assert isinstance(error, HTTPException)  # noqa: S101 (registered for it)
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # A path may have several routes; the error knows of the first alone.
        headers["Allow"] = ", ".join(sorted(_methods(request)))
    return ServiceError(error.status_code, str(error.detail), headers=headers).response()


def _methods(request: Request) -> set[str]:
    """The methods of all routes of the request's path."""
    found: set[str] = set()
    for route in request.app.routes:
        match, _ = route.matches(request.scope)
        if match != Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return found


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 (registered for it)
    found = error.errors()
    for each in found:
        if each["type"] == "json_invalid":
            at = each["loc"][-1]
            reason = each.get("ctx", {}).get("error", "not JSON")
            return ServiceError(400, f"the body is not JSON: {reason} at character {at}").response()
        if each["loc"] == ("body",) and not _says_json(request):
            kind = request.headers.get("content-type", "none")
            return ServiceError(415, f"the body's content type is {kind}, not application/json").response()
    errors = [
        FieldError(location=".".join(str(part) for part in each["loc"]), message=each["msg"]).model_dump()
        for each in found
    ]
    places = ", ".join(dict.fromkeys(each["location"] for each in errors))
    return ServiceError(422, f"not valid: {places}", errors=errors).response()


def _says_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
