"""Ralph, aider-wrapper and the real aider, with a scripted endpoint in the model's place: what becomes of tasks."""
# stack of examples/ralph.nix

RUN_TEST = ["python3 test_calc.py"]


def counted(found: dict[str, Any]) -> tuple[int, bool]:
    """A task's iterations that counted, and whether there were others."""
    return found["iterations"], found["uncounted"] > 0


machine.wait_for_unit("multi-user.target")
start_ralph()

with subtest("a task for a function and a passing test ends completed, with a commit of aider's"):
    done = wait_for_task(submit("Write add() and its test. play:function#right", verify=RUN_TEST), "completed")
    assert (done["reason"], counted(done)) == ("verified", (1, False)), done
    assert done["tokens"] > 0, done
    workspace = done["workspace"]
    author, *names = git(workspace, "log -1 --format=%an --name-only").split("\n")
    assert {"calc.py", "test_calc.py"} <= set(names), names
    assert "return a + b" in git(workspace, "show HEAD:calc.py")
    (call,) = iterations(done["task_id"])
    assert call["git_commits"] == [git(workspace, "rev-parse HEAD").strip()], call
    assert sorted(call["files_modified"]) == ["calc.py", "test_calc.py"], call
    assert git(workspace, "status --porcelain") == ""

with subtest("a wrong edit is no end: the model is told what failed, and asked again"):
    done = wait_for_task(submit("Write add(). play:eventually:2#again", verify=RUN_TEST), "completed")
    assert (done["reason"], counted(done)) == ("verified", (2, False)), done
    prompts = [each["prompt"] for each in succeed_to_ask(SCRIPTED, "GET", "/control")["requests"]]
    assert any("AssertionError" in prompt for prompt in prompts if "#again" in prompt), prompts

with subtest("a task whose model never gets it right ends exhausted, which is not completed"):
    done = wait_for_task(submit("Write add(). play:wrong", verify=RUN_TEST, max_iterations=2), "exhausted")
    assert (done["reason"], counted(done)) == ("iteration_limit", (2, False)), done

with subtest("nothing changed is not done, whatever the model says"):
    done = wait_for_task(submit("Say that all is well. play:answer", max_iterations=1), "exhausted")
    assert [call["outcome"] for call in iterations(done["task_id"])] == ["unchanged"], done

with subtest("a model that is loaded, or refuses connections, costs no iteration"):
    done = wait_for_task(submit("Write add(). play:flaky:2", verify=RUN_TEST), "completed")
    assert counted(done) == (1, True), done
    succeed_to_ask(SCRIPTED, "POST", "/control/refuse", {"seconds": 6})
    task_id = submit("Write add(). play:function#refused", verify=RUN_TEST)
    wait_for_task(task_id, "waiting")
    assert counted(wait_for_task(task_id, "completed")) == (1, True)

with subtest("a task whose agent is down waits, and ends completed with no iteration lost"):
    before = invocation("ralph-wiggum")
    hold_down("aider-wrapper")
    task_id = submit("Write add(). play:function#down", verify=RUN_TEST)
    wait_for_task(task_id, "waiting")
    code, body = ask(RALPH, "GET", "/ready")
    assert code == 503, body
    assert "aider-wrapper" in json.dumps(body), body
    stays("ralph-wiggum", "active", 2)
    let_up("aider-wrapper")
    done = wait_for_task(task_id, "completed")
    assert done["iterations"] == 1, done
    assert invocation("ralph-wiggum") == before

with subtest("a task that wants approval gets none of the agent's time before it has it"):
    task_id = submit("Write add(). play:function#approved", require_approval=True)
    assert task(task_id)["state"] == "awaiting_approval"
    wait_for_task(submit("Write add(). play:function#meanwhile"), "completed")
    assert asked("play:function#approved") == 0
    succeed_to_ask(RALPH, "POST", f"/tasks/{task_id}/approve", {"by": "root", "reason": "it is harmless"})
    done = wait_for_task(task_id, "completed")
    assert [(each["action"], each["by"]) for each in done["decisions"]] == [("approve", "root")], done

with subtest("edits outside the workspace are not made"):
    for play, file in (("escape", f"{WORKSPACES}/../outside.txt"), ("absolute", "/tmp/outside.txt")):
        wait_for_task(submit(f"Write elsewhere. play:{play}", max_iterations=1), "exhausted")
        machine.fail(f"find /var/lib/aistack/volumes -name outside.txt | grep . || test -e {file}")
        machine.succeed("! podman exec aistack-aider-wrapper test -e /tmp/outside.txt")
    code, body = ask(RALPH, "POST", "/tasks", {"prompt": "Look around.", "workspace": "../../etc"})
    assert code == 422, (code, body)

with subtest("nobody gets in without the key"):
    for service in (RALPH, AIDER_WRAPPER):
        assert ask((service[0], "/dev/null"), "GET", "/tasks" if service == RALPH else "/api/execute/x")[0] == 401
        assert ask((service[0], "/etc/hostname"), "GET", "/openapi.json")[0] == 401

with subtest("what happened is in the telemetry, as JSON lines"):
    lines = machine.succeed("cat /var/lib/aistack/volumes/ralph-wiggum/telemetry/*.jsonl").splitlines()
    assert len(lines) > 10
    assert [line for line in lines if "event" not in json.loads(line)] == []
