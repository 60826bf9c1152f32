"""Asking a service, in its own protocol, whether it is ready.

One definition of readiness for preflight, for the wait after a start and for health. An answer is a `Result`: ready, or
the layer that failed. Nothing here raises for what a server does; nothing waits longer than the probe's own timeout.

Protocols: PostgreSQL frontend/backend protocol 3.0 with SCRAM-SHA-256 (RFC 5802, RFC 7677), RESP for Redis, HTTP/1.x.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

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

_DNS_TIMEOUT = 1.0  # seconds; aardvark-dns answers in under a millisecond, or is not there
_LARGEST_ANSWER = 65536  # bytes of an HTTP answer that are read and searched


class Result:
    """What one probe found: `kind` (see above), a sentence, the address tried."""

    __slots__ = ("address", "detail", "kind", "permanent")

    def __init__(self, kind: str, detail: str, address: str = "", *, permanent: bool | None = None) -> None:
        self.kind = kind
        self.detail = detail
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

    Returns an empty list for a name it does not know. Raises OSError when no server answers within a second.
    """
    labels = b"".join(bytes([len(part)]) + part.encode() for part in [*name.split("."), "dns", "podman"])
    ident = os.urandom(2)
    question = ident + struct.pack(">HHHHH", 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(_DNS_TIMEOUT)
        udp.connect((server, port))
        udp.send(question)
        answer = udp.recv(4096)
    if answer[:2] != ident or len(answer) < 12:
        raise OSError(errno.EPROTO, "an answer that does not belong to the question")
    return _addresses(answer)


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
                found.append(socket.inet_ntoa(answer[at : at + 4]))
            at += length
    except (IndexError, struct.error):
        raise OSError(errno.EPROTO, "a cut-off answer") from None
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
        return _external_addresses(service.external_host)
    server = manifest.gateway
    try:
        found = resolve(service.name, server)
    except TimeoutError:
        return [], Result(TIMED_OUT, f"the network's name server {server}:53 did not answer", f"{server}:53")
    except OSError as error:
        why = (
            f"network {manifest.network} has no name server at {server}:53 ({error.strerror}): no container runs on it"
        )
        return [], Result(NAME_UNKNOWN, why, service.name)
    if not found:
        why = f"{service.name} is not registered on network {manifest.network} (asked {server}:53)"
        return [], Result(NAME_UNKNOWN, why, service.name)
    return found, None


def _external_addresses(host: str) -> tuple[list[str], Result | None]:
    try:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        transient = error.errno == socket.EAI_AGAIN
        why = f"this host cannot resolve {host}: {error.strerror}"
        return [], Result(NAME_UNKNOWN, why, host, permanent=not transient)
    except (OSError, UnicodeError) as error:
        return [], Result(NAME_UNKNOWN, f"this host cannot resolve {host}: {error}", host, permanent=True)
    return list(dict.fromkeys(str(info[4][0]) for info in infos)), None


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
        result = ask_address(address, port, probe, service.name, password)
        if result.ok:
            break
    return result


def ask_address(address: str, port: int, probe: Probe, name: str, password: str | None = None) -> Result:
    """Probe one address once. Bounded by the probe's timeout for each send and receive."""
    where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    try:
        with socket.create_connection((address, port), probe.timeout) as link:
            link.settimeout(probe.timeout)
            if probe.kind == "http":
                detail = _http(link, probe, name)
            elif probe.kind == "postgres":
                detail = _postgres(link, probe, password)
            elif probe.kind == "redis":
                detail = _redis(link, password)
            else:
                detail = "accepts connections"
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


def _ask_exec(service: Service, probe: Probe) -> Result:
    import subprocess

    command = ["podman", "exec", service.container, *probe.command]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=probe.timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Result(TIMED_OUT, f"{' '.join(probe.command)} took more than {probe.timeout:g} s", service.container)
    except OSError as error:
        return Result(NOT_READY, f"cannot run podman: {error.strerror}", service.container)
    if done.returncode == 0:
        return Result(READY, f"{' '.join(probe.command)} succeeded", service.container)
    said = printable(done.stdout.decode(errors="replace"), 200)
    return Result(NOT_READY, f"{' '.join(probe.command)} returned {done.returncode}: {said}", service.container)


class _Reader:
    """Exact reads from a socket, with what a closed connection means said once."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.buffer = b""

    def more(self) -> bool:
        data = self.link.recv(4096)
        self.buffer += data
        return bool(data)

    def exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            if not self.more():
                raise _Failure(NOT_READY, "closed the connection before it had answered")
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def line(self) -> bytes:
        while b"\r\n" not in self.buffer and len(self.buffer) < 4096:
            if not self.more():
                raise _Failure(NOT_READY, "closed the connection before it had answered")
        line, _, self.buffer = self.buffer.partition(b"\r\n")
        return line


def _not_in(protocol: str, data: bytes) -> _Failure:
    return _Failure(WRONG_PROTOCOL, f"does not speak {protocol}: answered {printable(repr(data[:40]), 80)}")


# --- HTTP ------------------------------------------------------------------------------------------------------------


def _http(link: socket.socket, probe: Probe, name: str) -> str:
    path = probe.path or "/"
    request = (
        f"GET {path} HTTP/1.0\r\nHost: {name}\r\nUser-Agent: aistack-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    )
    link.sendall(request.encode())
    answer = b""
    while len(answer) < _LARGEST_ANSWER:
        data = link.recv(16384)
        if not data:
            break
        answer += data
        if answer[:5] != b"HTTP/"[: len(answer[:5])]:
            raise _not_in("HTTP", answer)
        if probe.expect is None and b"\r\n" in answer:
            break
    if not answer:
        raise _Failure(NOT_READY, "closed the connection before it had answered")
    words = answer.split(b"\r\n", 1)[0].split(None, 2)
    if len(words) < 2 or not words[1].isdigit():
        raise _not_in("HTTP", answer)
    status = int(words[1])
    body = answer.partition(b"\r\n\r\n")[2]
    if status in (401, 403):
        raise _Failure(AUTH_REFUSED, f"GET {path} answered {status}")
    if not 200 <= status < 400:
        said = printable(body[:200].decode(errors="replace"), 120)
        raise _Failure(NOT_READY, f"GET {path} answered {status}{': ' + said if said else ''}")
    if probe.expect is not None and probe.expect.encode() not in body:
        said = printable(body[:200].decode(errors="replace"), 120)
        raise _Failure(NOT_READY, f"GET {path} answered {status} without {probe.expect!r} in it: {said}")
    return f"GET {path} answered {status}"


# --- Redis -----------------------------------------------------------------------------------------------------------


def _redis(link: socket.socket, password: str | None) -> str:
    reader = _Reader(link)

    def call(*words: str) -> bytes:
        parts = b"".join(b"$%d\r\n%s\r\n" % (len(w.encode()), w.encode()) for w in words)
        link.sendall(b"*%d\r\n" % len(words) + parts)
        answer = reader.line()
        if answer[:1] not in (b"+", b"-"):
            raise _not_in("Redis", answer)
        return answer

    if password is not None:
        answer = call("AUTH", password)
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


def _postgres(link: socket.socket, probe: Probe, password: str | None) -> str:
    reader = _Reader(link)
    user = probe.user or "postgres"
    pairs = {"user": user, "database": probe.database or user, "application_name": "aistack-probe"}
    body = struct.pack(">I", 196608) + b"".join(f"{k}\0{v}\0".encode() for k, v in pairs.items()) + b"\0"
    link.sendall(struct.pack(">I", len(body) + 4) + body)
    scram: _Scram | None = None
    while True:
        kind, data = _postgres_message(reader)
        if kind == b"E":
            raise _postgres_error(data)
        if kind == b"Z":
            link.sendall(b"X\0\0\0\4")
            return f"accepted a login of {user}"
        if kind != b"R":
            continue
        method = struct.unpack(">I", data[:4])[0]
        if method == 0:
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


def _postgres_message(reader: _Reader) -> tuple[bytes, bytes]:
    kind = reader.exactly(1)
    if kind not in b"RESKZN":
        raise _not_in("PostgreSQL", kind + reader.buffer)
    length = struct.unpack(">I", reader.exactly(4))[0]
    if not 4 <= length <= 65536:
        raise _not_in("PostgreSQL", kind + reader.buffer)
    return kind, reader.exactly(length - 4)


def _postgres_send(link: socket.socket, data: bytes) -> None:
    link.sendall(b"p" + struct.pack(">I", len(data) + 4) + data)


def _postgres_error(data: bytes) -> _Failure:
    fields = {part[:1]: part[1:].decode(errors="replace") for part in data.split(b"\0") if part}
    code, said = fields.get(b"C", ""), printable(fields.get(b"M", ""), 160)
    kind = AUTH_REFUSED if code in _LOGIN_REFUSED else NOT_READY
    return _Failure(kind, f"{said} (SQLSTATE {code})")


def _md5(user: str, password: str, salt: bytes) -> bytes:
    from hashlib import md5

    inner = md5((password + user).encode(), usedforsecurity=False).hexdigest()
    return b"md5" + md5(inner.encode() + salt, usedforsecurity=False).hexdigest().encode()


class _Scram:
    """The client's side of SCRAM-SHA-256 without channel binding (RFC 7677). PostgreSQL ignores the user name in it."""

    def __init__(self, password: str) -> None:
        from binascii import b2a_base64

        self.password = password.encode()
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

        if not hmac.compare_digest(a2b_base64(server.partition(b"v=")[2]), self.signature):
            raise _Failure(AUTH_REFUSED, "could not prove that it knows the password: another server on this address?")
