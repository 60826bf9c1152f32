"""The plug is pulled in the middle of a rollback: after the boot the good release serves, and the journal says why."""

BROKEN = "print('no redis here', flush=True); raise SystemExit(3)"
# The other steps are in power-loss-at-each-step.py.
STEPS = ("systemctl restart", "podman run")

machine.wait_for_unit("multi-user.target")
for number in range(len(STEPS) + 1):
    build_image(f"localhost/scenario/broken:{number}", f"{BROKEN} # {number}")
set_timer("aistack-bless@", 1)
machine.succeed(f"systemctl start {unit('redis')}")
wait_until_good("redis")
good = current("redis")

with subtest("a rollback that nobody disturbs"):
    count_calls("redis")
    since = cursor()
    fail_redis("localhost/scenario/broken:0")
    wait_for_journal(since, "redis ROLLED BACK")
    steps = calls()
    machine.log("\n".join(steps))

for index, step in enumerate(STEPS, start=1):
    (number,) = [place for place, call in enumerate(steps, start=1) if call.startswith(step)]
    with subtest(f"the plug is pulled before: {steps[number - 1]}"):
        lose_power_in_rollback(f"localhost/scenario/broken:{index}", number, good)

with subtest("the whole stack starts"):
    start_stack()
    machine.wait_until_succeeds(APP_READY)
