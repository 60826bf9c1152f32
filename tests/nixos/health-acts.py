"""Health timers: they act after so many failures and not before, on the right one, once, and leave the rest alone."""

UNIT = unit("app")
INTERVAL = 5  # seconds, of the app alone
TIMER = f"aistack-health-{INTERVAL}.timer"
FAILURES = 3  # health.failures

# What the app answers at /ready is set from outside: 200, 500, lies, or hangs. A new container begins with 200.
SERVE = """
import os, signal, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
mode = "200"
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        global mode
        body = b"it is fine"
        if self.path.startswith("/set/"):
            mode = self.path.removeprefix("/set/")
        elif self.path == "/mode":
            body = mode.encode()
        elif mode == "hangs":
            time.sleep(30)
        elif mode != "200":
            body = b"error: no database"
        self.send_response(500 if mode == "500" and self.path == "/ready" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""
ASK_ITSELF = "import urllib.request as r; exit(r.urlopen('http://127.0.0.1:8000/mode').read() != b'200')"


def answer(mode: str) -> None:
    """Let the container that runs answer so from now on."""
    machine.succeed(f"curl --fail --silent --max-time 5 http://127.0.0.1:8000/set/{mode}")


def changed_manifest(**changes: Any) -> str:
    """The manifest with another app: it reads its answer, must say that it is fine, and is checked as `changes` say."""
    found = manifest()
    found["rollback"]["probationSeconds"] = 60
    found["selfHealing"].update(changes)
    app = found["services"]["app"]
    app["probe"].update(expect="fine", intervalSeconds=INTERVAL, timeoutSeconds=1, failures=FAILURES)
    return write_manifest(found)


def health(service: str) -> dict[str, Any]:
    """The record of a service's health."""
    found = json.loads(machine.succeed(f"cat /run/aistack/{service}/health.json"))
    assert isinstance(found, dict)
    return found


def tick(times: int = 1) -> None:
    """Let the health timer's moment come, so many times."""
    for _ in range(times):
        machine.succeed(f"systemctl start aistack-health-{INTERVAL}.service")


def probe_of_its_own(seconds: float) -> None:
    """Let the timer be nobody's business but the script's, or let it run every so many seconds."""
    folder = f"/run/systemd/system/{TIMER}.d"
    times = f"OnActiveSec=\\nOnUnitActiveSec=\\nOnActiveSec={seconds}s\\nOnUnitActiveSec={seconds}s"
    lines = f"[Timer]\\n{times}\\nAccuracySec=50ms\\n"
    machine.succeed(f"mkdir -p {folder}; printf '{lines}' > {folder}/scenario.conf; systemctl daemon-reload")
    machine.succeed(f"systemctl restart {TIMER}")
    if seconds > INTERVAL:
        # A check that the timer began before would be one more than the script's.
        state = f"systemctl show --property ActiveState --value aistack-health-{INTERVAL}.service"
        machine.wait_until_succeeds(f'test "$({state})" = inactive', timeout=20)


machine.wait_for_unit("multi-user.target")
give_health_timer(INTERVAL)
build_image("localhost/scenario/answers:1", SERVE)
declare_image("localhost/scenario/answers:1")
use_manifest(changed_manifest())
start_good_stack()
good = current("app")
beside = {service: invocation(service) for service in SERVICES if service != "app"}

with subtest("the timers run by themselves, and leave no failed unit and no line at each tick"):
    since = cursor()
    probe_of_its_own(0.5)
    first = health("app")["at"] if machine.execute("test -e /run/aistack/app/health.json")[0] == 0 else 0
    machine.wait_until_succeeds(f"test $(jq '.at > {first}' /run/aistack/app/health.json) = true", timeout=20)
    second = health("app")["at"]
    machine.wait_until_succeeds(f"test $(jq '.at > {second}' /run/aistack/app/health.json) = true", timeout=20)
    assert (health("app")["state"], health("app")["failures"]) == ("healthy", 0)
    said = journal(since, f"--unit aistack-health-{INTERVAL}.service")
    assert not said.strip(), said
    assert not machine.succeed("systemctl --failed --no-legend").strip()
    probe_of_its_own(3600)

for mode, kind, words in (
    ("500", "not ready yet", "answered 500"),
    ("lies", "not ready yet", "without 'fine' in it: error: no database"),
    ("hangs", "timed out", "within 1 s"),
):
    with subtest(f"a proven service that {mode}: nothing before the third failure, then one line, and no restart"):
        running = invocation("app")
        answer(mode)
        since = cursor()
        tick(FAILURES - 1)
        found = health("app")
        assert (found["state"], found["failures"], found["kind"]) == ("healthy", FAILURES - 1, kind), found
        assert words in found["detail"], found
        assert "app is" not in journal(since)
        tick()
        assert (health("app")["state"], health("app")["action"]) == ("unhealthy", "degraded")
        tick(2)
        said = journal(since)
        assert said.count("app is DEGRADED") == 1, said
        assert "self-healing is off" in said
        assert status("app")["state"] == "degraded", status("app")
        assert machine.execute("aistack status app")[0] == 8
        assert machine.execute("aistack health app")[0] == 8
        assert words in machine.execute("aistack health app")[1]
        answer("200")
        tick()
        assert health("app")["state"] == "healthy"
        assert journal(since).count("app is healthy again") == 1
        assert status("app")["state"] == "ready"
        machine.succeed("aistack health app")
        assert invocation("app") == running

with subtest("a service that flaps is not acted upon"):
    since = cursor()
    for mode in ("500", "500", "200", "500", "500", "200"):
        answer(mode)
        tick()
    assert health("app")["failures"] == 0
    assert "app is" not in journal(since)

with subtest("what was stopped by hand stays stopped"):
    use_manifest(changed_manifest(enable=True, backoffSeconds=1))
    machine.succeed(f"systemctl stop {UNIT}")
    tick(FAILURES + 1)
    assert active_state("app") == "inactive"
    assert health("app")["state"] == "unknown"
    machine.succeed(f"systemctl start {UNIT}")

with subtest("with self-healing it is restarted, and the others are not"):
    before = invocation("app")
    since = cursor()
    answer("500")
    tick(FAILURES - 1)
    assert invocation("app") == before
    tick()
    machine.wait_until_succeeds(
        f"test $(systemctl show --property InvocationID --value {UNIT}) != {before} && systemctl is-active {UNIT}"
    )
    assert "restarted (1 of 3 restarts within 3600 s)" in journal(since)
    tick()
    assert health("app")["state"] == "healthy"
    assert current("app")["id"] == good["id"]
    assert {service: invocation(service) for service in beside} == beside

with subtest("restarts are bounded: then it is degraded, and restarted no more"):
    since = cursor()

    def restart_again() -> None:
        """Let it fail until it is restarted, and get ready again."""
        before = invocation("app")
        answer("500")
        deadline = time.monotonic() + 30
        while invocation("app") == before:
            assert time.monotonic() < deadline, health("app")
            tick()
        machine.wait_for_unit(UNIT)

    restart_again()
    restart_again()
    before = invocation("app")
    answer("500")
    tick(3 * FAILURES)
    assert (health("app")["state"], health("app")["action"]) == ("unhealthy", "degraded"), health("app")
    said = journal(since)
    assert said.count("3 restarts within 3600 s did not help") == 1, said
    assert invocation("app") == before
    answer("200")
    tick()
    assert health("app")["state"] == "healthy"

with subtest("a dependency that does not answer takes the blame, and the app is left alone"):
    found = manifest()
    found["selfHealing"].update(enable=True, windowSeconds=1, backoffSeconds=0)
    found["services"]["app"]["probe"].update(expect="fine", intervalSeconds=INTERVAL, timeoutSeconds=1)
    use_manifest(write_manifest(found))
    before = invocation("app")
    machine.succeed("podman pause aistack-redis")
    answer("500")
    since = cursor()
    tick(2 * FAILURES)
    said = journal(since)
    assert said.count("dependency redis does not answer (timed out), so it is left alone") == 1, said
    assert invocation("app") == before
    assert machine.execute("aistack health app")[0] == 3
    machine.succeed("podman unpause aistack-redis")
    answer("200")
    tick()

with subtest("a new release that sickens in its probation goes back at once, without the end of the probation"):
    build_copy("localhost/scenario/answers:2", "localhost/scenario/answers:1")
    declare_image("localhost/scenario/answers:2")
    set_timer("aistack-bless@", 600)
    forget_starts("app")
    machine.succeed(f"systemctl restart {UNIT}")
    new = current("app")
    assert (new["state"], new["id"] != good["id"]) == ("probation", True), new
    since = cursor()
    answer("500")
    tick(FAILURES - 1)
    assert current("app")["id"] == new["id"]
    tick()
    said = wait_for_journal(since, "app ROLLED BACK", timeout=40)
    assert "fails within its probation: going back to" in said
    assert "3 checks failed within its probation" in said
    assert current("app")["id"] == good["id"]
    assert releases("app")[0]["state"] == "bad"
    machine.wait_for_unit(UNIT)
    tick()
    assert health("app")["state"] == "healthy"
    reset_timer("aistack-bless@")

with subtest("an own probe command in the container, as readiness and as health"):
    found = manifest()
    own = found["services"]["app"]["probe"]
    own.update(kind="exec", port=None, path=None, command=["python3", "-c", ASK_ITSELF], expect=None, timeoutSeconds=5)
    own.update(intervalSeconds=INTERVAL)
    use_manifest(write_manifest(found))
    set_timer("aistack-bless@", 1)
    forget_starts("app")
    machine.succeed(f"systemctl restart {UNIT}")
    wait_until_good("app")
    tick()
    assert (health("app")["state"], health("app")["kind"]) == ("healthy", "ready"), health("app")
    answer("500")
    tick(FAILURES)
    found = health("app")
    assert found["state"] == "unhealthy", found
    assert "returned 1" in found["detail"], found
    answer("200")
    tick()
    assert health("app")["state"] == "healthy"

with subtest("at the end every unit is well"):
    assert not machine.succeed("systemctl --failed --no-legend").strip()
    machine.succeed("aistack status", "aistack health")
