"""`make shell`: a shell or one command in the demo's guest; exits with the command's code."""

from __future__ import annotations

import os
import sys

from guest.demo import NAME
from guest.errors import GuestError
from guest.guest import Guest


def main() -> int:
    """Become a shell in the guest; the command comes as arguments or in AISTACK_CMD."""
    command = " ".join(sys.argv[1:]) or os.environ.get("AISTACK_CMD", "")
    guest = Guest(NAME)
    try:
        if not guest.running:
            raise GuestError("the demo's guest is not running", next_step="make demo")
        inside = ["bash", "-c", command] if command else ["bash", "--login"]
        terminal = {"TERM": os.environ.get("TERM", "dumb"), "AISTACK_GUEST": NAME}
        outside = guest.enter(inside, environment=terminal)
    except GuestError as error:
        print(f"shell: {error}", file=sys.stderr)
        return 2
    os.execvp(outside[0], outside)


if __name__ == "__main__":
    sys.exit(main())
