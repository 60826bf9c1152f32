"""What somebody stops stays stopped: no rollback, no retry, nothing else is touched, and a start works again."""

UNIT = unit("app")
RETRY = 4  # seconds until a failed service is tried again
BLESS = 3  # seconds of probation
LONGER = 5  # than either: for so long nothing may happen, which cannot be waited for otherwise

# Answers SIGTERM with exit code 1, as many programs do.
SULKS = """
import os, signal
from http.server import BaseHTTPRequestHandler, HTTPServer
signal.signal(signal.SIGTERM, lambda *_: os._exit(1))
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
HTTPServer(("", 8000), Handler).serve_forever()
"""

machine.wait_for_unit("multi-user.target")
build_copy("localhost/scenario/new:1")
build_image("localhost/scenario/sulks:1", SULKS)
start_good_stack()
set_timer("aistack-retry@", RETRY)
set_timer("aistack-bless@", BLESS)
begin = [(release["service"], release["id"], release["state"]) for release in releases()]


def nothing_follows(since: str, *stopped: str, state: str = "inactive") -> None:
    """The stopped services stay so for longer than any timer takes; no timer runs, nothing was rolled back."""
    for service in stopped:
        wait_for_state(service, state)
    end = time.monotonic() + LONGER
    while time.monotonic() < end:
        for service in stopped:
            assert (found := active_state(service)) == state, f"{service} is {found}, it should stay {state}"
        time.sleep(0.2)
    said = journal(since)
    assert "ROLLED BACK" not in said, said
    assert "Started aistack-retry@" not in said, said
    timers = machine.succeed("systemctl list-timers --no-legend 'aistack-retry@*' 'aistack-bless@*'")
    assert timers == "", timers


with subtest("stopping a service leaves all others as they are, those that depend on it too"):
    since = cursor()
    for number, service in enumerate(SERVICES):
        others = {other: invocation(other) for other in SERVICES[number + 1 :]}
        machine.succeed(f"systemctl stop {unit(service)}")
        assert active_state(service) == "inactive", f"{service} is {active_state(service)}"
        for other, before in others.items():
            assert (active_state(other), invocation(other)) == ("active", before), f"{service} took {other} along"
    assert "Triggering OnFailure" not in journal(since)

with subtest("all of them stay stopped, and start again"):
    nothing_follows(since, *SERVICES)
    start_stack()
    machine.succeed(APP_SERVES, "aistack status")

with subtest("stopping the target stops all of them, and starting it starts them"):
    since = cursor()
    stop_stack()
    for service in SERVICES:
        assert active_state(service) == "inactive", f"{service} is {active_state(service)}"
    assert "Triggering OnFailure" not in journal(since)
    start_stack()
    machine.succeed(APP_SERVES, "aistack status")
    assert [(release["service"], release["id"], release["state"]) for release in releases()] == begin

with subtest("a release that is stopped in its probation is not judged"):
    declare_image("localhost/scenario/new:1")
    forget_starts("app")
    machine.succeed(f"systemctl restart {UNIT}")
    new = current("app")
    assert new["state"] == "probation", new
    since = cursor()
    machine.succeed(f"systemctl stop {UNIT}")
    assert "Triggering OnFailure" not in journal(since)
    nothing_follows(since, "app")
    assert (current("app")["id"], current("app")["state"]) == (new["id"], "probation")
    machine.succeed(f"systemctl start {UNIT}")
    wait_for_release("app", new["id"], "good")

with subtest("nor one that answers the stop with an error"):
    declare_image("localhost/scenario/sulks:1")
    forget_starts("app")
    machine.succeed(f"systemctl restart {UNIT}")
    sulks = current("app")
    assert sulks["state"] == "probation", sulks
    since = cursor()
    machine.succeed(f"systemctl stop {UNIT}")
    wait_for_journal(since, "app was stopped, and did not end well")
    nothing_follows(since, "app")
    assert (current("app")["id"], current("app")["state"]) == (sulks["id"], "probation")

with subtest("nor one that is restarted by hand more often than the start limit allows"):
    since = cursor()
    refused = any(machine.execute(f"systemctl restart {UNIT}")[0] != 0 for _ in range(6))
    machine.log(f"one of the restarts was refused: {refused}")
    wait_for_state("app", "active")
    assert "ROLLED BACK" not in journal(since)
    found = current("app")
    assert (found["id"], found["state"]) in [(sulks["id"], "probation"), (sulks["id"], "good")], found
    machine.succeed("aistack status")
    since = cursor()
    machine.succeed(f"systemctl stop {UNIT}")
    wait_for_journal(since, "app was stopped, and did not end well")
    wait_for_state("app", "inactive")

with subtest("what is stopped while it waits for its retry is not started by that, nor by the dependency's return"):
    hold_down("redis")
    machine.fail(f"systemctl start {UNIT}")
    machine.wait_until_succeeds("systemctl is-active aistack-retry@app.timer", timeout=60)
    since = cursor()
    machine.succeed(f"systemctl stop {UNIT}")
    assert machine.execute("systemctl is-active aistack-retry@app.timer")[0] != 0
    let_up("redis")
    # systemd leaves a failed unit failed when it is stopped.
    nothing_follows(since, "app", state="failed")
    assert active_state("redis") == "active"

with subtest("and starts again by hand"):
    forget_starts("app")
    machine.succeed(f"systemctl start {UNIT}", "aistack status")
    assert current("app")["id"] == sulks["id"]
