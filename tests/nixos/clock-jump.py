"""The wall clock jumps by days, both ways: nothing is blessed early, rolled back, forgotten or of a negative age.

The stack's own programs alone see the jump: `let_clock_jump`.
"""

import re

UNIT = unit("app")
TICK = "systemctl start aistack-health-30.service"
DAY = 86400

# What the app answers at /ready is set from outside.
SERVE = """
import os, signal
from http.server import BaseHTTPRequestHandler, HTTPServer
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
mode = "200"
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        global mode
        if self.path.startswith("/set/"):
            mode = self.path.removeprefix("/set/")
        self.send_response(int(mode) if self.path == "/ready" else 200)
        self.end_headers()
    def log_message(self, *_):
        pass
HTTPServer(("", 8000), Handler).serve_forever()
"""
BROKEN = "import sys; print('broken', file=sys.stderr, flush=True); sys.exit(3)"


def answer(mode: str) -> None:
    """Let the app answer so from now on."""
    machine.succeed(f"curl --fail --silent --max-time 5 http://127.0.0.1:8000/set/{mode}")


def tick(times: int = 1) -> None:
    """Let the health timer's moment come, so many times."""
    for _ in range(times):
        machine.succeed(TICK)


def health() -> dict[str, Any]:
    """The record of the app's health."""
    found = json.loads(machine.succeed("cat /run/aistack/app/health.json"))
    assert isinstance(found, dict)
    return found


def check_ages() -> None:
    """No age and no duration that is shown is negative, or longer than this scenario."""
    _, out = machine.execute("aistack status --json")
    for found in json.loads(out)["services"]:
        # None while it is being restarted.
        assert found["start_seconds"] is None or 0 <= found["start_seconds"] < 600, found
        record = found["health"]
        assert record is None or 0 <= record["seconds_ago"] < 600, found
    shown = machine.execute("aistack status; aistack health; aistack releases")[1]
    assert not re.search(r"(^|\s)-[0-9]", shown), shown


machine.wait_for_unit("multi-user.target")
let_clock_jump()
build_image("localhost/scenario/clock:1", SERVE)
build_copy("localhost/scenario/clock:2", "localhost/scenario/clock:1")
build_image("localhost/scenario/broken:1", BROKEN)
declare_image("localhost/scenario/clock:1")
jump(3)
start_good_stack()
good = current("app")
assert time.time() + 2 * DAY < verdict("app")["readyAt"] < time.time() + 4 * DAY, "the clock did not jump"
beside = {service: invocation(service) for service in SERVICES if service != "app"}

for days, image in ((30, 2), (-30, 1)):
    with subtest(f"a probation in which the clock jumps to {days} days: not blessed before its time, not rolled back"):
        set_timer("aistack-bless@", 600)
        machine.succeed(f"podman tag localhost/scenario/clock:{image} {APP_IMAGE}")
        if image == 1:
            # Seen before, and good: another one is needed.
            build_copy("localhost/scenario/clock:3", "localhost/scenario/clock:1")
            declare_image("localhost/scenario/clock:3")
        forget_starts("app")
        machine.succeed(f"systemctl restart {UNIT}")
        new = current("app")
        assert (new["id"] != good["id"], new["state"]) == (True, "probation"), new
        since = cursor()
        jump(days)
        tick(4)
        check_ages()
        assert current("app") == new
        assert "app" not in journal(since, "--unit 'aistack-bless@*' --unit 'aistack-rollback@*'")
        set_timer("aistack-bless@", 1)
        machine.succeed("systemctl restart aistack-bless@app.timer")
        wait_for_release("app", new["id"], "good")
        assert "ROLLED BACK" not in journal(since)

with subtest("aistack releases says which were created in the future, as it is now"):
    shown = machine.succeed("aistack releases app 2>&1")
    assert f"the clock was set back: created in the future, as it is now: release {new['id']}" in shown, shown

with subtest("a rollback in which it jumps goes to the release that ran last, whatever their times say"):
    declare_image("localhost/scenario/broken:1")
    forget_starts("app")
    since = cursor()
    machine.succeed(f"systemctl restart --no-block {UNIT}")
    jump(60)
    wait_for_journal(since, "app ROLLED BACK")
    machine.wait_for_unit(UNIT)
    assert current("app")["id"] == new["id"]
    check_ages()

with subtest("a wait for a dependency in which it jumps is over when the dependency is back"):
    changed = manifest()
    changed["startup"]["timeoutSeconds"] = 1
    use_manifest(write_manifest(changed))
    set_timer("aistack-retry@", 600)
    forget_starts("app")
    hold_down("redis")
    since = cursor()
    machine.fail(f"systemctl restart {UNIT}")
    wait_for_journal(since, "app: not rolled back")
    jump(-60)
    let_up("redis")
    wait_for_state("app", "active")
    assert journal(since).count("redis is back: starting app again") == 1
    beside["redis"] = invocation("redis")

with subtest("self-healing's pauses and bounds are of time that passed, not of the clock"):
    changed["selfHealing"].update(enable=True, maxRestarts=1, windowSeconds=3600, backoffSeconds=0)
    changed["services"]["app"]["probe"]["failures"] = 2
    write_manifest(changed)
    # Other checks are another release, whose probation has to be over; and not of the broken image.
    declare_image("localhost/scenario/clock:3")
    set_timer("aistack-bless@", 1)
    forget_starts("app")
    machine.succeed(f"systemctl restart {UNIT}")
    wait_until_good("app")
    machine.wait_until_succeeds(f"{TICK}; aistack health app", timeout=30)
    check_health_by_hand()
    for days, action in ((90, "restart"), (120, "degraded"), (-120, "degraded")):
        running = invocation("app")
        answer("500")
        jump(days)
        tick(2)
        assert health()["action"] == action, health()
        check_ages()
        if action == "restart":
            machine.wait_until_succeeds(
                f"test $(systemctl show --property InvocationID --value {UNIT}) != {running}", timeout=60
            )
            machine.wait_for_unit(UNIT)
        else:
            assert invocation("app") == running

with subtest("at the end every unit is well, and nothing else was touched"):
    answer("200")
    tick()
    assert {service: invocation(service) for service in beside} == beside
    assert not machine.succeed("systemctl --failed --no-legend").strip()
    machine.succeed("aistack status", "aistack health", "systemctl start aistack-health-30.timer")
