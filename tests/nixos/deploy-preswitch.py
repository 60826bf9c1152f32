# What a NixOS generation changes is tested before it is activated. Here the incoming system is a folder.
# nixos: skip switch-refused.py does this with a real switch


def incoming(name: str, change: str | None) -> str:
    """An incoming system: the stack that runs, changed by a program for jq, or none at all; returns its folder."""
    folder = f"/srv/{name}"
    machine.succeed(f"mkdir -p {folder}/etc/aistack")
    if change is not None:
        machine.succeed(f"jq '{change}' /etc/aistack/stack.json > {folder}/etc/aistack/stack.json")
    return folder


def preswitch(folder: str, action: str = "switch") -> tuple[int, list[dict[str, Any]], str]:
    """What is found out about an incoming system: the exit code, the findings, and what was said."""
    code, out = machine.execute(f"aistack preswitch {folder} {action} --json 2>/tmp/said", timeout=200)
    findings: list[dict[str, Any]] = json.loads(out)["findings"]
    return code, findings, machine.succeed("cat /tmp/said")


def nothing_was_touched() -> None:
    """Everything runs as before, and no container or network of a test is there."""
    assert running_units() == before
    assert releases("app") == known
    assert not machine.succeed("podman ps --all --quiet --filter label=aistack.deploy").strip()
    assert not machine.succeed("podman network ls --quiet --filter label=aistack.deploy").strip()
    machine.succeed("aistack lock status")


machine.wait_for_unit("multi-user.target")
found = manifest()
found["services"]["app"]["probe"]["startTimeoutSeconds"] = 8
put_manifest(found)
start_good_stack()
before = running_units()
known = releases("app")
build_copy("localhost/scenario/good:2")
build_image("localhost/scenario/broken:3", "raise SystemExit('no app here')")
build_copy("localhost/scenario/redis:2", "localhost/aistack-images/redis:1")
good = incoming("good", '.services.app.image.ref = "localhost/scenario/good:2"')
broken = incoming("broken", '.services.app.image.ref = "localhost/scenario/broken:3"')

with subtest("what changes nothing, or has no stack, may be activated at once"):
    for folder in (incoming("same", "."), incoming("stackless", None)):
        code, findings, _ = preswitch(folder)
        assert (code, findings) == (0, []), findings
    nothing_was_touched()

with subtest("an image that passes its isolated test may be activated"):
    code, findings, said = preswitch(good)
    assert code == 0, said
    assert [(each["service"], each["ok"]) for each in findings] == [("app", True)], findings
    assert "passed its isolated test" in findings[0]["message"], findings
    nothing_was_touched()

with subtest("an image that does not is refused, and says why"):
    code, findings, said = preswitch(broken)
    assert code == 6, said
    assert [(each["service"], each["ok"]) for each in findings] == [("app", False)], findings
    assert "no app here" in findings[0]["message"], findings
    assert "the incoming generation is refused: app" in said, said
    nothing_was_touched()

with subtest("what is not activated is not asked about"):
    assert preswitch(broken, "dry-activate")[0] == 0

with subtest("what changes together is tested together"):
    images = ".services.app.image.ref = $app | .services.redis.image.ref = $redis"
    both = f'"localhost/scenario/good:2" as $app | "localhost/scenario/redis:2" as $redis | {images}'
    code, findings, said = preswitch(incoming("both", both))
    assert code == 0, said
    assert sorted((each["service"], each["ok"]) for each in findings) == [("app", True), ("redis", True)], findings
    nothing_was_touched()

with subtest("an image that is not there is refused"):
    code, findings, _ = preswitch(incoming("absent", '.services.app.image.ref = "localhost/scenario/absent:4"'))
    assert code == 6, findings
    assert "localhost/scenario/absent:4 cannot be had" in findings[0]["message"], findings
    nothing_was_touched()

with subtest("one that is cut off leaves nothing that recovery does not remove, and no figure"):
    machine.succeed(f"systemd-run --unit preswitch --property Type=exec aistack preswitch {good}")
    machine.wait_until_succeeds("podman ps --quiet --filter label=aistack.deploy | grep -q .", timeout=60)
    machine.succeed("systemctl kill --signal KILL preswitch")
    machine.wait_until_succeeds("aistack lock status", timeout=30)
    machine.succeed("systemctl reset-failed preswitch")
    said = machine.succeed("aistack recover 2>&1")
    assert "of the incoming generation (/srv/good/etc/aistack/stack.json) was cut off in phase plan" in said, said
    nothing_was_touched()
    assert json.loads(machine.succeed("aistack metrics --json"))["attempts"] == 0
