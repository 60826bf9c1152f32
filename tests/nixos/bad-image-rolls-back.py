"""A broken release goes back to the last good one by itself, once, and what depends on it works again."""

POSTGRES_IMAGE = "localhost/aistack-images/postgres:1"
POSTGRES_GOOD = "localhost/scenario/postgres-good:1"
BROKEN = "print('no database here', flush=True); raise SystemExit(3)"
UNIT = unit("postgres")

machine.wait_for_unit("multi-user.target")
machine.succeed(f"podman tag {POSTGRES_IMAGE} {POSTGRES_GOOD}")
build_image("localhost/scenario/broken:1", BROKEN)
build_image("localhost/scenario/broken:2", BROKEN + " # and still not")
start_good_stack()
good = current("postgres")


def the_good_one_runs() -> None:
    """The good release of postgres runs, is the current one, and the app really uses it."""
    assert active_state("postgres") == "active"
    assert current("postgres")["id"] == good["id"]
    runs = machine.succeed("podman container inspect --format '{{.Image}}' aistack-postgres").strip()
    assert runs == good["image_id"], f"image {runs} runs"
    machine.wait_until_succeeds(APP_READY, timeout=60)


with subtest("a broken release of postgres is rolled back, and the app works again without a restart"):
    beside = invocation("app")
    declare_image("localhost/scenario/broken:1", POSTGRES_IMAGE)
    since = cursor()
    started = time.monotonic()
    machine.fail(f"systemctl restart {UNIT}")
    wait_for_journal(since, "postgres ROLLED BACK")
    machine.log(f"rolled back after {time.monotonic() - started:.1f} s")
    the_good_one_runs()
    assert invocation("app") == beside

with subtest("the bad release is kept with its reason and the end of its log"):
    bad = releases("postgres")[0]
    assert (bad["state"], bad["current"], bad["declared"]) == ("bad", False, True), bad
    assert "ended before it was ready" in bad["reason"], bad
    tail = machine.succeed(f"aistack releases postgres --log {bad['id']}")
    assert "no database here" in tail, tail
    assert "no database here" in machine.succeed(f"podman image inspect {bad['image_id']}")

with subtest("status says what runs and why it is not what is declared"):
    found = status("postgres")
    assert (found["state"], found["release"]["id"], found["declared_release"]["id"]) == ("ready", good["id"], bad["id"])
    assert found["runs_declared"] is False, found
    shown = machine.succeed("aistack status")
    assert f"postgres: release {good['id']} runs, not the declared {bad['id']} (bad: never ready" in shown, shown

with subtest("it is not tried again at the next restart"):
    forget_starts("postgres")
    since = cursor()
    machine.succeed(f"systemctl restart {UNIT}")
    the_good_one_runs()
    assert "no database here" not in journal(since, "--identifier aistack-postgres")

with subtest("nor after a reboot"):
    machine.shutdown()
    machine.start()
    machine.wait_for_unit("multi-user.target")
    start_stack()
    the_good_one_runs()
    assert "no database here" not in journal(since, "--identifier aistack-postgres")
    assert [release["id"] for release in releases("postgres")] == [bad["id"], good["id"]]

with subtest("a dependent that had failed for want of it is started again after the rollback"):
    stop_stack()
    set_timer("aistack-retry@", 300)
    hold_down("postgres")
    machine.succeed("systemctl start aistack.target")
    machine.wait_until_succeeds("systemctl is-active aistack-retry@app.timer", timeout=60)
    assert active_state("app") == "failed"
    declare_image("localhost/scenario/broken:2", POSTGRES_IMAGE)
    since = cursor()
    started = time.monotonic()
    machine.fail(f"rm /run/scenario-holds-postgres; systemctl start {UNIT}")
    wait_for_journal(since, "postgres ROLLED BACK")
    wait_for_state("app", "active")
    machine.log(f"the app is up again after {time.monotonic() - started:.1f} s")
    the_good_one_runs()
    machine.succeed("aistack status")

with subtest("a new good release is accepted and becomes good"):
    build_copy("localhost/scenario/postgres-new:1", POSTGRES_GOOD)
    declare_image("localhost/scenario/postgres-new:1", POSTGRES_IMAGE)
    set_timer("aistack-bless@", 1)
    forget_starts("postgres")
    machine.succeed(f"systemctl restart {UNIT}")
    wait_until_good("postgres")
    new = current("postgres")
    assert (new["declared"], new["id"] > bad["id"]) == (True, True), new
    assert [release["state"] for release in releases("postgres")] == ["good", "bad", "bad", "good"]
    assert status("postgres")["runs_declared"] is True

with subtest("a broken release of the app goes the same way"):
    good = current("app")
    build_image("localhost/scenario/broken-app:1", "raise SystemExit('no app here')", POSTGRES_GOOD)
    declare_image("localhost/scenario/broken-app:1")
    beside = invocation("postgres")
    since = cursor()
    machine.fail(f"systemctl restart {unit('app')}")
    wait_for_journal(since, "app ROLLED BACK")
    machine.succeed(APP_SERVES, "aistack status")
    assert current("app")["id"] == good["id"]
    assert releases("app")[0]["state"] == "bad"
    assert invocation("postgres") == beside
