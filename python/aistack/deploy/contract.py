"""What a service promises its clients: requests with the answers they get, and an OpenAPI document.

Asked of the candidate in its isolated test, over HTTP, at the service's own port.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aistack.deploy import container
from aistack.errors import printable
from aistack.hooks.errors import HookError

if TYPE_CHECKING:
    import requests

    from aistack.hooks.manifest import Manifest, Service

_SHOWN = 120  # characters of an answer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One promise, and whether it was kept."""

    ok: bool
    line: str


def check(manifest: Manifest, service: Service, settings: dict[str, Any]) -> list[Check]:
    """Ask all that the service's settings promise.

    Raises HookError if the service cannot be found at all, or the document cannot be read.
    """
    wanted = settings["requests"]
    document = settings["openapi"]
    if not wanted and document is None:
        return []
    import requests

    found_at = container.addresses(service.name, manifest)
    if not found_at:
        raise HookError(f"{service.name} has no address in {manifest.network}")
    base = f"http://{found_at[0]}:{service.port}"
    timeout = float(settings["timeoutSeconds"])
    with requests.Session() as session:
        # What this machine's environment says about proxies is about the world, not about a container next door.
        session.trust_env = False
        found = [_request(session, base, entry, timeout) for entry in wanted]
        if document is not None:
            found += _openapi(session, base, Path(document), timeout)
    return found


def _request(session: requests.Session, base: str, entry: dict[str, Any], timeout: float) -> Check:
    import requests

    what = f"{entry['method']} {entry['path']}"
    body = entry["body"]
    try:
        answer = session.request(
            entry["method"],
            base + entry["path"],
            headers=entry["headers"],
            data=None if body is None else body.encode(),
            timeout=timeout,
            allow_redirects=False,
        )
    except requests.RequestException as error:
        return Check(ok=False, line=f"{what}: {printable(error, 200)}")
    shown = printable(answer.text, _SHOWN)
    if answer.status_code != entry["status"]:
        return Check(ok=False, line=f"{what} was answered with {answer.status_code}, not {entry['status']}: {shown}")
    missing = [text for text in entry["contains"] if text not in answer.text]
    if missing:
        return Check(ok=False, line=f"{what} was answered without {printable(missing[0], 80)!r}: {shown}")
    return Check(ok=True, line=f"{what}: {answer.status_code}")


def _openapi(session: requests.Session, base: str, path: Path, timeout: float) -> list[Check]:
    """Whether every operation of the document that can be tried without knowing more is answered as it says."""
    found = []
    for route, item in _paths(path).items():
        operation = item.get("get")
        if operation is None or "{" in route:
            continue
        parameters = [*item.get("parameters", []), *operation.get("parameters", [])]
        # What is behind a reference may be required.
        if not any(parameter.get("required") or "$ref" in parameter for parameter in parameters):
            found.append(_operation(session, base, route, operation, timeout))
    return found


def _paths(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HookError(f"the OpenAPI document {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise HookError(f"the OpenAPI document {path} is no JSON: {printable(error, 200)}") from None
    paths = document.get("paths") if isinstance(document, dict) else None
    if not isinstance(paths, dict):
        raise HookError(f"{path} is no OpenAPI document: it has no `paths`")
    return paths


def _operation(session: requests.Session, base: str, route: str, operation: dict[str, Any], timeout: float) -> Check:
    import requests

    what = f"GET {route}"
    try:
        answer = session.get(base + route, timeout=timeout, allow_redirects=False)
    except requests.RequestException as error:
        return Check(ok=False, line=f"{what}: {printable(error, 200)}")
    promised = operation.get("responses", {})
    status = str(answer.status_code)
    response = promised.get(status) or promised.get(f"{status[0]}XX") or promised.get("default")
    if response is None:
        known = ", ".join(promised)
        return Check(
            ok=False,
            line=f"{what} was answered with {status}, which is none of {known}: {printable(answer.text, _SHOWN)}",
        )
    kinds = response.get("content", {})
    kind = answer.headers.get("Content-Type", "").partition(";")[0].strip()
    if kinds and kind not in kinds:
        return Check(
            ok=False, line=f"{what} was answered as {kind or 'nothing in particular'}, not as {', '.join(kinds)}"
        )
    return Check(ok=True, line=f"{what}: {status}")
