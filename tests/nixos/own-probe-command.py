"""A container of one's own that is asked with a command of its own: ready, failing, hanging, and not there at all."""

UNIT = unit("app")
TICK = "systemctl start aistack-health-30.service"
MODE = "/tmp/mode"

SERVE = """
import os, signal, threading
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
threading.Event().wait()
"""
# Says what a file in the container says, or hangs with a child of its own.
CHECK = (
    f"if ! test -e {MODE}; then echo fine; "
    f"elif grep -q hang {MODE}; then sleep 4321 & sleep 1234; "
    f"else echo it has {MODE}; exit 7; fi"
)


def declare_probe(command: list[str], **changes: Any) -> None:
    """Let the app be asked with that command."""
    found = manifest()
    probe = found["services"]["app"]["probe"]
    probe.update(kind="exec", port=None, path=None, expect=None, command=command, timeoutSeconds=4, failures=2)
    probe.update(changes)
    use_manifest(write_manifest(found))


def mode(text: str) -> None:
    """Let the command do so from now on; nothing means that all is well."""
    command = f"echo {text} > {MODE}" if text else f"rm {MODE}"
    machine.succeed(f"podman exec aistack-app sh -c '{command}'")


def health() -> dict[str, Any]:
    """The record of the app's health."""
    found = json.loads(machine.succeed("cat /run/aistack/app/health.json"))
    assert isinstance(found, dict)
    return found


def hanging() -> int:
    """How many processes of the command there are, on the whole machine."""
    return int(machine.succeed("pgrep --count --full 'sleep (1234|4321)' || test $? = 1").strip())


machine.wait_for_unit("multi-user.target")
build_image("localhost/scenario/own:1", SERVE)
build_copy("localhost/scenario/own:2", "localhost/scenario/own:1")
declare_image("localhost/scenario/own:1")
declare_probe(["sh", "-c", CHECK], expect="fine")
start_good_stack()
check_health_by_hand()

with subtest("it is ready when its command says so, and healthy as long as it does"):
    machine.succeed(TICK)
    assert (health()["state"], health()["kind"]) == ("healthy", "ready"), health()
    assert verdict("app")["reason"].endswith("succeeded"), verdict("app")

for text, kind, words in (
    ("bad", "not ready yet", f"returned 7: it has {MODE}"),
    ("hang", "timed out", "took more than"),
):
    with subtest(f"its command fails ({text}): unhealthy after so many checks and not before, with its words"):
        running = invocation("app")
        since = cursor()
        mode(text)
        machine.succeed(TICK)
        assert (health()["state"], health()["kind"]) == ("healthy", kind), health()
        machine.succeed(TICK)
        assert health()["state"] == "unhealthy", health()
        said = journal(since)
        assert said.count("app is DEGRADED") == 1, said
        assert words in health()["detail"], health()
        assert machine.execute("aistack status app")[0] == 8
        assert hanging() == 0, "what the command started is still there"
        mode("")
        machine.succeed(TICK)
        assert journal(since).count("app is healthy again") == 1
        assert invocation("app") == running

for command, words in (
    (["/no/such/command"], "/no/such/command"),
    (["sh", "-c", "sleep 1234"], "took more than 1 s"),
):
    with subtest(
        f"a command that never says that it is ready ({words}): the start fails in its time, and is rolled back"
    ):
        declare_image("localhost/scenario/own:2" if words.startswith("/") else "localhost/scenario/own:3")
        declare_probe(command, timeoutSeconds=1, startTimeoutSeconds=5)
        forget_starts("app")
        since = cursor()
        machine.execute(f"systemctl restart {UNIT}")
        # The command is the declaration's, not the image's: what it goes back to does not get ready either.
        said = wait_for_journal(since, "does not start either")
        assert words in said, said
        bad = releases("app")[0]
        assert (bad["state"], words in bad["reason"]) == ("bad", True), bad
        assert hanging() == 0
        declare_probe(["sh", "-c", CHECK], expect="fine")
        forget_starts("app")
        machine.succeed(f"systemctl start {UNIT}")
        build_copy("localhost/scenario/own:3", "localhost/scenario/own:2")

with subtest("at the end every unit is well"):
    machine.succeed(TICK)
    # A rollback that led nowhere is a failed unit, so that somebody looks.
    machine.succeed("systemctl reset-failed aistack-rollback@app.service")
    assert not machine.succeed("systemctl --failed --no-legend").strip()
    machine.succeed("aistack status", "aistack health", "systemctl start aistack-health-30.timer")
