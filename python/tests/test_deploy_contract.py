"""What a service promises its clients, asked of a real HTTP server; and why a candidate is not ready, in words."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import fakehost
import pytest

from aistack.deploy import contract, trial
from aistack.deploy.container import Seen
from aistack.deploy.outage import Outage
from aistack.hooks import probe
from aistack.hooks.errors import HookError
from aistack.hooks.manifest import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from aistack.hooks.manifest import Manifest

ANSWERS = {
    "/ok": (200, "text/plain; charset=utf-8", "ready\n"),
    "/json": (200, "application/json", '{"object": "list"}'),
    "/teapot": (418, "text/plain", "short\x1b[31m"),
    "/moved": (302, "text/plain", ""),
}


class Handler(BaseHTTPRequestHandler):
    """Answers as ANSWERS says, and writes down what it was asked."""

    def do_GET(self) -> None:
        """Answer any method alike."""
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.asked.append((self.command, self.path, body.decode(), dict(self.headers)))  # type: ignore[attr-defined]
        if self.path == "/hang":
            self.server.over.wait(30)  # type: ignore[attr-defined]
            return
        status, kind, text = ANSWERS.get(self.path, (404, "text/plain", "no such thing"))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        if status == 302:
            self.send_header("Location", "/ok")
        self.end_headers()
        self.wfile.write(text.encode())

    do_POST = do_GET  # noqa: N815  (what the library calls)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server:
    """The server, and the service that is said to be it."""

    def __init__(self, host: fakehost.FakeHost) -> None:
        """Serve."""
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.asked = []  # type: ignore[attr-defined]
        self.http.over = threading.Event()  # type: ignore[attr-defined]
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()
        self.host = host
        self.port = self.http.server_address[1]

    @property
    def asked(self) -> list[tuple[str, str, str, dict[str, str]]]:
        """What it was asked so far."""
        return list(self.http.asked)  # type: ignore[attr-defined]

    def manifest(self) -> Manifest:
        """A stack whose app is that server."""
        http = fakehost.probe("http", self.port, path="/ok")
        self.host.declare({"app": fakehost.service("app", port=self.port, probe=http)})
        return load()

    def check(self, *requests: dict[str, Any], openapi: Path | None = None, timeout: float = 5) -> list[contract.Check]:
        """Whether it keeps a contract."""
        base: dict[str, Any] = {"method": "GET", "headers": {}, "body": None, "status": 200, "contains": []}
        manifest = self.manifest()
        settings = {
            "requests": [{**base, **request} for request in requests],
            "openapi": str(openapi) if openapi is not None else None,
            "timeoutSeconds": timeout,
        }
        return contract.check(manifest, manifest.services["app"], settings)

    def close(self) -> None:
        """Refuse connections from now on."""
        self.http.over.set()  # type: ignore[attr-defined]
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server(host: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server, which the network's name server knows as app."""
    monkeypatch.setattr(probe, "resolve", lambda name, _: ["127.0.0.1"] if name == "app" else [])
    running = Server(host)
    yield running
    running.close()


def document(host: fakehost.FakeHost, paths: dict[str, Any]) -> Path:
    """An OpenAPI document."""
    path = host.root / "openapi.json"
    path.write_text(json.dumps({"openapi": "3.1.0", "paths": paths}), encoding="utf-8")
    return path


def operation(*statuses: str, **changes: Any) -> dict[str, Any]:  # noqa: ANN401  (any JSON value)
    """A GET that is answered with one of these."""
    return {"get": {"responses": {status: {"description": ""} for status in statuses}, **changes}}


def lines(checks: list[contract.Check]) -> list[tuple[bool, str]]:
    """What was found."""
    return [(check.ok, check.line) for check in checks]


def test_nothing_promised_is_nothing_asked(server: Server) -> None:
    assert server.check() == []
    assert server.asked == []


def test_promises_that_are_kept(server: Server) -> None:
    found = server.check(
        {"path": "/ok", "contains": ["ready"]},
        {"path": "/json?n=1", "status": 404},
        {"method": "POST", "path": "/teapot", "status": 418, "body": "hé", "headers": {"X-Key": "1"}},
    )
    assert lines(found) == [(True, "GET /ok: 200"), (True, "GET /json?n=1: 404"), (True, "POST /teapot: 418")]
    method, path, body, headers = server.asked[2]
    assert (method, path, body, headers["X-Key"]) == ("POST", "/teapot", "hé", "1")


def test_promises_that_are_not(server: Server) -> None:
    found = server.check(
        {"path": "/teapot"},
        {"path": "/ok", "contains": ["ready", "steady"]},
        {"path": "/nowhere"},
    )
    assert lines(found) == [
        (False, "GET /teapot was answered with 418, not 200: short\\x1b[31m"),
        (False, "GET /ok was answered without 'steady': ready"),
        (False, "GET /nowhere was answered with 404, not 200: no such thing"),
    ]


def test_a_redirection_is_an_answer_and_is_not_followed(server: Server) -> None:
    assert lines(server.check({"path": "/moved", "status": 302})) == [(True, "GET /moved: 302")]
    assert server.check({"path": "/moved"})[0].ok is False
    assert [path for _, path, _, _ in server.asked] == ["/moved", "/moved"]


def test_an_answer_that_does_not_come_is_bounded(server: Server) -> None:
    (found,) = server.check({"path": "/hang"}, timeout=0.3)
    assert found.ok is False
    assert "timed out" in found.line.lower()


def test_a_server_that_is_gone_is_a_promise_not_kept(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "port", fakehost.free_port())
    (found,) = server.check({"path": "/ok"})
    assert found.ok is False
    assert found.line.startswith("GET /ok: ")


def test_proxies_of_this_machine_are_not_asked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{fakehost.free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert server.check({"path": "/ok"})[0].ok is True


def test_a_service_without_an_address_is_an_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "resolve", lambda *_: [])
    with pytest.raises(HookError, match="app has no address in local-ai"):
        server.check({"path": "/ok"})


def test_a_name_server_that_does_not_answer_is_an_error_too(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object) -> list[str]:
        raise TimeoutError("timed out")

    monkeypatch.setattr(probe, "resolve", silent)
    with pytest.raises(HookError, match=r"the name server of local-ai \(127.0.0.1\) does not answer: timed out"):
        server.check({"path": "/ok"})


def test_what_an_openapi_document_says_and_can_be_tried_is_tried(server: Server) -> None:
    paths = {
        "/ok": operation("200"),
        "/json": operation("2XX"),
        "/teapot": operation("200", "default"),
        "/items/{id}": operation("200"),
        "/search": operation("200", parameters=[{"name": "q", "in": "query", "required": True}]),
        "/page": {"parameters": [{"name": "q", "in": "query", "required": True}], **operation("200")},
        "/referred": operation("200", parameters=[{"$ref": "#/components/parameters/q"}]),
        "/moved": operation("302", parameters=[{"name": "q", "in": "query"}]),
        "/post": {"post": {"responses": {"200": {}}}},
    }
    found = server.check(openapi=document(server.host, paths))
    assert lines(found) == [
        (True, "GET /ok: 200"),
        (True, "GET /json: 200"),
        (True, "GET /teapot: 418"),
        (True, "GET /moved: 302"),
    ]


def test_an_answer_that_the_document_does_not_know(server: Server) -> None:
    kinds: dict[str, Any] = {"responses": {"200": {"content": {"application/json": {}}}}}
    paths = {
        "/teapot": operation("200", "5XX"),
        "/ok": {"get": kinds},
        "/json": {"get": kinds},
    }
    assert lines(server.check(openapi=document(server.host, paths))) == [
        (False, "GET /teapot was answered with 418, which is none of 200, 5XX: short\\x1b[31m"),
        (False, "GET /ok was answered as text/plain, not as application/json"),
        (True, "GET /json: 200"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "openapi.json cannot be read: No such file"),
        ("{", "openapi.json is no JSON: "),
        ("[]", "openapi.json is no OpenAPI document: it has no `paths`"),
        ("{}", "openapi.json is no OpenAPI document: it has no `paths`"),
    ],
)
def test_a_document_that_is_none(server: Server, text: str | None, words: str) -> None:
    path = server.host.root / "openapi.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(HookError, match=words):
        server.check(openapi=path)


# --- why it is not ready ---------------------------------------------------------------------------------------------


def seen(**changes: Any) -> Seen:  # noqa: ANN401  (any value)
    """A container that runs and says nothing."""
    found = {"running": True, "exit_code": 0, "out_of_memory": False, "listening": (), "log": ""}
    return Seen(**{**found, **changes})


REFUSED = probe.Result(probe.REFUSED, "nothing listens")


@pytest.mark.parametrize(
    ("result", "what", "words"),
    [
        (
            REFUSED,
            seen(running=False, exit_code=137, out_of_memory=True, log="x\n"),
            "it was killed for want of memory; last it said: x",
        ),
        (
            REFUSED,
            seen(running=False, exit_code=3, log="one\n\n two \n\n"),
            "it ended with exit code 3; last it said: two",
        ),
        (
            REFUSED,
            seen(listening=("127.0.0.1:8000",)),
            "it listens on 127.0.0.1:8000 only, which nobody else reaches: it has to listen on 0.0.0.0:8000",
        ),
        (REFUSED, seen(listening=("0.0.0.0:9000", "127.0.0.11:53")), "it listens on 0.0.0.0:9000, not on port 8000"),
        (REFUSED, seen(listening=("127.0.0.11:41",)), "it listens nowhere, and should on port 8000"),
        (
            probe.Result(probe.TIMED_OUT, "no answer"),
            seen(listening=("0.0.0.0:8000",), log="busy \x1b[1m"),
            f"{probe.TIMED_OUT}: no answer; last it said: busy \\x1b[1m",
        ),
    ],
)
def test_why_it_is_not_ready(host: fakehost.FakeHost, result: probe.Result, what: Seen, words: str) -> None:
    host.declare({"app": fakehost.service("app", port=8000, probe=fakehost.probe("tcp", None))})
    assert trial.explain(load().services["app"], result, what) == words


def needs(host: fakehost.FakeHost, **changes: Any) -> str | None:  # noqa: ANN401  (any JSON value)
    """Why an app that depends on db, which depends on disk, cannot be tested."""
    tcp = fakehost.probe("tcp", 1)
    services = {
        "app": fakehost.service("app", probe=tcp, dependsOn=["db"]),
        "db": fakehost.service("db", probe=tcp, dependsOn=["disk"]),
        "disk": fakehost.service("disk", probe=tcp),
        "beside": fakehost.external(1),
    }
    host.declare({**services, **changes})
    manifest = load()
    return trial.hindrance(manifest, manifest.services["app"])


def test_what_keeps_a_service_from_being_tested(host: fakehost.FakeHost) -> None:
    tcp = fakehost.probe("tcp", 1)
    assert needs(host) is None
    assert "has no probe (services.aistack.services.app.health)" in str(needs(host, app=fakehost.service("app")))
    assert needs(host, disk=fakehost.external(1)) == "it needs disk, which is external: a copy of it is not to be had"
    for option in ("--network=host", "-p", "--ip=10.0.0.1"):
        disk = fakehost.service("disk", probe=tcp, extraOptions=["--shm-size=1g", option])
        assert needs(host, disk=disk) == f"services.aistack.services.disk.extraOptions has {option}"


# --- how long nothing answered ---------------------------------------------------------------------------------------


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens soon."""
    event = threading.Event()
    for _ in range(2000):
        if condition():
            return
        event.wait(0.005)
    raise AssertionError("it did not happen")


def test_the_time_without_an_answer_is_measured(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = server.manifest()
    down = threading.Event()
    real = probe.ask
    asked: list[bool] = []

    def ask(*arguments: Any) -> probe.Result:  # noqa: ANN401  (probe.ask's)
        asked.append(not down.is_set())
        return REFUSED if down.is_set() else real(*arguments)

    monkeypatch.setattr(probe, "ask", ask)
    with Outage(manifest, manifest.services["app"]) as outage:
        wait_until(lambda: len(asked) > 2)
        assert outage.seconds == 0.0
        down.set()
        wait_until(lambda: (outage.seconds or 0.0) > 0.2)
        down.clear()
        wait_until(lambda: asked[-3:] == [True] * 3)
        between = outage.seconds
        wait_until(lambda: asked[-6:] == [True] * 6)
        assert outage.seconds == between
    assert between is not None
    assert between > 0.2
    count = len(asked)
    threading.Event().wait(0.1)
    assert len(asked) == count


def test_a_service_that_nobody_can_ask_has_no_such_time(host: fakehost.FakeHost) -> None:
    host.declare(
        {
            "app": fakehost.service("app"),
            "exec": fakehost.service("exec", probe=fakehost.probe("exec", None, command=["true"])),
        }
    )
    manifest = load()
    for name in ("app", "exec"):
        with Outage(manifest, manifest.services[name]) as outage:
            pass
        assert outage.seconds is None
