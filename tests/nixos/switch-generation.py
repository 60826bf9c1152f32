"""Switching to a new generation ends with 0 and leaves no failed unit; one whose release fails is left by itself."""
# guest: skip a guest has no NixOS generations; new-generation.py does this with stand-ins

PROFILES = "/nix/var/nix/profiles"


def make_generation(number: int, system: str) -> None:
    """Let a system be a generation, and the boot loader's default."""
    machine.succeed(
        f"mkdir -p {PROFILES}; ln -sfn {system} {PROFILES}/system-{number}-link",
        f"ln -sfn system-{number}-link {PROFILES}/system",
    )


def failed_units() -> str:
    """What `systemctl --failed` shows."""
    return machine.succeed("systemctl list-units --failed --no-legend --plain").strip()


machine.wait_for_unit("multi-user.target")
first = machine.succeed("readlink --canonicalize /run/current-system").strip()
second, third = (
    machine.succeed(f"readlink --canonicalize {first}/specialisation/{name}").strip() for name in ("newer", "broken")
)
make_generation(1, first)
start_good_stack()

with subtest("a new generation restarts what changed and nothing else, exits with 0 and leaves no failed unit"):
    before = running_units()
    old = current("app")
    make_generation(2, second)
    machine.succeed(f"{second}/bin/switch-to-configuration switch >&2", timeout=300)
    machine.wait_for_unit(unit("app"))
    after = running_units()
    assert [service for service in SERVICES if after[service] != before[service]] == ["app"], (before, after)
    assert failed_units() == ""
    new = current("app")
    assert (new["id"] != old["id"], new["declared"]) == (True, True), new
    wait_for_release("app", new["id"], "good")
    machine.succeed(APP_SERVES, "aistack status")

with subtest('a generation whose release fails is left for the one before, where the policy is "system"'):
    make_generation(3, third)
    since = cursor()
    machine.execute(f"{third}/bin/switch-to-configuration switch >&2", timeout=300)
    said = wait_for_journal(since, "app ROLLED BACK to NixOS generation 2", timeout=300)
    bad = releases("app")[0]
    assert f"left release {bad['id']} (" in said, said
    assert bad["state"] == "bad", bad
    assert machine.succeed("readlink --canonicalize /run/current-system").strip() == second
    assert machine.succeed(f"readlink {PROFILES}/system").strip() == "system-3-link"
    assert (current("app")["id"], current("app")["declared"]) == (new["id"], True), current("app")
    machine.succeed(APP_SERVES, "aistack status")
    assert failed_units() == ""

with subtest("the declared generation is activated again, as at a boot: its bad release is not tried again"):
    machine.succeed(f"{third}/bin/switch-to-configuration test >&2", timeout=300)
    machine.wait_for_unit(unit("app"))
    assert (current("app")["id"], current("app")["declared"]) == (new["id"], False), current("app")
    assert failed_units() == ""
