"""`aistack rollback`: an administrator goes back, or forth, and what a release needs stays in storage until then."""

UNIT = unit("app")

machine.wait_for_unit("multi-user.target")
build_copy("localhost/scenario/new:1")
build_image("localhost/scenario/exits:1", "print('the image speaks', flush=True); raise SystemExit(3)")
start_good_stack()
set_timer("aistack-bless@", 1)
first = current("app")


def runs(release: dict[str, Any]) -> None:
    """That release of the app runs, is current, and the app is of use."""
    image = machine.succeed("podman container inspect --format '{{.Image}}' aistack-app").strip()
    assert image == release["image_id"], f"image {image} runs"
    assert current("app")["id"] == release["id"]
    machine.succeed(APP_SERVES, "aistack status")


def rollback(arguments: str, code: int) -> dict[str, Any]:
    """Run `aistack rollback app`, which must end with that code; returns what it says."""
    forget_starts("app")
    ended, out = machine.execute(f"aistack rollback app --yes --json {arguments}")
    assert ended == code, f"aistack rollback ended with {ended}: {out}"
    found = json.loads(out) if out else {}
    assert isinstance(found, dict)
    return found


with subtest("without an earlier good release there is nothing to go back to"):
    rollback("", 2)
    runs(first)

with subtest("rollback goes to the previous good release"):
    declare_image("localhost/scenario/new:1")
    machine.succeed("podman untag localhost/scenario/new:1 localhost/scenario/new:1")
    machine.succeed(f"systemctl restart {UNIT}")
    wait_until_good("app")
    second = current("app")
    assert second["id"] != first["id"], second
    beside = {service: invocation(service) for service in SERVICES if service != "app"}
    assert rollback("--dry-run", 0)["to"]["id"] == first["id"]
    runs(second)
    assert rollback("", 0)["serves"]["id"] == first["id"]
    runs(first)
    assert {service: invocation(service) for service in beside} == beside
    assert {release["id"]: release["state"] for release in releases("app")}[second["id"]] == "good"
    shown = machine.succeed("aistack status app")
    assert f"release {first['id']} runs, not the declared {second['id']} (good)" in shown, shown

with subtest("the choice holds at the next restart"):
    forget_starts("app")
    machine.succeed(f"systemctl restart {UNIT}")
    runs(first)

with subtest("rollback --to goes to any release"):
    assert rollback(f"--to {second['id']}", 0)["serves"]["id"] == second["id"]
    runs(second)
    rollback("--to 4711", 2)
    runs(second)

with subtest("one that does not work is left again, and the exit code says that another serves"):
    declare_image("localhost/scenario/exits:1")
    forget_starts("app")
    since = cursor()
    machine.fail(f"systemctl restart {UNIT}")
    wait_for_journal(since, "app ROLLED BACK")
    bad = releases("app")[0]
    assert bad["state"] == "bad", bad
    found = rollback(f"--to {bad['id']}", 7)
    assert found["serves"]["id"] == second["id"], found
    runs(second)
    assert {release["id"]: release["state"] for release in releases("app")}[bad["id"]] == "bad"

with subtest("podman image prune leaves the images of the releases alone"):
    rollback(f"--to {first['id']}", 0)
    runs(first)
    # Nobody uses the second one, and the scenario has no name for it any more.
    machine.succeed("podman image prune --force")
    rollback(f"--to {second['id']}", 0)
    runs(second)

with subtest("a release whose image was removed is refused, and what runs is not touched"):
    before = invocation("app")
    machine.succeed(f"podman rmi --force {first['image_id']}")
    code, out = machine.execute(f"aistack rollback app --yes --to {first['id']} 2>&1")
    assert code == 2, f"aistack rollback ended with {code}: {out}"
    assert "is not in podman's storage any more" in out, out
    assert invocation("app") == before

with subtest("a rollback whose target's image was removed meanwhile says that the service is down"):
    machine.succeed(f"systemctl stop {UNIT}", f"podman rmi --force {second['image_id']}")
    build_copy("localhost/scenario/exits:2", "localhost/scenario/exits:1")
    declare_image("localhost/scenario/exits:2")
    forget_starts("app")
    since = cursor()
    machine.fail(f"systemctl start {UNIT}")
    said = wait_for_journal(since, "app is DOWN")
    assert "Traceback" not in said, said
    code, shown = machine.execute("aistack status app")
    assert code == 8, f"aistack status ended with {code}: {shown}"
