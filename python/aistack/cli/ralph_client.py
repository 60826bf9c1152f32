"""Ralph's HTTP interface, as the command line uses it: where it answers, with which key, and what its errors mean."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

from aistack.errors import AistackError, ExitCode, UsageError, printable
from aistack.hooks import probe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aistack.hooks.manifest import Manifest, Service

SERVICE = "ralph-wiggum"
SECRET = "RALPH_WIGGUM_API_KEY"  # noqa: S105  (its name)
_TIMEOUT = 30.0  # seconds for an answer
_SILENCE = 45.0  # seconds without a sign of life on a stream; Ralph gives one every 15
_GONE = 60.0  # seconds that a watched Ralph may be away, as for a restart


class RalphUnavailable(AistackError):
    """Ralph does not answer, or cannot take this now."""

    exit_code = ExitCode.DEPENDENCY_MISSING


class RalphRefused(UsageError):
    """Ralph understands what is asked, and says no."""


class RalphFailed(AistackError):
    """Ralph's answer is of no use."""


class Client:
    """Asks the Ralph of a manifest."""

    def __init__(self, manifest: Manifest) -> None:
        """Find where it answers. Raises HookError, UsageError, RalphUnavailable."""
        self.url = _url(manifest, manifest.service(SERVICE))
        self._session = requests.Session()
        # What this machine's environment says about proxies is about the world, not about a container next door.
        self._session.trust_env = False
        if (secret := manifest.secrets.get(SECRET)) is not None:
            self._session.headers["X-API-Key"] = read_key(Path(secret["file"]))

    def ask(self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **options: Any) -> Any:  # noqa: ANN401  (JSON)
        """The document that a request is answered with. Raises RalphUnavailable, RalphRefused, RalphFailed."""
        return self.answer(method, path, headers=headers, **options)[0]

    def answer(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        **options: Any,  # noqa: ANN401  (requests' own)
    ) -> tuple[Any, Mapping[str, str]]:
        """The same, with the answer's headers."""
        try:
            answer = self._session.request(method, self.url + path, headers=headers, timeout=_TIMEOUT, **options)
        except requests.RequestException as error:
            raise _unavailable(self.url, error) from None
        if not answer.ok:
            raise _refusal(answer)
        try:
            return answer.json(), answer.headers
        except ValueError:
            raise RalphFailed(f"{self.url}{path} was not answered with JSON", why=answer.text[:200]) from None

    def events(self, task_id: str) -> Iterator[dict[str, Any]]:
        """What happens to a task, until it has ended; a Ralph that goes away for a moment is waited for."""
        last, gone_since = "0", None
        while True:
            try:
                for event in self._stream(task_id, last):
                    last, gone_since = str(event["id"]), None
                    yield event
            except (requests.RequestException, RalphUnavailable) as error:
                gone_since = gone_since or time.monotonic()
                if time.monotonic() - gone_since > _GONE:
                    raise _unavailable(self.url, error) from None
                # Nothing tells when it is back.
                time.sleep(0.5)
                continue
            return

    def _stream(self, task_id: str, after: str) -> Iterator[dict[str, Any]]:
        """The events after one; ends when the task has ended. Raises RequestException if it is cut off before."""
        headers = {"Last-Event-ID": after}
        path = f"{self.url}/tasks/{task_id}/events"
        ended = more = False
        with self._session.get(path, headers=headers, stream=True, timeout=(_TIMEOUT, _SILENCE)) as answer:
            if not answer.ok:
                raise _refusal(answer)
            for line in answer.iter_lines(chunk_size=1):
                if line.startswith(b"data: "):
                    event: dict[str, Any] = json.loads(line[6:])
                    more = True
                    ended = event["event"] == "task.ended"
                    yield event
        # A task may end while it cannot be watched: only a stream that has nothing more to say is at its end.
        if not ended and (more or self.ask("GET", f"/tasks/{task_id}")["finished_at"] is None):
            raise requests.ConnectionError("the stream ended before its task")


def read_key(path: Path) -> str:
    """The API key in a file. Raises UsageError."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"cannot read the API key in {path}", why=why, hint="it may be root's: use sudo") from None


def _url(manifest: Manifest, service: Service) -> str:
    """Where the service answers: outside the stack, at a published port, or at its container's address."""
    if service.external:
        return f"http://{service.external_host}:{service.external_port}"
    for published in service.publish:
        if published["protocol"] == "tcp" and published["containerPort"] == service.port:
            address = published["address"]
            return f"http://{'127.0.0.1' if address == '0.0.0.0' else address}:{published['hostPort']}"  # noqa: S104
    try:
        found = probe.resolve(SERVICE, manifest.gateway)
    except OSError as error:
        why = f"the name server of {manifest.network} does not answer ({printable(error)})"
        raise RalphUnavailable("cannot find ralph-wiggum", why=why, hint="see: aistack network check") from None
    if not found:
        raise RalphUnavailable("ralph-wiggum is not running", hint=f"see: aistack status {SERVICE}")
    return f"http://{found[0]}:{service.port}"


def _unavailable(url: str, error: Exception) -> RalphUnavailable:
    if isinstance(error, RalphUnavailable):
        return error
    return RalphUnavailable(f"ralph-wiggum does not answer at {url}", why=error, hint=f"see: aistack status {SERVICE}")


def _refusal(answer: requests.Response) -> AistackError:
    """What a problem document says, as an error of the command line."""
    try:
        problem = answer.json()
        detail, next_step = str(problem["detail"]), str(problem["next_step"])
        errors = problem.get("errors") or []
        fields = [f"{each['location'].removeprefix('body.')}: {each['message']}" for each in errors]
    except (ValueError, KeyError, TypeError, AttributeError):
        detail, next_step, fields = f"it was answered with {answer.status_code}", f"see: aistack status {SERVICE}", []
    said = "; ".join(fields) or detail
    if answer.status_code == requests.codes.service_unavailable:
        return RalphUnavailable("ralph-wiggum cannot do this now", why=said, hint=next_step)
    if requests.codes.bad_request <= answer.status_code < requests.codes.server_error:
        return RalphRefused("ralph-wiggum refuses", why=said, hint=next_step)
    return RalphFailed("ralph-wiggum failed", why=said, hint=next_step)
