"""As power-loss-in-rollback.py, at every step that a rollback and the start of the old release in it have."""
# guest: slow one boot for each step
# guest: time-limit 1200

BROKEN = "print('no redis here', flush=True); raise SystemExit(3)"

machine.wait_for_unit("multi-user.target")
set_timer("aistack-bless@", 1)
machine.succeed(f"systemctl start {unit('redis')}")
wait_until_good("redis")
good = current("redis")

with subtest("a rollback that nobody disturbs"):
    build_image("localhost/scenario/broken:0", BROKEN)
    count_calls("redis")
    since = cursor()
    fail_redis("localhost/scenario/broken:0")
    wait_for_journal(since, "redis ROLLED BACK")
    steps = calls()
    machine.log("\n".join(steps))
    for part in ("journalctl", "systemctl restart", "podman tag", "podman run"):
        assert [step for step in steps if step.startswith(part)], f"no step is {part}: {steps}"
    # What is in the journal's own memory is lost with the power, as on any machine.
    machine.succeed("journalctl --sync")

for number, step in enumerate(steps, start=1):
    with subtest(f"the plug is pulled before step {number} of {len(steps)}: {step}"):
        build_image(f"localhost/scenario/broken:{number}", f"{BROKEN} # {number}")
        lose_power_in_rollback(f"localhost/scenario/broken:{number}", number, good)

with subtest("the whole stack starts"):
    start_stack()
    machine.wait_until_succeeds(APP_READY)
