"""A hundred services: the reference stack's five, and 95 derived from its app (unit, scripts, manifest) as rendered.

They start, all of them get ready, status agrees with systemd and podman, one health check of all of them takes less
than its interval, and when one breaks, nobody else suffers.
"""
# guest: slow a hundred containers
# guest: time-limit 900

COUNT = 100
INTERVAL = 30  # seconds between two health checks
BROKEN = "many-40"

# Answers at once. Of its image there are two: the second ends by itself.
ANSWERS = """
import signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
server = socket.create_server(("", 8000), backlog=16)
while True:
    client, _ = server.accept()
    client.settimeout(2)
    try:
        client.recv(4096)
        client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok")
    except OSError:
        pass
    client.close()
"""
FAILS = "raise SystemExit('no such table')"

# Nine in ten depend on one that was started before; the longest chain is as long as the number has digits in base 3.
MANY = [f"many-{number}" for number in range(1, COUNT - len(SERVICES) + 1)]
DEPENDS_ON = {name: [MANY[number // 3 - 1]] if number >= 9 else [] for number, name in enumerate(MANY, 1)}
EVERY = [*SERVICES, *MANY]


def all_status() -> dict[str, dict[str, Any]]:
    """What `aistack status --json` says, by service. The exit code is not looked at."""
    found = json.loads(machine.execute(f"{SETTING} aistack status --json")[1])["services"]
    return {entry["service"]: entry for entry in found}


def invocations() -> dict[str, str]:
    """The invocation of every unit."""
    shown = machine.succeed(f"systemctl show --property InvocationID --value {' '.join(unit(name) for name in EVERY)}")
    return dict(zip(EVERY, shown.split(), strict=True))


def active() -> set[str]:
    """The services whose unit is active."""
    shown = machine.execute(f"systemctl is-active {' '.join(unit(name) for name in EVERY)}")[1].split()
    return {name for name, state in zip(EVERY, shown, strict=True) if state == "active"}


machine.wait_for_unit("multi-user.target")
build_image("localhost/scenario/many:1", ANSWERS)
build_image("localhost/scenario/fails:1", FAILS)
SETTING = derive(
    {name: {"image": {"ref": "localhost/scenario/many:1"}, "dependsOn": DEPENDS_ON[name]} for name in MANY}
)
set_timer("aistack-bless@", 5)

with subtest("a hundred services start, and all are ready"):
    began = time.monotonic()
    machine.succeed("systemctl start aistack.target")
    for name in EVERY:
        machine.wait_for_unit(unit(name), timeout=600)
    machine.log(f"{COUNT} services were ready after {time.monotonic() - began:.1f} s")
    assert active() == set(EVERY)

with subtest("status agrees with systemd and podman"):
    found = all_status()
    assert sorted(found) == sorted(EVERY)
    assert {entry["state"] for entry in found.values()} == {"ready"}, found
    machine.succeed(f"{SETTING} aistack status")
    running = machine.succeed("podman ps --format '{{.Names}}'").split()
    assert sorted(running) == sorted(f"aistack-{name}" for name in EVERY)

with subtest("every release earns its good"):
    unproven = (
        f"{SETTING} aistack releases --json | jq '[.releases[] | select(.current and .state != \"good\")] | length'"
    )
    machine.wait_until_succeeds(f"test $({unproven}) = 0", timeout=200)

with subtest("one health check of all of them takes less than its interval"):
    machine.succeed(f"systemctl start aistack-health-{INTERVAL}.service")
    shown = machine.get_unit_info(f"aistack-health-{INTERVAL}.service")
    took = int(shown["ExecMainExitTimestampMonotonic"]) - int(shown["ExecMainStartTimestampMonotonic"])
    machine.log(f"it took {took / 1e6:.2f} s")
    assert took < INTERVAL * 1e6, took
    answers = f"{SETTING} aistack health --json | jq -r '.services[] | .state'"
    assert set(machine.succeed(answers).split()) == {"healthy"}

with subtest("one that breaks: it alone is rolled back, and nobody else is restarted"):
    before = invocations()
    machine.succeed("podman tag localhost/scenario/fails:1 localhost/scenario/many-40:1")
    changed = f'.services["{BROKEN}"].image.ref = "localhost/scenario/many-40:1"'
    machine.succeed(f"jq '{changed}' /var/lib/derived/stack.json > /var/lib/derived/broken.json")
    use_manifest("AISTACK_MANIFEST=/var/lib/derived/broken.json")
    since = cursor()
    machine.execute(f"systemctl restart {unit(BROKEN)}")
    wait_for_journal(since, f"{BROKEN} ROLLED BACK", timeout=120)
    machine.wait_for_unit(unit(BROKEN))
    assert active() == set(EVERY)
    after = invocations()
    assert [name for name in EVERY if after[name] != before[name]] == [BROKEN]
    assert {name for name, entry in all_status().items() if entry["state"] != "ready"} == set()

with subtest("all of it stops"):
    machine.succeed(f"systemctl stop aistack.target {' '.join(unit(name) for name in EVERY)}", timeout=300)
    assert active() == set()
    assert not machine.succeed("podman ps --format '{{.Names}}'").split()
