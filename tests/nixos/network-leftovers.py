"""Containers left over, another boot's state, a power cut: cleared away, and said."""

NETWORK_UNIT = "aistack-network.service"


def said_by_unit(since: str) -> str:
    """What the network's unit said."""
    return journal(since, f"--unit {NETWORK_UNIT} --identifier python3")


machine.wait_for_unit("multi-user.target")
start_good_stack()

with subtest("a container that holds a service's name while its unit is down is removed"):
    machine.succeed(f"systemctl stop {unit('app')}")
    machine.succeed(f"podman create --name aistack-app --network local-ai {APP_IMAGE}")
    code, out = machine.execute("aistack network check")
    line = f"container aistack-app: ghost container: left over (created) while {unit('app')} is inactive"
    assert (code, out) == (8, f"{line}\n"), out
    assert machine.succeed("aistack network repair") == f"{line}: removed\n"
    machine.succeed(f"systemctl start {unit('app')}", "aistack network check")

with subtest("podman refuses to work with the state of another boot: it is cleared, and the stack starts"):
    stop_stack()
    machine.succeed(f"systemctl stop {NETWORK_UNIT}", "printf 'another boot' > /run/libpod/alive")
    machine.fail("podman ps")
    since = cursor()
    start_stack()
    said = said_by_unit(since)
    assert "podman: unhandled reboot: " in said, said
    assert "removed what podman had kept of the other boot" in said, said
    running = running_units()
    network_is_well(running)

with subtest("a machine that lost its power comes back by itself, and what was left over is removed, and said"):
    machine.succeed(f"systemctl stop {unit('app')}")
    machine.succeed(f"podman create --name aistack-app --network local-ai {APP_IMAGE}")
    machine.crash()
    machine.start()
    machine.wait_for_unit("multi-user.target")
    for service in SERVICES:
        machine.wait_for_unit(unit(service))
    said = machine.succeed(f"journalctl --boot --unit {NETWORK_UNIT} --identifier python3 --output cat --no-pager")
    assert said.startswith("container aistack-app: ghost container: left over ("), said
    assert said.endswith(f") while {unit('app')} is inactive: removed\n"), said
    running = running_units()
    network_is_well(running)
    machine.succeed("aistack status")
    assert not machine.succeed("systemctl --failed --no-legend").strip()
