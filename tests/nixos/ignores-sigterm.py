"""A process that ignores SIGTERM holds nothing up: not a start that failed, not a stop, not a stop in mid-start."""

READY = "localhost/scenario/ready:1"
NEVER = "localhost/scenario/never:1"
UNIT = unit("app")
STOP_TIMEOUT = 5  # stopTimeout of the app: podman kills what has not ended then
HELD_UP = STOP_TIMEOUT + 15  # TimeoutStopSec= of its unit: how long systemd would wait for what ignores SIGTERM

# PID 1 of a container has no default action, so this is what a shell script that starts a program is, too.
IGNORE = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('the image speaks', flush=True)\n"
SERVE = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
HTTPServer(("", 8000), Handler).serve_forever()
"""

machine.wait_for_unit("multi-user.target")
build_image(READY, IGNORE + SERVE)
build_image(NEVER, IGNORE + "signal.pause()\n")
start_good_stack()
good = current("app")


def stop() -> float:
    """Stop the app by hand; returns how long that took."""
    started = time.monotonic()
    machine.succeed(f"systemctl stop {UNIT}")
    seconds = time.monotonic() - started
    machine.log(f"stopped after {seconds:.1f} s")
    return seconds


def nothing_followed(since: str, release: int, state: str) -> None:
    """The app is stopped as somebody wanted it: no failure, no rollback, no container, the same release as before."""
    wait_for_state("app", "inactive")
    assert machine.execute("podman container exists aistack-app")[0] == 1, "its container is still there"
    said = journal(since)
    assert "ROLLED BACK" not in said, said
    assert f"Started {UNIT}" not in said, said
    found = current("app")
    assert (found["id"], found["state"]) == (release, state), found


with subtest("a start that fails removes such a container instead of waiting for it"):
    declare_image(NEVER)
    since = cursor()
    started = time.monotonic()
    machine.fail(f"systemctl restart {UNIT}")
    wait_for_journal(since, "app ROLLED BACK")
    seconds = time.monotonic() - started
    machine.log(f"rolled back after {seconds:.1f} s")
    assert seconds < 15 + HELD_UP, f"it took {seconds:.1f} s"
    runs = machine.succeed("podman container inspect --format '{{.Image}}' aistack-app").strip()
    assert runs == good["image_id"], f"image {runs} runs"

with subtest("a running one is stopped within its stop timeout, and that is no failure"):
    declare_image(READY)
    machine.succeed(f"systemctl restart {UNIT}")
    ready = current("app")
    assert ready["state"] == "probation", ready
    since = cursor()
    seconds = stop()
    assert STOP_TIMEOUT <= seconds < HELD_UP - 5, f"the stop took {seconds:.1f} s"
    nothing_followed(since, ready["id"], "probation")

with subtest("a stop while a start waits for the container's answer is no failure"):
    build_copy("localhost/scenario/never:2", NEVER)
    declare_image("localhost/scenario/never:2")
    forget_starts("app")
    since = cursor()
    machine.succeed(f"systemctl start --no-block {UNIT}")
    wait_for_journal(since, "the image speaks")
    machine.wait_until_succeeds(f'test "$(systemctl show --property SubState --value {UNIT})" = start-post')
    staged = current("app")
    assert staged["id"] not in (good["id"], ready["id"]), staged
    seconds = stop()
    assert seconds < HELD_UP - 5, f"the stop took {seconds:.1f} s"
    nothing_followed(since, staged["id"], "staged")

with subtest("a stop while a start waits for a dependency is no failure"):
    machine.succeed("podman pause aistack-redis")
    forget_starts("app")
    since = cursor()
    machine.succeed(f"systemctl start --no-block {UNIT}")
    machine.wait_until_succeeds(f'test "$(systemctl show --property SubState --value {UNIT})" = start-pre')
    seconds = stop()
    assert seconds < HELD_UP - 5, f"the stop took {seconds:.1f} s"
    nothing_followed(since, staged["id"], "staged")
    machine.succeed("podman unpause aistack-redis")

with subtest("what was stopped starts again"):
    build_copy("localhost/scenario/ready:2", READY)
    declare_image("localhost/scenario/ready:2")
    forget_starts("app")
    machine.succeed(f"systemctl start {UNIT}")
    assert current("app")["state"] == "probation"
    assert {release["id"]: release["state"] for release in releases("app")}[staged["id"]] == "staged"
