# Whatever it is given, aistack says in one clear line what is wrong, ends with the exit code that means it, and never
# shows a traceback; and what runs goes on running.

import shlex

SECRET = "/etc/aistack/secrets/postgres-password"
STORE = "/var/lib/aistack/releases.db"

# Runs commands, given as JSON on standard input, and prints what each did.
RUN = """
import json, os, subprocess, sys

answers = []
for arguments, environment in json.load(sys.stdin):
    words = [word.encode("utf-8", "surrogateescape") for word in arguments]
    # A command that hangs is one of the things that must not happen.
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, env={**os.environ, **environment}, timeout=60
    )
    answers.append([done.returncode, *(text.decode(errors="surrogateescape") for text in (done.stdout, done.stderr))])
json.dump(answers, sys.stdout)
"""

# Names that are no service, and would do harm if anybody trusted them.
HOSTILE = [
    "nope",
    "",
    ".",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "app/../postgres",
    "APP",
    "app.service",
    "app;touch /tmp/owned",
    "$(touch /tmp/owned)",
    "`touch /tmp/owned`",
    "app\nforged line",
    "app\rforged",
    "\x1b[2J\x1b[31mred",
    "\u202eppa",
    "%s%n{0}",
    "app' OR 1=1 --",
    "*",
    "x" * 10_000,
    "\udcff\udcfe",
]


def run(*commands: list[str], **environment: str) -> list[tuple[int, str, str]]:
    """Run commands as they are, without a shell; returns each one's exit code, output and errors."""
    document = json.dumps([(command, environment) for command in commands])
    out = machine.succeed(f"python3 -c {shlex.quote(RUN)} <<'EOF'\n{document}\nEOF")
    return [(code, text, errors) for code, text, errors in json.loads(out)]


def check(command: list[str], answer: tuple[int, str, str], code: int, *said: str) -> str:
    """Check that a command ended with `code` and one clear line; returns the line."""
    found, out, errors = answer
    shown = f"{[word[:60] for word in command]}: {found}\n{out[-2000:]}\n{errors[-2000:]}"
    assert found == code, shown
    assert "Traceback" not in out + errors, shown
    lines = errors.removesuffix("\n").split("\n")
    assert len(lines) == 1, f"not one line: {shown}"
    assert lines[0].isprintable(), f"it drives a terminal: {shown}"
    assert 10 < len(lines[0]) < 4200, f"too short or too long: {shown}"
    assert all(text in lines[0] for text in said), f"{said} not in: {shown}"
    return lines[0]


def complain(commands: list[list[str]], code: int, *said: str, **environment: str) -> None:
    """Run commands that have to end with `code` and one clear line, which has `said` in it."""
    for command, answer in zip(commands, run(*commands, **environment), strict=True):
        line = check(command, answer, code, *said)
        if len(commands) < 10:
            machine.log(f"{' '.join(command)[:60]}: {line[:200]}")


def changed(change: str) -> str:
    """The manifest after a Python statement about `m`, as text."""
    document = manifest()
    document |= {"stateDir": "/tmp/state", "runtimeDir": "/tmp/run"}
    exec(change, {"m": document})
    return json.dumps(document)


start_good_stack()
HOOK = hook().split()
running = running_units()

with subtest("a service that is not declared: exit code 2, and those that are"):
    known = "declared in /etc/aistack/stack.json: app, llama-cpp, postgres, qdrant, redis"
    commands = [["aistack", verb, "nope"] for verb in ("status", "preflight", "releases", "rollback")]
    commands += [[*HOOK, verb, "nope"] for verb in ("start-pre", "await-ready", "rollback", "bless", "retry")]
    complain(commands, 2, "no service is called 'nope'", known)

with subtest("names made to do harm do none"):
    commands = [["aistack", "status", name] for name in HOSTILE]
    commands += [[*HOOK, "start-pre", name] for name in HOSTILE]
    complain(commands, 2, "no service is called ")
    machine.fail("test -e /tmp/owned")
    folders = machine.succeed("find /run/aistack -mindepth 1 -maxdepth 1 -type d -printf '%f\\n'")
    assert sorted(folders.split()) == sorted(SERVICES)

with subtest("as instances of the stack's units neither"):
    since = cursor()
    for name in ("nope", "../../etc", "a b\nforged"):
        instance = machine.succeed(f"systemd-escape --template aistack-retry@.service {shlex.quote(name)}").strip()
        machine.fail(f"systemctl start {shlex.quote(instance)}")
    said = journal(since)
    assert said.count("aistack: no service is called ") == 3, said
    assert "Traceback" not in said, said
    machine.succeed("systemctl reset-failed")
    assert running_units() == running

with subtest("a command line that means nothing: exit code 2 and the usage"):
    for words in (["nope"], ["status", "--nope"], ["rollback"], ["releases", "--log", "x"], ["releases", "--log"]):
        ((code, out, errors),) = run(["aistack", *words])
        assert code == 2, (words, code)
        assert "Traceback" not in out + errors, errors
        assert "--help" in errors, errors
    complain([["aistack", "releases", "--log", "999"]], 2, "no release 999", "recorded are")
    complain([[*HOOK], [*HOOK, "start-pre"], [*HOOK, "nope", "app"], [*HOOK, "start-pre", "app", "x"]], 2, "usage: ")

COMMANDS = [
    ["aistack", "status"],
    ["aistack", "rollback", "app"],
    *([*HOOK, verb, "app"] for verb in ("start-pre", "await-ready", "rollback")),
]
SHORT = [["aistack", "status"], [*HOOK, "start-pre", "app"], [*HOOK, "rollback", "app"]]

with subtest("no manifest: exit code 2, where it should be and what puts it there"):
    nowhere = "/nowhere/stack.json"
    said = f"no manifest at {nowhere}: is the stack installed?"
    complain(COMMANDS, 2, said, AISTACK_MANIFEST=nowhere)
    for verb in ("status", "preflight", "releases"):
        ((code, out, errors),) = run(["aistack", verb, "--json"], AISTACK_MANIFEST=nowhere)
        problem = json.loads(out)["error"]
        assert (code, problem["code"], problem["exit_code"]) == (2, "usage", 2), out
        assert said in problem["message"], out

MALFORMED = {
    "empty": "",
    "cut off": json.dumps(manifest())[:5000],
    "no JSON": "services:\n  app:\n",
    "bytes": "\udcff\udcfe\udc80",
    "nested without end": "[" * 50_000,
    "a list": "[]",
    "a number": "7",
    "nothing": "null",
    "of a later version": changed("m['schemaVersion'] = 2"),
    "of no version": changed("del m['schemaVersion']"),
    "without services": changed("del m['services']"),
    "services are a list": changed("m['services'] = []"),
    "a service is text": changed("m['services']['app'] = 'app'"),
    "a service lacks its probe": changed("del m['services']['app']['probe']"),
    "a probe lacks its kind": changed("del m['services']['app']['probe']['kind']"),
    "a port is text": changed("m['services']['app']['probe']['port'] = '8000'"),
    "a timeout is text": changed("m['startup']['timeoutSeconds'] = 'long'"),
    "a timeout is infinite": changed("m['startup']['timeoutSeconds'] = float('inf')"),
    "a number is a boolean": changed("m['services']['app']['stopTimeoutSeconds'] = True"),
    "a dependency is not declared": changed("m['services']['app']['dependsOn'] = ['nope']"),
    "a published port is a number": changed("m['services']['app']['publish'] = [8000]"),
    "the state directory is a number": changed("m['stateDir'] = 7"),
    "a service has a hostile name": changed("m['services']['../x'] = m['services'].pop('app')"),
}

PUT = "import json, sys; open(sys.argv[1], 'wb').write(json.load(sys.stdin).encode('utf-8', 'surrogateescape'))"


def put(text: str) -> str:
    """Write a manifest, whatever it is; returns its path."""
    machine.succeed(f"python3 -c {shlex.quote(PUT)} /tmp/bad.json <<'EOF'\n{json.dumps(text)}\nEOF")
    return "/tmp/bad.json"


with subtest("a malformed manifest: exit code 2 and what is wrong with it"):
    for what, text in MALFORMED.items():
        with machine.nested(f"the manifest: {what}"):
            complain(SHORT, 2, "/tmp/bad.json", AISTACK_MANIFEST=put(text))

with subtest("a manifest that contradicts itself is refused by whoever acts on it"):
    careful = [["aistack", "preflight"], ["aistack", "rollback", "app"]]
    for change, named in (
        ("m['services']['app']['dependsOn'] = ['app']", "app"),
        ("m['secrets'] = {}", "POSTGRES_PASSWORD"),
    ):
        complain(careful, 2, "/tmp/bad.json", named, AISTACK_MANIFEST=put(changed(change)))

with subtest("a unit with a malformed manifest fails with that line, and nothing else stops or is blamed"):
    before = current("app")
    put(MALFORMED["cut off"])
    use_manifest("AISTACK_MANIFEST=/tmp/bad.json")
    machine.succeed(f"systemctl stop {unit('app')}")
    since = cursor()
    machine.fail(f"systemctl start {unit('app')}")
    said = wait_for_journal(since, "Failed to start aistack-rollback@app.service")
    line = "aistack: the manifest /tmp/bad.json is not JSON: "
    assert journal(since, f"--unit {unit('app')}").count(line) == 3, said
    assert journal(since, "--unit aistack-rollback@app.service").count(line) == 1, said
    assert "Traceback" not in said, said
    reset_manifest()
    machine.succeed(f"systemctl reset-failed; systemctl start {unit('app')}")
    assert current("app") == before, current("app")

with subtest("a secret that cannot be one: its key, its file and what to do, and no release is blamed"):
    machine.succeed(f"cp --preserve {SECRET} {SECRET}.kept")
    machine.succeed(f"systemctl stop {unit('app')}")
    for content, advice in (
        ("tell\\377nobody", f"  secret POSTGRES_PASSWORD: secret missing: {SECRET} is no text"),
        ("tell\\nnobody", 'set services.aistack.secrets.POSTGRES_PASSWORD.as = "file"'),
    ):
        machine.succeed(f"printf '{content}' > {SECRET}")
        since = cursor()
        machine.fail(f"systemctl start {unit('app')}")
        machine.wait_until_succeeds("systemctl is-active aistack-retry@app.timer")
        said = journal(since)
        assert advice in said, said
        for secret in ("Traceback", "tell", "nobody"):
            assert secret not in said, said
        machine.succeed(f"systemctl stop {unit('app')} aistack-retry@app.timer; systemctl reset-failed {unit('app')}")
    machine.succeed(f"mv {SECRET}.kept {SECRET}; systemctl start {unit('app')}")
    assert current("app") == before, current("app")
    running["app"] = invocation("app")

for damage, do in (
    ("cut off in the middle", f"truncate --size=$(($(stat --format %s {STORE}) / 2)) {STORE}"),
    ("overwritten", f"head --bytes 20000 /dev/urandom > {STORE}"),
):
    with subtest(f"releases.db {damage}: one line says so, and everything runs on"):
        machine.succeed(f"cp {STORE} /tmp/whole.db; {do}")
        advice = f"mv {STORE} {STORE}.damaged"
        complain([["aistack", "releases"], ["aistack", "rollback", "app"]], 1, f"{STORE} is damaged", advice)
        ((code, out, errors),) = run(["aistack", "status"])
        check(["aistack", "status"], (code, "", errors), 1, f"{STORE} is damaged")
        assert out.count("ready") == len(SERVICES), out
        ((code, out, errors),) = run(["aistack", "status", "--json"])
        document = json.loads(out)
        assert (code, document["exit_code"]) == (1, 1), out
        assert len(document["problems"]) == 1, out
        assert [row["state"] for row in document["services"]] == ["ready"] * len(SERVICES), out
        assert running_units() == running
        machine.succeed(APP_SERVES)

    with subtest(f"releases.db {damage}: the next start keeps it aside, begins a new one, and works"):
        since = cursor()
        machine.succeed(f"systemctl restart {unit('app')}")
        said = journal(since, f"--unit {unit('app')}")
        assert f"{STORE} was damaged; it is kept as {STORE}.damaged-" in said, said
        assert "Traceback" not in said, said
        machine.succeed(f"ls {STORE}.damaged-*; rm {STORE}.damaged-*")
        assert [release["current"] for release in releases("app")] == [True], releases("app")
        machine.succeed("aistack status")
        running["app"] = invocation("app")
        assert running_units() == running
        wait_until_good("app")
