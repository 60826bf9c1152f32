# A boot brings the stack up in order: what depends on something starts only after that really answers.

MONOTONIC = ["InactiveExitTimestampMonotonic", "ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic"]
SLOW = 2  # seconds before the slow redis begins to listen


def boot() -> None:
    """Switch the machine on and wait for the stack, which nobody starts."""
    began = time.monotonic()
    machine.start()
    machine.wait_for_unit("multi-user.target")
    for service in SERVICES:
        machine.wait_for_unit(unit(service), timeout=120)
    machine.log(f"from power-on to a ready stack: {time.monotonic() - began:.1f} s")


def times(service: str) -> dict[str, float]:
    """When the unit's start began, when its container ran, when it was active: seconds of the monotonic clock."""
    shown = machine.succeed(f"systemctl show --property {','.join(MONOTONIC)} {unit(service)}")
    stamps = dict(line.split("=") for line in shown.split())
    assert all(stamps[name] != "0" for name in MONOTONIC), f"{service} has not been started: {stamps}"
    return {name: int(stamps[name]) / 1e6 for name in MONOTONIC}


def check_order() -> None:
    """Compare, for every hard dependency, when it answered with when its dependents were started."""
    offset = float(machine.succeed("python3 -c 'import time; print(time.time() - time.monotonic())'"))
    services = manifest()["services"]
    edges = [(name, needed) for name, service in services.items() for needed in service["dependsOn"]]
    assert len(edges) == 4, f"the reference stack has other dependencies than this scenario knows: {edges}"
    for name, needed in edges:
        answered = verdict(needed)["readyAt"] - offset
        begin, container, active = (times(name)[stamp] for stamp in MONOTONIC)
        counted = times(needed)["ActiveEnterTimestampMonotonic"]
        machine.log(f"{name} began {(begin - answered) * 1000:.0f} ms after {needed} answered")
        assert answered <= counted, f"{needed} counted as started {answered - counted} s before it answered"
        assert counted <= begin, f"{name} began {counted - begin} s before {needed} counted as started"
        # The time of a main process is a multiple of the kernel's clock tick, 10 ms.
        assert answered <= container + 0.01, f"{name}'s container ran {answered - container} s before {needed} answered"
        assert verdict(name)["readyAt"] - offset <= active, f"{name} counted as started before it answered"


def app(*missing: str) -> dict[str, Any]:
    """What the user's own container answers when it misses just these; a busy machine may be late with more."""
    for _ in range(5):
        out = machine.succeed("curl --silent --show-error --write-out '\\n%{http_code}' http://127.0.0.1:8000/ready")
        text, _, code = out.rpartition("\n")
        body: dict[str, Any] = json.loads(text)
        found = [name for name, result in body["dependencies"].items() if not result["ok"]]
        if found == list(missing):
            break
        time.sleep(1)
    assert (int(code), found) == (503 if missing else 200, list(missing)), body
    return body


def check_all_good() -> None:
    """Nothing of the stack, and nothing else, is left failed or under way."""
    machine.succeed("aistack status >&2")
    assert machine.succeed("systemctl list-units --failed --no-legend --plain").strip() == ""
    # But for health checks and ends of probation, which may be due at any moment.
    jobs = machine.succeed("systemctl list-jobs --no-legend --plain | sed -E '/ aistack-(health-|bless@)/d'").strip()
    assert jobs in ("", "No jobs running."), jobs
    shown = machine.succeed("systemctl show --property NRestarts --value 'podman-aistack-*.service'").split()
    assert shown == ["0"] * len(SERVICES), f"units were started more than once: {shown}"
    document = json.loads(machine.succeed("aistack status --json"))
    found = {row["service"]: row["state"] for row in document["services"]}
    assert found == dict.fromkeys(SERVICES, "ready"), found


# Where the stack was installed into a running machine, this is its first boot; a boot has empty volumes either way.
machine.shutdown()
boot()

with subtest("on its first boot each unit starts only after what it depends on answers"):
    check_order()

with subtest("the user's container answers on the published port, having used all four"):
    body = app()
    used = body["dependencies"]
    assert sorted(used) == ["llama-cpp", "postgres", "qdrant", "redis"], body
    assert all(result["ok"] and result["ms"] > 0 for result in used.values()), body

with subtest("every unit is up at its first try, nothing failed or hangs, and status says so"):
    check_all_good()

with subtest("the answer is no mere claim: without a dependency it names what is missing"):
    machine.succeed(f"systemctl stop {unit('qdrant')}")
    app("qdrant")
    machine.succeed(f"systemctl start {unit('qdrant')}")
    app()

with subtest("after a power failure too, the order holds for a dependency whose process runs long before it answers"):
    image = "localhost/aistack-images/redis:1"
    original = json.loads(machine.succeed(f"podman image inspect --format '{{{{json .Config.Entrypoint}}}}' {image}"))
    wait = f'sleep {SLOW}; echo "listens from $(date +%s.%N)"; exec "$@"'
    entrypoint = json.dumps(["/bin/sh", "-c", wait, "sh", *original])
    machine.succeed(
        f"mkdir -p /tmp/slow; printf 'FROM %s\\nENTRYPOINT %s\\n' {image} '{entrypoint}' > /tmp/slow/Containerfile"
    )
    machine.succeed("podman build --quiet --tag localhost/slow-redis:1 /tmp/slow")
    declare_image("localhost/slow-redis:1", image)
    machine.succeed("sync")
    machine.crash()
    boot()
    check_order()
    offset = float(machine.succeed("python3 -c 'import time; print(time.time() - time.monotonic())'"))
    said = machine.succeed("journalctl --boot --output cat CONTAINER_NAME=aistack-redis | grep '^listens from'")
    listens = float(said.split()[-1]) - offset
    begin, container, _ = (times("redis")[stamp] for stamp in MONOTONIC)
    assert listens - container > SLOW * 0.9, f"redis was not slow: it listened {listens - container} s after its start"
    dependent = times("app")["InactiveExitTimestampMonotonic"]
    assert dependent > listens, f"app began {listens - dependent} s before redis listened"
    app()
    check_all_good()
