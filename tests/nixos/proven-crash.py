"""A proven release that crashes is started again. No image is to blame, and nobody else has to start anew."""

UNIT = unit("redis")
OTHERS = [service for service in SERVICES if service != "redis"]

machine.wait_for_unit("multi-user.target")
start_good_stack()
good = current("redis")
beside = {service: invocation(service) for service in OTHERS}


def only_redis_was_touched() -> None:
    """Redis runs the release it ran before, the others never stopped, and the app really uses it again."""
    machine.wait_until_succeeds(APP_READY, timeout=60)
    assert {service: invocation(service) for service in OTHERS} == beside
    assert [(release["id"], release["state"]) for release in releases("redis")] == [(good["id"], "good")]
    containers = machine.succeed("podman ps --format '{{.Names}}'").split()
    assert sorted(containers) == sorted(f"aistack-{service}" for service in SERVICES), containers


def crash(command: str) -> None:
    """End redis with a command; it must come back at once, and nothing else happen."""
    forget_starts("redis")
    since = cursor()
    before = invocation("redis")
    started = time.monotonic()
    machine.succeed(command)
    machine.wait_until_succeeds(
        f'test "$(systemctl show --property InvocationID --value {UNIT})" != {before} && systemctl is-active {UNIT}',
        timeout=30,
    )
    machine.log(f"started again after {time.monotonic() - started:.1f} s")
    only_redis_was_touched()
    said = journal(since)
    assert "Triggering OnFailure" not in said, said
    assert "ROLLED BACK" not in said, said


with subtest("killed by podman"):
    crash("podman kill aistack-redis")

with subtest("ended by itself, without an error"):
    crash("podman exec --detach aistack-redis redis-cli shutdown nosave")

with subtest("its process killed, as when memory runs out: exit code 137"):
    crash("kill -KILL $(podman container inspect --format '{{.State.Pid}}' aistack-redis)")

with subtest("its monitor killed, which leaves the container without one"):
    crash(f"kill -KILL $(systemctl show --property MainPID --value {UNIT})")

with subtest("crashing again and again, it hits the start limit and is not rolled back"):
    set_timer("aistack-retry@", 2)
    since = cursor()
    machine.succeed(
        f"until systemctl is-failed --quiet {UNIT}; do podman kill aistack-redis 2>&1 | logger || sleep 0.1; done",
        timeout=60,
    )
    wait_for_journal(since, "is proven, so it is restarted", timeout=60)
    assert status("redis")["state"] in ("failed", "starting", "ready"), status("redis")

with subtest("the retry timer starts it again after a while"):
    wait_for_state("redis", "active")
    only_redis_was_touched()
    said = journal(since)
    assert "ROLLED BACK" not in said, said
    assert "Started aistack-retry@redis.timer" in said, said
