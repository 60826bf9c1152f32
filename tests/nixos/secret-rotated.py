"""The file of a secret changes: who uses it follows, the database's role first; what cannot be used is not followed."""

SECRET = "/etc/aistack/secrets/postgres-password"
USERS = ["app", "postgres"]
OTHERS = ["llama-cpp", "qdrant", "redis"]
TICK = "systemctl start aistack-health-30.service"


def write(value: str, path: str = SECRET) -> None:
    """Put a value in place as people do: written beside it and renamed."""
    machine.succeed(f"printf '{value}' > {path}.new; chmod 0400 {path}.new; mv {path}.new {path}")


def invocations(services: list[str]) -> dict[str, str]:
    """What tells whether these services were started anew."""
    return {service: invocation(service) for service in services}


def fate() -> dict[str, tuple[int, str]]:
    """The release of each service that runs, and its state."""
    return {service: (release["id"], release["state"]) for service, release in currents().items()}


def wait_until_restarted(before: dict[str, str]) -> None:
    """Wait until services run that were started anew since, and the app can really use the database."""
    for service, old in before.items():
        show = f"systemctl show --property InvocationID --value {unit(service)}"
        machine.wait_until_succeeds(f"test $({show}) != {old} && systemctl is-active {unit(service)}", timeout=90)
    machine.succeed(APP_SERVES)


def has(service: str, value: str) -> None:
    """Check that the container has the value."""
    machine.succeed(f"podman exec aistack-{service} printenv POSTGRES_PASSWORD | grep --line-regexp '{value}'")


def followed_up() -> None:
    """Wait until what a change asked for has been done."""
    machine.wait_until_succeeds("test $(systemctl is-active aistack-secrets.service) = inactive", timeout=60)


start_good_stack()
before = fate()
beside = invocations(OTHERS)

with subtest("a new value: the role follows, who uses it is restarted, once, in order, and nobody else"):
    running = invocations(USERS)
    since = cursor()
    # A burst, with a half-written file and useless ones in it.
    machine.succeed(f"for n in 1 2 3 4 5; do : > {SECRET}; printf half > {SECRET}; printf burst$n > {SECRET}; done")
    write("first")
    wait_until_restarted(running)
    followed_up()
    said = journal(since)
    assert said.count("postgres: role mcp has the password of the secret POSTGRES_PASSWORD now") == 1, said
    assert said.count("secret POSTGRES_PASSWORD changed: restarting app, postgres") == 1, said
    assert "first" not in said, "the value is in the journal"
    app = verdict("app")
    assert app["readyAt"] - app["startSeconds"] > verdict("postgres")["readyAt"] - 0.1, "the app did not wait for it"
    for service in USERS:
        has(service, "first")

with subtest("it is no new release, nothing was on probation or rolled back, and the others run on"):
    assert fate() == before
    assert "ROLLED BACK" not in said
    assert invocations(OTHERS) == beside
    machine.succeed("aistack status", TICK, "aistack health")

running = invocations(USERS)
for words, spoil in (
    ("is empty", f": > {SECRET}"),
    ("has more than one line", f"printf 'one\\ntwo\\n' > {SECRET}"),
    ("does not exist", f"mv {SECRET} {SECRET}.away"),
):
    with subtest(f"a file that {words} is not followed: that is said once, and what runs goes on with the old value"):
        since = cursor()
        machine.succeed(spoil)
        said = wait_for_journal(since, words)
        followed_up()
        machine.succeed(TICK, TICK, TICK)
        said = journal(since)
        assert said.count("not followed: app, postgres keep the old value until they are restarted") == 1, said
        assert invocations(USERS) == running
        machine.succeed(APP_SERVES, "aistack status", "aistack health")

with subtest("a link that is replaced, and one in the middle of the path, as sops-nix and agenix do"):
    for number in (2, 3):
        running = invocations(USERS)
        since = cursor()
        machine.succeed(f"mkdir -p /run/generation{number}; printf generation{number} > /run/generation{number}/pw")
        machine.succeed(f"ln -sfn /run/generation{number} /run/generations")
        if number == 2:
            machine.succeed(f"ln -s /run/generations/pw {SECRET}.new; mv -T {SECRET}.new {SECRET}")
        else:
            # systemd sees nothing of that; a health check does.
            machine.succeed(TICK)
        wait_until_restarted(running)
        followed_up()
        assert journal(since).count("changed: restarting app, postgres") == 1, journal(since)
        has("app", f"generation{number}")
    assert fate() == before

with subtest("what does not run is not started for it, and gets the new value with its next start"):
    machine.succeed(f"systemctl stop {unit('app')} {unit('postgres')}", f"rm {SECRET}")
    since = cursor()
    write("stopped")
    machine.succeed("systemctl start aistack-secrets.service", TICK)
    assert (active_state("app"), active_state("postgres")) == ("inactive", "inactive")
    assert "restarting" not in journal(since)
    for service in USERS:
        forget_starts(service)
    machine.succeed(f"systemctl start {unit('app')}")
    said = journal(since)
    assert said.count("postgres: role mcp has the password of the secret POSTGRES_PASSWORD now") == 1, said
    machine.succeed(APP_SERVES)
    assert fate() == before

with subtest("a database that trusts nobody keeps its password, and so does everybody else; the way out is said"):
    hba = "/var/lib/aistack/volumes/postgres/pg_hba.conf"
    machine.succeed(f"sed -i.kept 's/trust/scram-sha-256/' {hba}; podman exec aistack-postgres pg_ctl reload")
    running = invocations(USERS)
    since = cursor()
    write("unheard")
    said = wait_for_journal(since, "the password in postgres cannot: psql in aistack-postgres says:")
    followed_up()
    machine.succeed(TICK, TICK, TICK)
    assert journal(since).count("app, postgres keep the old value") == 1, journal(since)
    assert "by hand: podman exec -it aistack-postgres psql -U mcp aidb, then \\password" in said, said
    assert invocations(USERS) == running
    machine.succeed(APP_SERVES, "aistack health")

with subtest("restarted all the same it does not start, is judged for it by nobody, and is back when that is mended"):
    set_timer("aistack-retry@", 1)
    forget_starts("postgres")
    machine.fail(f"systemctl restart {unit('postgres')}")
    found = status("postgres")
    said = wait_for_journal(since, "postgres: not rolled back: what it needs is missing (secret POSTGRES_PASSWORD:")
    assert found["failed_checks"][0]["kind"] == "authentication refused", found
    assert fate() == before
    machine.succeed(f"cp -p {hba}.kept {hba}")
    machine.wait_until_succeeds(f"systemctl is-active {unit('postgres')}", timeout=60)
    wait_for_journal(since, "secret POSTGRES_PASSWORD changed: restarting app")
    machine.wait_until_succeeds(f"{APP_READY} && aistack status", timeout=60)
    has("app", "unheard")

with subtest("at the end every unit is well, and no value is in the journal, on a command line or in a unit"):
    assert fate() == before
    assert invocations(OTHERS) == beside
    assert not machine.succeed("systemctl --failed --no-legend").strip()
    for value in ("burst5", "generation3'", "unheard"):
        machine.fail(f'journalctl --boot --output cat | grep --fixed-strings "{value}"')
    machine.succeed("aistack status", "aistack health")
