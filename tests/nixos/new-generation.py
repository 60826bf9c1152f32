# A newer rendering is installed while the stack runs, as administrators upgrade; and one whose release fails is
# left for the one before. Generations are stand-ins: folders whose switch-to-configuration installs their rendering.
# nixos: skip switch-generation.py does this with real generations

SOURCES = "/usr/src/aistack"
PROFILES = "/nix/var/nix/profiles"

SWITCH = """#!/bin/bash
# A stand-in for NixOS's own.
ln -sfn {folder} /run/current-system
exec {sources}/bundle/install --start {folder}/rendered
"""


def make_generation(number: int, change: str) -> str:
    """A generation: the reference rendering, changed by a program for jq in what it declares; returns its folder."""
    folder = f"/srv/generation-{number}"
    declared = f"{folder}/rendered/etc/aistack/stack.json"
    app = f"{folder}/rendered/etc/systemd/system/{unit('app')}"
    switch = SWITCH.format(folder=folder, sources=SOURCES)
    machine.succeed(
        f"mkdir -p {folder}/bin {folder}/etc {PROFILES}; cp -r {SOURCES}/bundle/reference {folder}/rendered",
        f"jq '{change}' {SOURCES}/bundle/reference/etc/aistack/stack.json > {declared}",
        # What Nix does when something of a service changes.
        f"sed -i 's/^X-Restart-Triggers=.*/X-Restart-Triggers={number}/' {app}",
        f"ln -s ../rendered/etc/aistack {folder}/etc/aistack",
        f"cat > {folder}/bin/switch-to-configuration <<'EOF'\n{switch}EOF",
        f"chmod +x {folder}/bin/switch-to-configuration; ln -s {folder} {PROFILES}/system-{number}-link",
        f"ln -sfn system-{number}-link {PROFILES}/system",
    )
    return folder


def switch(folder: str) -> int:
    """Activate a generation as `nixos-rebuild switch` does; returns the exit code."""
    code, _ = machine.execute(f"{folder}/bin/switch-to-configuration switch >&2", timeout=200)
    return code


def failed_units() -> str:
    """What `systemctl --failed` shows."""
    return machine.succeed("systemctl list-units --failed --no-legend --plain").strip()


SYSTEM = '.rollback.policy = "system" | (.services[] | .rollbackPolicy) = "system"'
machine.wait_for_unit("multi-user.target")
build_copy("localhost/scenario/app:2")
build_image("localhost/scenario/app:3", "raise SystemExit('no app here')")
first = make_generation(1, SYSTEM)
second = make_generation(2, f'{SYSTEM} | .services.app.image.ref = "localhost/scenario/app:2"')
assert switch(first) == 0
start_good_stack()

with subtest("a new generation restarts what changed and nothing else, exits with 0 and leaves no failed unit"):
    set_timer("aistack-bless@", 1)
    before = running_units()
    old = current("app")
    since = cursor()
    assert switch(second) == 0
    after = running_units()
    assert [service for service in SERVICES if after[service] != before[service]] == ["app"], (before, after)
    assert failed_units() == ""
    wait_until_good("app")
    new = current("app")
    assert (new["id"] != old["id"], new["declared"], new["image_ref"]) == (True, True, "localhost/scenario/app:2"), new
    machine.succeed(APP_SERVES, "aistack status")

with subtest("switching to the same again restarts nothing"):
    before = running_units()
    assert switch(second) == 0
    assert running_units() == before

with subtest('a generation whose release fails is left for the one before, where the policy is "system"'):
    third = make_generation(3, f'{SYSTEM} | .services.app.image.ref = "localhost/scenario/app:3"')
    forget_starts("app")
    since = cursor()
    machine.log(f"switching ended with exit code {switch(third)}")
    said = wait_for_journal(since, "app ROLLED BACK to NixOS generation 2", timeout=120)
    bad = releases("app")[0]
    (line,) = [line for line in said.splitlines() if "app ROLLED BACK" in line]
    assert f"left release {bad['id']} (" in line, line
    assert "nixos-rebuild boot --rollback" in line, line
    assert bad["state"] == "bad", bad
    assert machine.succeed("readlink /run/current-system").strip() == second
    machine.succeed(f"cmp /etc/aistack/stack.json {second}/etc/aistack/stack.json")
    assert (current("app")["id"], current("app")["declared"]) == (new["id"], True), current("app")
    machine.succeed(APP_SERVES, "aistack status")
    assert failed_units() == ""
    assert {service: invocation(service) for service in SERVICES if service != "app"} == {
        service: before[service] for service in SERVICES if service != "app"
    }

with subtest("the declared generation is activated again, as at a boot: its bad release is not tried again"):
    forget_starts("app")
    since = cursor()
    assert switch(third) == 0
    said = journal(since)
    assert "no app here" not in journal(since, "--identifier aistack-app")
    assert f"not the declared release {bad['id']} (" in said, said
    assert (current("app")["id"], current("app")["declared"]) == (new["id"], False), current("app")
    machine.succeed(APP_SERVES)
    assert failed_units() == ""
