"""Servers on the loopback that do what a test tells them: what a probe can meet, without the real programs."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from typing import Self

Handler = Callable[[socket.socket], None]


class Tcp:
    """Listens on a loopback port and hands every connection to `handler`, in a thread of its own."""

    def __init__(self, handler: Handler, address: str = "127.0.0.1", port: int = 0) -> None:
        """Listen at once, so that `port` is known and answers."""
        self.handler = handler
        self.connections = 0
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = socket.create_server((address, port), family=family)
        self.port: int = self._socket.getsockname()[1]
        self._end, self._ended = os.pipe()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while self._end not in select.select([self._socket.fileno(), self._end], [], [])[0]:
            link, _ = self._socket.accept()
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(link,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, link: socket.socket) -> None:
        # The client may go away at any time: that is what the test is about, not an error of the server.
        with link, contextlib.suppress(OSError):
            self.handler(link)

    def __enter__(self) -> Self:
        """Return itself: it listens already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Refuse connections from now on, and wait until every handler has returned."""
        os.write(self._ended, b"x")
        for thread in self._threads:
            thread.join(10)
        self._socket.close()
        os.close(self._end)
        os.close(self._ended)


def says(*answers: bytes) -> Handler:
    """Give one answer for each thing the client sends, and close properly when they are used up."""

    def handler(link: socket.socket) -> None:
        link.settimeout(10)
        for answer in answers:
            link.recv(65536)
            link.sendall(answer)
        link.shutdown(socket.SHUT_WR)
        while link.recv(65536):
            pass

    return handler


def greets(data: bytes) -> Handler:
    """Talk first, then wait for the client to go."""

    def handler(link: socket.socket) -> None:
        link.sendall(data)
        silent(link)

    return handler


def silent(link: socket.socket) -> None:
    """Accept, and say nothing until the client goes."""
    link.settimeout(10)
    while link.recv(65536):
        pass


def resets(link: socket.socket) -> None:
    """Break the connection off, as a process does that is killed."""
    link.recv(65536)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def drips(start: bytes, rest: bytes = b"x", every: float = 0.05) -> Handler:
    """Say `start`, then one byte of `rest` at a time, for as long as the client listens."""

    def handler(link: socket.socket) -> None:
        link.sendall(start)
        for number in range(200):
            if select.select([link], [], [], every)[0] and not link.recv(65536):
                return
            link.sendall(rest[number % len(rest) :][:1])

    return handler


def floods(start: bytes, block: bytes = b"x" * 65536) -> Handler:
    """Say `start`, then send as fast as the client reads, without an end."""

    def handler(link: socket.socket) -> None:
        link.settimeout(10)
        link.sendall(start)
        while True:
            link.sendall(block)

    return handler


def own_address() -> str:
    """Return a loopback address that no other process takes for itself: port 53 has to be the very port 53."""
    rest, last = divmod(os.getpid(), 254)
    return f"127.{64 + rest // 256 % 64}.{rest % 256}.{last + 1}"


class Dns:
    """A name server on UDP that answers each question with the packets `answer` makes of it."""

    def __init__(self, answer: Callable[[bytes], list[bytes]], address: str = "127.0.0.1", port: int = 0) -> None:
        """Listen at once. Raises PermissionError for port 53 without the right to it."""
        self.answer = answer
        self.questions: list[bytes] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.bind((address, port))
        except OSError:
            self._socket.close()
            raise
        self.address = address
        self.port: int = self._socket.getsockname()[1]
        self._end, self._ended = os.pipe()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while self._end not in select.select([self._socket.fileno(), self._end], [], [])[0]:
            question, client = self._socket.recvfrom(4096)
            self.questions.append(question)
            for packet in self.answer(question):
                self._socket.sendto(packet, client)

    def __enter__(self) -> Self:
        """Return itself: it listens already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        os.write(self._ended, b"x")
        self._thread.join(10)
        self._socket.close()
        os.close(self._end)
        os.close(self._ended)


def name(text: str) -> bytes:
    """Return a name as it stands in a DNS packet (RFC 1035, 3.1)."""
    return b"".join(bytes([len(part)]) + part.encode() for part in text.split(".")) + b"\0"


def record(data: bytes, kind: int = 1, owner: bytes = b"\xc0\x0c") -> bytes:
    """Return a resource record; its owner is a pointer to the question unless said otherwise."""
    return owner + struct.pack(">HHIH", kind, 1, 0, len(data)) + data


def reply(question: bytes, *records: bytes, code: int = 0, ident: bytes | None = None, flags: int = 0x8180) -> bytes:
    """Return an answer to a question."""
    head = (question[:2] if ident is None else ident) + struct.pack(">HHHHH", flags | code, 1, len(records), 0, 0)
    return head + question[12:] + b"".join(records)


def asked(question: bytes) -> str:
    """Return the name a question asks for."""
    at, parts = 12, []
    while question[at]:
        parts.append(question[at + 1 : at + 1 + question[at]].decode())
        at += question[at] + 1
    return ".".join(parts)


def zone(**names: str | list[str]) -> Callable[[bytes], list[bytes]]:
    """Answer as aardvark-dns does for these containers and their addresses: NXDOMAIN for every other name.

    An underscore stands for the dash of a name.
    """

    def answer(question: bytes) -> list[bytes]:
        label = asked(question).removesuffix(".dns.podman").replace("-", "_")
        if label not in names:
            return [reply(question, code=3)]
        addresses = names[label]
        listed = [addresses] if isinstance(addresses, str) else addresses
        return [reply(question, *(record(socket.inet_aton(one)) for one in listed))]

    return answer
