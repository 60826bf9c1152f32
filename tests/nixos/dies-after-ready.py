"""A process that ends some time after it was ready: a new release goes back for it, a proven one is restarted."""

LIFETIME = "/var/lib/aistack/volumes/qdrant/lifetime"  # seconds; qdrant's container has it below /qdrant/storage

# Ready at once, for so long as its file or its image says, if any does; then it crashes.
SERVE = """
import os, signal, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
print("the image speaks", flush=True)
if lifetime:
    threading.Timer(float(lifetime), os._exit, [4]).start()
ThreadingHTTPServer(("", PORT), Handler).serve_forever()
"""
BY_FILE = """
try:
    lifetime = open("/qdrant/storage/lifetime").read()
except FileNotFoundError:
    lifetime = ""
"""


def live_for(seconds: str) -> None:
    """Let qdrant's new image live so long from its next start on; for good if that is empty."""
    machine.succeed(f"printf '{seconds}' > {LIFETIME}; chmod a+r {LIFETIME}")


machine.wait_for_unit("multi-user.target")
build_image("localhost/scenario/llama:1", "lifetime = 20" + SERVE.replace("PORT", "8080"))
build_image("localhost/scenario/qdrant:1", BY_FILE + SERVE.replace("PORT", "6333"))
build_copy("localhost/scenario/qdrant:2", "localhost/scenario/qdrant:1")
start_good_stack()
# It really uses what is replaced here by something that only says it is ready, and would be degraded, as it should.
machine.succeed(f"systemctl stop {unit('app')}")
before = {service: release["id"] for service, release in currents().items()}
beside = {service: invocation(service) for service in ("postgres", "redis")}
begin = cursor()

with subtest("a new release that ends after 20 s gets ready, and is restarted: once is an accident"):
    # Longer than it lives, as the 60 s are that are usual.
    set_timer("aistack-bless@", 60)
    declare_image("localhost/scenario/llama:1", "localhost/aistack-images/llama-cpp:1")
    machine.succeed(f"systemctl restart {unit('llama-cpp')}")
    slow = current("llama-cpp")
    assert (slow["state"], slow["id"] != before["llama-cpp"]) == ("probation", True), slow
    # The rest of this script goes on meanwhile.

with subtest("a new release that ends after 2 s, again and again, is rolled back"):
    live_for("2")
    declare_image("localhost/scenario/qdrant:1", "localhost/aistack-images/qdrant:1")
    since = cursor()
    machine.succeed(f"systemctl restart {unit('qdrant')}")
    said = wait_for_journal(since, "qdrant ROLLED BACK")
    bad = releases("qdrant")[0]
    assert (bad["state"], bad["current"]) == ("bad", False), bad
    assert "was ready and ended again within its probation" in bad["reason"], bad
    assert said.count(f"left release {bad['id']} (") == 1, said
    assert 2 <= journal(since, "-t aistack-qdrant").count("the image speaks") <= 3
    assert current("qdrant")["id"] == before["qdrant"]

with subtest("a release that was proven and does so now is restarted, then rested, and never rolled back"):
    live_for("")
    declare_image("localhost/scenario/qdrant:2", "localhost/aistack-images/qdrant:1")
    forget_starts("qdrant")
    machine.succeed(
        f"systemctl restart {unit('qdrant')}",
        "systemctl start aistack-bless@qdrant.service; systemctl stop aistack-bless@qdrant.timer",
    )
    proven = current("qdrant")
    assert (proven["state"], proven["id"] > bad["id"]) == ("good", True), proven
    live_for("2")
    since = cursor()
    forget_starts("qdrant")
    machine.succeed("podman kill aistack-qdrant")
    said = wait_for_journal(since, "qdrant: not rolled back")
    assert "is proven, so it is restarted" in said, said
    assert journal(since, "-t aistack-qdrant").count("the image speaks") >= 2
    assert current("qdrant") == proven
    assert status("qdrant")["state"] == "failed", status("qdrant")
    assert "it was ready and its unit failed then" in status("qdrant")["reason"], status("qdrant")

with subtest("its retry finds it well again"):
    # From 2 s to 20 s: what ends so seldom is restarted each time, and its start limit is never hit.
    live_for("20")
    set_timer("aistack-retry@", 1)
    since = cursor()
    machine.succeed("systemctl restart aistack-retry@qdrant.timer")
    wait_for_state("qdrant", "active")
    reset_timer("aistack-retry@")

with subtest("the new release that ends after 20 s is given up at last, and rolled back"):
    said = wait_for_journal(begin, "llama-cpp ROLLED BACK", timeout=200)
    bad = next(release for release in releases("llama-cpp") if release["id"] == slow["id"])
    assert (bad["state"], bad["current"]) == ("bad", False), bad
    assert "was ready and ended again within its probation" in bad["reason"], bad
    assert said.count(f"left release {bad['id']} (") == 1, said
    assert 3 <= journal(begin, "-t aistack-llama-cpp").count("the image speaks") <= 4
    assert current("llama-cpp")["id"] == before["llama-cpp"]

with subtest("the proven one is restarted after 20 s as well, and that is all"):
    machine.wait_until_succeeds(
        f"test $(systemctl show --property NRestarts --value {unit('qdrant')}) != 0", timeout=60
    )
    wait_for_state("qdrant", "active")
    assert current("qdrant") == proven
    live_for("")
    forget_starts("qdrant")
    machine.succeed(f"systemctl restart {unit('qdrant')}")
    said = journal(since)
    assert "qdrant ROLLED BACK" not in said, said
    assert "podman-aistack-qdrant.service: Triggering OnFailure" not in said, said

with subtest("nobody else was touched"):
    assert {service: invocation(service) for service in beside} == beside
    now = currents()
    assert {service: now[service]["id"] for service in beside} == {service: before[service] for service in beside}
    assert active_state("app") == "inactive"
    machine.succeed(f"aistack status {' '.join(service for service in SERVICES if service != 'app')}")
