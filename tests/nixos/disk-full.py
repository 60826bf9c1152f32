"""No space left where the stack keeps its state: a clear line and exit code, nothing lost or half written.

When there is room again everything goes on without anybody's help.
"""

UNIT = unit("app")
STATE = "/var/lib/aistack"
STORE = f"{STATE}/releases.db"
OVERRIDES = f"{STATE}/overrides.json"
FULL = f"cannot use {STORE}: "

# Ready, until a file says otherwise.
SERVE = """
import os, signal
from http.server import BaseHTTPRequestHandler, HTTPServer
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(500 if BAD else 200)
        self.end_headers()
    def log_message(self, *_):
        pass
print("the image speaks", flush=True)
HTTPServer(("", 8000), Handler).serve_forever()
"""


def small_file_system() -> None:
    """Put the state, but for volumes and models, on a file system of 4 MB."""
    machine.succeed(
        "mkdir -p /mnt/state",
        "mount -t tmpfs -o size=4m,mode=0755 tmpfs /mnt/state",
        f"mkdir -p {STATE}/volumes /mnt/state/volumes /mnt/state/models",
        f"mount --bind {STATE}/volumes /mnt/state/volumes",
        f"mount --bind {STATE}/models /mnt/state/models",
        f"mount --rbind /mnt/state {STATE}",
    )


def fill(place: str = STATE) -> None:
    """Leave not a byte."""
    machine.fail(f"dd if=/dev/zero of={place}/filler bs=4k status=none")
    machine.fail(f"printf x > {place}/more")
    machine.succeed(f"rm {place}/more")


def free(place: str = STATE) -> None:
    """Make room again."""
    machine.succeed(f"rm {place}/filler")


def sound() -> None:
    """The database is whole, and nothing was left behind."""
    assert machine.succeed(f"sqlite3 {STORE} 'PRAGMA integrity_check'").strip() == "ok"
    left = machine.succeed(f"ls -A {STATE}").split()
    assert not [name for name in left if name.endswith(".new") or "damaged" in name], left


machine.wait_for_unit("multi-user.target")
small_file_system()
changed = manifest()
for service in changed["services"].values():
    # What refuses a start before anything is written; here writing itself fails.
    service["preflight"]["freeDisk"] = []
changed["services"]["app"]["probe"]["startTimeoutSeconds"] = 8
put_manifest(changed)
for number in (1, 2):
    build_copy(f"localhost/scenario/new:{number}")
build_image("localhost/scenario/bad:1", f"BAD = True\n{SERVE}")
start_good_stack()
good = current("app")
beside = {service: invocation(service) for service in SERVICES if service != "app"}
set_timer("aistack-retry@", 600)

with subtest("what is asked is answered, and what runs goes on running"):
    fill()
    machine.succeed(APP_SERVES)
    machine.succeed("aistack health", "aistack env show")
    # Even a reader of the releases needs a little room; the states are shown all the same.
    code, out = machine.execute("aistack status 2>&1")
    assert (code, out.count(" ready ")) == (1, 5), (code, out)
    assert f"{FULL}the disk is full; df -h {STATE}" in out, out
    free()

with subtest("an override that cannot be written is not there, and the one before is whole"):
    machine.succeed("aistack env set RALPH_MAX_ITERATIONS_SIMPLE=11")
    before = machine.succeed(f"cat {OVERRIDES}")
    fill()
    code, out = machine.execute("aistack env set RALPH_MAX_ITERATIONS_SIMPLE=12 2>&1")
    assert code == 1, (code, out)
    assert f"cannot write {OVERRIDES}: No space left on device (the disk is full: `df -h`)" in out, out
    assert machine.succeed(f"cat {OVERRIDES}") == before
    assert machine.succeed("aistack env get RALPH_MAX_ITERATIONS_SIMPLE").strip() == "11"
    free()
    sound()
    machine.succeed("aistack env set RALPH_MAX_ITERATIONS_SIMPLE=12", "aistack env unset --all")

with subtest(
    "a new release that cannot be written down does not start; that is said, and it starts when there is room"
):
    declare_image("localhost/scenario/new:1")
    fill()
    since = cursor()
    forget_starts("app")
    machine.fail(f"systemctl restart {UNIT}")
    said = wait_for_journal(since, "app: not rolled back: ")
    assert FULL in said, said
    assert f"the disk is full; df -h {STATE}" in said, said
    code, out = machine.execute("aistack status app 2>&1")
    assert (code, FULL in out) == (8, True), (code, out)
    free()
    sound()
    assert current("app") == good
    set_timer("aistack-bless@", 3)
    set_timer("aistack-retry@", 1)
    machine.succeed("systemctl restart aistack-retry@app.timer")
    wait_for_state("app", "active")
    set_timer("aistack-retry@", 600)

with subtest("the end of a probation that cannot be written down comes again"):
    new = current("app")
    assert (new["id"] != good["id"], new["state"]) == (True, "probation"), new
    since = cursor()
    fill()
    said = wait_for_journal(since, "probation goes on")
    assert FULL in said, said
    assert not machine.succeed("systemctl --failed --no-legend").strip()
    free()
    wait_for_release("app", new["id"], "good")
    sound()

with subtest("a rollback that cannot be written down waits, and is done when there is room"):
    set_timer("aistack-retry@", 2)
    declare_image("localhost/scenario/bad:1")
    forget_starts("app")
    since = cursor()
    machine.succeed(f"systemctl restart --no-block {UNIT}")
    wait_for_journal(since, "the image speaks")
    fill()
    said = wait_for_journal(since, "app: not rolled back: ")
    assert FULL in said, said
    assert "ROLLED BACK" not in said
    free()
    said = wait_for_journal(since, "app ROLLED BACK", timeout=90)
    assert current("app")["id"] == new["id"]
    assert releases("app")[0]["state"] == "bad"
    machine.wait_for_unit(UNIT)
    sound()

with subtest("a rollback by hand that cannot be written down changes nothing"):
    running = invocation("app")
    fill()
    code, out = machine.execute(f"aistack rollback app --to {good['id']} --yes 2>&1")
    assert (code, FULL in out) == (1, True), (code, out)
    free()
    assert (invocation("app"), current("app")["id"]) == (running, new["id"])
    sound()

with subtest("no space in /run: the start says so, and is made up for when there is room"):
    size, used = machine.succeed("df --output=size,used --block-size=1K /run | tail -1").split()
    machine.succeed(f"mount -o remount,size={int(used) + 512}k /run")
    # What podman cannot tidy up when it stops a container is another matter.
    machine.succeed(f"systemctl stop {UNIT}")
    forget_starts("app")
    fill("/run")
    since = cursor()
    machine.fail(f"systemctl start {UNIT}")
    free("/run")
    machine.succeed(f"mount -o remount,size={size}k /run")
    said = journal(since)
    # Whoever writes first: a hook, or podman.
    assert "no space left on device" in said.lower(), said
    machine.wait_until_succeeds(f"systemctl is-active {UNIT}", timeout=90)
    assert "ROLLED BACK" not in journal(since)
    assert current("app")["id"] == new["id"]

with subtest("at the end every unit is well, and nothing else was touched"):
    machine.wait_until_succeeds(APP_READY, timeout=30)
    assert {service: invocation(service) for service in beside} == beside
    assert not machine.succeed("systemctl --failed --no-legend").strip()
    machine.succeed("aistack status", "aistack health")
    assert not machine.succeed("podman ps --all --filter status=exited --filter status=created --quiet").strip()
