"""Deployments of a stateless service under load: with a bridge no request of a client in the network fails."""

SECONDS = 75
# Asks as fast as it is answered, with a new connection each time; tries every address of the name, as libc does.
CLIENT = f"""
import json, socket, time
count, failed, end = 0, [], time.monotonic() + {SECONDS}
while time.monotonic() < end:
    count += 1
    try:
        with socket.create_connection(("app", 8000), timeout=5) as link:
            link.settimeout(5)
            link.sendall(b"GET /health HTTP/1.0\\r\\n\\r\\n")
            answer = b""
            while piece := link.recv(4096):
                answer += piece
        if b" 200 " not in answer.split(b"\\r\\n")[0]:
            failed.append(answer[:80].decode())
    except OSError as error:
        failed.append(repr(error))
    time.sleep(0.001)
print(json.dumps({{"requests": count, "failed": len(failed), "first": failed[:5]}}))
"""


def under_load(tag: str) -> dict[str, Any]:
    """Deploy an image while a client asks; returns what became of its requests."""
    machine.succeed("podman rm --force --ignore client")
    machine.succeed(
        f"podman run --detach --name client --network local-ai --entrypoint python3 {APP_IMAGE} -c '{CLIENT}'"
    )
    code, out = machine.execute(f"aistack deploy app --image {tag} --json")
    end = json.loads(out)
    assert (code, end["outcome"]) == (0, "deployed"), end
    machine.wait_until_succeeds("podman wait client", timeout=SECONDS + 60)
    result = json.loads(machine.succeed("podman logs client"))
    assert isinstance(result, dict)
    machine.log(f"{tag}: {result}, {end['unavailable_seconds']} s without an answer seen from the host")
    return result


machine.wait_for_unit("multi-user.target")
found = manifest()
found["rollback"]["probationSeconds"] = 4
put_manifest(found)
set_timer("aistack-bless@", 4)
start_good_stack()
for number in (1, 2, 3):
    build_copy(f"localhost/scenario/copy:{number}")

with subtest("a plain restart loses requests"):
    assert under_load("localhost/scenario/copy:1")["failed"] > 0

with subtest("a bridge loses none"):
    found["services"]["app"]["deploy"]["strategy"] = "bridge"
    put_manifest(found)
    both = [under_load(f"localhost/scenario/copy:{number}") for number in (2, 3)]
    assert sum(result["failed"] for result in both) == 0, both
    assert sum(result["requests"] for result in both) >= 10000, both

with subtest("the bridge is gone"):
    machine.succeed("podman rm --force client")
    assert not machine.succeed("podman ps --all --quiet --filter label=aistack.deploy").strip()
    assert "aistack-bridge" not in machine.succeed("cat /run/containers/networks/aardvark-dns/local-ai")
    machine.succeed("aistack network check")
