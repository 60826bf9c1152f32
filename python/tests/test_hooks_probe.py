"""Probes against real sockets on the loopback: every kind of answer, and every kind of none."""

from __future__ import annotations

import functools
import os
import pwd
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fakehost
import hookhost
import pytest
import scripted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aistack.hooks import postgres_role, probe
from aistack.hooks.manifest import Manifest, Probe, load
from aistack.hooks.probe import (
    AUTH_REFUSED,
    NAME_UNKNOWN,
    NOT_READY,
    READY,
    REFUSED,
    TIMED_OUT,
    WRONG_PROTOCOL,
    Result,
    _addresses,
    _Scram,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scripted import Handler

# Every answer of these is a Result; the timeout is what a test may be held up for.
TIMEOUT = 0.3
TLS_ALERT = b"\x15\x03\x01\x00\x02\x02\x28"
NAME_SERVER = scripted.own_address()


def ask(port: int, kind: str, password: str | None = None, *, address: str = "127.0.0.1", **changes: object) -> Result:
    """Probe a port of the loopback."""
    raw = fakehost.probe(kind, port, **{"timeoutSeconds": TIMEOUT, **changes})
    return probe.ask_address(address, port, Probe(raw), "service.example", password)


def ask_handler(handler: Handler, kind: str, password: str | None = None, **changes: object) -> Result:
    """Probe a server that does as the handler says."""
    with scripted.Tcp(handler) as server:
        return ask(server.port, kind, password, address="127.0.0.1", **changes)


def message(kind: bytes, data: bytes) -> bytes:
    """Return a message of the PostgreSQL protocol."""
    return kind + struct.pack(">I", len(data) + 4) + data


def login(method: int, data: bytes = b"") -> bytes:
    """Return a PostgreSQL server's request for a login, or its consent (0)."""
    return message(b"R", struct.pack(">I", method) + data)


def refusal(code: str, text: str) -> bytes:
    """Return a PostgreSQL error."""
    fields = f"SFATAL\0VFATAL\0C{code}\0M{text}\0Fauth.c\0L1\0\0"
    return message(b"E", fields.encode())


WELCOME = login(0) + message(b"S", b"server_version\x0017\0") + message(b"K", b"12345678") + message(b"Z", b"I")


# --- ready -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "password", "answers"),
    [
        ("http", None, [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"]),
        ("http", None, [b"HTTP/1.0 204 No Content\r\n\r\n"]),
        ("http", None, [b"HTTP/1.1 200 OK\n\n"]),  # bare line feeds: RFC 9112, 2.2 lets a recipient take them
        ("redis", None, [b"+PONG\r\n"]),
        ("redis", "secret", [b"+OK\r\n", b"+PONG\r\n"]),
        ("redis", "secret", [b"-ERR Client sent AUTH, but no password is set\r\n", b"+PONG\r\n"]),
        ("postgres", None, [WELCOME]),
        ("postgres", None, [login(10, b"SCRAM-SHA-256\0\0")]),
        ("postgres", "secret", [login(3), WELCOME]),
        ("postgres", "secret", [message(b"N", b"SNOTICE\0Mhello\0\0") + login(5, b"salt"), WELCOME]),
        ("tcp", None, [b""]),
    ],
)
def test_ready(kind: str, password: str | None, answers: list[bytes]) -> None:
    result = ask_handler(scripted.says(*answers), kind, password)
    assert (result.kind, result.ok, result.permanent) == (READY, True, False), result.detail
    assert re.fullmatch(r"127\.0\.0\.1:[0-9]+", result.address)


def test_a_service_without_a_probe_is_taken_as_ready(tmp_path: Path) -> None:
    stack = Manifest(fakehost.manifest(tmp_path, {"app": fakehost.service("app")}), "stack.json")
    assert probe.ask(stack, stack.services["app"], None).ok


def test_ipv6_literal() -> None:
    with scripted.Tcp(scripted.says(b"+PONG\r\n"), "::1") as server:
        result = ask(server.port, "redis", address="::1")
    assert (result.kind, result.address) == (READY, f"[::1]:{server.port}")


def test_what_an_http_server_is_sent() -> None:
    seen = bytearray()

    def handler(link: socket.socket) -> None:
        while b"\r\n\r\n" not in seen:
            seen.extend(link.recv(65536))
        link.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    assert ask_handler(handler, "http", path="/ready?full=1").ok
    lines = bytes(seen).split(b"\r\n")
    assert lines[0] == b"GET /ready?full=1 HTTP/1.0"
    assert b"Host: service.example" in lines


def test_what_redis_is_sent() -> None:
    seen: list[bytes] = []

    def handler(link: socket.socket) -> None:
        for answer in (b"+OK\r\n", b"+PONG\r\n"):
            seen.append(link.recv(65536))
            link.sendall(answer)

    assert ask_handler(handler, "redis", "pässword", user="mcp").ok
    assert seen == [b"*3\r\n$4\r\nAUTH\r\n$3\r\nmcp\r\n$9\r\np\xc3\xa4ssword\r\n", b"*1\r\n$4\r\nPING\r\n"]


# --- refused, timed out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["http", "postgres", "redis", "tcp"])
def test_refused(kind: str) -> None:
    port = fakehost.free_port()
    result = ask(port, kind)
    assert (result.kind, result.permanent) == (REFUSED, False)
    assert result.detail == f"nothing listens at 127.0.0.1:{port}"


@pytest.mark.parametrize("kind", ["http", "postgres", "redis"])
def test_accepts_and_says_nothing(kind: str) -> None:
    began = time.monotonic()
    result = ask_handler(scripted.silent, kind)
    assert (result.kind, result.permanent) == (TIMED_OUT, False)
    assert "within 0.3 s" in result.detail
    assert TIMEOUT <= time.monotonic() - began < TIMEOUT + 0.5


@pytest.mark.parametrize(
    ("kind", "handler", "changes"),
    [
        ("http", scripted.drips(b"HTTP/1.1 200 O", b"O"), {}),
        ("http", scripted.drips(b"", b"HTTP/1.1 200 OK"), {}),
        ("redis", scripted.drips(b"+", b"PONG"), {}),
        ("postgres", scripted.drips(b"S\0\0\xff\xf0", b"x"), {}),
        ("postgres", scripted.drips(b"", message(b"N", b"M\0") * 40), {}),
        ("tcp", scripted.drips(b"", b"x"), {"expect": "ready"}),
    ],
)
def test_a_server_that_sends_a_byte_now_and_then_holds_nobody_up(
    kind: str, handler: Handler, changes: dict[str, Any]
) -> None:
    began = time.monotonic()
    result = ask_handler(handler, kind, **changes)
    assert result.kind == TIMED_OUT, result.detail
    assert time.monotonic() - began < TIMEOUT + 0.5


def test_a_slow_body_does_not_hide_a_known_status() -> None:
    began = time.monotonic()
    result = ask_handler(scripted.drips(b"HTTP/1.1 503 Busy\r\n\r\nmodel is loading"), "http")
    assert (result.kind, result.permanent) == (NOT_READY, False)
    assert result.detail.startswith("GET / answered 503: model is loading")
    assert time.monotonic() - began < TIMEOUT + 0.5


@pytest.mark.parametrize(
    ("kind", "handler", "expected", "changes"),
    [
        ("http", scripted.floods(b"HTTP/1.1 200 OK\r\n\r\n"), NOT_READY, {"expect": "ready"}),
        ("http", scripted.floods(b"HTTP/1.1 500 Oops\r\n\r\n"), NOT_READY, {}),
        ("http", scripted.floods(b"HTTP/1.1 "), WRONG_PROTOCOL, {}),
        ("redis", scripted.floods(b"+"), WRONG_PROTOCOL, {}),
        ("redis", scripted.floods(b"-LOADING "), NOT_READY, {}),
        ("postgres", scripted.floods(b"", message(b"S", b"x" * 60000)), TIMED_OUT, {}),
        ("postgres", scripted.floods(b"E\x7f\xff\xff\xff"), WRONG_PROTOCOL, {}),
        ("tcp", scripted.floods(b""), NOT_READY, {"expect": "ready"}),
    ],
)
def test_an_answer_without_an_end_is_cut_off(
    kind: str, handler: Handler, expected: str, changes: dict[str, Any]
) -> None:
    began = time.monotonic()
    result = ask_handler(handler, kind, **changes)
    assert result.kind == expected
    assert len(result.detail) <= 400
    assert time.monotonic() - began < TIMEOUT + 0.5


# --- wrong protocol --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("postgres", b"-ERR Protocol error: expected '$', got 'x'\r\n"),  # redis there
        ("postgres", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        ("postgres", TLS_ALERT),
        ("postgres", b"\x00\xff garbage"),
        ("postgres", b"E\xff\xff\xff\xff"),  # a message longer than any
        ("postgres", b"E\x00\x00\x00\x02"),  # a message shorter than its own length
        ("postgres", message(b"R", b"\0")),  # a request without a method
        ("postgres", message(b"T", b"row")),  # rows before a login
        ("redis", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        ("redis", refusal("08P01", "invalid length of startup packet") + b"\r\n"),
        ("redis", TLS_ALERT + b"\r\n"),
        ("redis", b"<!DOCTYPE HTML>\n"),  # a web server's page about a request without a version
        ("redis", b"+PONGO\r\n"),
        ("redis", b"$4\r\nPONG\r\n"),
        ("http", b"+PONG\r\n"),
        ("http", b"-ERR wrong number of arguments for 'get' command\r\n"),
        ("http", refusal("08P01", "invalid length of startup packet")),
        ("http", TLS_ALERT),
        ("http", b"<html>no header</html>"),
        ("http", b"HTTP/1.1 OK\r\n\r\n"),
        ("http", b"HTTP/1.1 " + b"9" * 5000 + b" OK\r\n\r\n"),
        ("http", b"HTTP/1.1 2000 OK\r\n\r\n"),
    ],
)
def test_wrong_protocol(kind: str, answer: bytes) -> None:
    result = ask_handler(scripted.says(answer), kind)
    assert (result.kind, result.permanent) == (WRONG_PROTOCOL, True), result.detail
    assert result.detail.startswith("does not speak ")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"<!DOCTYPE HTML>"])
def test_a_server_that_waits_for_the_end_of_a_line_where_postgres_should_be(answer: bytes) -> None:
    def handler(link: socket.socket) -> None:
        with link.makefile("rb") as lines:
            lines.readline()
        link.sendall(answer)

    result = ask_handler(handler, "postgres")
    assert (result.kind, result.permanent) == (WRONG_PROTOCOL, True), result.detail


def test_a_password_goes_to_nothing_but_redis_twice() -> None:
    seen: list[bytes] = []

    def handler(link: socket.socket) -> None:
        seen.append(link.recv(65536))
        link.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        seen.append(link.recv(65536))

    assert ask_handler(handler, "redis", "secret").kind == WRONG_PROTOCOL
    assert seen[1] == b""


@pytest.mark.parametrize(
    "challenge",
    [b"", b"r=", b"r=mine,s=c2FsdA==,i=4096", b"r=%s,s=c2FsdA==,i=x", b"r=%s,s=A,i=4096", b"r=%s,i=4096"],
)
def test_a_scram_challenge_that_makes_no_sense(challenge: bytes) -> None:
    def handler(link: socket.socket) -> None:
        link.recv(65536)
        link.sendall(login(10, b"SCRAM-SHA-256\0\0"))
        nonce = link.recv(65536).partition(b"r=")[2]
        link.sendall(login(11, challenge.replace(b"%s", nonce + b"theirs")))
        scripted.silent(link)

    result = ask_handler(handler, "postgres", "secret")
    assert result.kind == WRONG_PROTOCOL, result.detail


# --- not ready yet ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "answer", "detail"),
    [
        ("postgres", refusal("57P03", "the database system is starting up"), "(SQLSTATE 57P03)"),
        ("postgres", refusal("53300", "sorry, too many clients already"), "(SQLSTATE 53300)"),
        ("redis", b"-LOADING Redis is loading the dataset in memory\r\n", "answered LOADING"),
        ("redis", b"-MASTERDOWN Link with MASTER is down\r\n", "answered MASTERDOWN"),
        ("http", b"HTTP/1.1 503 Service Unavailable\r\n\r\nno database", "GET / answered 503: no database"),
        ("http", b"HTTP/1.1 404 Not Found\r\n\r\n", "GET / answered 404"),
        ("http", b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /login\r\n\r\n", "GET / answered 307"),
        ("http", b"HTTP/1.1 100 Continue\r\n\r\n", "GET / answered 100"),
        # Closed without an answer, or in the middle of one.
        ("postgres", b"", "closed the connection before it had answered"),
        ("redis", b"", "closed the connection before it had answered"),
        ("http", b"", "closed the connection before it had answered"),
        ("postgres", b"R\0\0\0", "closed the connection before it had answered"),
        ("postgres", WELCOME[:-1], "closed the connection before it had answered"),
        ("redis", b"+PO", "closed the connection before it had answered"),
        ("redis", b"+PONG\r", "closed the connection before it had answered"),
        ("http", b"HTT", "closed the connection before it had answered"),
        ("http", b"HTTP/1.", "closed the connection before it had answered"),
        ("http", b"HTTP/1.1 2", "closed the connection before it had answered"),
        ("http", b"HTTP/1.1 200 OK", "closed the connection before it had answered"),
    ],
)
def test_not_ready_yet(kind: str, answer: bytes, detail: str) -> None:
    result = ask_handler(scripted.says(answer), kind)
    assert (result.kind, result.permanent) == (NOT_READY, False), result.detail
    assert detail in result.detail


@pytest.mark.parametrize("kind", ["http", "postgres", "redis"])
def test_a_connection_that_is_reset(kind: str) -> None:
    result = ask_handler(scripted.resets, kind)
    assert (result.kind, result.permanent) == (NOT_READY, False)
    assert "closed the connection" in result.detail


# --- the answer's text -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "answer", "ok"),
    [
        ("http", b"HTTP/1.1 200 OK\r\n\r\n" + b'{"status": "ok"}', True),
        ("http", b"HTTP/1.1 200 OK\r\n\r\n" + b'{"error": "no model"}', False),
        ("http", b"HTTP/1.1 200 OK\nServer: old\n\nstatus ok", True),
        ("http", b"HTTP/1.1 200 OK\r\nX-Hint: status ok\r\n\r\n", False),
        ("http", b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nnothing", False),
        ("tcp", b"220 mail status ok\r\n", True),
        ("tcp", b"421 busy\r\n", False),
    ],
)
def test_expected_text(kind: str, answer: bytes, ok: bool) -> None:  # noqa: FBT001  (a column of the table)
    result = ask_handler(scripted.says(answer) if kind == "http" else scripted.greets(answer), kind, expect="ok")
    if ok:
        assert result.kind == READY
    elif kind == "http":
        assert (result.kind, result.permanent) == (NOT_READY, False)
        assert "without 'ok' in it" in result.detail
    else:
        assert result.kind == TIMED_OUT  # it may still say it


def test_the_wanted_text_ends_the_wait_for_a_server_that_keeps_the_connection() -> None:
    def handler(link: socket.socket) -> None:
        link.recv(65536)
        link.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        link.sendall(b"all is ok")
        scripted.silent(link)

    began = time.monotonic()
    assert ask_handler(handler, "http", expect="is ok", timeoutSeconds=5).ok
    assert time.monotonic() - began < 4


def test_the_announced_length_ends_the_wait_for_a_server_that_keeps_the_connection() -> None:
    def handler(link: socket.socket) -> None:
        link.recv(65536)
        link.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 7\r\n\r\nloading")
        scripted.silent(link)

    began = time.monotonic()
    assert ask_handler(handler, "http", timeoutSeconds=5).detail == "GET / answered 503: loading"
    assert time.monotonic() - began < 4


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("http", b"HTTP/1.1 500 Oops\r\n\r\n\x1b[2J\x07red\nalert\x00"),
        ("http", b"\x1b[2J\n\x9b"),
        ("redis", b"-ERR \x1b[2J\nforged: line\r\n"),
        ("redis", b"\x1b]0;title\x07\r\n"),
        ("postgres", refusal("57P03\x1b[2J", "starting\x1b[31m\nup")),
        ("postgres", refusal("28P01", "\u202eesrever")),
        ("postgres", b"\x1b[2J"),
    ],
)
def test_hostile_bytes_reach_nobody(kind: str, answer: bytes) -> None:
    result = ask_handler(scripted.says(answer), kind)
    assert not result.ok
    assert result.detail.isprintable(), ascii(result.detail)


_PLAUSIBLE = st.one_of(
    st.binary(max_size=60),
    st.builds(bytes.__add__, st.sampled_from([b"HTTP/1.1 ", b"HTTP/1.1 200 ", b"+", b"-", b"$"]), st.binary()),
    st.builds(message, st.sampled_from([b"R", b"E", b"S", b"Z", b"N"]), st.binary(max_size=60)),
    st.builds(login, st.sampled_from([0, 3, 5, 10, 11, 12]), st.binary(max_size=30)),
    st.sampled_from([b"\r\n", b"\n", b"\0", WELCOME, login(10, b"SCRAM-SHA-256\0\0"), b"HTTP/1.1 200 OK\r\n"]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(["http", "postgres", "redis", "tcp"]),
    answers=st.lists(_PLAUSIBLE, min_size=1, max_size=4),
    expect=st.sampled_from([None, "ok"]),
)
def test_no_answer_can_raise(kind: str, answers: list[bytes], expect: str | None) -> None:
    def handler(link: socket.socket) -> None:
        for answer in answers:
            link.recv(65536)
            link.sendall(answer)

    result = ask_handler(handler, kind, "secret", expect=expect, timeoutSeconds=0.03)
    assert result.detail.isprintable()


# --- authentication --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "password", "answers"),
    [
        ("postgres", "wrong", [login(3), refusal("28P01", 'password authentication failed for user "mcp"')]),
        ("postgres", None, [refusal("28000", 'role "mcp" does not exist')]),
        ("postgres", "secret", [login(7)]),  # GSSAPI: nothing this probe knows
        ("postgres", "secret", [login(10, b"SCRAM-SHA-256-PLUS\0\0")]),
        ("redis", None, [b"-NOAUTH Authentication required.\r\n"]),
        ("redis", "wrong", [b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"]),
        ("redis", None, [b"-NOPERM this user has no permissions to run the 'ping' command\r\n"]),
        ("http", None, [b"HTTP/1.1 401 Unauthorized\r\n\r\n"]),
        ("http", None, [b"HTTP/1.1 403 Forbidden\r\n\r\n"]),
    ],
)
def test_authentication_refused(kind: str, password: str | None, answers: list[bytes]) -> None:
    result = ask_handler(scripted.says(*answers), kind, password)
    assert (result.kind, result.permanent) == (AUTH_REFUSED, True), result.detail
    assert "wrong" not in result.detail


def test_scram_of_rfc_7677() -> None:
    scram = _Scram("pencil")
    scram.nonce = b"rOprNGfwEbeRWgbNEkqO"
    scram.bare = b"n=user,r=" + scram.nonce
    challenge = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    assert scram.final(challenge) == (
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )
    scram.verify(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
    assert scram.verified


def _scram_server(signature: bytes | None, rounds: int = 1) -> Handler:
    def handler(link: socket.socket) -> None:
        link.recv(65536)
        link.sendall(login(10, b"SCRAM-SHA-256\0\0"))
        nonce = link.recv(65536).partition(b"r=")[2]
        link.sendall(login(11, b"r=%stheirs,s=c2FsdA==,i=%d" % (nonce, rounds)))
        link.recv(65536)
        link.sendall((login(12, signature) if signature is not None else b"") + WELCOME)
        scripted.silent(link)

    return handler


@pytest.mark.parametrize("signature", [b"v=" + b"QUJD" * 11, b"", None])
def test_a_server_that_does_not_know_the_password_is_found_out(signature: bytes | None) -> None:
    result = ask_handler(_scram_server(signature), "postgres", "secret")
    assert (result.kind, result.permanent) == (AUTH_REFUSED, True)
    assert "another server on this address?" in result.detail


def test_a_signature_that_is_not_base64() -> None:
    assert ask_handler(_scram_server(b"v=A"), "postgres", "secret").kind == WRONG_PROTOCOL


def test_scram_rounds_are_bounded() -> None:
    began = time.monotonic()
    result = ask_handler(_scram_server(b"v=", rounds=10**9), "postgres", "secret", timeoutSeconds=5)
    assert result.kind == AUTH_REFUSED
    assert time.monotonic() - began < 4


# --- exec ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_exec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Probe by a command, with a stand-in for podman that runs `script` instead."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def run(script: str, **changes: object) -> Result:
        program = tmp_path / "podman"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        asked = fakehost.probe("exec", None, **{"command": ["check", "--all"], "timeoutSeconds": TIMEOUT, **changes})
        stack = Manifest(fakehost.manifest(tmp_path, {"app": fakehost.service("app", probe=asked)}), "stack.json")
        return probe.ask(stack, stack.services["app"], None)

    return run


def test_a_command_in_the_container(run_exec: Callable[..., Result]) -> None:
    result = run_exec('test "$1 $2 $4 $5 $6" = "exec --env aistack-app check --all"')
    assert (result.kind, result.detail, result.address) == (READY, "check --all succeeded", "aistack-app")


@pytest.mark.parametrize(
    ("script", "changes", "kind", "detail"),
    [
        (
            r"printf 'no \033[31mlink\nhere' >&2; exit 3",
            {},
            NOT_READY,
            r"check --all returned 3: no \x1b[31mlink\nhere",
        ),
        ("echo all is ok", {"expect": "is ok"}, READY, "check --all succeeded"),
        ("echo all is bad", {"expect": "is ok"}, NOT_READY, "succeeded without 'is ok'"),
        ("exec sleep 20", {}, TIMED_OUT, "check --all took more than 0.3 s"),
        ("exec yes", {}, TIMED_OUT, "check --all took more than 0.3 s"),
        ("head -c 30000000 /dev/zero; exit 1", {"timeoutSeconds": 5}, NOT_READY, "check --all returned 1: "),
        ("sleep 20 & exit 0", {}, TIMED_OUT, "check --all took more than"),  # something keeps its output open
    ],
)
def test_a_command_that_does_not_succeed(
    run_exec: Callable[..., Result], script: str, changes: dict[str, Any], kind: str, detail: str
) -> None:
    began = time.monotonic()
    result = run_exec(script, **changes)
    assert (result.kind, result.permanent) == (kind, False)
    assert detail in result.detail
    assert time.monotonic() - began < 2


def test_what_a_command_leaves_running_in_the_container_ends_with_its_time(
    run_exec: Callable[..., Result], tmp_path: Path
) -> None:
    left = tmp_path / "left"
    # As podman does: what runs in the container is no child of it, and has what --env says.
    script = f'env "$3" setsid sh -c "echo \\$\\$ > {left}; exec sleep 60" > /dev/null 2>&1 < /dev/null &\nsleep 20'
    assert run_exec(script, timeoutSeconds=1).kind == TIMED_OUT
    status = Path(f"/proc/{left.read_text().strip()}/status")
    # One that nobody has waited for yet is dead all the same.
    deadline = time.monotonic() + 5
    while status.exists() and "State:\tZ" not in status.read_text():
        assert time.monotonic() < deadline, status.read_text()
        time.sleep(0.01)


def test_no_podman(run_exec: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    result = run_exec("exit 0")
    assert (result.kind, result.permanent) == (NOT_READY, False)
    assert result.detail == "cannot run podman: No such file or directory"


# --- names -----------------------------------------------------------------------------------------------------------


def resolve(answer: Callable[[bytes], list[bytes]], name: str = "redis") -> tuple[list[str], list[bytes]]:
    """Ask a name server of the test; return the addresses, and the questions it got."""
    with scripted.Dns(answer) as server:
        return probe.resolve(name, server.address, server.port), server.questions


def test_the_question() -> None:
    found, questions = resolve(scripted.zone(llama_cpp="10.89.100.7"), "llama-cpp")
    assert found == ["10.89.100.7"]
    (question,) = questions
    # One question, recursion desired; class IN, type A (RFC 1035, 4.1).
    assert question[2:] == b"\x01\x00\x00\x01\0\0\0\0\0\0" + scripted.name("llama-cpp.dns.podman") + b"\0\x01\0\x01"


def test_an_unknown_name() -> None:
    assert resolve(scripted.zone(redis="10.89.100.7"), "nobody")[0] == []


@pytest.mark.parametrize("name", ["", "a..b", "x" * 64, "ä" * 40])
def test_a_name_that_cannot_exist_is_not_asked_for(name: str) -> None:
    assert resolve(scripted.zone(), name) == ([], [])


def test_several_addresses_are_all_returned_once() -> None:
    found, _ = resolve(scripted.zone(redis=["10.89.100.7", "10.89.100.9", "10.89.100.7"]))
    assert found == ["10.89.100.7", "10.89.100.9"]


def test_other_records_and_ways_to_write_a_name() -> None:
    owner = scripted.name("redis.dns.podman")
    records = (
        scripted.record(scripted.name("other.dns.podman"), kind=5),  # an alias
        scripted.record(bytes(16), kind=28),  # an IPv6 address
        scripted.record(b"\x03txt", kind=16),  # text as long as an address
        scripted.record(b"\n\x59\x64\x07", owner=owner),
        scripted.record(b"\n\x59\x64\x08", owner=b"\x05redis\xc0\x12"),  # a label, then a pointer
    )
    assert resolve(lambda question: [scripted.reply(question, *records)])[0] == ["10.89.100.7", "10.89.100.8"]


def test_packets_that_answer_another_question_are_ignored() -> None:
    def answer(question: bytes) -> list[bytes]:
        forged = scripted.reply(question, scripted.record(b"\x06\x06\x06\x06"), ident=bytes([question[0] ^ 1, 0]))
        right = scripted.reply(question, scripted.record(b"\n\x59\x64\x07"))
        return [b"", b"garbage", right[:11], question, forged, right]

    assert resolve(answer)[0] == ["10.89.100.7"]


def test_nothing_but_wrong_packets_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_DNS_TIMEOUT", 0.2)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        resolve(lambda question: [question, b"\0" * 40])
    assert 0.2 <= time.monotonic() - began < 4


@pytest.mark.parametrize("code", [1, 2, 5])
def test_an_error_of_the_name_server_is_not_an_unknown_name(code: int) -> None:
    with pytest.raises(OSError, match=f"error code {code}"):
        resolve(lambda question: [scripted.reply(question, code=code)])


def test_no_cut_off_answer_is_misread() -> None:
    full = scripted.reply(
        b"\0\0\x01\0\0\x01\0\0\0\0\0\0" + scripted.name("redis.dns.podman") + b"\0\x01\0\x01",
        scripted.record(b"\n\x59\x64\x07"),
        scripted.record(b"\n\x59\x64\x08", owner=scripted.name("redis.dns.podman")),
    )
    assert _addresses(full) == ["10.89.100.7", "10.89.100.8"]
    for length in range(12, len(full)):
        with pytest.raises(OSError, match="cut off"):
            _addresses(full[:length])


@given(st.binary(min_size=12, max_size=80))
def test_no_garbage_from_a_name_server_can_raise_anything_else(data: bytes) -> None:
    try:
        found = _addresses(data)
    except OSError as error:
        assert error.strerror  # noqa: PT017  (an empty one would be shown as "None")
    else:
        assert all(socket.inet_aton(address) for address in found)


@pytest.fixture
def stack(tmp_path: Path) -> Callable[..., Manifest]:
    """Make a manifest of these services, in a network whose name server is this file's."""

    def make(**services: dict[str, Any]) -> Manifest:
        document = fakehost.manifest(tmp_path, services)
        document["network"]["gateway"] = NAME_SERVER
        return Manifest(document, "stack.json")

    return make


@pytest.fixture
def name_server() -> Iterator[Callable[..., scripted.Dns]]:
    """Start the network's name server on port 53."""
    running: list[scripted.Dns] = []

    def start(answer: Callable[[bytes], list[bytes]]) -> scripted.Dns:
        running.append(hookhost.name_server(NAME_SERVER, answer))
        return running[-1]

    yield start
    for server in running:
        server.__exit__()


def redis_at(port: int) -> dict[str, Any]:
    """Return a redis of the stack at this port of whatever address its name has."""
    return fakehost.service("redis", port=port, probe=fakehost.probe("redis", None, timeoutSeconds=TIMEOUT))


def test_a_container_is_found_by_name(stack: Callable[..., Manifest], name_server: Callable[..., scripted.Dns]) -> None:
    name_server(scripted.zone(redis="127.0.0.1"))
    with scripted.Tcp(scripted.says(b"+PONG\r\n")) as server:
        manifest = stack(redis=redis_at(server.port))
        result = probe.ask(manifest, manifest.services["redis"], None)
    assert (result.kind, result.address) == (READY, f"127.0.0.1:{server.port}")


def test_every_address_of_a_name_is_tried(
    stack: Callable[..., Manifest], name_server: Callable[..., scripted.Dns]
) -> None:
    name_server(scripted.zone(redis=["127.0.0.77", "127.0.0.1"]))
    with scripted.Tcp(scripted.says(b"+PONG\r\n")) as server:
        manifest = stack(redis=redis_at(server.port))
        assert probe.ask(manifest, manifest.services["redis"], None).ok


def test_a_name_nobody_carries(stack: Callable[..., Manifest], name_server: Callable[..., scripted.Dns]) -> None:
    name_server(scripted.zone())
    manifest = stack(redis=redis_at(6379))
    result = probe.ask(manifest, manifest.services["redis"], None)
    assert (result.kind, result.permanent) == (NAME_UNKNOWN, False)
    assert result.detail == f"redis is not registered on network local-ai (asked {NAME_SERVER}:53)"


def test_a_network_without_a_name_server(stack: Callable[..., Manifest]) -> None:
    manifest = stack(redis=redis_at(6379))
    result = probe.ask(manifest, manifest.services["redis"], None)
    assert (result.kind, result.permanent) == (NAME_UNKNOWN, False)
    assert "network local-ai has no name server" in result.detail


def test_a_name_server_that_says_nothing(
    stack: Callable[..., Manifest], name_server: Callable[..., scripted.Dns], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_DNS_TIMEOUT", 0.1)
    name_server(lambda _: [])
    manifest = stack(redis=redis_at(6379))
    result = probe.ask(manifest, manifest.services["redis"], None)
    assert (result.kind, result.permanent) == (TIMED_OUT, False)
    assert result.address == f"{NAME_SERVER}:53"


def test_a_name_server_in_trouble(stack: Callable[..., Manifest], name_server: Callable[..., scripted.Dns]) -> None:
    name_server(lambda question: [scripted.reply(question, code=2)])
    manifest = stack(redis=redis_at(6379))
    result = probe.ask(manifest, manifest.services["redis"], None)
    assert (result.kind, result.permanent) == (NAME_UNKNOWN, False)
    assert "error code 2" in result.detail


# --- external services -----------------------------------------------------------------------------------------------


def elsewhere(tmp_path: Path, host: str, port: int, kind: str = "redis") -> Result:
    """Probe a service that runs at this host."""
    entry = fakehost.external(port, kind, external={"host": host, "port": port})
    entry["probe"]["timeoutSeconds"] = TIMEOUT
    manifest = Manifest(fakehost.manifest(tmp_path, {"far": entry}), "stack.json")
    return probe.ask(manifest, manifest.services["far"], None)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_external_service(tmp_path: Path, host: str) -> None:
    with scripted.Tcp(scripted.says(b"+PONG\r\n")) as server:
        assert elsewhere(tmp_path, host, server.port).ok


def test_an_external_ipv6_address(tmp_path: Path) -> None:
    with scripted.Tcp(scripted.says(b"+PONG\r\n"), "::1") as server:
        assert elsewhere(tmp_path, "::1", server.port).address == f"[::1]:{server.port}"


def test_an_external_web_server_is_asked_by_its_own_name(tmp_path: Path) -> None:
    seen: list[bytes] = []

    def handler(link: socket.socket) -> None:
        seen.append(link.recv(65536))
        link.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    with scripted.Tcp(handler) as server:
        assert elsewhere(tmp_path, "localhost", server.port, "http").ok
    assert b"\r\nHost: localhost\r\n" in seen[0]


@pytest.mark.parametrize(
    ("error", "permanent"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), True),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), False),
        (UnicodeError("label too long"), True),
    ],
)
def test_an_external_name_that_cannot_be_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, *, permanent: bool
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    result = elsewhere(tmp_path, "db.\x1bexample", 6379)
    assert (result.kind, result.permanent) == (NAME_UNKNOWN, permanent)
    assert result.detail.startswith(r"this host cannot resolve db.\x1bexample: ")
    assert str(error.args[-1]) in result.detail


def test_a_slow_resolver_of_the_host_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def hang(*_: object, **__: object) -> list[object]:
        over.wait(10)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    began = time.monotonic()
    try:
        result = elsewhere(tmp_path, "db.example", 6379)
    finally:
        over.set()
    assert (result.kind, result.permanent) == (TIMED_OUT, False)
    assert time.monotonic() - began < TIMEOUT + 0.5


# --- a real PostgreSQL -----------------------------------------------------------------------------------------------


class Postgres:
    """A PostgreSQL server of this test run: users `scram`, `plain`, `md5`, `letters`, each by its own login method."""

    PASSWORDS = {"scram": "pencil", "plain": "in clear", "md5": "old", "letters": "pa\u0308ssw\u00f6rd \u2460"}  # noqa: RUF012  (a constant)

    def __init__(self, folder: Path, programs: Path) -> None:
        """Make the cluster and start it."""
        self.folder = folder
        self.programs = programs
        self.port = fakehost.free_port()
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(folder, self._user)
        data = folder / "data"
        self._run("initdb", "--no-sync", "--username=postgres", "--auth=trust", "--encoding=UTF8", f"--pgdata={data}")
        (data / "pg_hba.conf").write_text(
            "local all all trust\n"
            "host all scram 127.0.0.1/32 scram-sha-256\n"
            "host all letters 127.0.0.1/32 scram-sha-256\n"
            "host all plain 127.0.0.1/32 password\n"
            "host all md5 127.0.0.1/32 md5\n"
            "host all open 127.0.0.1/32 trust\n"
        )
        options = f"-F -p {self.port} -k {folder} -c listen_addresses=127.0.0.1"
        self._run("pg_ctl", "start", "--wait", f"--pgdata={data}", f"--log={folder}/log", "-o", options)
        for user, password in {**self.PASSWORDS, "open": "unused"}.items():
            encryption = "md5" if user == "md5" else "scram-sha-256"
            self.sql(f"SET password_encryption = '{encryption}'; CREATE ROLE {user} LOGIN PASSWORD '{password}'")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self.programs / program, *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            user=self._user,
            cwd=self.folder,
            env={"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]},
        )

    def sql(self, text: str) -> None:
        """Run SQL as the superuser."""
        self._run("psql", "--quiet", "-h", str(self.folder), "-p", str(self.port), "-U", "postgres", "-c", text)

    def stop(self) -> None:
        """Stop the server."""
        self._run("pg_ctl", "stop", "--wait", "--mode=immediate", f"--pgdata={self.folder}/data")


@functools.cache
def postgres_programs() -> Path | None:
    """Return where the newest installed PostgreSQL server keeps its programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


def _has_user(name: str) -> bool:
    try:
        return bool(pwd.getpwnam(name))
    except KeyError:
        return False


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A running PostgreSQL."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed (Debian: postgresql)")
    if os.geteuid() == 0 and not _has_user("postgres"):
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    # Not pytest's own directory: the server's user may not enter that one.
    with tempfile.TemporaryDirectory(prefix="aistack-postgres-") as folder:
        server = Postgres(Path(folder), programs)
        yield server
        server.stop()


@pytest.mark.parametrize("user", ["scram", "plain", "md5", "letters"])
def test_postgres_accepts_the_right_password(postgres: Postgres, user: str) -> None:
    result = ask(postgres.port, "postgres", Postgres.PASSWORDS[user], user=user, database="postgres", timeoutSeconds=5)
    assert result.detail == f"accepted a login of {user}"


@pytest.mark.parametrize("user", ["scram", "plain", "md5", "letters"])
def test_postgres_refuses_a_wrong_password(postgres: Postgres, user: str) -> None:
    result = ask(postgres.port, "postgres", "guess", user=user, database="postgres", timeoutSeconds=5)
    assert (result.kind, result.permanent) == (AUTH_REFUSED, True)
    assert result.detail == f'password authentication failed for user "{user}" (SQLSTATE 28P01)'


def test_postgres_takes_a_new_password_for_a_role(postgres: Postgres, host: fakehost.FakeHost) -> None:
    """As hooks set it: psql in the container, over the trusted socket."""
    program = postgres.programs / "psql"
    script = f'#!/bin/sh\nshift 4\nexec "{program}" --host="{postgres.folder}" "$@"\n'
    (host.root / "fake-programs" / "podman").write_text(script)
    for user, encryption, password in (
        ("scram", "scram-sha-256", "new\u00e4\u2460 ' \\ \" $1"),
        ("md5", "md5", "then new"),
    ):
        asked = fakehost.probe("postgres", postgres.port, user=user, database="postgres")
        host.declare({"db": fakehost.service("db", probe=asked)})
        service = load().services["db"]
        assert postgres_role.set_password(service, password) is None
        found = ask(postgres.port, "postgres", password, user=user, database="postgres", timeoutSeconds=5)
        assert found.detail == f"accepted a login of {user}"
        postgres.sql(
            f"SET password_encryption = '{encryption}'; ALTER ROLE {user} PASSWORD '{Postgres.PASSWORDS[user]}'"
        )


def test_postgres_without_a_password(postgres: Postgres) -> None:
    assert ask(postgres.port, "postgres", user="open", database="postgres", timeoutSeconds=5).ok
    result = ask(postgres.port, "postgres", user="scram", database="postgres", timeoutSeconds=5)
    assert result.ok
    assert "asks for a password" in result.detail


def test_postgres_lets_nobody_in_whom_it_does_not_know(postgres: Postgres) -> None:
    result = ask(postgres.port, "postgres", "x", user="stranger", database="postgres", timeoutSeconds=5)
    assert (result.kind, result.permanent) == (AUTH_REFUSED, True)


def test_postgres_without_the_database(postgres: Postgres) -> None:
    result = ask(postgres.port, "postgres", user="open", database="aidb", timeoutSeconds=5)
    assert (result.kind, result.permanent) == (NOT_READY, False)
    assert result.detail == 'database "aidb" does not exist (SQLSTATE 3D000)'


@pytest.mark.parametrize("kind", ["redis", "http"])
def test_postgres_where_another_service_should_be(postgres: Postgres, kind: str) -> None:
    # It takes the question for a startup packet of absurd length, and hangs up.
    assert ask(postgres.port, kind, timeoutSeconds=5).kind == NOT_READY
