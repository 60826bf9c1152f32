"""Runs in the guest: asks the app's published port as its users do, and keeps what it saw in /run/campaign/seen.json.

A question each 50 ms; right is status 200 with `"status": "ready"`. Ends at SIGTERM.
"""

from __future__ import annotations

import json
import os
import socket
import time

PLACE = ("127.0.0.1", 8000)
PAUSE = 0.05  # seconds from one question to the next
PATIENCE = 1.0  # seconds for an answer
SEEN = "/run/campaign/seen.json"


def ask() -> str | None:
    """Return the release that gave a right answer; None if there was none."""
    try:
        with socket.create_connection(PLACE, timeout=PATIENCE) as link:
            link.settimeout(PATIENCE)
            link.sendall(b"GET /ready HTTP/1.0\r\n\r\n")
            answer = b""
            while piece := link.recv(4096):
                answer += piece
        head, _, text = answer.decode().partition("\r\n\r\n")
        found = json.loads(text)
    except (OSError, ValueError):
        return None
    right = " 200 " in head.partition("\r\n")[0] and found.get("status") == "ready"
    return str(found.get("release")) if right else None


def main() -> None:
    """Ask until we are ended; `unavailable` is in seconds, from the last right answer before each gap to the next."""
    answered = since = time.monotonic()
    total, asked, gap, last = 0.0, 0, False, None
    while True:
        began = time.monotonic()
        release = ask()
        now = time.monotonic()
        asked += 1
        if release != last:
            since, last = now, release
        if release is not None:
            total += now - answered if gap else 0.0
            answered, gap = now, False
        else:
            gap = True
        seen = {
            "release": release,
            "for_seconds": now - since,
            "unavailable": total + (now - answered if gap else 0.0),
            "asked": asked,
        }
        with open(f"{SEEN}.new", "w", encoding="utf-8") as file:
            json.dump(seen, file)
        os.replace(f"{SEEN}.new", SEEN)
        time.sleep(max(0.0, began + PAUSE - time.monotonic()))


if __name__ == "__main__":
    main()
