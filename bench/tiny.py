"""The application of the measurements: it writes down itself when it started and when it began to answer.

NAME: the name in its stamps, /stamps/NAME.started and /stamps/NAME.ready, nanoseconds since 1970. /stamps/delay: the
seconds from its start until it listens. POLL: a `host:port` that it waits for before it starts, as the plan for the
stack's own services has it: try a connection, sleep for two seconds, until it is reachable.
"""

import os
import socket
import sys
import time

PORT = 8000
POLL_SECONDS = 2


def stamp(what: str) -> None:
    """Write down that this happens now."""
    moment = time.time_ns()
    name = f"/stamps/{os.environ['NAME']}.{what}"
    with open(f"{name}.new", "w", encoding="ascii") as file:
        file.write(str(moment))
    os.rename(f"{name}.new", name)


def reachable(address: str) -> bool:
    """Whether somebody takes a connection."""
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), 2).close()
    except OSError:
        return False
    return True


poll = os.environ.get("POLL")
while poll and not reachable(poll):
    time.sleep(POLL_SECONDS)
stamp("started")

import signal  # noqa: E402  (after the stamp, because it is not quick)

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
try:
    with open("/stamps/delay", encoding="ascii") as delay:
        time.sleep(float(delay.read()))
except FileNotFoundError:
    pass
server = socket.create_server(("", PORT), backlog=64)
stamp("ready")
while True:
    client, _ = server.accept()
    client.settimeout(2)
    try:
        client.recv(4096)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
    except OSError:
        pass
    client.close()
