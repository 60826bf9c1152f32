"""`make demo`: the whole stack in a guest, a task that aider completes, then a broken release and its way back."""

from __future__ import annotations

import argparse
import sys
import time

from guest import host, images, paths, root, stack
from guest.cache import locked
from guest.deadline import Deadline
from guest.errors import GuestError
from guest.guest import Guest
from guest.log import Log
from guest.machine import Machine
from guest.progress import Progress

NAME = "demo"
TIME_LIMIT = 900.0
SERVICES = ("postgres", "redis", "qdrant", "llama-cpp", "app", "scripted-endpoint", "aider-wrapper", "ralph-wiggum")
DISK_MEGABYTES = 9000

PROMPT = "Implement add(a, b) in calc.py, and a test of it in test_calc.py."
VERIFY = "python3 test_calc.py"
PLAY = '{"play": "eventually:2"}'
"""The model's part: the first answer is wrong."""

WHO_WORKS = """\
Now a task, for the real Ralph, aider-wrapper and aider. A model that can write code is too large for a
demonstration, so a scripted endpoint plays it; its first answer is wrong, as a model's may be.
"""

GOOD = images.reference("app", "good")
"""A second name of the working release, from which the broken one is made."""

BROKEN = f"""\
FROM {GOOD}
LABEL demo={{stamp}}
ENTRYPOINT ["/usr/bin/python3", "-c", "import a_module_that_nobody_packed"]
"""


def main() -> int:
    """Run the demo; the guest goes on running afterwards."""
    argparse.ArgumentParser(prog="make demo", description=__doc__).parse_args()
    log = Log(paths.logs() / "demo.log")
    progress = Progress(sys.stdout)
    started = time.monotonic()
    try:
        with locked(paths.cache() / "locks" / "demo", wait=False):
            run(log, progress)
    except BlockingIOError:
        print("demo: another `make demo` is running", file=sys.stderr)
        return 2
    except GuestError as error:
        log.line(str(error))
        print(f"\ndemo: {error}\n  log:  {log.path}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; `make stop` ends the guest", file=sys.stderr)
        return 130
    progress.say(f"\nThat took {time.monotonic() - started:.0f} s. The stack goes on running:")
    progress.say("  make shell                       look inside")
    progress.say("  make shell CMD='aistack status'  run one command there")
    progress.say("  make stop                        power the guest off")
    return 0


def run(log: Log, progress: Progress) -> None:
    """Bring the stack up, break it, and show that it heals."""
    machine = prepare(log, progress)
    with progress.step("starting the stack: databases, model, app, aider-wrapper, ralph-wiggum"):
        start(machine)
    progress.say("\nEach is started only when what it needs answers, and is up only when it answers itself:\n")
    progress.say(machine.succeed("aistack status"))
    progress.say("The user's own container reports from inside what it just did with all four:\n")
    progress.say(machine.succeed("curl -fsS http://127.0.0.1:8000/ready") + "\n")
    work_on_a_task(machine, progress)
    break_and_heal(machine, progress)


def prepare(log: Log, progress: Progress) -> Machine:
    """Return the demo's machine, on and with the stack of this checkout installed."""
    guest = Guest(NAME)
    ready = root.entry().present and images.entry(images.RALPH).present
    # All is there the second time; a guest of a few hundred megabytes still has to grow.
    host.require(disk_megabytes=1000 if ready else DISK_MEGABYTES)
    with progress.step(f"the guest's root: Debian {root.SUITE} with systemd and podman"):
        lower = root.ensure()
    with progress.step("the images: postgres with pgvector, redis, llama.cpp, a qdrant stand-in, aider, ralph, …"):
        storage = images.ensure(images.RALPH)
    machine = Machine(guest, log, Deadline(TIME_LIMIT), NAME)
    stale = not guest.usable or guest.root != lower or guest.images != storage
    if stale:
        if guest.folder.is_dir():
            progress.say("the demo's guest is from another version of the root or images: making it anew")
        with progress.step("a guest of its own"):
            guest.create(lower, storage)
    with progress.step("booting the guest"):
        machine.start()
        machine.wait_for_unit("basic.target", timeout=60)
    with progress.step("installing the rendered bundle with bundle/install"):
        stack.install(machine, stack.rendered(images.RALPH), keep_secrets=True)
    return machine


def start(machine: Machine) -> None:
    """Start everything and wait until it is up."""
    machine.succeed("systemctl start aistack.target")
    for service in SERVICES:
        machine.wait_for_unit(f"podman-aistack-{service}.service", timeout=120)


def work_on_a_task(machine: Machine, progress: Progress) -> None:
    """Have Ralph and the real aider complete a task."""
    progress.say(WHO_WORKS)
    machine.succeed(f"curl -fsS -X PUT http://127.0.0.1:8097/control --json '{PLAY}'")
    command = f"aistack ralph submit '{PROMPT}' --verify '{VERIFY}' --watch"
    progress.say(f"# {command}")
    progress.say(machine.succeed(f"{command} 2>&1", timeout=300))
    progress.say("What aider committed:\n")
    find = "aistack ralph list --limit 1 --json | jq -r '.tasks[0].workspace'"
    git = "podman exec aistack-aider-wrapper git -C /workspace"
    progress.say(machine.succeed(f"{git}/$({find}) log --stat --format='%h %an: %s'"))


def break_and_heal(machine: Machine, progress: Progress) -> None:
    """Give the app a release that cannot start, and wait until the good one serves again."""
    progress.say("Now a bad release: app's new image ends at once, because a module is missing in it.\n")
    with progress.step("waiting until the running release has proved itself (10 s after its start)"):
        machine.wait_until_succeeds("aistack releases app --json | grep -q '\"good\"'", timeout=60)
    app = images.reference("app")
    machine.succeed(f"podman image exists {GOOD} || podman tag {app} {GOOD}")
    text = BROKEN.format(stamp=time.time_ns())
    with progress.step(f"building the bad release as {app}"):
        machine.succeed(f"podman build --quiet --network=none --pull=never --tag {app} - <<'END'\n{text}END\n")
    before = time.monotonic()
    with progress.step("systemctl restart podman-aistack-app: it is tried, and given up"):
        machine.execute("systemctl restart podman-aistack-app", timeout=120)
    with progress.step("the stack goes back to the last good release by itself"):
        machine.wait_until_succeeds(
            "systemctl is-active --quiet podman-aistack-app && curl -fsS http://127.0.0.1:8000/ready",
            timeout=120,
        )
    progress.say(f"\nFrom the restart to the good release serving again: {time.monotonic() - before:.1f} s.\n")
    progress.say(machine.succeed("aistack releases app"))
    progress.say(machine.succeed("aistack status"))
    machine.succeed(f"podman tag {GOOD} {app}")


if __name__ == "__main__":
    sys.exit(main())
