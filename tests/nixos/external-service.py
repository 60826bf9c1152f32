"""A service on another machine: it is missing at the start, goes away while the stack runs, and comes back."""

UNIT = unit("app")
OUTSIDE = "192.0.2.2"  # RFC 5737: nobody's address
OTHERS = ["postgres", "qdrant", "llama-cpp"]

# Says at /ready whether it reaches redis, and nothing else.
CLIENT = """
import os, signal, socket
from http.server import BaseHTTPRequestHandler, HTTPServer
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            socket.create_connection((os.environ["REDIS_HOST"], int(os.environ["REDIS_PORT"])), 1).close()
            self.send_response(200)
        except OSError:
            self.send_response(503)
        self.end_headers()
    def log_message(self, *_):
        pass
HTTPServer(("", 8000), Handler).serve_forever()
"""


def another_machine() -> None:
    """A network name space with a redis in it that podman and the stack's network know nothing of."""
    machine.succeed(
        "ip netns add outside",
        "ip link add to-outside type veth peer name eth0 netns outside",
        "ip address add 192.0.2.1/30 dev to-outside; ip link set to-outside up",
        f"ip -n outside address add {OUTSIDE}/30 dev eth0",
        "ip -n outside link set lo up; ip -n outside link set eth0 up",
        "ip -n outside route add default via 192.0.2.1",
        "podman create --name outside --network ns:/run/netns/outside localhost/aistack-images/redis:1",
    )


machine.wait_for_unit("multi-user.target")
DECLARED = manifest()


def external_manifest() -> dict[str, Any]:
    """The manifest as Nix renders it with services.aistack.services.redis.external."""
    found: dict[str, Any] = json.loads(json.dumps(DECLARED))
    found["services"]["redis"].update(
        external={"host": OUTSIDE, "port": 6379}, unit=None, container=None, image=None, publish=[], secrets=[]
    )
    found["environment"]["REDIS_HOST"] = OUTSIDE
    found["startup"]["timeoutSeconds"] = 2
    found["services"]["redis"]["probe"]["timeoutSeconds"] = 1
    found["services"]["app"]["probe"].update(timeoutSeconds=2, failures=2)
    return found


def tick(times: int = 1) -> None:
    """Let the health timer's moment come, so many times."""
    for _ in range(times):
        machine.succeed("systemctl start aistack-health-30.service")


def health() -> dict[str, Any]:
    """What `aistack health --json` says of the app. The exit code is not looked at."""
    (found,) = json.loads(machine.execute("aistack health app --json")[1])["services"]
    assert isinstance(found, dict)
    return found


def codes() -> list[int]:
    """What status and health end with."""
    return [machine.execute(command)[0] for command in ("aistack status", "aistack health")]


another_machine()
build_image("localhost/scenario/client:1", CLIENT)
declare_image("localhost/scenario/client:1")
# Nix renders no unit for it; this one must not run either.
hold_down("redis")
put_manifest(external_manifest())
set_timer("aistack-retry@", 600)
set_timer("aistack-bless@", 1)
# Its checks are the script's business.
set_timer("aistack-health-30", 3600)

with subtest("it is missing at the start: what does not need it comes up, and what does says so and waits"):
    since = cursor()
    machine.succeed("systemctl start aistack.target")
    for service in OTHERS:
        machine.wait_for_unit(unit(service))
    said = wait_for_journal(since, "app: not rolled back: what it needs is missing (dependency redis: refused)")
    assert f"  dependency redis: refused: nothing listens at {OUTSIDE}:6379" in said, said
    assert "it is external: check services.aistack.services.redis.external and that machine" in said, said
    assert status("app")["state"] == "waiting", status("app")
    found = status("redis")
    assert (found["state"], found["external"]) == ("failed", {"host": OUTSIDE, "port": 6379}), found
    assert codes() == [3, 3]

with subtest("when it is there, its dependent is started without anybody's help"):
    set_timer("aistack-retry@", 1)
    machine.succeed("podman start outside", "systemctl restart aistack-retry@app.timer")
    machine.wait_until_succeeds(f"systemctl is-active {UNIT}", timeout=60)
    wait_until_good("app")
    tick()
    assert codes() == [0, 0]
    assert status("redis")["state"] == "ready"
    good = current("app")

running = {service: invocation(service) for service in [*OTHERS, "app"]}
changed = external_manifest()
changed["selfHealing"].update(enable=True, backoffSeconds=0)
put_manifest(changed)

for fault, mend, kind in (
    ("podman stop --time 5 outside", "podman start outside", "refused"),
    ("ip -n outside link set eth0 down", "ip -n outside link set eth0 up", "timed out"),
):
    with subtest(f"it goes away while the stack runs ({kind}): it takes the blame, once, and nothing is restarted"):
        since = cursor()
        machine.succeed(fault)
        tick(3)
        said = journal(since)
        assert said.count("app is unhealthy") == 1, said
        assert f"dependency redis does not answer ({kind}), so it is left alone" in said, said
        found = health()
        assert (found["state"], found["health"]["action"]) == ("degraded", "blamed"), found
        assert f"dependency redis does not answer ({kind})" in found["reason"], found
        assert status("redis")["state"] == "failed"
        assert f"look at {OUTSIDE}" in status("redis")["next"]
        assert codes() == [3, 3]
        assert {service: invocation(service) for service in running} == running

    with subtest(f"it returns ({kind}): healthy, and still nothing was restarted"):
        machine.succeed(mend)
        machine.succeed("ip -n outside route replace default via 192.0.2.1")
        machine.wait_until_succeeds("aistack status redis", timeout=30)
        machine.wait_until_succeeds(APP_READY, timeout=30)
        tick()
        assert journal(since).count("app is healthy again") == 1, journal(since)
        assert codes() == [0, 0]
        assert {service: invocation(service) for service in running} == running

with subtest("a new release is not judged while it is away"):
    set_timer("aistack-retry@", 600)
    build_copy("localhost/scenario/client:2", "localhost/scenario/client:1")
    declare_image("localhost/scenario/client:2")
    machine.succeed("podman stop --time 5 outside")
    forget_starts("app")
    since = cursor()
    machine.fail(f"systemctl restart {UNIT}")
    wait_for_journal(since, "app: not rolled back: what it needs is missing")
    new = current("app")
    assert (new["id"] != good["id"], new["state"]) == (True, "staged"), new
    machine.succeed("podman start outside")
    set_timer("aistack-retry@", 1)
    machine.succeed("systemctl restart aistack-retry@app.timer")
    wait_for_release("app", new["id"], "good")

with subtest("at the end every unit is well, and nothing was rolled back"):
    assert "ROLLED BACK" not in machine.succeed("journalctl --boot --output cat")
    assert not machine.succeed("systemctl --failed --no-legend").strip()
    machine.succeed("aistack status", "aistack health")
