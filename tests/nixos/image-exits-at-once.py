"""An image whose process ends at once: the first install stays down and says why, a later one is rolled back."""

EXITS = "localhost/scenario/exits:1"
GOOD = "localhost/scenario/good:1"
UNIT = unit("app")
ROLLBACK = "aistack-rollback@app.service"

machine.wait_for_unit("multi-user.target")
machine.succeed(f"podman tag {APP_IMAGE} {GOOD}")
build_image(EXITS, "print('the image speaks', flush=True); raise SystemExit(3)")
set_timer("aistack-bless@", 1)
set_timer("aistack-retry@", 1)


def fails_and_stays_down() -> None:
    """Start the app, which must fail; wait until its rollback has found nothing to go back to."""
    began = cursor()
    machine.fail(f"systemctl start {UNIT}")
    wait_for_journal(began, "app is DOWN")
    said = journal(began, "--identifier aistack-app")
    machine.wait_until_succeeds(f'test "$(systemctl show --property ActiveState --value {ROLLBACK})" = failed')
    assert said.count("the image speaks") == 3, f"it was not started three times:\n{said}"


with subtest("a first install with such an image fails after three starts"):
    declare_image(EXITS)
    machine.succeed(f"systemctl start {' '.join(unit(service) for service in SERVICES if service != 'app')}")
    fails_and_stays_down()

with subtest("status, the release and the journal say why, and the exit code is 8"):
    code, _ = machine.execute("aistack status app")
    assert code == 8, f"aistack status ended with {code}"
    exit_code = machine.succeed(f"systemctl show --property ExecMainStatus --value {ROLLBACK}").strip()
    assert exit_code == "8", f"the rollback ended with {exit_code}"
    found = status("app")
    assert found["state"] == "failed", found
    assert "ended before it was ready" in found["reason"], found
    assert "no good release to go back to" in found["reason"], found
    first = current("app")
    assert first["state"] == "bad", first
    assert first["reason"] == found["reason"], first
    assert "the image speaks" in machine.succeed(f"aistack releases app --log {first['id']}")
    assert machine.execute("podman container exists aistack-app")[0] == 1

with subtest("nothing tries it again"):
    before = invocation("app")
    # Three times the retry timer's period, as nothing can be waited for that must not happen.
    stays("app", "failed", 3)
    assert invocation("app") == before
    timers = machine.succeed("systemctl list-timers --no-legend 'aistack-*@app.timer'")
    assert timers == "", timers

with subtest("a start by hand tries it once more, as there is nothing else to run"):
    forget_starts("app")
    fails_and_stays_down()
    assert [release["id"] for release in releases("app")] == [first["id"]]

with subtest("a good image takes over"):
    declare_image(GOOD)
    forget_starts("app")
    machine.succeed(f"systemctl start {UNIT}")
    wait_until_good("app")
    machine.succeed(APP_SERVES, "aistack status")
    good = current("app")

with subtest("such an image is rolled back by itself when there is a good release, and the restart says so"):
    build_copy("localhost/scenario/exits:2", EXITS)
    declare_image("localhost/scenario/exits:2")
    since = cursor()
    started = time.monotonic()
    machine.fail(f"systemctl restart {UNIT}")
    failed_after = time.monotonic() - started
    wait_for_journal(since, "app ROLLED BACK")
    serves_after = time.monotonic() - started
    machine.log(f"restart failed after {failed_after:.1f} s, the old release served after {serves_after:.1f} s")
    # Three at most: systemd's limit counts the start of the good image, seconds ago, too.
    said = journal(since, "--identifier aistack-app")
    assert 1 <= said.count("the image speaks") <= 3, said
    assert active_state("app") == "active"
    machine.succeed(APP_SERVES, "aistack status")
    assert current("app")["id"] == good["id"]
    bad = releases("app")[0]
    assert (bad["state"], bad["declared"], bad["current"]) == ("bad", True, False), bad
    assert "the image speaks" in machine.succeed(f"aistack releases app --log {bad['id']}")
