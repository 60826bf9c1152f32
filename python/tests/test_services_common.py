"""What every service answers, by the rules that all have in common."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("fastapi", reason="the packages of the group `services` are not installed")

import httpx
import serving
import small_service
from pydantic import ValidationError

from aistack.services.common import Telemetry, TelemetryEvent, errors
from aistack.services.common.auth import ApiKey, KeyUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "a-key-of-32-characters-0123456789"


def make(**settings: Any) -> Any:  # noqa: ANN401
    return small_service.make(small_service.Settings(**settings))


def problem(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """The body of an error, which is always the same kind of body."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    errors.Problem.model_validate(body)
    assert body["kind"] == kind
    assert body["status"] == status
    assert body["type"] == f"urn:aistack:problem:{kind}"
    assert body["next_step"]
    return body


# --- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "kind"),
    [
        ("GET", "/nowhere", {}, 404, "not-found"),
        ("GET", "/things/1", {}, 405, "method-not-allowed"),
        ("POST", "/things/1", {"json": {"name": 3}}, 422, "invalid"),
        ("POST", "/things/1", {"json": {"name": "a", "more": 1}}, 422, "invalid"),
        ("POST", "/things/1", {"json": {"name": "a", "count": "3"}}, 422, "invalid"),
        ("POST", "/things/x", {"json": {"name": "a"}}, 422, "invalid"),
        ("POST", "/things/1", {"json": [1]}, 422, "invalid"),
        ("POST", "/things/1", {}, 415, "unsupported-media-type"),
        ("POST", "/things/1", {"content": "name=a"}, 415, "unsupported-media-type"),
        (
            "POST",
            "/things/1",
            {"content": '{"name": ', "headers": {"Content-Type": "application/json"}},
            400,
            "malformed",
        ),
        (
            "POST",
            "/things/1",
            {"content": b'{"name": "\xff"}', "headers": {"Content-Type": "application/json"}},
            400,
            "malformed",
        ),
        ("POST", "/things/9", {"json": {"name": "a"}}, 409, "taken"),
        ("GET", "/broken", {}, 500, "internal"),
    ],
)
def test_every_error_has_the_one_body(method: str, path: str, options: dict[str, Any], status: int, kind: str) -> None:
    body = problem(serving.ask(make(), method, path, **options), status, kind)
    assert "hunter2" not in json.dumps(body)


def test_a_refused_method_names_the_allowed_ones() -> None:
    assert serving.ask(make(), "GET", "/things/1").headers["allow"] == "POST"
    assert serving.ask(make(), "PUT", "/things/1/name").headers["allow"] == "DELETE, GET"


def test_a_header_is_there_or_not_and_never_null() -> None:
    paths = serving.ask(make(), "GET", "/openapi.json").json()["paths"]
    header = next(each for each in paths["/things/{number}/name"]["get"]["parameters"] if each["in"] == "header")
    assert (header["schema"]["type"], header["required"]) == ("string", False)


def test_an_invalid_request_names_every_field() -> None:
    response = serving.ask(make(), "POST", "/things/1", json={"name": "", "count": 101})
    body = problem(response, 422, "invalid")
    assert [error["location"] for error in body["errors"]] == ["body.name", "body.count"]


def test_an_error_of_its_own_carries_its_members() -> None:
    body = problem(serving.ask(make(), "POST", "/things/9", json={"name": "a"}), 409, "taken")
    assert (body["detail"], body["next_step"], body["number"]) == ("nine is taken", "take another", 9)


def test_an_integer_is_what_json_means_by_it() -> None:
    for count, status in ((3, 200), (3.0, 200), (3.5, 422), ("3", 422), (True, 422)):
        assert serving.ask(make(), "POST", "/things/1", json={"name": "a", "count": count}).status_code == status


# --- size ------------------------------------------------------------------------------------------


def test_a_prompt_of_a_megabyte_fits() -> None:
    response = serving.ask(make(), "POST", "/things/1", json={"name": "x" * 1_000_000})
    assert response.json() == {"length": 1_000_000, "count": 1}


def test_a_body_beyond_the_bound_is_refused_by_what_it_says() -> None:
    app = make(max_request_bytes=2000)
    body = problem(serving.ask(app, "POST", "/things/1", json={"name": "x" * 2000}), 413, "too-large")
    assert body["limit_bytes"] == 2000


def test_a_body_beyond_the_bound_is_refused_while_it_arrives() -> None:
    async def chunks() -> Any:  # noqa: ANN401
        for _ in range(10):
            yield b"x" * 1000

    app = make(max_request_bytes=2000)
    response = serving.ask(app, "POST", "/things/1", content=chunks(), headers={"Content-Type": "application/json"})
    problem(response, 413, "too-large")


# --- probes ----------------------------------------------------------------------------------------


def test_health_asks_nobody() -> None:
    response = serving.ask(make(missing="redis?"), "GET", "/health")
    assert response.status_code == 200
    assert response.json()["status"] == "ok"


def test_ready_names_every_dependency_that_is_not_within_its_bound() -> None:
    began = time.monotonic()
    response = serving.ask(make(missing="redis,llama-cpp?", ready_timeout_seconds=0.2), "GET", "/ready")
    body = problem(response, 503, "not-ready")
    assert time.monotonic() - began < 10
    assert body["dependencies"]["redis"]["reason"] == "redis is down"
    assert body["dependencies"]["llama-cpp"]["reason"] == "no answer within 0.2 s"
    assert response.headers["retry-after"] == "1"


def test_ready_when_nothing_is_missing() -> None:
    assert serving.ask(make(), "GET", "/ready").json() == {"status": "ready", "service": "small", "dependencies": {}}


def test_metrics_count_by_route_and_never_by_path() -> None:
    app = make()
    for number in range(3):
        serving.ask(app, "POST", f"/things/{number}", json={"name": "a"})
        serving.ask(app, "GET", f"/made-up-{number}")
    text = serving.ask(app, "GET", "/metrics").text
    assert 'aistack_http_requests_total{method="POST",route="/things/{number}",status="200"} 3.0' in text
    assert 'aistack_http_requests_total{method="GET",route="none",status="404"} 3.0' in text
    assert "made-up" not in text


# --- the key ---------------------------------------------------------------------------------------


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    return path


@pytest.mark.parametrize("headers", [{}, {"X-API-Key": "wrong"}, {"X-API-Key": ""}, {"X-API-Key": KEY + "x"}])
def test_without_the_key_nothing_is_said(key_file: Path, headers: dict[str, str]) -> None:
    app = make(api_key_file=key_file)
    for path in ("/things/1", "/openapi.json", "/nowhere"):
        response = serving.ask(app, "POST", path, headers=headers, json={})
        problem(response, 401, "unauthenticated")
        assert response.headers["www-authenticate"]


def test_with_the_key_and_at_the_probes_it_is_open(key_file: Path) -> None:
    app = make(api_key_file=key_file)
    assert serving.ask(app, "POST", "/things/1", headers={"X-API-Key": KEY}, json={"name": "a"}).status_code == 200
    for path in ("/health", "/ready", "/metrics"):
        assert serving.ask(app, "GET", path).status_code == 200


def test_a_key_that_changes_holds_at_once(key_file: Path) -> None:
    app = make(api_key_file=key_file)
    new = key_file.with_name("new")
    new.write_text("another")
    new.replace(key_file)
    problem(serving.ask(app, "GET", "/x", headers={"X-API-Key": KEY}), 401, "unauthenticated")
    problem(serving.ask(app, "GET", "/x", headers={"X-API-Key": "another"}), 404, "not-found")


def test_a_key_file_that_is_gone_lets_nobody_in(key_file: Path) -> None:
    app = make(api_key_file=key_file)
    key_file.unlink()
    problem(serving.ask(app, "GET", "/x", headers={"X-API-Key": KEY}), 503, "api-key-unavailable")
    body = problem(serving.ask(app, "GET", "/ready"), 503, "not-ready")
    assert not body["dependencies"]["api-key"]["ok"]


def test_an_empty_key_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("\n")
    with pytest.raises(KeyUnavailable, match="is empty"):
        ApiKey(tmp_path / "key").read()


# --- telemetry -------------------------------------------------------------------------------------


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_telemetry_is_one_line_an_event_of_one_schema(tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path / "t", "small")
    telemetry.emit("task.started", task_id="t1", iteration=3, prompt_bytes=10)
    telemetry.emit("task.ended", duration_seconds=1.5)
    found = lines(tmp_path / "t/small.jsonl")
    assert [line["event"] for line in found] == ["task.started", "task.ended"]
    assert found[0]["data"] == {"prompt_bytes": 10}
    for line in found:
        TelemetryEvent.model_validate_json(json.dumps(line))
    with pytest.raises(ValidationError):
        telemetry.emit("Not A Name")


def test_telemetry_goes_on_in_a_new_file_after_a_rotation(tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path, "small")
    path = tmp_path / "small.jsonl"
    telemetry.emit("one")
    path.rename(tmp_path / "small.jsonl.1")
    path.touch()
    telemetry.emit("two")
    assert [line["event"] for line in lines(path)] == ["two"]
    path.unlink()
    telemetry.emit("three")
    assert [line["event"] for line in lines(tmp_path / "small.jsonl.1")] == ["one"]
    assert [line["event"] for line in lines(path)] == ["three"]


def test_telemetry_after_a_torn_line_begins_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "small.jsonl"
    path.write_text('{"event":"to')
    Telemetry(tmp_path, "small").emit("one")
    torn, whole = path.read_text().splitlines()
    assert torn == '{"event":"to'
    assert json.loads(whole)["event"] == "one"


def test_telemetry_that_cannot_be_written_is_counted(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    app = make(telemetry_path=tmp_path / "file")
    app.state.telemetry.emit("one")
    assert "aistack_telemetry_dropped_total 1.0" in serving.ask(app, "GET", "/metrics").text


def test_telemetry_leaves_out_what_does_not_fit_a_line(tmp_path: Path) -> None:
    Telemetry(tmp_path, "small").emit("one", text="x" * 100_000)
    (line,) = lines(tmp_path / "small.jsonl")
    assert list(line["data"]) == ["left_out_bytes"]


# --- traces ----------------------------------------------------------------------------------------


def test_spans_continue_the_callers_trace_and_come_as_telemetry(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="the OpenTelemetry SDK is not installed")
    app = make(telemetry_path=tmp_path, otel_tracing_enabled=True)
    caller = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    serving.ask(app, "POST", "/things/1", json={"name": "a"}, headers=caller)
    (span,) = lines(tmp_path / "small.jsonl")
    assert span["event"] == "span"
    assert span["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert span["data"]["parent_id"] == "b7ad6b7169203331"
    assert span["data"]["attributes"] == {"http.route": "/things/{number}", "http.response.status_code": 200}


def test_tracing_without_its_library_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['opentelemetry.sdk'] = None\n")
    code, text = start({"OTEL_TRACING_ENABLED": "true", "PYTHONPATH": str(tmp_path)})
    assert code == 78
    assert "the Python package opentelemetry.sdk" in text


# --- the process -----------------------------------------------------------------------------------


def start(environment: dict[str, str]) -> tuple[int, str]:
    """Start a service that cannot; its exit code and what it said."""
    here = Path(__file__).parent
    paths = [environment.pop("PYTHONPATH", ""), str(here.parent), str(here)]
    done = subprocess.run(
        [sys.executable, "-m", "small_service"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"SMALL_PORT": "many"}, "small: the settings are not valid: SMALL_PORT: "),
        ({"OTEL_TRACING_ENABLED": "perhaps"}, "OTEL_TRACING_ENABLED: "),
        ({"SMALL_API_KEY_FILE": "/nonexistent/key"}, "/nonexistent/key cannot be read: No such file"),
    ],
)
def test_settings_that_cannot_be_are_said_on_one_line(environment: dict[str, str], said: str) -> None:
    code, text = start(environment)
    assert code == 78
    assert said in text
    assert len(text.splitlines()) == 1
    assert "many" not in text


@pytest.fixture
def small(tmp_path: Path) -> Iterator[serving.Running]:
    environment = {"SMALL_PORT": "{port}", "SMALL_BIND_ADDRESS": "127.0.0.1", "TELEMETRY_PATH": str(tmp_path)}
    with serving.running("small_service", tmp_path, {**environment, "SMALL_REQUEST_BODY_TIMEOUT_SECONDS": "1"}) as it:
        yield it


def test_what_is_in_flight_at_sigterm_is_told_and_answered(small: serving.Running, tmp_path: Path) -> None:
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(small.ask("GET", "/slow")))
    asking.start()
    wait_in_flight(small, 2)
    small.process.send_signal(signal.SIGTERM)
    assert small.process.wait(10) == 0
    asking.join()
    assert answers[0].json() == {"status": "interrupted"}
    assert [line["event"] for line in lines(tmp_path / "small.jsonl")] == ["service.started", "service.stopped"]


def test_it_ends_within_its_bound_whatever_hangs(small: serving.Running) -> None:
    def ask() -> None:
        with pytest.raises(httpx.HTTPError):
            small.ask("GET", "/stuck")

    asking = threading.Thread(target=ask)
    asking.start()
    wait_in_flight(small, 2)
    began = time.monotonic()
    small.process.send_signal(signal.SIGTERM)
    assert small.process.wait(20) == 1
    assert time.monotonic() - began < 5.5
    asking.join()


def wait_in_flight(service: serving.Running, number: int) -> None:
    """Wait until so many requests are being answered, the one that asks among them."""
    deadline = time.monotonic() + 30
    while f"aistack_http_requests_in_flight {number}.0" not in service.ask("GET", "/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_caller_who_does_not_send_its_body_is_told(small: serving.Running) -> None:
    with socket.create_connection(("127.0.0.1", small.port), 30) as caller:
        caller.sendall(b"POST /things/1 HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        caller.sendall(b"Content-Length: 100\r\n\r\n{")
        assert caller.recv(100).startswith(b"HTTP/1.1 408 ")


def test_logs_are_json_and_say_neither_prompts_nor_what_exceptions_say(small: serving.Running) -> None:
    small.ask("POST", "/things/1", json={"name": "my-secret-prompt"})
    incident = small.ask("GET", "/broken").json()["incident"]
    text = small.log.read_text()
    found = [json.loads(line) for line in text.splitlines()]
    assert not any(word in text for word in ("my-secret-prompt", "hunter2"))
    (failed,) = [line for line in found if line.get("incident") == incident]
    assert failed["exception"] == "RuntimeError"
    assert failed["at"][-1].endswith(" broken")
    assert {"method": "POST", "route": "/things/{number}", "status": 200}.items() <= next(
        line.items() for line in found if line.get("event") == "request"
    )
