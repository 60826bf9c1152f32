"""`make stop`: power the demo's guest off; with --all, remove every guest."""

from __future__ import annotations

import argparse
import sys
import time

from guest import paths
from guest.deadline import Deadline
from guest.demo import NAME
from guest.errors import GuestError
from guest.guest import Guest, known
from guest.log import Log
from guest.machine import Machine

TIME_LIMIT = 120.0


def main() -> int:
    """Stop the guest in an orderly way; one that does not end is killed."""
    parser = argparse.ArgumentParser(prog="make stop", description=__doc__)
    parser.add_argument("--all", action="store_true", help="kill and remove every guest")
    options = parser.parse_args()
    try:
        if options.all:
            for guest in known():
                guest.destroy()
            return 0
        return _stop(Guest(NAME))
    except GuestError as error:
        print(f"stop: {error}", file=sys.stderr)
        return 1


def _stop(guest: Guest) -> int:
    if not guest.running:
        print("the demo's guest is not running")
        return 0
    started = time.monotonic()
    log = Log(paths.logs() / "stop.log")
    try:
        Machine(guest, log, Deadline(TIME_LIMIT), NAME).shutdown()
    except GuestError as error:
        print(f"it did not power off by itself, so the plug is pulled: {error.what}")
        guest.kill()
    finally:
        log.close()
    print(f"the demo's guest is off ({time.monotonic() - started:.1f} s); `make demo` starts it again")
    return 0


if __name__ == "__main__":
    sys.exit(main())
