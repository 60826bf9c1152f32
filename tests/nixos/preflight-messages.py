# Every kind of thing that keeps a service from starting, each on the real stack, each told apart from the others.

import shlex

MODEL = "/var/lib/aistack/models/tiny.gguf"
SECRET = "/etc/aistack/secrets/postgres-password"
QDRANT_IMAGE = "localhost/aistack-images/qdrant:1"

# Programs for containers that carry a service's name on the network instead of it.
SLEEPS = "import time; time.sleep(1000)"
SPEAKS_HTTP = "import http.server as h; h.test(h.SimpleHTTPRequestHandler, port={port})"
SAYS = """
import socket
server = socket.create_server(("0.0.0.0", {port}))
while True:
    link, _ = server.accept()
    link.recv(4096)
    link.sendall({answer})
    link.close()
"""
LOADING = b"-LOADING Redis is loading the dataset in memory\r\n"
BUSY_HTTP = b'HTTP/1.1 503 Service Unavailable\r\n\r\n{"error":{"message":"Loading model"}}'


def failures(service: str) -> list[dict[str, Any]]:
    """What `aistack preflight` finds wrong."""
    code, out = machine.execute(f"aistack preflight {service} --json")
    assert code == 3, f"exit code {code}: {out}"
    (found,) = json.loads(out)["services"]
    return [check for check in found["checks"] if not check["ok"]]


def expect(service: str, subject: str, kind: str, *said: str, permanent: bool, fix: str) -> dict[str, Any]:
    """Check that this, and nothing else, keeps a service from starting; returns the check."""
    (check,) = failures(service)
    assert (check["subject"], check["kind"]) == (subject, kind), check
    assert check["permanent"] is permanent, check
    assert all(text in check["detail"] for text in said), check
    assert fix in check["fix"], check
    assert check["seconds"] < 8, check
    return check


def refuses(service: str, *said: str) -> None:
    """Start a service, which has to fail at once and to say why."""
    since = cursor()
    began = time.monotonic()
    machine.fail(f"systemctl start {unit(service)}")
    spent = time.monotonic() - began
    # Three starts of about half a second each; the timeout is 30 s.
    assert spent < 12, f"a failure for good took {spent:.1f} s"
    text = journal(since, f"--unit {unit(service)}")
    for line in said:
        assert line in text, f"{line!r} is not in:\n{text}"
    assert f"{service} cannot start: " in text, text
    assert "Traceback" not in text, text
    machine.succeed(f"systemctl stop {unit(service)}; systemctl reset-failed {unit(service)}")


def stand_in(service: str, program: str) -> None:
    """Run a Python program in a container that is `service` to the network."""
    machine.succeed(
        f"podman run --detach --rm --name stand-in --stop-timeout 0 --network local-ai --network-alias {service} "
        f"--entrypoint python3 {APP_IMAGE} -c {shlex.quote(program)}"
    )


def listening(port: int) -> None:
    """Wait until the stand-in takes connections."""
    address = machine.succeed(
        "podman container inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' stand-in"
    ).strip()
    machine.wait_for_open_port(port, address, timeout=30)


def psql(statements: str, password: str = "$POSTGRES_PASSWORD") -> str:
    """The command that hands what a command prints to the stack's database, as its owner."""
    inside = f'PGPASSWORD="{password}" exec psql --host localhost --username mcp --set ON_ERROR_STOP=1 aidb'
    return f"{statements} | podman exec --interactive aistack-postgres sh -c {shlex.quote(inside)}"


with subtest("image missing"):
    machine.succeed(f"podman tag {QDRANT_IMAGE} localhost/kept:1; podman untag {QDRANT_IMAGE} {QDRANT_IMAGE}")
    subject = f"image {QDRANT_IMAGE}"
    # The network is made with the first start.
    (check,) = [check for check in failures("qdrant") if check["kind"] != "network missing"]
    assert (check["subject"], check["kind"], check["permanent"]) == (subject, "image missing", True), check
    refuses("qdrant", f"{subject}: image missing: it is not in podman's storage")
    machine.succeed(f"podman tag localhost/kept:1 {QDRANT_IMAGE}")

start_stack()
machine.succeed(f"systemctl stop {unit('app')}")
machine.succeed("aistack preflight")

with subtest("name unknown: a dependency is stopped"):
    machine.succeed(f"systemctl stop {unit('redis')}")
    said = "redis is not registered on network local-ai (asked 10.89.100.1:53); its unit is inactive"
    fix = f"systemctl start {unit('redis')}"
    check = expect("app", "dependency redis", "name unknown", said, permanent=True, fix=fix)
    code, out = machine.execute("aistack preflight app")
    assert code == 3, code
    assert out.startswith("app: 1 of "), out
    assert f"  dependency redis: name unknown: {check['detail']} (" in out, out
    assert out.strip().endswith(f"next: {check['fix']}"), out

with subtest("refused: its container is up, its port is not"):
    stand_in("redis", SLEEPS)
    look = f"journalctl -u {unit('redis')}"
    check = expect("app", "dependency redis", "refused", "nothing listens at 10.89.100.", permanent=False, fix=look)
    assert check["address"].endswith(":6379"), check
    machine.succeed("podman rm --force stand-in")

with subtest("not ready yet: redis loads its data"):
    stand_in("redis", SAYS.format(port=6379, answer=LOADING))
    listening(6379)
    said = "LOADING Redis is loading the dataset in memory"
    expect("app", "dependency redis", "not ready yet", said, permanent=False, fix=look)
    machine.succeed("podman rm --force stand-in")

with subtest("wrong protocol: a web server where redis should be"):
    stand_in("redis", SPEAKS_HTTP.format(port=6379))
    listening(6379)
    said = "does not speak Redis: answered "
    expect("app", "dependency redis", "wrong protocol", said, permanent=True, fix=look)
    machine.succeed("podman rm --force stand-in")

with subtest("authentication refused: redis got a password"):
    machine.succeed(f"systemctl start {unit('redis')}")
    machine.succeed("podman exec aistack-redis redis-cli config set requirepass secret")
    said = "NOAUTH Authentication required"
    expect("app", "dependency redis", "authentication refused", said, permanent=True, fix=look)
    machine.succeed("podman exec aistack-redis redis-cli -a secret config set requirepass ''")

for service, port in (("qdrant", 6333), ("llama-cpp", 8080)):
    with subtest(f"not ready yet: {service} answers 503"):
        machine.succeed(f"systemctl stop {unit(service)}")
        stand_in(service, SAYS.format(port=port, answer=BUSY_HTTP))
        listening(port)
        look = f"journalctl -u {unit(service)}"
        said = 'answered 503: {"error":{"message":"Loading model"}}'
        expect("app", f"dependency {service}", "not ready yet", said, permanent=False, fix=look)
        machine.succeed(f"podman rm --force stand-in; systemctl start {unit(service)}")

look = f"journalctl -u {unit('postgres')}"

with subtest("timed out: postgres is frozen"):
    machine.succeed("podman pause aistack-postgres")
    said = "no answer from 10.89.100."
    check = expect("app", "dependency postgres", "timed out", said, "within 5 s", permanent=False, fix=look)
    assert check["address"].endswith(":5432"), check
    machine.succeed("podman unpause aistack-postgres")

with subtest("authentication refused: the password in the database is another one"):
    machine.succeed(psql("""echo "ALTER ROLE mcp PASSWORD 'another'" """))
    said = 'password authentication failed for user "mcp" (SQLSTATE 28P01)'
    fix = "compare the secret POSTGRES_PASSWORD with what postgres was set up with"
    expect("app", "dependency postgres", "authentication refused", said, permanent=True, fix=fix)
    machine.fail(f"aistack preflight app --json | grep --fixed-strings --file {SECRET}")
    machine.succeed(psql(f"""echo "ALTER ROLE mcp PASSWORD '$(cat {SECRET})'" """, "another"))
    machine.succeed("aistack preflight app")

with subtest("not ready yet: postgres is shutting down"):
    # A session that stays: on SIGTERM the server waits for it, and lets nobody else in.
    machine.succeed("mkfifo /tmp/session")
    machine.execute(psql("cat /tmp/session"), check_output=False)
    # One writer from the first word to the last: between two the session would end.
    machine.execute("{ echo 'SELECT 4711;'; exec sleep 1000; } > /tmp/session", check_output=False)
    # By its query: the app's own sessions come and go.
    there = "SELECT 1/count(*) FROM pg_stat_activity WHERE query = 'SELECT 4711;'"
    machine.wait_until_succeeds(psql(f'echo "{there}"'))
    machine.succeed("podman kill --signal TERM aistack-postgres")
    said = "the database system is shutting down (SQLSTATE 57P03)"
    machine.wait_until_succeeds("! aistack preflight app > /tmp/said; grep 'shutting down' /tmp/said", timeout=90)
    expect("app", "dependency postgres", "not ready yet", said, permanent=False, fix=look)
    machine.succeed("pkill --full 'sleep 1000'")
    machine.wait_until_succeeds("aistack preflight app", timeout=60)

with subtest("wrong protocol: a web server where postgres should be"):
    machine.succeed(f"systemctl stop {unit('postgres')}")
    stand_in("postgres", SPEAKS_HTTP.format(port=5432))
    listening(5432)
    said = "does not speak PostgreSQL: answered "
    expect("app", "dependency postgres", "wrong protocol", said, permanent=True, fix=look)
    machine.succeed(f"podman rm --force stand-in; systemctl start {unit('postgres')}")

with subtest("port taken: by a program that is named, with its process id"):
    machine.succeed("systemd-run --unit squatter $(command -v python3) -m http.server --bind 127.0.0.1 8000")
    machine.wait_for_open_port(8000, "127.0.0.1")
    pid = machine.get_unit_info("squatter.service")["MainPID"]
    said = f"already in use by python3 (pid {pid})"
    expect("app", "port 127.0.0.1:8000/tcp", "port taken", said, permanent=True, fix="ss -lpn 'sport = :8000'")
    refuses("app", f"  port 127.0.0.1:8000/tcp: port taken: {said}; ss -lpn 'sport = :8000'")
    machine.succeed("systemctl stop squatter")

machine.succeed(f"systemctl stop {unit('llama-cpp')}")
subject = f"the model (services.aistack.llama-cpp.model) {MODEL}"

with subtest("file unreadable: the model is there, but not for the container's user"):
    machine.succeed(f"chmod 0600 {MODEL}")
    said = "mode 0600 of 0:0 keeps out the container's user 65534:65534"
    expect("llama-cpp", subject, "file unreadable", said, permanent=True, fix=f"chmod a+r {MODEL}")
    refuses("llama-cpp", f"  {subject}: file unreadable: {said}")

with subtest("file missing: there is no model"):
    machine.succeed(f"mv {MODEL} {MODEL}.kept")
    said = "does not exist on this host"
    expect("llama-cpp", subject, "file missing", said, permanent=True, fix=f"ls -l {MODEL}")
    refuses("llama-cpp", f"  {subject}: file missing: {said}")
    machine.succeed(f"mv {MODEL}.kept {MODEL}; chmod 0644 {MODEL}; systemctl start {unit('llama-cpp')}")

stop_stack()

for state, prepare, said in (
    ("missing", "true", f"{SECRET} does not exist"),
    ("empty", f"install --mode 0400 /dev/null {SECRET}", f"{SECRET} is empty"),
    ("unreadable", f"mkdir {SECRET}", f"cannot read {SECRET}: "),
):
    with subtest(f"secret {state}: key and file are named, no value"):
        machine.succeed(f"mv {SECRET} {SECRET}.kept; {prepare}")
        expect("postgres", "secret POSTGRES_PASSWORD", "secret missing", said, permanent=True, fix="")
        if state == "missing":
            refuses("postgres", f"  secret POSTGRES_PASSWORD: secret missing: {said}")
        both = [(check["subject"], check["kind"]) for check in failures("app") if check["kind"] == "secret missing"]
        assert both == [("secret POSTGRES_PASSWORD", "secret missing"), ("dependency postgres", "secret missing")], both
        machine.succeed(f"rm --recursive --force {SECRET}; mv {SECRET}.kept {SECRET}")

with subtest("disk full: too little is left for a database to run on"):
    machine.succeed("mount -t tmpfs -o size=200m tmpfs /var/lib/aistack")
    said = "MiB free, 256 MiB needed"
    expect("postgres", "disk /var/lib/aistack", "disk full", said, permanent=True, fix="df -h /var/lib/aistack")
    refuses("postgres", "  disk /var/lib/aistack: disk full: ", said)
    machine.succeed("aistack preflight redis")

with subtest("disk full: not even a note can be written down"):
    machine.succeed(
        "cat /dev/zero > /var/lib/aistack/filler 2> /dev/null || test $(stat -c %s /var/lib/aistack/filler) -gt 0"
    )
    expect("redis", "disk /var/lib/aistack", "disk full", "0 MiB free", permanent=True, fix="df -h /var/lib/aistack")
    refuses("redis", "  disk /var/lib/aistack: disk full: 0 MiB free, 64 MiB needed")
    machine.succeed("umount /var/lib/aistack")

with subtest("network missing"):
    machine.succeed("systemctl stop aistack-network; mkdir -p /run/systemd/system/aistack-network.service.d")
    machine.succeed(
        "printf '[Service]\\nExecStart=\\nExecStart=/bin/sh -c \"exit 1\"\\n' "
        "> /run/systemd/system/aistack-network.service.d/broken.conf; systemctl daemon-reload"
    )
    fix = "aistack network repair; journalctl -u aistack-network -n 50"
    expect("redis", "network local-ai", "network missing", permanent=True, fix=fix)
    refuses("redis", "  network local-ai: network missing: ")
    machine.succeed("rm /run/systemd/system/aistack-network.service.d/broken.conf; systemctl daemon-reload")
    machine.succeed("systemctl reset-failed aistack-network")

with subtest("with everything mended the stack comes up"):
    start_stack()
    machine.succeed("aistack status")
