"""A deployment goes through, or fails where its fault shows first: nothing live is touched before the switch."""

HEAD = """
import os, signal, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
class Handler(BaseHTTPRequestHandler):
    status = 200
    def do_GET(self):
        self.send_response(self.status)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"ok\\n")
    def log_message(self, *_):
        pass
"""
SERVE = 'ThreadingHTTPServer(("", 8000), Handler).serve_forever()\n'
# What is wrong, the program, where it is found out, what is said.
FAULTS = [
    ("syntax error", HEAD + "def f(:\n", 5, "app.py:15: does not compile: invalid syntax"),
    ("import error", HEAD + "import nowhere\n" + SERVE, 5, "ModuleNotFoundError: No module named 'nowhere'"),
    (
        "missing key",
        HEAD + "def main():\n    print(os.environ['POSTGRES_HOSTS'])\n" + SERVE,
        5,
        "needs POSTGRES_HOSTS, which app does not get; did you mean POSTGRES_HOST?",
    ),
    (
        "wrong port",
        HEAD + 'ThreadingHTTPServer(("", 9000), Handler).serve_forever()\n',
        6,
        "it listens on 0.0.0.0:9000, not on port 8000",
    ),
    (
        "wrong address",
        HEAD + 'ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()\n',
        6,
        "it listens on 127.0.0.1:8000 only, which nobody else reaches",
    ),
    (
        "dies when it was ready",
        HEAD + "threading.Timer(2, lambda: (print('out of ideas', flush=True), os._exit(3))).start()\n" + SERVE,
        6,
        "was ready, and is not any more: it ended with exit code 3; last it said: out of ideas",
    ),
]


def source(name: str, program: str) -> str:
    """A directory to build, whose image runs a program; returns its path."""
    folder = f"/tmp/source/{name.replace(' ', '-')}"
    containerfile = f"FROM {APP_IMAGE}\nCOPY --chmod=755 app.py /app/app.py\n"
    machine.succeed(f"mkdir -p {folder}", f"cat > {folder}/Containerfile <<'EOF'\n{containerfile}EOF")
    machine.succeed(f"cat > {folder}/app.py <<'EOF'\n#!/usr/bin/env python3\n{program}EOF")
    return folder


def deploy(folder: str, *options: str) -> tuple[int, dict[str, Any]]:
    """Deploy a directory as the app; returns the exit code and the last line of JSON."""
    code, out = machine.execute(f"aistack deploy app --build {folder} --jsonl {' '.join(options)} 2>/dev/null")
    lines = [json.loads(line) for line in out.strip().splitlines()]
    assert lines[-1]["event"] == "end", out
    return code, lines[-1]


def nothing_is_left() -> None:
    """No container, network or lock of a deployment is there any more."""
    assert not machine.succeed("podman ps --all --quiet --filter label=aistack.deploy").strip()
    assert not machine.succeed("podman network ls --quiet --filter label=aistack.deploy").strip()
    # Recovery may just look whether anything came after the end of one that was interrupted.
    machine.wait_until_succeeds("aistack lock status", timeout=60)
    machine.wait_until_fails("systemctl is-active aistack-recover-late.timer")


machine.wait_for_unit("multi-user.target")
# What the candidate is up to shows within a second or two.
found = manifest()
found["rollback"]["probationSeconds"] = 4
found["services"]["app"]["probe"]["startTimeoutSeconds"] = 5
put_manifest(found)
set_timer("aistack-bless@", 4)
start_good_stack()
old = current("app")
beside = {service: invocation(service) for service in SERVICES if service != "app"}
with_app = invocation("app")

for name, program, expected, words in FAULTS:
    with subtest(f"{name}: exit code {expected}, and nothing that serves was touched"):
        code, end = deploy(source(name, program))
        assert (code, end["exit_code"]) == (expected, expected), end
        assert words in end["message"], end
        assert end["serves"]["id"] == old["id"], end
        assert invocation("app") == with_app
        nothing_is_left()

with subtest("a good one goes through every phase, and is good at the end"):
    code, end = deploy(source("good", HEAD + SERVE))
    assert (code, end["outcome"]) == (0, "deployed"), end
    assert list(end["phases"]) == ["plan", "validate", "build", "test", "switch", "verify", "probation", "bless"], end
    assert end["unavailable_seconds"] > 0, end
    new = current("app")
    assert (new["id"], new["state"]) == (end["release"]["id"], "good"), new
    nothing_is_left()

with subtest("the same once more is nothing to do"):
    before = invocation("app")
    code, end = deploy("/tmp/source/good")
    assert code == 0, end
    assert "serves already" in end["message"], end
    assert invocation("app") == before

with subtest("it stays when the unit is started anew, and with another environment"):
    machine.succeed(f"systemctl restart {unit('app')}")
    assert current("app")["id"] == new["id"]

with subtest("one that ends within its probation is gone back from, and what it was is kept"):
    program = HEAD + "threading.Timer(9, lambda: (print('out of ideas', flush=True), os._exit(3))).start()\n" + SERVE
    since = cursor()
    code, end = deploy(source("dies later", program))
    assert (code, end["outcome"]) == (7, "rolled-back"), end
    assert "ended again within its probation; its last words: out of ideas" in end["message"], end
    assert end["serves"]["id"] == new["id"], end
    bad = next(release for release in releases("app") if release["id"] == end["release"]["id"])
    assert bad["state"] == "bad", bad
    machine.succeed(f"podman image exists {bad['image_id']}")
    nothing_is_left()

with subtest("Ctrl-C before the switch leaves everything as it was, and after it goes back"):
    another = source("another", HEAD + "# another\n" + SERVE)
    for phase, expected in (("test", 130), ("probation", 7)):
        machine.succeed(
            f"systemd-run --unit deploy-{phase} --property SuccessExitStatus=7 --property SuccessExitStatus=130 "
            f"--property KillMode=process --remain-after-exit aistack deploy app --build {another} --jsonl"
        )
        began = f'journalctl --unit deploy-{phase} --output cat | grep -q \'"phase": "{phase}", "status": "started"\''
        machine.wait_until_succeeds(began, timeout=60)
        machine.succeed(f"systemctl kill --signal INT deploy-{phase}")
        shown = f"systemctl show --property ExecMainStatus,SubState deploy-{phase}"
        machine.wait_until_succeeds(f"{shown} | grep -q exited", timeout=60)
        assert f"ExecMainStatus={expected}" in machine.succeed(shown), machine.succeed(shown)
        assert current("app")["id"] == new["id"]
        nothing_is_left()

with subtest("two at a time: the second one is told who is before it"):
    machine.succeed(
        f"systemd-run --unit deploy-first --property Type=exec aistack deploy app --build {another} --jsonl",
    )
    machine.wait_until_succeeds("! aistack lock status", timeout=30)
    code, out = machine.execute(f"aistack deploy app --build {another} 2>&1")
    assert code == 4, out
    assert "`aistack deploy app` (process " in out, out
    code, out = machine.execute("aistack lock release 2>&1")
    assert code == 4, out

with subtest("SIGKILL: the timer ends what was begun, and nobody has to do anything"):
    machine.wait_until_succeeds('journalctl --unit deploy-first --output cat | grep -q \'"phase": "test", "status"\'')
    since = cursor()
    machine.succeed("systemctl kill --signal KILL deploy-first")
    wait_for_journal(since, "was cut off in phase", timeout=90)
    nothing_is_left()
    assert current("app")["id"] == new["id"]
    machine.succeed("systemctl reset-failed")

with subtest("the figures are kept"):
    found = json.loads(machine.succeed("aistack metrics --json"))
    assert found["outcomes"]["deployed"] == 2, found
    assert found["outcomes"]["refused"] == 3, found
    assert found["outcomes"]["test-failed"] == 3, found
    assert found["outcomes"]["rolled-back"] == 2, found
    assert found["outcomes"]["down"] == 0, found
    machine.succeed("aistack metrics --textfile /tmp/deploy.prom", "grep -q 'outcome=\"deployed\"} 2' /tmp/deploy.prom")

with subtest("what else runs never noticed"):
    assert {service: invocation(service) for service in beside} == beside
