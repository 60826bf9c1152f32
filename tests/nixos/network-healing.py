"""With self-healing a network that fails is mended and nothing is restarted; without, it is said who is to blame."""

FAILURES = 3  # health.failures
PROCESS = "$(cat /run/containers/networks/aardvark-dns/aardvark.pid)"


def tick() -> None:
    """Let the moment of the health timer come, as often as it takes to act."""
    for _ in range(FAILURES):
        machine.succeed("systemctl start aistack-health-30.service")


def with_healing(*, enable: bool) -> None:
    """Let the units read a manifest with self-healing, or without."""
    found = manifest()
    found["selfHealing"]["enable"] = enable
    for service in found["services"].values():
        service["probe"].update(timeoutSeconds=2, failures=FAILURES)
    use_manifest(write_manifest(found))


machine.wait_for_unit("multi-user.target")
start_good_stack()
running = running_units()
# The moments are the script's to choose.
check_health_by_hand()

with subtest(
    "without self-healing the network is blamed, with the command that shows what is wrong, and nothing is done"
):
    with_healing(enable=False)
    machine.succeed(f"kill -KILL {PROCESS}")
    since = cursor()
    tick()
    said = journal(since, "--unit aistack-health-30.service")
    assert "redis is unhealthy (3 checks failed" in said, said
    assert "the network is to blame, not the service; see: aistack network check" in said, said
    code, out = machine.execute("aistack network check")
    assert (code, "name server: name server dead: " in out) == (8, True), out
    assert running_units() == running

with subtest("with self-healing it is mended, and no service is restarted for it"):
    with_healing(enable=True)
    since = cursor()
    tick()
    said = journal(since, "--unit aistack-health-30.service")
    assert said.count("name server: name server dead: ") == 1, said
    assert ": set up again without a restart" in said, said
    network_is_well(running)
    tick()
    machine.succeed("aistack health", "aistack status")

with subtest("the same for one container that has lost its name"):
    machine.succeed("sed -i /aistack-redis/d /run/containers/networks/aardvark-dns/local-ai", f"kill -HUP {PROCESS}")
    since = cursor()
    tick()
    said = journal(since, "--unit aistack-health-30.service")
    assert "its network was to blame: name redis: name missing: " in said, said
    network_is_well(running)
    tick()
    machine.succeed("aistack health")

with subtest("at the end every unit is well"):
    assert not machine.succeed("systemctl --failed --no-legend").strip()
