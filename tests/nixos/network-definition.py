"""The network's definition is lost, damaged or somebody else's: mended, with a restart only where it was allowed."""

DEFINITION = "/etc/containers/networks/local-ai.json"
KEPT = "/run/aistack/network.json"
NETWORK_UNIT = "aistack-network.service"


def said_by_unit(since: str) -> str:
    """What the network's unit said."""
    return journal(since, f"--unit {NETWORK_UNIT} --identifier python3")


machine.wait_for_unit("multi-user.target")
since = cursor()
start_good_stack()
assert not said_by_unit(since).strip(), said_by_unit(since)
running = running_units()

with subtest("the definition is gone while containers run: the very same comes back"):
    before = machine.succeed(f"cat {KEPT}")
    machine.succeed(f"rm {DEFINITION}")
    assert mend_network(running, "network missing") == ["restored as it was"]
    assert json.loads(machine.succeed(f"cat {DEFINITION}")) == json.loads(before)

with subtest("the definition is damaged while containers run"):
    machine.succeed(f"printf '{{\"name' > {DEFINITION}")
    assert mend_network(running, "network missing") == ["restored as it was"]

with subtest("the definition is gone, and nobody knows what it was: a new one, and the containers move over"):
    machine.succeed(f"rm {DEFINITION} {KEPT}")
    (done,) = mend_network(running, "network missing")
    assert done == "created, and its containers set up again without a restart"

with subtest("the unit does the same when it is reloaded"):
    machine.succeed(f"rm {DEFINITION}")
    since = cursor()
    machine.succeed(f"systemctl reload {NETWORK_UNIT}")
    said = said_by_unit(since)
    line = "network local-ai: network missing: podman does not know it, and 5 of the stack's containers run on it: "
    assert said.startswith(line), said
    network_is_well(running)

with subtest("another repair that runs is waited for, and one that does not end is named"):
    lock = "/run/aistack/network.lock"
    machine.succeed(f"rm {DEFINITION}", f"systemd-run --quiet --unit holder flock {lock} sleep 600")
    machine.wait_until_fails(f"flock --nonblock {lock} true")
    machine.succeed("systemd-run --quiet --unit waiter aistack network repair")
    machine.wait_until_succeeds(f"test $(fuser {lock} 2>/dev/null | wc -w) -ge 3")
    machine.succeed("systemctl stop holder")
    machine.wait_until_succeeds(f"test -e {DEFINITION}")
    machine.wait_until_fails("systemctl is-active waiter")
    network_is_well(running)

with subtest("another subnet under the name, and the stack is up: mended with a restart, and not without being asked"):
    running = running_units()
    machine.succeed(f"sed -i 's/10\\.89\\.100\\./10.89.101./' {DEFINITION}")
    code, out = machine.execute("aistack network repair 2>&1")
    assert code == 8, out
    assert "subnet is 10.89.101.0/24, declared is 10.89.100.0/24" in out, out
    assert "mending that takes a restart of aistack-app, aistack-llama-cpp, " in out, out
    assert out.rstrip().endswith("aistack network repair --restart"), out
    assert running_units() == running
    found = json.loads(machine.succeed("aistack network repair --restart --json"))
    assert not found["left"], found
    running = running_units()
    network_is_well(running)
    start_stack()

with subtest("another subnet under the name, and the stack is down: replaced at the start, and the unit says so"):
    stop_stack()
    machine.succeed(f"systemctl stop {NETWORK_UNIT}")
    machine.succeed("podman network create --subnet 10.89.102.0/24 local-ai")
    since = cursor()
    start_stack()
    said = said_by_unit(since)
    assert "network local-ai: other settings: " in said, said
    assert "subnet is 10.89.102.0/24, declared is 10.89.100.0/24" in said, said
    assert said.rstrip().endswith(": replaced"), said
    running = running_units()
    network_is_well(running)

with subtest("a network that somebody else uses is left to them: the unit fails, and says whose it is"):
    stop_stack()
    machine.succeed(f"systemctl stop {NETWORK_UNIT}")
    machine.succeed("podman network create --subnet 10.89.102.0/24 local-ai")
    machine.succeed(f"podman run --detach --name theirs --network local-ai --entrypoint sleep {APP_IMAGE} 600")
    since = cursor()
    machine.fail(f"systemctl start {NETWORK_UNIT}")
    said = said_by_unit(since)
    assert "it is used by theirs, which this stack does not own" in said, said
    machine.succeed("podman rm --force --time 0 theirs")
    machine.succeed(f"systemctl start {NETWORK_UNIT}")

with subtest("an interface of the bridge's name is not touched"):
    machine.succeed(f"systemctl stop {NETWORK_UNIT}", "ip link add aistack0 type veth peer name theirs0")
    since = cursor()
    machine.fail(f"systemctl start {NETWORK_UNIT}")
    said = said_by_unit(since)
    assert "interface aistack0: interface taken: is no bridge, so it is somebody else's" in said, said
    machine.succeed("ip link show aistack0", "ip link delete aistack0")

with subtest("at the end the stack comes up"):
    machine.succeed(f"systemctl reset-failed {NETWORK_UNIT}")
    start_stack()
    machine.succeed("aistack network check", "aistack status")
    assert not machine.succeed("systemctl --failed --no-legend").strip()
