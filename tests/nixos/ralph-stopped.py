"""Services that are stopped with work in flight: they end in time, and nothing is lost or counted twice."""
# stack of examples/ralph.nix

machine.wait_for_unit("multi-user.target")
start_ralph()

for service in ("ralph-wiggum", "aider-wrapper"):
    with subtest(f"{service} is stopped: within five seconds, in an orderly way"):
        task_id = begin_slow_task(f"stopped-{service}")
        began = time.monotonic()
        hold_down(service)
        took = time.monotonic() - began
        machine.log(f"{service} was down {took:.1f} s after systemctl was told to stop it")
        # The service has five; podman and systemd have the rest, on a machine that does other things too.
        assert took < 5 + 10, took
        died = f"podman events --since 5m --stream=false --filter container=aistack-{service} --filter event=died"
        codes = machine.succeed(f"{died} --format '{{{{.ContainerExitCode}}}}'").split()
        assert codes[-1] == "0", codes
        if service == "aider-wrapper":
            wait_for_task(task_id, "waiting")
        let_up(service)
        machine.wait_for_unit(unit(service))
        check_completed_once(task_id)

with subtest("no task was lost on the way"):
    found = succeed_to_ask(RALPH, "GET", "/tasks")["tasks"]
    assert [each["state"] for each in found] == ["completed"] * 2, found
