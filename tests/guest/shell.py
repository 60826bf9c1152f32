"""`make shell`: a shell or one command in the demo's guest; exits with the command's code."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from guest.demo import NAME
from guest.guest import Guest


def main() -> NoReturn:
    """Become a shell in the guest; the command comes as arguments or in AISTACK_CMD.

    AISTACK_GUEST names another guest, such as one that a scenario was told to keep.
    """
    command = " ".join(sys.argv[1:]) or os.environ.get("AISTACK_CMD", "")
    guest = Guest(os.environ.get("AISTACK_GUEST", NAME))
    if not guest.running:
        print(f"shell: the guest {guest.name} is not running\n  next: make demo", file=sys.stderr)
        sys.exit(2)
    inside = ["bash", "-c", command] if command else ["bash", "-c", "cd && exec bash --login"]
    terminal = {"TERM": os.environ.get("TERM", "dumb"), "AISTACK_GUEST": guest.name}
    outside = guest.enter(inside, environment=terminal)
    os.execvp(outside[0], outside)


if __name__ == "__main__":
    main()
