"""While a dependency is down no release of what needs it can be judged, so none is: it is tried when that is back."""

UNIT = unit("app")

# Ready when redis takes connections, but not in its first seconds, so that something can happen before.
SLOW = """
import os, socket, time
from http.server import BaseHTTPRequestHandler, HTTPServer
began = time.monotonic()
def usable():
    if time.monotonic() - began < 5:
        return False
    try:
        socket.create_connection((os.environ["REDIS_HOST"], int(os.environ["REDIS_PORT"])), 1).close()
    except OSError:
        return False
    return True
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if usable() else 503)
        self.end_headers()
    def log_message(self, *_):
        pass
print("the image speaks", flush=True)
HTTPServer(("", 8000), Handler).serve_forever()
"""

machine.wait_for_unit("multi-user.target")
for number in (1, 2):
    build_copy(f"localhost/scenario/new:{number}")
build_image("localhost/scenario/slow:1", SLOW)
start_good_stack()
# Whatever starts a service again here is not this timer.
set_timer("aistack-retry@", 300)


def nothing_is_judged(since: str, state: str) -> int:
    """The newest release of the app is the current one, in that state, and none is bad; returns its number."""
    assert "ROLLED BACK" not in journal(since)
    found = releases("app")
    assert "bad" not in [release["state"] for release in found], found
    assert (found[0]["current"], found[0]["state"]) == (True, state), found[0]
    return int(found[0]["id"])


with subtest("a new release is not judged while a dependency is stopped"):
    hold_down("redis")
    declare_image("localhost/scenario/new:1")
    since = cursor()
    machine.fail(f"systemctl restart {UNIT}")
    wait_for_journal(since, "app: not rolled back")
    release = nothing_is_judged(since, "staged")
    code, _ = machine.execute("aistack status app")
    assert code == 3, f"aistack status ended with {code}"
    found = status("app")
    assert (found["state"], found["failed_checks"][0]["subject"]) == ("waiting", "dependency redis"), found

with subtest("it is started as soon as the dependency is back, and becomes good"):
    set_timer("aistack-bless@", 1)
    let_up("redis")
    wait_for_state("app", "active")
    assert "redis is back: starting app again" in journal(since)
    wait_for_release("app", release, "good")
    machine.succeed(APP_SERVES, "aistack status")

with subtest("a new release waits for a dependency that hangs"):
    machine.succeed("podman pause aistack-qdrant")
    declare_image("localhost/scenario/new:2")
    forget_starts("app")
    since = cursor()
    machine.succeed(f"systemctl restart --no-block {UNIT}")
    machine.wait_until_succeeds(f'test "$(systemctl show --property SubState --value {UNIT})" = start-pre')
    # That it goes on waiting cannot be waited for.
    stays("app", "activating", 2)
    machine.succeed("podman unpause aistack-qdrant")
    wait_for_state("app", "active")
    wait_for_release("app", current("app")["id"], "good")
    nothing_is_judged(since, "good")

with subtest("a new release is not judged when a dependency goes away while it starts"):
    set_timer("aistack-bless@", 3)
    declare_image("localhost/scenario/slow:1")
    forget_starts("app")
    since = cursor()
    machine.succeed(f"systemctl restart --no-block {UNIT}")
    wait_for_journal(since, "the image speaks")
    hold_down("redis")
    wait_for_journal(since, "app: not rolled back")
    release = nothing_is_judged(since, "staged")
    assert status("app")["state"] == "waiting", status("app")

with subtest("it starts again when the dependency is back"):
    let_up("redis")
    wait_for_state("app", "active")
    assert nothing_is_judged(since, "probation") == release

with subtest("its probation goes on while a dependency is away at its end, and it becomes good afterwards"):
    hold_down("redis")
    wait_for_journal(since, "probation goes on")
    assert nothing_is_judged(since, "probation") == release
    let_up("redis")
    wait_for_release("app", release, "good")
    assert nothing_is_judged(since, "good") == release
