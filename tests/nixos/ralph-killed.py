"""Work in flight that is cut off by SIGKILL, or by the plug: nothing is lost, and nothing counted twice."""
# stack of examples/ralph.nix


def kill(service: str) -> None:
    """SIGKILL a container's every process, and wait until its unit has started it anew."""
    before = invocation(service)
    restarts = machine.succeed(f"systemctl show --property NRestarts --value {unit(service)}").strip()
    machine.succeed(f"podman kill --signal KILL aistack-{service}")
    machine.wait_until_succeeds(
        f"test $(systemctl show --property NRestarts --value {unit(service)}) -gt {restarts}", timeout=60
    )
    machine.wait_for_unit(unit(service))
    assert invocation(service) != before
    forget_starts(service)


machine.wait_for_unit("multi-user.target")
start_ralph()

for service in ("ralph-wiggum", "aider-wrapper"):
    with subtest(f"{service} is killed"):
        task_id = begin_slow_task(f"killed-{service}")
        kill(service)
        check_completed_once(task_id)

with subtest("the plug is pulled"):
    task_id = begin_slow_task("plug")
    machine.succeed("sync")
    machine.crash()
    machine.start()
    machine.wait_for_unit("multi-user.target")
    start_ralph()
    check_completed_once(task_id)

with subtest("no task was lost on the way"):
    found = succeed_to_ask(RALPH, "GET", "/tasks")["tasks"]
    assert [each["state"] for each in found] == ["completed"] * 3, found
