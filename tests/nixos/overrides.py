"""An override reaches the containers at their next start, and one that breaks a service is rolled back with it."""

KEY = "RALPH_MAX_ITERATIONS_SIMPLE"
OVERRIDES = "/var/lib/aistack/overrides.json"
DUMP = "import json, os; print(json.dumps(dict(os.environ)))"
# What an image runs whatever its own first program is, and refuses a limit above 40.
PICKY = f'test "${KEY}" -le 40 || {{ echo "more than 40 is too many"; exit 3; }}; exec "$@"'


def reference() -> dict[str, Any]:
    """The manifest, but redis, which the app depends on, gets the stack's environment, too."""
    found = manifest()
    found["services"]["redis"]["stackEnvironment"] = True
    return found


def aistack(arguments: str, code: int = 0) -> str:
    """Run the command line; returns all that it printed."""
    found, out = machine.execute(f"{SETTING} aistack {arguments} 2>&1")
    assert found == code, f"aistack {arguments} ended with {found}:\n{out}"
    return out


def has(service: str) -> dict[str, str]:
    """The environment that a container really has."""
    out = machine.succeed(f"podman container inspect --format '{{{{json .Config.Env}}}}' aistack-{service}")
    return dict(pair.split("=", 1) for pair in json.loads(out))


def row(service: str) -> dict[str, Any]:
    """What status says of a service, by this scenario's manifest."""
    _, out = machine.execute(f"{SETTING} aistack status {service} --json")
    (found,) = json.loads(out)["services"]
    assert isinstance(found, dict)
    return found


def readers(file: str) -> dict[str, str]:
    """The command that prints, as JSON, what each reader makes of a file."""
    python = machine.succeed("command -v python3").strip()
    dotenv = f'import json; from dotenv import dotenv_values; print(json.dumps(dotenv_values("{file}")))'
    return {
        "podman": f"podman run --rm --network none --env-file {file} --entrypoint python3 {APP_IMAGE} -c '{DUMP}'",
        "systemd": f"systemd-run --quiet --pipe --wait --property EnvironmentFile={file} {python} -c '{DUMP}'",
        "python-dotenv": f"env -i {python} -c '{dotenv}'",
        "shell": f"env -i sh -c 'set -a; . {file}; exec {python} -c \"{DUMP}\"'",
    }


def make_picky(service: str, entrypoint: str) -> None:
    """Let a service's declared image be one that refuses some values."""
    image = f"localhost/aistack-images/{service}:1"
    command = json.dumps(["/bin/sh", "-c", PICKY, "picky", entrypoint])
    machine.succeed("mkdir -p /tmp/build")
    machine.succeed(f"cat > /tmp/build/Containerfile <<'EOF'\nFROM {image}\nENTRYPOINT {command}\nEOF")
    machine.succeed(f"podman build --quiet --tag localhost/scenario/picky-{service}:1 /tmp/build")
    declare_image(f"localhost/scenario/picky-{service}:1", image)


def rolled_back(since: str, service: str) -> str:
    """Wait for the one line of the journal that says how a service went back."""
    found = wait_for_journal(since, f"{service} ROLLED BACK", timeout=60)
    (line,) = [line for line in found.splitlines() if f"{service} ROLLED BACK" in line]
    return line


machine.wait_for_unit("multi-user.target")
SETTING = write_manifest(reference(), "/var/tmp/stack.json")
use_manifest(SETTING)
set_timer("aistack-bless@", 1)
make_picky("redis", "/usr/local/bin/entrypoint")
make_picky("app", "/app/app.py")
start_stack()
wait_until_good(*SERVICES)
on_disk = machine.succeed("sha256sum /etc/aistack/.env")

with subtest("a container has an override from its next start on, and not before"):
    others = {service: invocation(service) for service in ("postgres", "qdrant", "llama-cpp")}
    said = aistack(f"env set {KEY}=15")
    assert f"{KEY}: 10 -> 15 (Nix declares 10)" in said, said
    assert f"next: systemctl restart {unit('redis')} {unit('app')}\n" in said, said
    assert [has(service)[KEY] for service in ("redis", "app")] == ["10", "10"]
    drift = aistack("env check", 3)
    assert f"app: runs with {KEY}=10, not the overridden 15" in drift, drift
    machine.succeed(f"systemctl restart {unit('redis')} {unit('app')}")
    assert [has(service)[KEY] for service in ("redis", "app")] == ["15", "15"]
    assert KEY not in has("postgres")
    aistack("env check")
    assert machine.succeed("sha256sum /etc/aistack/.env") == on_disk
    assert aistack(f"env get {KEY}") == "15\n"

with subtest("what is effective means the same to all four readers"):
    machine.succeed(f"{SETTING} aistack env show > /tmp/shown.env")
    effective = json.loads(aistack("env show --json"))["environment"]
    assert effective == {**manifest()["environment"], KEY: "15"}
    for reader, command in readers("/tmp/shown.env").items():
        read = json.loads(machine.succeed(command))
        assert {key: read.get(key) for key in effective} == effective, reader

with subtest("--restart restarts those that read it, in order, and nobody else"):
    before = running_units()
    said = aistack("env set RALPH_ADAPTIVE_ITERATIONS=false RALPH_LOOP_ENABLED=false --restart")
    assert said.index("restarting podman-aistack-redis") < said.index("restarting podman-aistack-app"), said
    for service in ("redis", "app"):
        values = has(service)
        assert values["RALPH_ADAPTIVE_ITERATIONS"] == values["ADAPTIVE_ITERATION_LIMITS"] == "false", values
        assert invocation(service) != before[service]
    assert {service: invocation(service) for service in others} == others
    machine.succeed(APP_SERVES)
    aistack("env check")

with subtest("what is not right is refused before anything is written"):
    recorded = machine.succeed(f"sha256sum {OVERRIDES}")
    for wrong in (
        f"{KEY}=101",
        f"{KEY}=x",
        "POSTGRES_HOST=elsewhere",
        "POSTGRES_PASSWORD=x",
        "NOPE=1",
        "RALPH_LOOP_ENABLED",
    ):
        said = aistack(f"env set RALPH_MAX_ITERATIONS_MEDIUM=31 {wrong}", 2)
        assert said.count("\n") == 1, said
        assert "nothing was changed" in said, said
    assert "set services.aistack.services.postgres.external.host in Nix" in aistack("env set POSTGRES_HOST=x", 2)
    said = aistack(f"env set {KEY}=$'1\\n\\e[2J\"'", 2)
    assert said.count("\n") == 1, said
    assert "\x1b" not in said, said
    assert machine.succeed(f"sha256sum {OVERRIDES}") == recorded

wait_until_good("redis", "app")
good = current("redis")

with subtest("an override that breaks a service is rolled back by itself, and its dependents do not notice"):
    beside = invocation("app")
    since = cursor()
    started = time.monotonic()
    said = aistack(f"env set {KEY}=45 --restart", 7)
    machine.log(f"rolled back after {time.monotonic() - started:.1f} s")
    line = rolled_back(since, "redis")
    assert f"with {KEY}=15, not the overridden 45" in line, line
    assert "it is recorded all the same; to take it back: aistack env restore 2" in said, said
    assert "not restarted, because of redis" in said, said
    assert current("redis")["id"] == good["id"]
    assert [has(service)[KEY] for service in ("redis", "app")] == ["15", "15"]
    assert invocation("app") == beside
    machine.wait_until_succeeds(APP_READY, timeout=20)

with subtest("status, releases and check say which key differs, and what to do"):
    found = row("redis")
    assert found["state"] == "ready", found
    assert found["environment_differs"] == [{"key": KEY, "runs": "15", "should": "45", "overridden": True}], found
    shown = aistack("status redis")
    assert f"redis: runs with {KEY}=15, not the overridden 45\n  next: aistack env unset {KEY}\n" in shown, shown
    assert "more than 40 is too many" in aistack(f"releases redis --log {releases('redis')[0]['id']}")
    assert f"redis: release {good['id']} has {KEY}=15, not the overridden 45" in aistack("releases redis")
    assert f"redis: runs with {KEY}=15, not the overridden 45" in aistack("env check", 3)

with subtest("what is known to fail is not tried again"):
    beside = invocation("redis")
    said = aistack(f"env set {KEY}=45 --restart", 7)
    assert "had this environment and failed" in said, said
    assert invocation("redis") == beside
    forget_starts("redis")
    since = cursor()
    machine.succeed(f"systemctl restart {unit('redis')}")
    assert has("redis")[KEY] == "15"
    assert f"with {KEY}=15, not the overridden 45" in journal(since)
    assert "more than 40" not in journal(since, "--identifier aistack-redis")

with subtest("nor after a reboot; a service that had not tried it yet goes back by itself"):
    machine.shutdown()
    machine.start()
    machine.wait_for_unit("multi-user.target")
    use_manifest(SETTING)
    set_timer("aistack-bless@", 1)
    since = cursor()
    machine.succeed("systemctl start aistack.target")
    line = rolled_back(since, "app")
    assert f"with {KEY}=15, not the overridden 45" in line, line
    machine.wait_until_succeeds(APP_READY, timeout=40)
    assert [has(service)[KEY] for service in ("redis", "app")] == ["15", "15"]
    aistack("status")

with subtest("another value is another try"):
    aistack(f"env set {KEY}=30 --restart")
    assert [has(service)[KEY] for service in ("redis", "app")] == ["30", "30"]
    wait_until_good("redis", "app")
    assert row("redis")["environment_differs"] == []

with subtest("a change of the history is restored, and runs the release that ran with it"):
    history = json.loads(aistack("env history --json"))["history"]
    assert [entry["id"] for entry in history] == [4, 3, 2, 1], history
    assert history[2]["values"][KEY] == "15", history
    aistack("env restore 2 --restart")
    assert [has(service)[KEY] for service in ("redis", "app")] == ["15", "15"]
    assert (current("redis")["id"], current("redis")["state"]) == (good["id"], "good")
    permanent = aistack("env diff")
    for line in ("maxIterations.simple = 15;", "adaptive = false;", "enable = false;"):
        assert f"services.aistack.ralph.{line}" in permanent, permanent

with subtest("after a rollback what ran last runs, not what was made last"):
    since = cursor()
    aistack(f"env set {KEY}=50 --restart", 7)
    line = rolled_back(since, "redis")
    assert f"with {KEY}=15, not the overridden 50" in line, line
    assert current("redis")["id"] == good["id"]

with subtest("taken back, what Nix declares holds"):
    aistack("env unset --all --restart")
    assert [has(service)[KEY] for service in ("redis", "app")] == ["10", "10"]
    assert "nothing differs" in aistack("env diff")
    aistack("env check")
    wait_until_good("redis", "app")

with subtest("an environment that Nix declares and that breaks a service is rolled back as well"):
    good = current("redis")
    changed = reference()
    changed["environment"][KEY] = "60"
    write_manifest(changed, "/var/tmp/stack.json")
    forget_starts("redis")
    since = cursor()
    machine.fail(f"systemctl restart {unit('redis')}")
    line = rolled_back(since, "redis")
    assert f"with {KEY}=10, not the declared 60" in line, line
    assert current("redis")["id"] == good["id"]
    assert f"redis: runs with {KEY}=10, not the declared 60" in aistack("status redis")
    write_manifest(reference(), "/var/tmp/stack.json")
    machine.wait_until_succeeds(APP_READY, timeout=20)

with subtest("the hooks go by it at once"):
    aistack("env set STARTUP_DEPENDENCY_CHECK=false")
    assert "dependencies are not checked" in aistack("preflight app")
    aistack("env unset STARTUP_DEPENDENCY_CHECK")
    assert "dependencies are not checked" not in aistack("preflight app")

with subtest("a file that is no use is one line, Nix's values are used, and the file is kept"):
    machine.succeed(f"printf '{{' > {OVERRIDES}")
    forget_starts("app")
    since = cursor()
    machine.succeed(f"systemctl restart {unit('app')}")
    lines = [line for line in journal(since).splitlines() if "is no use" in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"app: {OVERRIDES} is no use: it is not JSON"), lines
    assert has("app")[KEY] == "10"
    assert machine.succeed(f"cat {OVERRIDES}") == "{"
    aistack("env check", 2)
    aistack(f"env set {KEY}=15", 2)
    machine.succeed(f"mv {OVERRIDES} {OVERRIDES}.damaged")
    aistack(f"env set {KEY}=16")
    assert aistack(f"env get {KEY}") == "16\n"
