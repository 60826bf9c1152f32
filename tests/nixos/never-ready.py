"""An image that runs and never answers has one start timeout, not three, and then goes."""

NEVER = "localhost/scenario/never:1"
GOOD = "localhost/scenario/good:1"
UNIT = unit("app")
START_TIMEOUT = 15  # health.startTimeout of the app

machine.wait_for_unit("multi-user.target")
machine.succeed(f"podman tag {APP_IMAGE} {GOOD}")
build_image(
    NEVER,
    """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("the image speaks", flush=True)
signal.pause()
""",
)


def fails(command: str, outcome: str) -> tuple[str, float]:
    """Run a command that must fail after one start timeout; returns the journal up to `outcome`, and the seconds."""
    began = cursor()
    started = time.monotonic()
    machine.fail(command)
    seconds = time.monotonic() - started
    said = wait_for_journal(began, outcome)
    machine.log(f"failed after {seconds:.1f} s, {outcome} after {time.monotonic() - started:.1f} s")
    assert said.count("the image speaks") == 1, f"its container was not started once:\n{said}"
    assert said.count("is not ready after") == 1, said
    assert START_TIMEOUT < seconds < 2 * START_TIMEOUT, f"it took {seconds:.1f} s to fail"
    return said, seconds


with subtest("a first install stays down after one start timeout, without a container, and says why"):
    declare_image(NEVER)
    set_timer("aistack-bless@", 1)
    machine.succeed(f"systemctl start {' '.join(unit(service) for service in SERVICES if service != 'app')}")
    fails(f"systemctl start {UNIT}", "app is DOWN")
    assert active_state("app") == "failed"
    assert machine.execute("podman container exists aistack-app")[0] == 1
    assert machine.execute("aistack status app")[0] == 8
    assert "never ready (refused: nothing listens at" in status("app")["reason"], status("app")

with subtest("after a good release it is rolled back after one start timeout"):
    declare_image(GOOD)
    forget_starts("app")
    machine.succeed(f"systemctl start {UNIT}")
    wait_until_good("app")
    good = current("app")
    build_copy("localhost/scenario/never:2", NEVER)
    declare_image("localhost/scenario/never:2")
    said, _ = fails(f"systemctl restart {UNIT}", "app ROLLED BACK")
    assert active_state("app") == "active"
    machine.succeed(APP_SERVES, "aistack status")

with subtest("its container is gone, and the good one runs"):
    runs = machine.succeed("podman container inspect --format '{{.Image}}' aistack-app").strip()
    assert runs == good["image_id"], f"image {runs} runs"
    containers = machine.succeed("podman ps --all --format '{{.Names}}'").split()
    assert sorted(containers) == sorted(f"aistack-{service}" for service in SERVICES), containers

with subtest("the reason and the end of its log are recorded"):
    bad = releases("app")[0]
    assert (bad["state"], bad["current"]) == ("bad", False), bad
    assert "never ready (refused: nothing listens at" in bad["reason"], bad
    assert "the image speaks" in machine.succeed(f"aistack releases app --log {bad['id']}")
