"""A generation whose image fails its isolated test is not switched to: the switch ends with an error, nothing stops."""
# guest: skip a guest has no NixOS generations; deploy-preswitch.py does this with stand-ins

machine.wait_for_unit("multi-user.target")
system = machine.succeed("readlink --canonicalize /run/current-system").strip()
broken = machine.succeed(f"readlink --canonicalize {system}/specialisation/broken").strip()
start_good_stack()
before = running_units()

with subtest("the switch is refused before anything is stopped"):
    code, said = machine.execute(f"{broken}/bin/switch-to-configuration switch 2>&1", timeout=300)
    assert code != 0, said
    assert "the incoming generation is refused: app" in said, said
    assert running_units() == before
    assert machine.succeed("readlink --canonicalize /run/current-system").strip() == system
    assert not machine.succeed("podman ps --all --quiet --filter label=aistack.deploy").strip()
    machine.succeed("aistack status")

with subtest("what activates nothing is not asked"):
    said = machine.succeed(f"{broken}/bin/switch-to-configuration dry-activate 2>&1", timeout=300)
    assert "refused" not in said, said
