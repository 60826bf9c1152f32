"""The network's name server and what it serves, lost while the stack runs: mended, and nothing restarted."""

FOLDER = "/run/containers/networks/aardvark-dns"
NAMES = f"{FOLDER}/local-ai"
PROCESS = f"$(cat {FOLDER}/aardvark.pid)"


def let_names_be_read() -> None:
    """Let the name server read its file, as netavark does."""
    machine.succeed(f"kill -HUP {PROCESS}")


machine.wait_for_unit("multi-user.target")
start_good_stack()
running = running_units()
network_is_well(running)

with subtest("the name server is killed"):
    machine.succeed(f"kill -KILL {PROCESS}")
    mend_network(running, "name server dead")

with subtest("the name server hangs"):
    machine.succeed(f"kill -STOP {PROCESS}")
    mend_network(running, "name server dead")

with subtest("another program took the name server's port: it is named, nothing is made worse, and then it is mended"):
    machine.succeed(f"kill -KILL {PROCESS}")
    squat = "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 53)); time.sleep(600)"
    machine.succeed(f'systemd-run --quiet --unit squatter python3 -c "{squat}"')
    machine.wait_until_succeeds("ss --no-header --listening --udp --numeric 'sport = :53' | grep -F '0.0.0.0:53'")
    code, out = machine.execute("aistack network repair 2>&1")
    assert code == 8, out
    assert "port 53 of 10.89.100.1, where the network's name server has to listen, is held by python3 (pid " in out, out
    machine.succeed("systemctl stop squatter")
    mend_network(running, "name server dead")

with subtest("a name has an address of a container that is gone, too"):
    gone = "0123456789abcdef" * 4
    machine.succeed(f"echo '{gone} 10.89.100.250  aistack-redis,redis,0123456789ab,redis' >> {NAMES}")
    let_names_be_read()
    mend_network(running, "stale name")
    machine.fail(f"grep {gone} {NAMES}")

with subtest("a name is not there"):
    machine.succeed(f"sed -i /aistack-redis/d {NAMES}")
    let_names_be_read()
    mend_network(running, "name missing")

with subtest("a name will be lost when the name server reads its file the next time"):
    machine.succeed(f"sed -i /aistack-redis/d {NAMES}")
    mend_network(running, "name missing")

with subtest("a name has another's address"):
    machine.succeed(f"sed -i '/aistack-redis/s/10.89.100.[0-9]*/10.89.100.251/' {NAMES}")
    let_names_be_read()
    mend_network(running, "stale name")

with subtest("the file of names is damaged"):
    machine.succeed(f"printf 'x\\0garbage\\n\\377' > {NAMES}")
    mend_network(running, "names unreadable")

with subtest("many at once"):
    machine.succeed("nft flush ruleset; ip link delete aistack0")
    machine.succeed(f"kill -KILL {PROCESS}", f": > {NAMES}")
    machine.succeed("aistack network repair")
    network_is_well(running)

with subtest("a container that is started meanwhile is not in the way, and at the end every unit is well"):
    machine.succeed(f"systemctl restart {unit('redis')}")
    machine.succeed("aistack network check", "aistack status")
    assert not machine.succeed("systemctl --failed --no-legend").strip()
