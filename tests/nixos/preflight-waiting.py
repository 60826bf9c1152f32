# What a start waits for and what it does not: everything is reported at once, what waiting cannot mend fails at once,
# what is only "not yet" gets its time, and both are the administrator's to set.

APP = unit("app")


def sql(statement: str, password: str = "$POSTGRES_PASSWORD") -> None:
    """Run a statement in the stack's database, as its owner."""
    inside = f"PGPASSWORD={password} psql --host localhost --username mcp aidb"
    machine.succeed(f"""echo "{statement}" | podman exec --interactive aistack-postgres sh -c '{inside}'""")


def keep_redis_busy() -> None:
    """Let redis answer nothing but BUSY until `free_redis`."""
    machine.succeed("podman exec aistack-redis redis-cli config set busy-reply-threshold 1")
    machine.succeed("podman exec --detach aistack-redis redis-cli eval 'while true do end' 0")
    machine.wait_until_succeeds("podman exec aistack-redis redis-cli ping | grep BUSY")


def free_redis() -> None:
    """End what keeps redis busy."""
    machine.succeed("podman exec aistack-redis redis-cli script kill")


def take_port() -> None:
    """Let another program listen on the app's port of this host."""
    machine.succeed("systemd-run --unit squatter $(command -v python3) -m http.server --bind 127.0.0.1 8000")
    machine.wait_for_open_port(8000, "127.0.0.1")


def start_app() -> tuple[float, str]:
    """Start the app in vain; returns the seconds it took, and what its unit said."""
    machine.succeed(f"systemctl reset-failed {APP}")
    since = cursor()
    began = time.monotonic()
    machine.fail(f"systemctl start {APP}")
    spent = time.monotonic() - began
    return spent, journal(since, f"--unit {APP}")


def kinds(checks: list[dict[str, Any]]) -> dict[str, tuple[str, bool]]:
    """The failed ones among some checks, by subject: their kind, and whether they are permanent."""
    return {check["subject"]: (check["kind"], check["permanent"]) for check in checks if not check["ok"]}


start_stack()
machine.succeed(f"systemctl stop {APP}")
set_timer("aistack-retry@", 600)
keep_redis_busy()

with subtest("all that is wrong is reported at once, and no time is spent on what is only not ready yet"):
    sql("ALTER ROLE mcp PASSWORD 'another'")
    machine.succeed("podman network disconnect local-ai aistack-llama-cpp")
    take_port()
    expected = {
        "port 127.0.0.1:8000/tcp": ("port taken", True),
        "dependency postgres": ("authentication refused", True),
        "dependency redis": ("not ready yet", False),
        "dependency llama-cpp": ("name unknown", False),
    }
    spent, said = start_app()
    # Three starts of about half a second; redis alone would have had 30 s.
    assert spent < 12, f"it took {spent:.1f} s"
    head, _, rest = said.partition("app cannot start: 4 of ")
    assert rest, said
    lines = rest.splitlines()[1:5]
    for subject, (kind, _permanent) in expected.items():
        assert any(line.startswith(f"  {subject}: {kind}: ") for line in lines), said
    assert said.count("checks failed") == 1, f"the report is repeated:\n{said}"
    assert kinds(verdict("app")["checks"]) == expected, verdict("app")

with subtest("the command line and its JSON say the same"):
    code, out = machine.execute("aistack preflight app --json")
    assert code == 3, code
    document = json.loads(out)
    assert document["ok"] is False
    (found,) = document["services"]
    assert kinds(found["checks"]) == expected, found
    started = {check["subject"]: check["detail"] for check in verdict("app")["checks"]}
    assert {
        check["subject"]: check["detail"] for check in found["checks"] if not check["ok"]
    }.items() <= started.items()
    row = status("app")
    assert row["state"] == "failed", row
    assert kinds(row["failed_checks"]) == expected, row

with subtest("a permanent failure of one dependency ends the wait for the others"):
    machine.succeed("systemctl stop squatter; podman network connect --alias llama-cpp local-ai aistack-llama-cpp")
    spent, said = start_app()
    assert spent < 12, f"it took {spent:.1f} s"
    assert kinds(verdict("app")["checks"]) == {
        "dependency postgres": ("authentication refused", True),
        "dependency redis": ("not ready yet", False),
    }, verdict("app")

with subtest("so does one of this host"):
    sql("ALTER ROLE mcp PASSWORD '$(cat /etc/aistack/secrets/postgres-password)'", "another")
    take_port()
    spent, said = start_app()
    assert spent < 12, f"it took {spent:.1f} s"
    assert kinds(verdict("app")["checks"]) == {
        "port 127.0.0.1:8000/tcp": ("port taken", True),
        "dependency redis": ("not ready yet", False),
    }, verdict("app")
    machine.succeed("systemctl stop squatter")

with subtest("what is not ready yet gets startup.timeoutSeconds, no more and no less"):
    changed = manifest()
    changed["startup"]["timeoutSeconds"] = 4
    use_manifest(write_manifest(changed))
    spent, said = start_app()
    (check,) = [check for check in verdict("app")["checks"] if not check["ok"]]
    assert (check["subject"], check["kind"]) == ("dependency redis", "not ready yet"), check
    assert "BUSY" in check["detail"], check
    assert f"dependency redis: not ready yet: {check['detail']} after 4." in said, said
    assert "tries; journalctl -u podman-aistack-redis.service" in said, said
    # The two starts that follow at once do not wait again.
    assert 4 < spent < 11, f"it took {spent:.1f} s"
    began = time.monotonic()
    machine.fail(f"{write_manifest(changed)} aistack preflight --wait app")
    waited = time.monotonic() - began
    assert 4 < waited < 12, f"aistack preflight --wait took {waited:.1f} s"

with subtest("a dependency that gets ready in that time is waited for, and the start goes on"):
    reset_manifest()
    machine.succeed(f"systemctl reset-failed {APP}; systemctl start --no-block {APP}")
    machine.wait_until_succeeds("pgrep --full 'start-pre app'")
    free_redis()
    machine.wait_for_unit(APP, timeout=30)
    assert machine.get_unit_info(APP)["NRestarts"] == "0"
    assert verdict("app")["preflightSeconds"] < 30

with subtest("with startup.dependencyCheck = false nobody asks the dependencies, and the rest is checked all the same"):
    machine.succeed(f"systemctl stop {APP}")
    keep_redis_busy()
    changed = manifest()
    changed["startup"]["dependencyCheck"] = False
    # The app's own readiness would ask the dependencies.
    changed["services"]["app"]["probe"]["path"] = "/health"
    setting = write_manifest(changed)
    use_manifest(setting)
    assert "dependencies are not checked" in machine.succeed(f"{setting} aistack preflight app 2>&1")
    take_port()
    spent, said = start_app()
    assert kinds(verdict("app")["checks"]) == {"port 127.0.0.1:8000/tcp": ("port taken", True)}, verdict("app")
    machine.succeed(f"systemctl stop squatter; systemctl reset-failed {APP}; systemctl start {APP}")
    assert [check for check in verdict("app")["checks"] if check["subject"].startswith("dependency ")] == []
    answer = json.loads(machine.succeed("curl --silent http://127.0.0.1:8000/ready"))
    assert answer["dependencies"]["redis"]["ok"] is False, answer
