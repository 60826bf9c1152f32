"""A release is good when it stayed ready through its probation, and not before."""

UNIT = unit("app")
PROBATION = 10  # rollback.probationSeconds

# Ready at once; after so many seconds it does something else.
SERVE = """
import os, signal, threading, time
from http.server import BaseHTTPRequestHandler, HTTPServer
began = time.monotonic()
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(status())
        self.end_headers()
    def log_message(self, *_):
        pass
print("the image speaks", flush=True)
"""
DIES = """
status = lambda: 200
threading.Timer(2, os._exit, [4]).start()
"""
SICKENS = """
status = lambda: 200 if time.monotonic() - began < 2 else 500
"""
LISTEN = """
HTTPServer(("", 8000), Handler).serve_forever()
"""

machine.wait_for_unit("multi-user.target")
build_image("localhost/scenario/dies:1", SERVE + DIES + LISTEN)
build_image("localhost/scenario/sickens:1", SERVE + SICKENS + LISTEN)
for number in (1, 2):
    build_copy(f"localhost/scenario/new:{number}")
start_good_stack()
good = current("app")


def condemned(since: str, reason: str) -> None:
    """Wait for the rollback; the newest release is bad for this reason and the good one runs."""
    wait_for_journal(since, "app ROLLED BACK")
    bad = releases("app")[0]
    assert (bad["state"], bad["current"]) == ("bad", False), bad
    assert reason in bad["reason"], bad
    assert current("app")["id"] == good["id"]
    machine.succeed(APP_SERVES, "aistack status")


def moment(value: str) -> float:
    """The Unix time of a time that the command line printed."""
    return float(machine.succeed(f"date --date '{value}' +%s.%N"))


def ready_since() -> float:
    """When the app became ready."""
    return moment(status("app")["since"])


with subtest("a release that gets ready and ends again, three times within its probation, is rolled back"):
    declare_image("localhost/scenario/dies:1")
    since = cursor()
    # It was ready, so the restart itself has worked.
    machine.succeed(f"systemctl restart {UNIT}")
    condemned(since, "was ready and ended again within its probation")
    assert 2 <= journal(since).count("the image speaks") <= 3

with subtest("a release that is not ready at the end of its probation is rolled back"):
    set_timer("aistack-bless@", 4)
    declare_image("localhost/scenario/sickens:1")
    forget_starts("app")
    since = cursor()
    machine.succeed(f"systemctl restart {UNIT}")
    condemned(since, "not ready at the end of its probation")
    assert journal(since).count("the image speaks") == 1
    reset_timer("aistack-bless@")

with subtest("a restart within the probation begins it anew, and a release that survives it is good"):
    declare_image("localhost/scenario/new:1")
    forget_starts("app")
    machine.succeed(f"systemctl restart {UNIT}")
    new = current("app")
    assert new["state"] == "probation", new
    # Into the middle of it.
    stays("app", "active", PROBATION / 3)
    machine.succeed(f"systemctl restart {UNIT}")
    assert (current("app")["id"], current("app")["state"]) == (new["id"], "probation")
    ready = ready_since()
    wait_for_release("app", new["id"], "good")
    seconds = moment(current("app")["changed"]) - ready
    machine.log(f"good {seconds:.1f} s after it was ready")
    assert PROBATION <= seconds + 1 < PROBATION + 20, f"its probation took {seconds:.1f} s"

with subtest("a reboot within the probation begins it anew and loses nothing"):
    kept = {service: release["id"] for service, release in currents().items()}
    declare_image("localhost/scenario/new:2")
    forget_starts("app")
    machine.succeed(f"systemctl restart {UNIT}")
    newer = current("app")
    assert newer["state"] == "probation", newer
    machine.shutdown()
    machine.start()
    machine.wait_for_unit("multi-user.target")
    start_stack()
    assert (current("app")["id"], current("app")["state"]) == (newer["id"], "probation")
    assert {service: release["id"] for service, release in currents().items()} == {**kept, "app": newer["id"]}
    ready = ready_since()
    wait_for_release("app", newer["id"], "good")
    seconds = moment(current("app")["changed"]) - ready
    assert seconds + 1 >= PROBATION, f"its probation took {seconds:.1f} s"
