"""Helpers of every scenario. Both runners put this file before each script; nothing here may be imported."""

import json
import time
from typing import Any

APP_IMAGE = "localhost/aistack-images/app:1"
SERVICES = ["postgres", "redis", "qdrant", "llama-cpp", "app"]

APP_READY = "curl --fail --silent --max-time 10 http://127.0.0.1:8000/ready"
# The app gives what it needs 1.5 s, which a busy machine may miss: its 503 is asked again, a closed port is not.
APP_SERVES = f"{APP_READY} --retry 4"


def unit(service: str) -> str:
    """The unit of a service."""
    return f"podman-aistack-{service}.service"


def active_state(service: str) -> str:
    """systemd's ActiveState of a service's unit, now."""
    return machine.succeed(f"systemctl show --property ActiveState --value {unit(service)}").strip()


def invocation(service: str) -> str:
    """Changes whenever a service's unit is started anew: how a script sees that it was not."""
    return machine.succeed(f"systemctl show --property InvocationID --value {unit(service)}").strip()


def status(service: str) -> dict[str, Any]:
    """What `aistack status --json` says of one service. The exit code is not looked at."""
    _, out = machine.execute(f"aistack status {service} --json")
    (found,) = json.loads(out)["services"]
    assert isinstance(found, dict)
    return found


def releases(service: str = "") -> list[dict[str, Any]]:
    """The releases of a service, or of all, newest first, as `aistack releases --json` lists them."""
    found = json.loads(machine.succeed(f"aistack releases {service} --json"))["releases"]
    assert isinstance(found, list)
    return found


def verdict(service: str) -> dict[str, Any]:
    """What the last step of a service's start found."""
    found = json.loads(machine.succeed(f"cat /run/aistack/{service}/verdict.json"))
    assert isinstance(found, dict)
    return found


def manifest() -> dict[str, Any]:
    """The manifest that Nix rendered."""
    found = json.loads(machine.succeed("cat /etc/aistack/stack.json"))
    assert isinstance(found, dict)
    return found


def write_manifest(changed: dict[str, Any], path: str = "/tmp/stack.json") -> str:
    """Write a changed manifest beside the real one; returns AISTACK_MANIFEST=… for a command line."""
    machine.succeed(f"cat > {path} <<'EOF'\n{json.dumps(changed)}\nEOF")
    return f"AISTACK_MANIFEST={path}"


def use_manifest(setting: str) -> None:
    """Let the stack's units read another manifest, as `write_manifest` returned it; until the next boot."""
    for prefix in ("aistack-", "podman-aistack-"):
        folder = f"/run/systemd/system/{prefix}.service.d"
        machine.succeed(f"mkdir -p {folder}; printf '[Service]\\nEnvironment={setting}\\n' > {folder}/manifest.conf")
    machine.succeed("systemctl daemon-reload")


def reset_manifest() -> None:
    """Undo `use_manifest`."""
    machine.succeed("rm -f /run/systemd/system/*aistack-.service.d/manifest.conf; systemctl daemon-reload")


def put_manifest(changed: dict[str, Any]) -> None:
    """Let everything read another manifest, the command line too; until the next boot. May be called again."""
    write_manifest(changed, "/run/scenario-stack.json")
    place = machine.succeed("readlink --canonicalize /etc/aistack/stack.json").strip()
    if machine.execute(f"mountpoint --quiet {place}")[0] != 0:
        machine.succeed(f"mount --bind /run/scenario-stack.json {place}")


def hook() -> str:
    """The program that the units call, as a command line that a verb and a service follow."""
    shown = machine.succeed(f"systemctl show --property ExecStartPre {unit('app')}")
    (found,) = [part.strip() for part in shown.split(";") if "argv[]=" in part and " start-pre " in part]
    return found.removeprefix("argv[]=").rpartition(" start-pre ")[0]


def running_units() -> dict[str, str]:
    """The invocation of each service's unit, in one call."""
    units = " ".join(unit(service) for service in SERVICES)
    found = machine.succeed(f"systemctl show --property InvocationID --value {units}").split()
    return dict(zip(SERVICES, found, strict=True))


def network_is_well(running: dict[str, str]) -> None:
    """Everything finds everything, the published port answers, and no unit was started anew since `running`."""
    ports = [("postgres", 5432), ("redis", 6379), ("qdrant", 6333), ("llama-cpp", 8080)]
    ask = f"import socket; [socket.create_connection(place, 10).close() for place in {ports}]"
    machine.succeed(
        # As the hooks on the host ask for names, as a container does, and from outside.
        "aistack network check",
        f'podman exec aistack-app python3 -c "{ask}"',
        APP_SERVES,
    )
    assert running_units() == running


def mend_network(running: dict[str, str], *kinds: str) -> list[str]:
    """A repair finds faults of exactly these kinds and mends them all without a restart; returns what it did."""
    document = json.loads(machine.succeed("aistack network repair --json"))
    assert {fault["kind"] for fault in document["mended"]} == set(kinds), document
    network_is_well(running)
    return [fault["mended"] for fault in document["mended"]]


def start_stack() -> None:
    """Start everything and wait until it is ready. The target itself does not wait for its members."""
    machine.succeed("systemctl start aistack.target")
    for service in SERVICES:
        machine.wait_for_unit(unit(service))


def stop_stack() -> None:
    """Stop everything and wait until it has ended; the target itself does not wait for its members here either."""
    machine.succeed(f"systemctl stop aistack.target {' '.join(unit(service) for service in SERVICES)}")


def current(service: str) -> dict[str, Any]:
    """The release of a service that runs, or that its next start will run."""
    (found,) = [release for release in releases(service) if release["current"]]
    return found


def currents() -> dict[str, dict[str, Any]]:
    """The same of every service, from one call."""
    return {release["service"]: release for release in releases() if release["current"]}


def wait_for_release(service: str, identifier: int, state: str, timeout: int = 60) -> None:
    """Wait until release `identifier` is the one that runs and in that state."""
    wanted = f'.current and .id == {identifier} and .state == "{state}"'
    machine.wait_until_succeeds(
        f"aistack releases {service} --json | jq --exit-status 'any(.releases[]; {wanted})'", timeout=timeout
    )


def wait_until_good(*services: str) -> None:
    """Wait until the release of each of them that runs has earned its `good`."""
    left = f'{json.dumps(services)} - [.releases[] | select(.current and .state == "good") | .service]'
    machine.wait_until_succeeds(f"aistack releases --json | jq --exit-status '{left} == []'", timeout=60)


def set_timer(timer: str, seconds: float) -> None:
    """Let a timer of the stack, `aistack-bless@` or `aistack-retry@`, take that long; until the next boot."""
    folder = f"/run/systemd/system/{timer}.timer.d"
    lines = f"[Timer]\nOnActiveSec=\nOnActiveSec={seconds}s\n"
    machine.succeed(f"mkdir -p {folder}; printf '{lines}' > {folder}/scenario.conf; systemctl daemon-reload")


def reset_timer(timer: str) -> None:
    """Undo `set_timer`."""
    machine.succeed(f"rm -r /run/systemd/system/{timer}.timer.d; systemctl daemon-reload")


def give_health_timer(seconds: int) -> None:
    """A health timer for services of an interval that the stack has none for, until the next boot; not started."""
    for kind in ("service", "timer"):
        path = machine.succeed(f"systemctl show --property FragmentPath --value aistack-health-30.{kind}").strip()
        edit = f"s/ health 30$/ health {seconds}/; s/=30s$/={seconds}s/"
        machine.succeed(f"sed '{edit}' {path} > /run/systemd/system/aistack-health-{seconds}.{kind}")
    machine.succeed("systemctl daemon-reload")


def check_health_by_hand() -> None:
    """Stop the health timer, and wait for a check of its that is under way: who counts checks makes all of them."""
    machine.succeed("systemctl stop aistack-health-30.timer", "systemctl start aistack-health-30.service")


def start_good_stack() -> None:
    """Start everything, with a short probation this once, and wait until every release is good."""
    set_timer("aistack-bless@", 1)
    start_stack()
    wait_until_good(*SERVICES)
    reset_timer("aistack-bless@")


def wait_for_state(service: str, state: str, timeout: int = 60) -> None:
    """Wait until a service's unit is in that ActiveState."""
    command = f"systemctl show --property ActiveState --value {unit(service)}"
    machine.wait_until_succeeds(f'test "$({command})" = {state}', timeout=timeout)


def wait_for_another_start(service: str, before: str, timeout: int = 60) -> None:
    """Wait until a service whose `invocation` was `before` has been started anew and is ready."""
    state = f"systemctl show --property InvocationID,ActiveState --value {unit(service)}"
    machine.wait_until_succeeds(
        f"set -- $({state}); test ${{#}} = 2; test $1 = active -o $2 = active; test $1 != {before} -a $2 != {before}",
        timeout=timeout,
    )


def hold_down(service: str) -> None:
    """Stop a service, and let nothing but `let_up` start it again: not even a dependent that wants it."""
    folder = f"/run/systemd/system/{unit(service)}.d"
    lines = f"[Unit]\nConditionPathExists=!/run/scenario-holds-{service}\n"
    machine.succeed(f"mkdir -p {folder}; printf '{lines}' > {folder}/scenario.conf; systemctl daemon-reload")
    machine.succeed(f"touch /run/scenario-holds-{service}", f"systemctl stop {unit(service)}")


def let_up(service: str) -> None:
    """Start a service that was held down."""
    machine.succeed(f"rm /run/scenario-holds-{service}", f"systemctl start {unit(service)}")


def forget_starts(service: str) -> None:
    """Let systemd's start limit begin to count anew: a script starts things more often than people do."""
    machine.succeed(f"systemctl reset-failed {unit(service)}")


def stays(service: str, state: str, seconds: float) -> None:
    """Watch that a unit keeps a state for some time: that nothing happens cannot be waited for otherwise."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert (found := active_state(service)) == state, f"{service} is {found}, it should stay {state}"
        time.sleep(0.2)


def build_image(tag: str, program: str, base: str = APP_IMAGE) -> None:
    """An image like `base` that runs a Python program instead; `tag` is its whole local name."""
    command = json.dumps(["python3", "-c", program])
    containerfile = f"FROM {base}\nENTRYPOINT {command}\nCMD []\n"
    machine.succeed("mkdir -p /tmp/build")
    machine.succeed(f"cat > /tmp/build/Containerfile <<'EOF'\n{containerfile}EOF")
    machine.succeed(f"podman build --quiet --tag {tag} /tmp/build")


def build_copy(tag: str, base: str = APP_IMAGE) -> None:
    """An image that does what `base` does and is another one: what a rebuild of the same program is."""
    machine.succeed("mkdir -p /tmp/build")
    machine.succeed(f"printf 'FROM {base}\\nLABEL copy={tag}\\n' > /tmp/build/Containerfile")
    machine.succeed(f"podman build --quiet --tag {tag} /tmp/build")


def declare_image(tag: str, reference: str = APP_IMAGE) -> None:
    """Make `reference`, the image that Nix declares, be another image: what a rebuild under the same name does."""
    machine.succeed(f"podman tag {tag} {reference}")


def cursor() -> str:
    """Where the journal ends now."""
    return machine.succeed("journalctl --lines 0 --show-cursor --quiet | sed 's/^-- cursor: //'").strip()


def journal(since: str, *arguments: str) -> str:
    """The journal since a cursor, messages only."""
    return machine.succeed(f"journalctl --after-cursor '{since}' --output cat --no-pager {' '.join(arguments)}")


def wait_for_journal(since: str, text: str, timeout: int = 60) -> str:
    """Wait until the journal since a cursor has `text`; returns it all."""
    deadline = time.monotonic() + timeout
    while text not in (found := journal(since)):
        assert time.monotonic() < deadline, f"{text!r} is not in the journal after {timeout} s:\n{found[-4000:]}"
        time.sleep(0.2)
    return found


def derive(services: dict[str, dict[str, Any]], options: str = "") -> str:
    """More services, made on the machine from the app as Nix rendered it: its unit, its scripts and its entry in the
    manifest, with another name in each of them and what `services` says of the entry. They publish no port.

    `options` are more options of `podman run`. Until the next boot all units read the manifest that comes out; returns
    AISTACK_MANIFEST=… for a command line. Nothing is started, and the stack's own services stay.
    """
    entries: dict[str, dict[str, Any]] = {}
    for name, differs in services.items():
        own: dict[str, Any] = {
            "container": f"aistack-{name}",
            "unit": unit(name),
            "publish": [],
            "dependsOn": [],
            "secrets": [],
        }
        own["image"] = {"live": f"localhost/aistack/{name}:live", **differs.get("image", {})}
        entries[name] = {**own, **{key: value for key, value in differs.items() if key != "image"}}
    folder = "/var/lib/derived"
    order = {name: " ".join(unit(other) for other in entry["dependsOn"]) for name, entry in entries.items()}
    rows = "".join(f"{name} {units}\n" for name, units in order.items())
    add = ".services.app as $app | .services += ($new[0] | map_values(. as $own | $app * $own))"
    machine.succeed(
        f"mkdir -p {folder}; cat > {folder}/services.json <<'EOF'\n{json.dumps(entries)}\nEOF",
        f"cat > {folder}/rows <<'EOF'\n{rows}EOF",
        f"jq --slurpfile new {folder}/services.json '{add}' /etc/aistack/stack.json > {folder}/stack.json",
        f"""
        cd /run/systemd/system
        rendered=$(systemctl show --property FragmentPath --value {unit("app")})
        scripts=$(sed -nE 's/^Exec[A-Za-z]+=([^ ]*podman-aistack-app[^ ]*).*/\\1/p' "$rendered")
        while read -r name order; do
          target=podman-aistack-$name.service
          needs="After=aistack-network.service $order\\nWants=aistack-network.service $order"
          mkdir -p {folder}/$name
          cp --no-preserve=mode "$rendered" $target
          for script in $scripts; do
            step=$(basename $script); step={folder}/$name/${{step#podman-aistack-app-}}
            sed -E '/^ *-p /d; s#^ *localhost/aistack/app:live#  {options} &#; s/\\bapp\\b/'$name'/g' $script > $step
            chmod 0755 $step
            sed -i "s#$script#$step#" $target
          done
          sed -i -E '/^(After|Wants)=/d; s/\\bapp\\b/'$name'/g; s/^\\[Unit\\]$/&\\n'"$needs/" $target
          mkdir -p aistack.target.wants; ln -sf ../$target aistack.target.wants/
        done < {folder}/rows
        """,
    )
    setting = f"AISTACK_MANIFEST={folder}/stack.json"
    use_manifest(setting)
    return setting


def count_calls(service: str, stop_at: int = 0) -> None:
    """From a service's next rollback on, write down each command that it and the service's own start run, in order.

    Before the command with the number `stop_at` they hang for good. Until the next boot.
    """
    programs = {name: machine.succeed(f"command -v {name}").strip() for name in ("podman", "systemctl", "journalctl")}
    machine.succeed("mkdir -p /run/scenario/bin; rm -f /run/scenario/armed /run/scenario/calls /run/scenario/reached")
    for name, path in programs.items():
        script = (
            "#!/bin/sh\n"
            "if [ -e /run/scenario/armed ]; then\n"
            f'  echo "{name} $*" >> /run/scenario/calls\n'
            f"  if [ $(wc -l < /run/scenario/calls) -eq {stop_at} ]; then\n"
            "    touch /run/scenario/reached\n"
            "    exec sleep 10000\n"
            "  fi\n"
            "fi\n"
            f'exec {path} "$@"\n'
        )
        machine.succeed(f"cat > /run/scenario/bin/{name} <<'EOF'\n{script}EOF", f"chmod +x /run/scenario/bin/{name}")
    arm = f"ExecStartPre={machine.succeed('command -v touch').strip()} /run/scenario/armed\n"
    for name, lines in ((unit(service), ""), (f"aistack-rollback@{service}.service", arm)):
        shown = machine.succeed(f"systemctl show --property Environment --value {name}").split()
        path = next((value for value in shown if value.startswith("PATH=")), "PATH=/usr/local/bin:/usr/sbin:/usr/bin")
        dropin = f"[Service]\n{lines}Environment=PATH=/run/scenario/bin:{path.removeprefix('PATH=')}\n"
        folder = f"/run/systemd/system/{name}.d"
        machine.succeed(f"mkdir -p {folder}; printf '{dropin}' > {folder}/calls.conf")
    machine.succeed("systemctl daemon-reload")


def calls() -> list[str]:
    """The commands that were written down since `count_calls`."""
    return machine.succeed("cat /run/scenario/calls").splitlines()


def fail_redis(tag: str) -> int:
    """Let the running redis be replaced by another broken release; returns the release that is to be rolled back."""
    declare_image(tag, "localhost/aistack-images/redis:1")
    forget_starts("redis")
    machine.fail(f"systemctl restart {unit('redis')}")
    newest: int = releases("redis")[0]["id"]
    return newest


def lose_power_in_rollback(tag: str, number: int, good: dict[str, Any]) -> None:
    """Pull the plug before the command `number` of a rollback of redis; after the boot the good release serves."""
    count_calls("redis", number)
    bad = fail_redis(tag)
    machine.wait_for_file("/run/scenario/reached", timeout=120)
    machine.crash()
    machine.start()
    machine.wait_for_unit("multi-user.target")
    # Where the plug was pulled before anything was decided, the broken release has its try once more.
    machine.execute(f"systemctl start {unit('redis')}")
    wait_for_release("redis", good["id"], "good", timeout=120)
    wait_for_state("redis", "active", timeout=120)
    runs = machine.succeed("podman container inspect --format '{{.Image}}' aistack-redis").strip()
    assert runs == good["image_id"], f"image {runs} runs"
    machine.succeed("podman exec aistack-redis redis-cli ping | grep -x PONG")
    listed = {release["id"]: release for release in releases("redis")}
    assert listed[bad]["state"] == "bad", listed[bad]
    assert [release for release in listed.values() if release["state"] not in ("good", "bad")] == []
    assert machine.succeed("sqlite3 /var/lib/aistack/releases.db 'PRAGMA integrity_check'").strip() == "ok"
    wait_for_journal_of_boot(f"release {bad} (", listed[bad]["reason"])
    # The rollback itself may only just end.
    machine.wait_until_succeeds("test $(systemctl is-active aistack-rollback@redis.service) = inactive", timeout=60)


def wait_for_journal_of_boot(*words: str) -> None:
    """Wait until one line of the journal since the last boot has all these words."""
    deadline = time.monotonic() + 60
    while True:
        said = machine.succeed("journalctl --boot --output cat --no-pager")
        if any(all(word in line for word in words) for line in said.splitlines()):
            return
        assert time.monotonic() < deadline, f"no line has {words}:\n{said[-4000:]}"
        time.sleep(0.2)


# Where Ralph, aider-wrapper and the scripted endpoint are published, and the keys of the first two.
RALPH = ("http://127.0.0.1:8098", "/etc/aistack/secrets/ralph-wiggum-api-key")
AIDER_WRAPPER = ("http://127.0.0.1:8099", "/etc/aistack/secrets/aider-wrapper-api-key")
SCRIPTED = ("http://127.0.0.1:8097", "/dev/null")
WORKSPACES = "/var/lib/aistack/volumes/workspaces"


def start_ralph() -> None:
    """Start Ralph and what he needs, which is not all of the stack."""
    machine.succeed(f"systemctl start {unit('ralph-wiggum')}")
    machine.wait_for_unit(unit("ralph-wiggum"))


def ask(service: tuple[str, str], method: str, path: str, body: object = None) -> tuple[int, Any]:
    """The status and the body of a service's answer; the key is sent with it, the body as JSON."""
    address, key = service
    data = "" if body is None else f"--json @- <<'EOF'\n{json.dumps(body)}\nEOF"
    out = machine.succeed(
        f"curl --silent --show-error --max-time 120 --request {method} --write-out '\\n%{{http_code}}'"
        f' --header "X-API-Key: $(cat {key})" {address}{path} {data}'
    )
    text, _, status = out.rpartition("\n")
    return int(status), json.loads(text) if text else None


def succeed_to_ask(service: tuple[str, str], method: str, path: str, body: object = None) -> dict[str, Any]:
    """The body of an answer that says yes."""
    code, found = ask(service, method, path, body)
    assert code in (200, 202), f"{method} {path}: {code} {found}"
    assert isinstance(found, dict)
    return found


def submit(prompt: str, **more: object) -> str:
    """Give Ralph a task; returns its id. `play:NAME` in the prompt says what the scripted endpoint plays."""
    task_id = succeed_to_ask(RALPH, "POST", "/tasks", {"prompt": prompt, **more})["task_id"]
    assert isinstance(task_id, str)
    return task_id


def task(task_id: str) -> dict[str, Any]:
    """A task as it is now."""
    return succeed_to_ask(RALPH, "GET", f"/tasks/{task_id}")


def iterations(task_id: str) -> list[dict[str, Any]]:
    """Every call of the agent for a task."""
    found = succeed_to_ask(RALPH, "GET", f"/tasks/{task_id}/iterations")["iterations"]
    assert isinstance(found, list)
    return found


def wait_for_task(task_id: str, *states: str, timeout: int = 120) -> dict[str, Any]:
    """Wait until a task is in one of these states."""
    deadline = time.monotonic() + timeout
    while (found := task(task_id))["state"] not in states:
        over = found["finished_at"] is not None or time.monotonic() > deadline
        assert not over, f"{found}\n{json.dumps(iterations(task_id), indent=1)}"
        time.sleep(0.2)
    return found


def asked(play: str) -> int:
    """How often the scripted endpoint was asked for a play."""
    return sum(each["play"] == play for each in succeed_to_ask(SCRIPTED, "GET", "/control")["requests"])


def wait_until_asked(play: str, times: int = 1, timeout: int = 120) -> None:
    """Wait until the scripted endpoint has been asked for a play: the agent works on it now."""
    deadline = time.monotonic() + timeout
    while asked(play) < times:
        assert time.monotonic() < deadline, f"nobody asked for {play} within {timeout} s"
        time.sleep(0.1)


def begin_slow_task(label: str) -> str:
    """A task of one iteration, on which the agent works now, and for a while."""
    play = f"play:slow:6#{label}"
    task_id = submit(f"Write add(). {play}", verify=["python3 test_calc.py"])
    wait_until_asked(play)
    return task_id


def check_completed_once(task_id: str) -> None:
    """A task of one iteration comes to its end, and that is counted once."""
    done = wait_for_task(task_id, "completed")
    assert (done["reason"], done["iterations"]) == ("verified", 1), done
    calls = iterations(task_id)
    assert [call["outcome"] for call in calls if call["counted"]] == ["done"], calls
    assert git(done["workspace"], "status --porcelain") == ""


def git(workspace: str, command: str) -> str:
    """What git says in a workspace."""
    return machine.succeed(f"podman exec aistack-ralph-wiggum git -C /workspace/{workspace} {command}")


# --- a clock that jumps ----------------------------------------------------------------------------------------------

_JUMP = "/run/scenario-clock"
# What the package's first module gets to say in addition.
_CLOCK = f"""
import time as _time

_real = _time.time


def _jumped() -> float:
    try:
        with open("{_JUMP}") as file:
            return _real() + float(file.read())
    except OSError:
        return _real()


_time.time = _jumped
"""


def let_clock_jump() -> None:
    """Let `jump` set the clock, until the next boot.

    A guest shares its host's clock, so the jump is seen by the stack's own programs alone: their package adds what a
    file says.
    """
    folder = f'import os; print(os.path.dirname(os.path.realpath("{hook().split()[-1]}")))'
    place = machine.succeed(f"python3 -c '{folder}'").strip()
    ours = "-path '*aistack/__init__.py' -not -path '*hooks*' -not -path '*cli*'"
    first = machine.succeed(f"find {place}/.. {ours}").split()[0]
    machine.succeed(f"cat {first} > /run/first.py; cat >> /run/first.py <<'EOF'\n{_CLOCK}\nEOF")
    machine.succeed(f"mount --bind /run/first.py {first}")


def jump(days: float) -> None:
    """Set the clock to so many days from the real time."""
    machine.succeed(f"echo '{days * 86400}' > {_JUMP}.new; mv {_JUMP}.new {_JUMP}")


# --- deployments that are cut off ------------------------------------------------------------------------------------

# Deploys, and sends a signal so many seconds after a line of events has a text: SIGKILL to the command alone, any other
# one to all that it started too, as a terminal does. Prints the exit code. What is stopped is left so.
_CUT = """
import os, signal, subprocess, sys, time
text, after, number = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
process = subprocess.Popen(sys.argv[4:], stdout=subprocess.PIPE, text=True, start_new_session=True)
for line in process.stdout:
    sys.stderr.write(line)
    if text in line:
        time.sleep(after)
        (os.kill if number == signal.SIGKILL else os.killpg)(process.pid, number)
        break
if number == signal.SIGSTOP:
    sys.exit()
sys.stderr.write(process.stdout.read())
print(process.wait())
"""
# Ready wherever it runs, and says which image it is.
_SERVES = """
import os, signal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"NAME")
    def log_message(self, *_):
        pass
ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""
# The network of the isolated test leads nowhere.
_FAILS_LIVE = """
if any(line.split()[1] == "00000000" for line in open("/proc/net/route").read().splitlines()[1:]):
    raise SystemExit("not in this world")
"""


def phase_begins(phase: str) -> str:
    """What the event has with which a phase of a deployment begins."""
    return f'"phase": "{phase}", "status": "started"'


def phase_ends(phase: str) -> str:
    """What the event has with which a phase of a deployment ends well."""
    return f'"phase": "{phase}", "status": "done"'


def prepare_deployments(strategy: str = "restart") -> None:
    """What scenarios of deployments need until the next boot: short probations, and an app that needs redis alone.

    It has more time to get ready than it needs: a busy machine is no fault of the release.
    """
    machine.succeed("umount /etc/aistack/stack.json || test ! -e /run/scenario-stack.json")
    found = manifest()
    found["rollback"]["probationSeconds"] = 3
    app = found["services"]["app"]
    app["dependsOn"] = ["redis"]
    app["probe"]["startTimeoutSeconds"] = 60
    app["deploy"]["strategy"] = strategy
    app["deploy"]["test"]["soakSeconds"] = 2
    put_manifest(found)
    set_timer("aistack-bless@", 3)
    machine.succeed(f"cat > /run/scenario-cut.py <<'EOF'\n{_CUT}EOF")


def build_release(name: str, *, fails_live: bool = False) -> str:
    """An image of the app that says its name, and may end at once where it is not tested; returns its tag."""
    tag = f"localhost/scenario/app:{name}"
    build_image(tag, (_FAILS_LIVE if fails_live else "") + _SERVES.replace("NAME", name))
    return tag


def cut_off(tag: str, text: str, after: float = 0.0, number: int = 9) -> int:
    """Deploy an image as the app, and send a signal so many seconds after a text in its events; its exit code."""
    command = f"aistack deploy app --image {tag} --jsonl"
    out = machine.succeed(f"python3 /run/scenario-cut.py '{text}' {after} {number} {command}", timeout=300)
    return int(out)


def lose_power_in_deployment(tag: str, text: str, after: float = 0.0, strategy: str = "restart") -> str:
    """Pull the plug so many seconds after a text in the events of a deployment; returns its outcome after the boot."""
    prepare_deployments(strategy)
    command = f"aistack deploy app --image {tag} --jsonl"
    machine.succeed(f"python3 /run/scenario-cut.py '{text}' {after} 19 {command}", "journalctl --sync")
    machine.crash()
    machine.start()
    machine.wait_for_unit("multi-user.target")
    prepare_deployments(strategy)
    machine.succeed("systemctl start aistack.target")
    for service in SERVICES:
        wait_for_state(service, "active", timeout=180)
    return check_one_release_serves()


def attempts() -> list[list[str]]:
    """The deployments of the app that there were, newest first: number, image, outcome (empty: it has not ended)."""
    known = "deploy d LEFT JOIN release r ON r.id = d.release WHERE d.service = 'app'"
    query = f"SELECT d.id, image_id, outcome FROM {known} ORDER BY d.id DESC"
    return [line.split("|") for line in machine.succeed(f'sqlite3 /var/lib/aistack/releases.db "{query}"').splitlines()]


def check_one_release_serves() -> str:
    """After any end of a deployment: one good release serves, the journal says which, nothing is left; its outcome."""
    wait_for_state("app", "active", timeout=180)
    wait_until_good("app")
    runs = current("app")
    number, image, outcome = attempts()[0]
    assert [row for row in attempts() if not row[2]] == [], attempts()
    assert not image or (outcome == "deployed") == (image == runs["image_id"]), (attempts()[0], runs)
    shown = machine.succeed("podman ps --all --external --no-trunc --format '{{.Names}} {{.ImageID}} {{.State}}'")
    names = [line.split()[0] for line in shown.splitlines()]
    assert sorted(names) == sorted(f"aistack-{service}" for service in SERVICES), shown
    assert f"aistack-app {runs['image_id']} running" in shown.replace("sha256:", ""), (runs, shown)
    assert verdict("app")["release"] == runs["id"], verdict("app")
    machine.succeed(APP_SERVES)
    assert not machine.succeed("podman network ls --quiet --filter label=aistack.deploy").strip()
    built = "podman images --format '{{.Repository}}:{{.Tag}}' | { grep ^localhost/aistack-deploy/ || test $? = 1; }"
    assert set(machine.succeed(built).split()) <= {each["image_ref"] for each in releases("app")}
    machine.succeed("aistack network check", "test ! -e /run/aistack/deploy", "aistack status app")
    # Recovery may just look whether anything came after the end of one that was interrupted.
    machine.wait_until_succeeds("aistack lock status", timeout=60)
    said = machine.succeed("journalctl --output cat --no-pager")
    ends = [line for line in said.splitlines() if f"deployment {number} of app" in line]
    assert any(f"image {runs['image_id'][:12]})" in line for line in ends), (runs, ends)
    return outcome


def recover_by(way: str) -> None:
    """Let a deployment that was cut off be ended: by hand, by the timer, or by what the timer starts, twice."""
    if way == "hand":
        machine.succeed("aistack recover")
    elif way == "timer":
        machine.wait_until_succeeds(
            "test -z $(sqlite3 /var/lib/aistack/releases.db 'SELECT id FROM deploy WHERE ended IS NULL')", timeout=120
        )
    for _ in range(2):
        machine.succeed("systemctl start aistack-recover-late.service")
    machine.wait_until_succeeds("test $(systemctl is-active aistack-recover-late.timer) = inactive", timeout=60)
