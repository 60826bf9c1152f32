"""Two deployments at a time, and one in which the clock jumps: the lock and the probation hold."""
# guest: time-limit 900


def begin(name: str, *arguments: str) -> None:
    """Deploy, in a unit of its own."""
    words = " ".join(arguments)
    machine.succeed(f"systemd-run --unit {name} --property RemainAfterExit=yes aistack deploy {words} --jsonl")


def wait_for_event(name: str, text: str) -> None:
    """Wait until a deployment has said something."""
    machine.wait_until_succeeds(f"journalctl --unit {name} --output cat | grep --fixed-strings '{text}'", timeout=120)


def end(name: str) -> dict[str, Any]:
    """Wait until a deployment has ended; returns what it said last."""
    wait_for_event(name, '"event": "end"')
    lines = machine.succeed(f"journalctl --unit {name} --output cat").splitlines()
    found = json.loads(next(line for line in lines if '"event": "end"' in line))
    assert isinstance(found, dict)
    return found


machine.wait_for_unit("multi-user.target")
let_clock_jump()
prepare_deployments()
start_good_stack()
tags = [build_release(name) for name in ("one", "two", "three", "four")]
build_copy("localhost/scenario/redis:2", "localhost/aistack-images/redis:1")

with subtest("while one is under way another one is exit code 4, or waits; two services one after the other"):
    begin("first", "app", "--image", tags[0])
    wait_for_event("first", phase_begins("test"))
    code, said = machine.execute(f"aistack deploy app --image {tags[1]} 2>&1")
    assert (code, "held by `aistack deploy app`" in said) == (4, True), said
    begin("second", "app", "--image", tags[1], "--wait", "5m")
    begin("third", "redis", "--image", "localhost/scenario/redis:2", "--wait", "5m")
    found = {name: end(name) for name in ("first", "second", "third")}
    assert {name: each["outcome"] for name, each in found.items()} == dict.fromkeys(found, "deployed"), found
    assert check_one_release_serves() == "deployed"
    assert current("app")["image_ref"] == tags[1]
    assert current("redis")["image_ref"] == "localhost/scenario/redis:2"

for days, tag in ((30, tags[2]), (-30, tags[3])):
    with subtest(f"the clock jumps by {days} days while it is tested, and back in its probation"):
        name = f"jump{days}"
        began = time.monotonic()
        begin(name, "app", "--image", tag)
        wait_for_event(name, "has to stay so")
        jump(days)
        held = machine.execute("aistack lock status")[1]
        seconds = int(held.rpartition("for ")[2].split()[0])
        assert 0 <= seconds <= time.monotonic() - began + 1, held
        wait_for_event(name, phase_begins("probation"))
        jump(0)
        found_end = end(name)
        assert found_end["outcome"] == "deployed", found_end
        assert 0 < found_end["seconds"] < 300, found_end
        assert all(0 <= spent < 300 for spent in found_end["phases"].values()), found_end
        assert found_end["phases"]["probation"] >= 2, found_end
        assert check_one_release_serves() == "deployed"

with subtest("one that was cut off, with a clock that jumped since, is ended as ever"):
    prepare_deployments()
    assert cut_off(tags[0], phase_begins("switch")) == -9
    jump(30)
    recover_by("hand")
    jump(0)
    assert check_one_release_serves() == "rolled-back"
    assert current("app")["image_ref"] == tags[3]
    states = {each["image_ref"]: each["state"] for each in releases("app")}
    assert states[tags[0]] == "good", states
    lost = json.loads(machine.succeed("aistack metrics --json"))
    assert 0 <= lost["lost_seconds"] < 600, lost
    assert 0 <= lost["unavailable_seconds"] < 600, lost
