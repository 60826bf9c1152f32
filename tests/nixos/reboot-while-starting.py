"""The machine goes down while services start: afterwards the same releases run, none is given up."""

UNIT = unit("app")

# Ready only after a while, so that a start can be met in the middle.
SLOW = """
import os, signal, time
from http.server import BaseHTTPRequestHandler, HTTPServer
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
time.sleep(4)
HTTPServer(("", 8000), Handler).serve_forever()
"""


def fate() -> list[tuple[str, int, bool]]:
    """Every release of every service, and whether it is the one that runs."""
    return [(release["service"], release["id"], release["current"]) for release in releases()]


def in_the_middle(service: str) -> None:
    """Wait until a service's container runs and is not ready yet."""
    command = f"systemctl show --property SubState --value {unit(service)}"
    machine.wait_until_succeeds(f'test "$({command})" = start-post', timeout=60)


def boot() -> None:
    """Boot, and have the whole stack up: what has begun before runs, and nothing was held against it."""
    machine.start()
    machine.wait_for_unit("multi-user.target")
    start_stack()
    machine.succeed("aistack status")
    said = machine.succeed("journalctl --output cat --no-pager")
    assert "ROLLED BACK" not in said, said[-4000:]
    assert " is DOWN" not in said, said[-4000:]


machine.wait_for_unit("multi-user.target")
build_image("localhost/scenario/slow:1", SLOW)
start_good_stack()

with subtest("shut down while a new release starts: it is started again, as itself"):
    declare_image("localhost/scenario/slow:1")
    machine.succeed(f"systemctl restart --no-block {UNIT}")
    in_the_middle("app")
    new = current("app")
    assert new["state"] == "staged", new
    before = fate()
    machine.shutdown()
    boot()
    assert fate() == before, f"{before} became {fate()}"
    # Unless its probation is over already, on a slow machine.
    assert current("app")["state"] in ("probation", "good"), current("app")

with subtest("the plug pulled while a release in its probation starts: the same"):
    machine.succeed(f"systemctl restart --no-block {UNIT}")
    in_the_middle("app")
    machine.crash()
    boot()
    assert fate() == before, f"{before} became {fate()}"
    wait_for_release("app", new["id"], "good")

with subtest("the plug pulled while good releases start, all of them"):
    stop_stack()
    machine.succeed("systemctl start --no-block aistack.target")
    wait_for_state("postgres", "activating")
    machine.crash()
    boot()
    assert fate() == before, f"{before} became {fate()}"
    assert {release["state"] for release in currents().values()} == {"good"}
