"""Asking a service, in its own protocol, whether it is ready.

One definition of readiness for preflight, for the wait after a start and for health. An answer is a `Result`: ready, or
the layer that failed. Nothing here raises for what a server does; nothing waits longer than the probe's own timeout,
however slowly a server talks, and nothing is kept of an answer beyond `_LARGEST_ANSWER`.

Protocols: PostgreSQL frontend/backend protocol 3.0 with SCRAM-SHA-256 (RFC 5802, RFC 7677), RESP for Redis, HTTP/1.x.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time

from aistack.hooks.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from aistack.hooks.manifest import Manifest, Probe, Service

# What a check can find. `READY` is the only good one.
READY = "ready"
NAME_UNKNOWN = "name unknown"
REFUSED = "refused"
TIMED_OUT = "timed out"
WRONG_PROTOCOL = "wrong protocol"
NOT_READY = "not ready yet"
AUTH_REFUSED = "authentication refused"

# Kinds that waiting does not mend. An unknown name is permanent only if nothing will
# register it (see preflight).
PERMANENT = frozenset({WRONG_PROTOCOL, AUTH_REFUSED})

# Between two tries of whoever waits for an answer.
FIRST_PAUSE = 0.005  # seconds
LAST_PAUSE = 0.25
_LATE = 0.02  # of the time waited so far, that an answer may be seen late

_DNS_TIMEOUT = 1.0  # seconds; aardvark-dns answers in under a millisecond, or is not there
_LARGEST_ANSWER = 65536  # bytes of an answer that are read and searched
_LONGEST_LABEL = 63  # bytes between two dots of a name (RFC 1035, 2.3.4)
_NXDOMAIN = 3  # response code of a name server: there is no such name (RFC 1035, 4.1.1)


def pause(waited: float, took: float) -> float:
    """Seconds until the next try, after `waited` seconds of waiting and a try that took `took`.

    In proportion to what was waited already: that lengthens a start by two hundredths at most, be it of a second
    or of ten. And no less than a try takes, so that a dear one is not made without a break.
    """
    return min(LAST_PAUSE, max(FIRST_PAUSE, waited * _LATE, took))


class Result:
    """What one probe found: `kind` (see above), a sentence, the address tried."""

    __slots__ = ("address", "detail", "kind", "permanent")

    def __init__(self, kind: str, detail: str, address: str = "", *, permanent: bool | None = None) -> None:
        self.kind = kind
        self.detail = printable(detail)
        self.address = address
        self.permanent = kind in PERMANENT if permanent is None else permanent

    @property
    def ok(self) -> bool:
        """Whether the service is ready."""
        return self.kind == READY


class _Failure(Exception):
    """A probe that ended early, with its result."""

    def __init__(self, kind: str, detail: str, *, permanent: bool | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.permanent = permanent


def resolve(name: str, server: str, port: int = 53) -> list[str]:
    """The IPv4 addresses that the stack network's name server has for the service `name`.

    The host's own resolver does not know container names, so aardvark-dns is asked directly, for `<name>.dns.podman`:
    it answers a definite NXDOMAIN there, while it would forward a bare unknown name upstream.

    Returns an empty list for a name it does not know. Raises TimeoutError when no server answers within a second,
    another OSError when there is none or its answer is of no use.
    """
    parts = [part.encode() for part in [*name.split("."), "dns", "podman"]]
    if not all(0 < len(part) <= _LONGEST_LABEL for part in parts):
        return []
    labels = b"".join(bytes([len(part)]) + part for part in parts)
    ident = os.urandom(2)
    question = ident + struct.pack(">HHHHH", 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", 1, 1)
    deadline = time.monotonic() + _DNS_TIMEOUT
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect((server, port))
        udp.send(question)
        answer = b""
        # A packet that belongs to no question of ours (a late answer, a forged one) is no reason to give up.
        while len(answer) < 12 or answer[:2] != ident or not answer[2] & 0x80:
            udp.settimeout(_left(deadline))
            answer = udp.recv(4096)
    code = answer[3] & 0x0F
    if code == _NXDOMAIN:
        return []
    if code != 0:
        raise OSError(errno.EPROTO, f"it answered with error code {code}")
    return _addresses(answer)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _addresses(answer: bytes) -> list[str]:
    count = struct.unpack(">H", answer[6:8])[0]
    found: list[str] = []
    try:
        at = _skip_name(answer, 12) + 4
        for _ in range(count):
            at = _skip_name(answer, at)
            kind, _, _, length = struct.unpack(">HHIH", answer[at : at + 10])
            at += 10
            if kind == 1 and length == 4:
                found.append(".".join(str(byte) for byte in struct.unpack(">4B", answer[at : at + 4])))
            at += length
    except (IndexError, struct.error):
        raise OSError(errno.EPROTO, "its answer is cut off") from None
    return list(dict.fromkeys(found))


def _skip_name(answer: bytes, at: int) -> int:
    while True:
        length = answer[at]
        if length == 0:
            return at + 1
        if length & 0xC0:
            return at + 2
        at += length + 1


def addresses(manifest: Manifest, service: Service) -> tuple[list[str], Result | None]:
    """Where `service` can be reached from the host: its addresses, or the result that says why there is none."""
    if service.external_host is not None:
        return _external_addresses(service.external_host, service.probe.timeout if service.probe else _DNS_TIMEOUT)
    server = manifest.gateway
    try:
        found = resolve(service.name, server)
        if len(found) > 1 and service.container:
            # While a deployment switches, another container has the name too; what is asked about is the unit's own.
            found = resolve(service.container, server) or found
    except TimeoutError:
        return [], Result(TIMED_OUT, f"the network's name server {server}:53 did not answer", f"{server}:53")
    except OSError as error:
        if error.errno == errno.EPROTO:
            why = f"the network's name server {server}:53 is of no use: {error.strerror}"
        else:
            why = f"network {manifest.network} has no name server at {server}:53 ({error.strerror}): "
            why += "no container runs on it"
        return [], Result(NAME_UNKNOWN, why, service.name)
    if not found:
        why = f"{service.name} is not registered on network {manifest.network} (asked {server}:53)"
        return [], Result(NAME_UNKNOWN, why, service.name)
    return found, None


def _external_addresses(host: str, timeout: float) -> tuple[list[str], Result | None]:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return [host], None
    import threading

    answers: list[list[str] | OSError | UnicodeError] = []

    def look() -> None:
        try:
            infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            answers.append(list(dict.fromkeys(str(info[4][0]) for info in infos)))
        except (OSError, UnicodeError) as error:
            answers.append(error)

    # The C library's resolver knows no deadline but its own, which is far longer than a probe's.
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(timeout)
    answer = answers[0] if answers else TimeoutError()
    if isinstance(answer, list):
        return answer, None
    if isinstance(answer, TimeoutError):
        return [], Result(TIMED_OUT, f"this host's resolver did not find {host} within {timeout:g} s", host)
    transient = isinstance(answer, socket.gaierror) and answer.errno == socket.EAI_AGAIN
    said = answer.strerror if isinstance(answer, OSError) else str(answer)
    return [], Result(NAME_UNKNOWN, f"this host cannot resolve {host}: {said}", host, permanent=not transient)


def ask(manifest: Manifest, service: Service, password: str | None) -> Result:
    """Probe `service` once and say what was found. Bounded by the probe's timeout for each address of the name.

    `password` is the value of the probe's secret, or None when the probe names none.
    """
    probe = service.probe
    if probe is None:
        return Result(READY, "has no probe: taken as ready")
    if probe.kind == "exec":
        return _ask_exec(service, probe)
    found, missing = addresses(manifest, service)
    if missing is not None:
        return missing
    port = probe.port or service.external_port or service.port or 0
    result = Result(NAME_UNKNOWN, "no address")
    for address in found:
        result = ask_address(address, port, probe, service.external_host or service.name, password)
        if result.ok:
            break
    return result


def ask_any(manifest: Manifest, service: Service, passwords: list[str | None]) -> Result:
    """Probe `service` with the first of these passwords, and with the next one where that is refused."""
    result = ask(manifest, service, passwords[0])
    for password in passwords[1:]:
        if result.kind != AUTH_REFUSED:
            break
        result = ask(manifest, service, password)
    return result


def ask_address(address: str, port: int, probe: Probe, host: str, password: str | None = None) -> Result:
    """Probe one address once, as `host`. Bounded by the probe's timeout, from connecting to the end of the answer."""
    where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    deadline = time.monotonic() + probe.timeout
    try:
        with _connect(address, port, probe.timeout) as connection:
            link = _Link(connection, deadline)
            if probe.kind == "http":
                detail = _http(link, probe, host)
            elif probe.kind == "postgres":
                detail = _postgres(link, probe, password)
            elif probe.kind == "redis":
                detail = _redis(link, probe, password)
            else:
                detail = _tcp(link, probe)
        return Result(READY, detail, where)
    except _Failure as failure:
        return Result(failure.kind, str(failure), where, permanent=failure.permanent)
    except ConnectionRefusedError:
        return Result(REFUSED, f"nothing listens at {where}", where)
    except TimeoutError:
        return Result(TIMED_OUT, f"no answer from {where} within {probe.timeout:g} s", where)
    except (ConnectionResetError, BrokenPipeError):
        return Result(NOT_READY, f"{where} closed the connection", where)
    except OSError as error:
        kind = TIMED_OUT if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH) else REFUSED
        return Result(kind, f"cannot reach {where}: {error.strerror or error}", where)


def _connect(address: str, port: int, timeout: float) -> socket.socket:
    """Connect to a numeric address; socket.create_connection would load what only names need."""
    connection = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        connection.settimeout(timeout)
        connection.connect((address, port))
    except OSError:
        connection.close()
        raise
    return connection


def _ask_exec(service: Service, probe: Probe) -> Result:
    what = " ".join(probe.command)
    mark = f"AISTACK_PROBE={os.urandom(16).hex()}"
    try:
        code, output = _run(["podman", "exec", "--env", mark, service.container, *probe.command], probe.timeout)
    except TimeoutError:
        _end_marked(mark.encode())
        return Result(TIMED_OUT, f"{what} took more than {probe.timeout:g} s", service.container)
    except OSError as error:
        return Result(NOT_READY, f"cannot run podman: {error.strerror}", service.container)
    said = printable(output.decode(errors="replace"), 200)
    if code != 0:
        return Result(NOT_READY, f"{what} returned {code}: {said}", service.container)
    if probe.expect is not None and probe.expect.encode() not in output:
        return Result(
            NOT_READY, f"{what} succeeded without {probe.expect!r} in what it said: {said}", service.container
        )
    return Result(READY, f"{what} succeeded", service.container)


def _end_marked(mark: bytes) -> None:
    """Kill every process with `mark` in its environment.

    What podman started in the container goes on when podman itself is killed: one more would hang at every check.
    """
    import signal

    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                if mark in file.read().split(b"\0"):
                    os.kill(int(entry), signal.SIGKILL)
        except OSError:
            continue  # it has ended meanwhile


def _run(command: list[str], timeout: float) -> tuple[int, bytes]:
    """Exit code and output of a command that may say more than fits in memory. Raises TimeoutError, OSError."""
    import select
    import subprocess

    deadline = time.monotonic() + timeout
    output = b""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
    ) as process:
        try:
            while process.stdout is not None and select.select([process.stdout], [], [], _left(deadline))[0]:
                data = process.stdout.read(_LARGEST_ANSWER)
                if not data:
                    break
                output = (output + data)[:_LARGEST_ANSWER]
            return process.wait(_left(deadline)), output
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
        finally:
            process.kill()


class _Link:
    """A connection with one deadline for everything that is said on it, and exact reads."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self.connection = connection
        self.deadline = deadline
        self.buffer = b""

    def send(self, data: bytes) -> None:
        self.connection.settimeout(_left(self.deadline))
        self.connection.sendall(data)

    def more(self) -> bool:
        self.connection.settimeout(_left(self.deadline))
        data = self.connection.recv(16384)
        self.buffer += data
        return bool(data)

    def exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            if not self.more():
                raise _closed()
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def line(self) -> bytes:
        while b"\r\n" not in self.buffer and len(self.buffer) < _LARGEST_ANSWER:
            if not self.more():
                raise _closed()
        line, _, self.buffer = self.buffer.partition(b"\r\n")
        return line


def _closed() -> _Failure:
    return _Failure(NOT_READY, "closed the connection before it had answered")


def _not_in(protocol: str, data: bytes) -> _Failure:
    return _Failure(WRONG_PROTOCOL, f"does not speak {protocol}: answered {printable(repr(data[:40]), 80)}")


# --- TCP -------------------------------------------------------------------------------------------------------------


def _tcp(link: _Link, probe: Probe) -> str:
    if probe.expect is None:
        return "accepts connections"
    wanted = probe.expect.encode()
    while wanted not in link.buffer:
        if len(link.buffer) >= _LARGEST_ANSWER or not link.more():
            raise _Failure(NOT_READY, f"said nothing with {probe.expect!r} in it: {_text(link.buffer)}")
    return f"said {probe.expect!r}"


def _text(data: bytes) -> str:
    return printable(data[:200].decode(errors="replace"), 120)


# --- HTTP ------------------------------------------------------------------------------------------------------------


def _http(link: _Link, probe: Probe, host: str) -> str:
    path = probe.path or "/"
    link.send(
        f"GET {path} HTTP/1.0\r\nHost: {host}\r\nUser-Agent: aistack-probe\r\nAccept: */*\r\n"
        "Connection: close\r\n\r\n".encode()
    )
    expect = probe.expect.encode() if probe.expect is not None else None
    try:
        while not _http_suffices(link.buffer, expect) and link.more():
            if not b"HTTP/".startswith(link.buffer[:5]):
                raise _not_in("HTTP", link.buffer)
    except TimeoutError:
        if b"\n" not in link.buffer:
            raise  # else the status is known, and only the rest is slow
    if b"\n" not in link.buffer and len(link.buffer) < _LARGEST_ANSWER:
        raise _closed()
    status, body = _http_status(link.buffer), _http_body(link.buffer)
    said = f": {_text(body)}" if body else ""
    if status == 0:
        raise _not_in("HTTP", link.buffer)
    if status in (401, 403):
        raise _Failure(AUTH_REFUSED, f"GET {path} answered {status}{said}")
    if not 200 <= status < 300:
        raise _Failure(NOT_READY, f"GET {path} answered {status}{said}")
    if expect is not None and expect not in body:
        raise _Failure(NOT_READY, f"GET {path} answered {status} without {probe.expect!r} in it{said}")
    return f"GET {path} answered {status}"


def _http_suffices(answer: bytes, expect: bytes | None) -> bool:
    """Whether the rest of an answer can change nothing any more."""
    if len(answer) >= _LARGEST_ANSWER:
        return True
    if b"\n" not in answer:
        return False
    body = _http_body(answer)
    # Of an error the body is worth waiting for: it often says what is missing.
    if 200 <= _http_status(answer) < 300 and (expect is None or expect in body):
        return True
    head = answer[: len(answer) - len(body)].lower()
    length = head.partition(b"\ncontent-length:")[2].partition(b"\n")[0].strip()
    return length.isdigit() and len(length) < 10 and len(body) >= int(length)


def _http_status(answer: bytes) -> int:
    """The status of an answer, 0 if it has none (RFC 9112, section 4)."""
    words = answer.partition(b"\n")[0].split(None, 2)
    return int(words[1]) if len(words) > 1 and len(words[1]) == 3 and words[1].isdigit() else 0


def _http_body(answer: bytes) -> bytes:
    for blank in (b"\r\n\r\n", b"\n\n"):
        _, found, body = answer.partition(blank)
        if found:
            return body
    return b""


# --- Redis -----------------------------------------------------------------------------------------------------------


def _redis(link: _Link, probe: Probe, password: str | None) -> str:
    def call(*words: str) -> bytes:
        parts = b"".join(b"$%d\r\n%s\r\n" % (len(w.encode()), w.encode()) for w in words)
        link.send(b"*%d\r\n" % len(words) + parts)
        # The first byte tells; another protocol's answer may never come to the end of a line.
        if (link.buffer or link.more()) and link.buffer[:1] not in (b"+", b"-"):
            raise _not_in("Redis", link.buffer)
        return link.line()

    if password is not None:
        answer = call("AUTH", probe.user, password) if probe.user else call("AUTH", password)
        # A server without a password refuses AUTH; it is as ready as one that has it.
        if answer.startswith(b"-") and not answer.startswith(b"-ERR"):
            raise _redis_error(answer)
    answer = call("PING")
    if answer.startswith(b"-"):
        raise _redis_error(answer)
    if answer != b"+PONG":
        raise _not_in("Redis", answer)
    return "answered PONG"


def _redis_error(answer: bytes) -> _Failure:
    said = printable(answer[1:].decode(errors="replace"), 120)
    refused = answer.startswith((b"-NOAUTH", b"-WRONGPASS", b"-NOPERM"))
    return _Failure(AUTH_REFUSED if refused else NOT_READY, f"answered {said}")


# --- PostgreSQL ------------------------------------------------------------------------------------------------------

# SQLSTATE classes (PostgreSQL documentation, appendix A) that mean a wrong password, role or missing right to log in.
_LOGIN_REFUSED = ("28P01", "28000")


def _postgres(link: _Link, probe: Probe, password: str | None) -> str:
    user = probe.user or "postgres"
    pairs = {"user": user, "database": probe.database or user, "application_name": "aistack-probe"}
    body = struct.pack(">I", 196608) + b"".join(f"{k}\0{v}\0".encode() for k, v in pairs.items()) + b"\0"
    link.send(struct.pack(">I", len(body) + 4) + body)
    _postgres_first_byte(link, probe.timeout)
    scram: _Scram | None = None
    while True:
        kind, data = _postgres_message(link)
        if kind == b"E":
            raise _postgres_error(data)
        if kind == b"Z":
            link.send(b"X\0\0\0\4")
            return f"accepted a login of {user}"
        if kind != b"R":
            continue
        if len(data) < 4:
            raise _not_in("PostgreSQL", kind + data)
        method = struct.unpack(">I", data[:4])[0]
        if method == 0:
            if scram is not None and not scram.verified:
                raise _unproven()
            continue
        if password is None and method in (3, 5, 10):
            return "accepts logins (asks for a password, and the probe names none)"
        if method == 10:
            if b"SCRAM-SHA-256" not in data[4:].split(b"\0"):
                raise _Failure(AUTH_REFUSED, "offers no login method this probe knows (SCRAM-SHA-256)")
            scram = _Scram(password or "")
            first = scram.first()
            _postgres_send(link, b"SCRAM-SHA-256\0" + struct.pack(">I", len(first)) + first)
        elif method == 11 and scram is not None:
            _postgres_send(link, scram.final(data[4:]))
        elif method == 12 and scram is not None:
            scram.verify(data[4:])
        elif method == 3:
            _postgres_send(link, (password or "").encode() + b"\0")
        elif method == 5:
            _postgres_send(link, _md5(user, password or "", data[4:8]) + b"\0")
        else:
            raise _Failure(AUTH_REFUSED, f"asks for login method {method}, which this probe does not know")


def _postgres_first_byte(link: _Link, timeout: float) -> None:
    """Wait until the server answers. Raises TimeoutError.

    A server of HTTP waits for the end of a line, which PostgreSQL's greeting does not have. When nearly all of the time
    is over it gets one, and gives itself away; for PostgreSQL it is too late by then whatever it is sent.
    """
    end = link.deadline
    link.deadline = end - min(0.25, timeout / 4)
    try:
        link.more()
    except TimeoutError:
        link.deadline = end
        link.send(b"\r\n\r\n")
        link.more()
    finally:
        link.deadline = end


def _postgres_message(link: _Link) -> tuple[bytes, bytes]:
    kind = link.exactly(1)
    if kind not in b"RESKZN":
        raise _not_in("PostgreSQL", kind + link.buffer)
    length = struct.unpack(">I", link.exactly(4))[0]
    if not 4 <= length <= _LARGEST_ANSWER:
        raise _not_in("PostgreSQL", kind + struct.pack(">I", length) + link.buffer)
    return kind, link.exactly(length - 4)


def _postgres_send(link: _Link, data: bytes) -> None:
    link.send(b"p" + struct.pack(">I", len(data) + 4) + data)


def _postgres_error(data: bytes) -> _Failure:
    fields = {part[:1]: part[1:].decode(errors="replace") for part in data.split(b"\0") if part}
    code, said = printable(fields.get(b"C", ""), 20), printable(fields.get(b"M", ""), 160)
    kind = AUTH_REFUSED if code in _LOGIN_REFUSED else NOT_READY
    return _Failure(kind, f"{said} (SQLSTATE {code})")


def scram_password(password: str) -> bytes:
    """A password as SCRAM salts it."""
    if not password.isascii():
        from unicodedata import normalize

        # What SASLprep (RFC 4013) does to every letter somebody may have typed in a password.
        password = normalize("NFKC", password)
    return password.encode()


def _md5(user: str, password: str, salt: bytes) -> bytes:
    from hashlib import md5

    inner = md5((password + user).encode(), usedforsecurity=False).hexdigest()
    return b"md5" + md5(inner.encode() + salt, usedforsecurity=False).hexdigest().encode()


class _Scram:
    """The client's side of SCRAM-SHA-256 without channel binding (RFC 7677). PostgreSQL ignores the user name in it."""

    def __init__(self, password: str) -> None:
        from binascii import b2a_base64

        self.password = scram_password(password)
        self.verified = False
        self.nonce = b2a_base64(os.urandom(18), newline=False)
        self.bare = b"n=,r=" + self.nonce
        self.signature = b""

    def first(self) -> bytes:
        return b"n,," + self.bare

    def final(self, server: bytes) -> bytes:
        import hashlib
        import hmac
        from binascii import a2b_base64, b2a_base64

        try:
            fields = dict(part.split(b"=", 1) for part in server.split(b","))
            nonce, salt, rounds = fields[b"r"], a2b_base64(fields[b"s"]), int(fields[b"i"])
        except (KeyError, ValueError):
            raise _not_in("PostgreSQL", server) from None
        if not nonce.startswith(self.nonce):
            raise _not_in("PostgreSQL", server)
        if not 1 <= rounds <= 1_000_000:
            raise _Failure(AUTH_REFUSED, f"asks for {rounds} SCRAM rounds; this probe does at most a million")
        salted = hashlib.pbkdf2_hmac("sha256", self.password, salt, rounds)
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        without_proof = b"c=biws,r=" + nonce
        message = self.bare + b"," + server + b"," + without_proof
        proof = hmac.digest(hashlib.sha256(client_key).digest(), message, "sha256")
        sealed = bytes(a ^ b for a, b in zip(client_key, proof, strict=True))
        self.signature = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), message, "sha256")
        return without_proof + b",p=" + b2a_base64(sealed, newline=False)

    def verify(self, server: bytes) -> None:
        import hmac
        from binascii import a2b_base64

        try:
            signature = a2b_base64(server.partition(b"v=")[2])
        except ValueError:
            raise _not_in("PostgreSQL", server) from None
        if not hmac.compare_digest(signature, self.signature):
            raise _unproven()
        self.verified = True


def _unproven() -> _Failure:
    return _Failure(AUTH_REFUSED, "could not prove that it knows the password: another server on this address?")
