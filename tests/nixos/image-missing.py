"""A declared image that cannot be had: what ran before runs on; where nothing did, it is clear what is missing."""

KEPT = "localhost/scenario/kept:1"
UNIT = unit("app")

machine.wait_for_unit("multi-user.target")
machine.succeed(f"podman tag {APP_IMAGE} {KEPT}")
build_copy("localhost/scenario/new:1", KEPT)
set_timer("aistack-bless@", 1)
set_timer("aistack-retry@", 10)


def take_away() -> None:
    """Let the image that is declared for the app not be there any more."""
    machine.succeed(f"podman untag {APP_IMAGE} {APP_IMAGE}")
    machine.fail(f"podman image exists {APP_IMAGE}")


with subtest("a first install without the image says which one is missing"):
    take_away()
    machine.succeed(f"systemctl start {' '.join(unit(service) for service in SERVICES if service != 'app')}")
    since = cursor()
    machine.fail(f"systemctl start {UNIT}")
    said = wait_for_journal(since, "app: not rolled back")
    assert f"image {APP_IMAGE}: image missing: it is not in podman's storage" in said, said
    assert "Traceback" not in said, said
    code, shown = machine.execute("aistack status app")
    assert code == 8, f"aistack status ended with {code}"
    assert f"image {APP_IMAGE}: image missing" in shown, shown
    code, shown = machine.execute("aistack preflight app")
    assert code == 3, f"aistack preflight ended with {code}: {shown}"

with subtest("when it is there, the next retry starts the service"):
    declare_image(KEPT)
    wait_for_state("app", "active")
    wait_until_good("app")
    machine.succeed(APP_SERVES, "aistack status")
    good = current("app")

with subtest("the last good release runs on without it, and status says so"):
    take_away()
    forget_starts("app")
    since = cursor()
    machine.succeed(f"systemctl restart {UNIT}", APP_SERVES)
    assert f"the declared image {APP_IMAGE} cannot be had" in journal(since)
    assert current("app")["id"] == good["id"]
    shown = machine.succeed("aistack status")
    assert f"the declared image {APP_IMAGE} cannot be had" in shown, shown
    assert f"release {good['id']}" in shown, shown
    assert status("app")["state"] == "ready", status("app")

with subtest("so does one that is not good yet"):
    declare_image("localhost/scenario/new:1")
    set_timer("aistack-bless@", 30)
    forget_starts("app")
    machine.succeed(f"systemctl restart {UNIT}")
    new = current("app")
    assert new["state"] == "probation", new
    take_away()
    machine.succeed(f"systemctl restart {UNIT}", APP_SERVES)
    runs = machine.succeed("podman container inspect --format '{{.Image}}' aistack-app").strip()
    assert runs == new["image_id"], f"image {runs} runs"
    assert (current("app")["id"], current("app")["state"]) == (new["id"], "probation")

with subtest("when the image is back, nothing is left to say"):
    declare_image("localhost/scenario/new:1")
    set_timer("aistack-bless@", 1)
    forget_starts("app")
    machine.succeed(f"systemctl restart {UNIT}")
    wait_for_release("app", new["id"], "good")
    assert "cannot be had" not in machine.succeed("aistack status")
