"""Several services fail at the same time, and all of them: each gets what is right for it, and nothing blocks."""

BROKEN = "raise SystemExit('nothing works here')"


def image(service: str) -> str:
    """The image that Nix declares for a service."""
    return f"localhost/aistack-images/{service}:1"


def break_images(tag: str, *services: str) -> None:
    """Let the declared image of each service be one that ends at once."""
    build_image(tag, f"{BROKEN} # {tag}")
    for service in services:
        declare_image(tag, image(service))


def all_well() -> None:
    """The good releases run, all of them, and the app really uses the others."""
    for service in SERVICES:
        wait_for_state(service, "active", timeout=150)
    found = currents()
    assert {service: release["id"] for service, release in found.items()} == good, found
    machine.wait_until_succeeds(APP_READY, timeout=60)
    machine.succeed("aistack status")


machine.wait_for_unit("multi-user.target")
for service in SERVICES:
    machine.succeed(f"podman tag {image(service)} localhost/scenario/{service}-good:1")
start_good_stack()
good = {service: release["id"] for service, release in currents().items()}

with subtest("two new releases that do not work, at once: both go back, and nobody else notices"):
    beside = {service: invocation(service) for service in ("postgres", "llama-cpp", "app")}
    break_images("localhost/scenario/broken:1", "redis", "qdrant")
    since = cursor()
    machine.fail(f"systemctl restart {unit('redis')} {unit('qdrant')}")
    for service in ("redis", "qdrant"):
        wait_for_journal(since, f"{service} ROLLED BACK")
    all_well()
    assert {service: invocation(service) for service in beside} == beside
    for service in ("redis", "qdrant"):
        assert [release["state"] for release in releases(service)] == ["bad", "good"], releases(service)

with subtest("every process is killed at once: all are restarted, and none is rolled back"):
    machine.succeed(f"systemctl reset-failed {' '.join(unit(service) for service in SERVICES)}")
    before = running_units()
    since = cursor()
    machine.succeed("podman kill --all --signal KILL")
    for service in SERVICES:
        wait_for_another_start(service, before[service])
    all_well()
    said = journal(since)
    assert "ROLLED BACK" not in said, said

with subtest("every container's monitor is killed, which leaves the containers without one: the same"):
    machine.succeed(f"systemctl reset-failed {' '.join(unit(service) for service in SERVICES)}")
    before = running_units()
    since = cursor()
    pids = " ".join(f"$(systemctl show --property MainPID --value {unit(service)})" for service in SERVICES)
    machine.succeed(f"kill -KILL {pids}")
    for service in SERVICES:
        wait_for_another_start(service, before[service])
    all_well()
    said = journal(since)
    assert "ROLLED BACK" not in said, said

with subtest("every image is broken: all go back, in the order in which they need each other"):
    stop_stack()
    break_images("localhost/scenario/broken:2", *SERVICES)
    machine.succeed(f"systemctl reset-failed {' '.join(unit(service) for service in SERVICES)}")
    since = cursor()
    machine.succeed("systemctl start aistack.target")
    for service in SERVICES:
        wait_for_journal(since, f"{service} ROLLED BACK", timeout=150)
    all_well()
    for service in SERVICES:
        assert releases(service)[0]["state"] == "bad", releases(service)
