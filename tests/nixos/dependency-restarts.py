"""A dependency that is restarted, by hand or by a crash: its dependents stay up and recover."""

POSTGRES = unit("postgres")

machine.wait_for_unit("multi-user.target")
build_copy("localhost/scenario/new:1")
start_good_stack()
machine.wait_until_succeeds(APP_READY)
others = [service for service in SERVICES if service != "postgres"]
beside = {service: invocation(service) for service in others}
fate = {service: release["id"] for service, release in currents().items()}


def recovered(since: str, *, word: str) -> None:
    """Postgres is up again and the journal says so; its dependents never stopped, and work with it again."""
    wait_for_state("postgres", "active")
    machine.wait_until_succeeds(APP_READY, timeout=60)
    assert {service: invocation(service) for service in others} == beside
    assert {service: release["id"] for service, release in currents().items()} == fate
    said = wait_for_journal(since, f"Started {POSTGRES}")
    assert word in said, said
    for never in ("ROLLED BACK", "Triggering OnFailure", " is DOWN"):
        assert never not in said, said


with subtest("restarted by hand"):
    since = cursor()
    machine.succeed(f"systemctl restart {POSTGRES}")
    recovered(since, word=f"Stopped {POSTGRES}")

with subtest("killed, as when memory runs out"):
    forget_starts("postgres")
    since = cursor()
    before = invocation("postgres")
    machine.succeed("podman kill --signal KILL aistack-postgres")
    wait_for_another_start("postgres", before)
    recovered(since, word=f"{POSTGRES}: Scheduled restart job")

with subtest("restarted while its dependent, a new release, is in its probation: that one is not judged for it"):
    declare_image("localhost/scenario/new:1")
    machine.succeed(f"systemctl restart {unit('app')}")
    new = current("app")
    assert new["state"] == "probation", new
    beside["app"] = invocation("app")
    fate["app"] = new["id"]
    forget_starts("postgres")
    since = cursor()
    machine.succeed(f"systemctl restart {POSTGRES}")
    recovered(since, word=f"Stopped {POSTGRES}")
    wait_for_release("app", new["id"], "good")
    assert invocation("app") == beside["app"]

with subtest("restarted while its dependent starts: that one waits for it"):
    forget_starts("postgres")
    machine.succeed(f"systemctl stop {unit('app')}")
    since = cursor()
    machine.succeed(f"systemctl restart --no-block {POSTGRES}; systemctl start {unit('app')}")
    beside["app"] = invocation("app")
    recovered(since, word=f"Stopped {POSTGRES}")
