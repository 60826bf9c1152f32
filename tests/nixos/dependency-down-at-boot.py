# A dependency that is down at boot: its dependents say so, wait in vain for no longer than they have to, and come up by
# themselves when it is back.

PGDATA = "/var/lib/aistack/volumes/postgres"
OTHERS = ["redis", "qdrant", "llama-cpp"]


def fate() -> dict[str, tuple[int, str]]:
    """The release of each service that runs or is to run, and its state."""
    return {service: (release["id"], release["state"]) for service, release in currents().items()}


def settle() -> None:
    """Wait until postgres and app have failed and wait for their next start, and put that off."""
    for service in ("postgres", "app"):
        machine.wait_until_succeeds(f"systemctl is-active aistack-retry@{service}.timer", timeout=60)
    set_timer("aistack-retry@", 600)
    machine.succeed("systemctl restart aistack-retry@postgres.timer aistack-retry@app.timer")
    for service in ("postgres", "app"):
        assert active_state(service) == "failed"


def blamed() -> dict[str, Any]:
    """What keeps the app from starting; it is one thing."""
    (check,) = status("app")["failed_checks"]
    assert isinstance(check, dict)
    return check


def start_in_vain(limit: float) -> float:
    """Start the app, which has to fail within `limit` seconds; returns how many it took."""
    began = time.monotonic()
    machine.fail(f"systemctl start {unit('app')}", timeout=int(limit) + 60)
    spent = time.monotonic() - began
    assert spent < limit, f"starting a dependent took {spent:.1f} s"
    return spent


start_good_stack()
before = fate()
machine.succeed(f"cp -p {PGDATA}/PG_VERSION {PGDATA}/PG_VERSION.kept; echo 9 > {PGDATA}/PG_VERSION")
machine.shutdown()
machine.start()

with subtest("at boot, what does not need the broken dependency comes up, and what does is not waited for"):
    machine.wait_for_unit("multi-user.target")
    settle()
    for service in OTHERS:
        assert active_state(service) == "active"
    # But for health checks and ends of probation, which may be due at any moment.
    jobs = machine.succeed("systemctl list-jobs --no-legend --plain | sed -E '/ aistack-(health-|bless@)/d'").strip()
    assert jobs in ("", "No jobs running."), jobs

with subtest("its dependent says which dependency, at which layer, at which address, and what to do"):
    check = blamed()
    assert check["subject"] == "dependency postgres", check
    assert check["kind"] == "name unknown", check
    assert "postgres is not registered on network local-ai (asked 10.89.100.1:53)" in check["detail"], check
    assert "its unit is failed" in check["detail"], check
    assert f"journalctl -u {unit('postgres')}" in check["fix"], check
    said = machine.succeed(f"journalctl --boot --output cat --unit {unit('app')}")
    assert f"  dependency postgres: name unknown: {check['detail']}" in said, said
    assert said.count("checks failed") == 1, f"the report is repeated:\n{said}"

with subtest("status names what is down and what waits, and ends with 8"):
    code, out = machine.execute("aistack status --json")
    assert code == 8, code
    states = {row["service"]: row["state"] for row in json.loads(out)["services"]}
    assert states == {**dict.fromkeys(OTHERS, "ready"), "postgres": "failed", "app": "waiting"}, states
    code, out = machine.execute("aistack status app")
    assert code == 3, code
    assert "dependency postgres: name unknown" in out, out

with subtest("a start of the dependent ends soon, with the dependency's own start in it"):
    machine.succeed(f"systemctl reset-failed {unit('postgres')} {unit('app')}")
    spent = start_in_vain(75)
    machine.log(f"systemctl start ended after {spent:.1f} s")
    settle()

with subtest("when the dependency is mended and started, its dependent is started at once"):
    machine.succeed(f"mv {PGDATA}/PG_VERSION.kept {PGDATA}/PG_VERSION")
    since = cursor()
    machine.succeed(f"systemctl reset-failed {unit('postgres')}; systemctl start {unit('postgres')}")
    machine.wait_for_unit(unit("app"), timeout=30)
    offset = float(machine.succeed("python3 -c 'import time; print(time.time() - time.monotonic())'"))
    began = int(machine.get_unit_info(unit("app"))["InactiveExitTimestampMonotonic"]) / 1e6
    delay = began - (verdict("postgres")["readyAt"] - offset)
    machine.log(f"app was started {delay * 1000:.0f} ms after postgres answered")
    assert 0 < delay < 2, f"app was started {delay} s after postgres answered"
    said = journal(since)
    assert "postgres is back: starting app again" in said, said
    assert "Another start of" not in said, "a timer started it"
    machine.succeed("aistack status")

with subtest("nothing was rolled back"):
    assert fate() == before, f"{before} became {fate()}"
    assert "ROLLED BACK" not in machine.succeed("journalctl --boot --output cat")

with subtest("when nobody tells that a dependency answers again, a timer finds out"):
    set_timer("aistack-retry@", 1)
    changed = manifest()
    changed["startup"]["timeoutSeconds"] = 1
    use_manifest(write_manifest(changed))
    others = {service: invocation(service) for service in [*OTHERS, "postgres"]}
    machine.succeed(f"systemctl stop {unit('app')}; podman pause aistack-postgres")
    since = cursor()
    start_in_vain(75)
    check = blamed()
    assert (check["subject"], check["kind"]) == ("dependency postgres", "timed out"), check
    assert ":5432" in check["address"], check
    machine.succeed("podman unpause aistack-postgres")
    machine.wait_until_succeeds(f"systemctl is-active {unit('app')}", timeout=30)
    said = journal(since)
    assert "Finished aistack-retry@app.service" in said, said
    assert "is back: starting" not in said, said
    assert {service: invocation(service) for service in others} == others
    machine.succeed("aistack status")

with subtest("a dependency that runs and never answers, though its release is proven, does not hold its dependent up"):
    changed["services"]["postgres"]["probe"]["startTimeoutSeconds"] = 12
    write_manifest(changed)
    set_timer("aistack-bless@", 1)
    machine.succeed(f"systemctl restart {unit('postgres')}")
    wait_until_good("postgres")
    proven = current("postgres")
    machine.succeed(f"systemctl stop {unit('app')} {unit('postgres')}")
    machine.succeed(f"systemctl reset-failed {unit('app')} {unit('postgres')}")
    set_timer("aistack-retry@", 600)
    machine.succeed(f"echo 'port = 5433' >> {PGDATA}/postgresql.conf")
    spent = start_in_vain(120)
    machine.log(f"systemctl start ended after {spent:.1f} s")
    settle()
    row = status("postgres")
    assert row["state"] == "failed", row
    assert "refused: nothing listens at" in row["reason"], row
    assert blamed()["subject"] == "dependency postgres", blamed()
    assert current("postgres") == proven, "a proven release was condemned"

with subtest("and once it answers they come back without anybody's help"):
    machine.succeed(f"sed -i '/^port = 5433$/d' {PGDATA}/postgresql.conf")
    set_timer("aistack-retry@", 1)
    machine.succeed("systemctl restart aistack-retry@postgres.timer")
    for service in ("postgres", "app"):
        machine.wait_until_succeeds(f"systemctl is-active {unit(service)}", timeout=60)
    machine.succeed("aistack status")
