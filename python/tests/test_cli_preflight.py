"""`aistack preflight`."""

from __future__ import annotations

import socket
import time
from typing import Any

import fakehost
import pytest


def checks(answer: fakehost.Answer, service: str) -> dict[str, Any]:
    entry = next(entry for entry in answer.json["services"] if entry["service"] == service)
    return {check["subject"]: check for check in entry["checks"]}


def with_image(host: fakehost.FakeHost, *references: str) -> None:
    (host.root / "images").write_text("".join(f"{reference}\t{'0' * 64}\n" for reference in references))


def test_all_is_well(host: fakehost.FakeHost, server: fakehost.Server) -> None:
    host.declare({"app": fakehost.service("app", dependsOn=["db"]), "db": fakehost.external(server.port)})
    with_image(host, "registry.example/app:1")
    answer = host.run("preflight")
    assert answer.code == 0
    assert answer.err == ""
    assert answer.out.splitlines()[0] == "db: ok (1 checks)"
    assert answer.out.splitlines()[1].startswith("app: ok (")
    document = host.run("preflight", "--json").json
    assert document["ok"] is True
    assert document["schema_version"] == 1


def test_every_problem_of_every_service_is_shown_with_what_to_do(host: fakehost.FakeHost) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = fakehost.free_port()
        host.declare(
            {
                "app": fakehost.service(
                    "app",
                    image={**fakehost.service("app")["image"], "ref": "localhost/app:1"},
                    dependsOn=["db"],
                    secrets=["PW"],
                    publish=[{"address": "127.0.0.1", "hostPort": port, "containerPort": 1, "protocol": "tcp"}],
                    preflight={
                        "files": [{"path": "/nonexistent/model.gguf", "what": "the model"}],
                        "freeDisk": [{"path": "/", "megabytes": 10**9}],
                        "devices": ["/dev/nonexistent"],
                    },
                ),
                "db": fakehost.external(refused),
            },
            secrets={"PW": {"file": "/nonexistent/pw", "as": "env"}},
        )
        answer = host.run("preflight")
    assert answer.code == 3
    text = answer.out
    assert "db: 1 of 1 checks failed" in text
    assert "image localhost/app:1: image missing" in text
    assert "the model /nonexistent/model.gguf: file missing" in text
    assert "secret PW: secret missing: /nonexistent/pw does not exist" in text
    assert "disk /: disk full" in text
    assert "device /dev/nonexistent: device missing" in text
    assert f"port 127.0.0.1:{port}/tcp: port taken" in text
    assert f"dependency db: refused: nothing listens at 127.0.0.1:{refused}" in text
    assert text.count("; next: ") == sum(line.startswith("  ") for line in text.splitlines()) - text.count("secret PW")


def test_a_missing_network_is_said_once(host: fakehost.FakeHost) -> None:
    network = {**fakehost.manifest(host.root, {})["network"], "name": "test-net"}
    host.declare({name: fakehost.service(name) for name in ("app", "db", "web")}, network=network)
    with_image(host, *(f"registry.example/{name}:1" for name in ("app", "db", "web")))
    program = host.root / "fake-programs" / "podman"
    program.write_text(program.read_text().replace('case "$1 $2" in', 'case "$1 $2" in\n"network exists") exit 1 ;;'))
    answer = host.run("preflight")
    assert answer.code == 3
    line = "network test-net: network missing: podman does not know it; next: aistack network repair"
    assert answer.out.splitlines()[0].startswith(line)
    assert answer.out.count("network missing") == 1
    for name in ("app", "db", "web"):
        assert f"\n{name}: 1 of 2 checks failed\n" in answer.out
    document = host.run("preflight", "--json")
    assert [checks(document, name)["network test-net"]["ok"] for name in ("app", "db", "web")] == [False] * 3
    assert host.run("preflight", "app").out.splitlines()[1].startswith(f"  {line}")


def test_wrong_protocol_and_silence_are_told_apart(host: fakehost.FakeHost, server: fakehost.Server) -> None:
    chatty = fakehost.Server(b"SSH-2.0-x\r\n")
    host.declare({"silent": fakehost.external(server.port, "http"), "ssh": fakehost.external(chatty.port, "redis")})
    with socket.create_server(("127.0.0.1", 0)) as mute:
        host.document["services"]["mute"] = fakehost.external(mute.getsockname()[1], "redis")
        host.declare(host.document["services"])
        answer = host.run("preflight", "--json")
    chatty.close()
    assert answer.code == 3
    assert checks(answer, "ssh")["dependency ssh"]["kind"] == "wrong protocol"
    assert checks(answer, "silent")["dependency silent"]["kind"] == "not ready yet"
    mute_check = checks(answer, "mute")["dependency mute"]
    assert mute_check["kind"] == "timed out"
    assert 0.4 < mute_check["seconds"] < 2


def test_nothing_is_waited_for_unless_asked(host: fakehost.FakeHost) -> None:
    host.declare({"db": fakehost.external(fakehost.free_port())})
    once = checks(host.run("preflight", "--json"), "db")["dependency db"]
    assert once["tries"] == 1
    waited = checks(host.run("preflight", "--wait", "--json"), "db")["dependency db"]
    assert waited["tries"] > 1
    assert 0.9 < waited["seconds"] < 3


def test_services_are_checked_at_the_same_time(host: fakehost.FakeHost) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        host.declare({f"s{number}": fakehost.external(port, "redis") for number in range(10)})
        began = time.monotonic()
        assert host.run("preflight").code == 3
        assert time.monotonic() - began < 2.5, "ten probes of half a second each, one after the other, take five"


def test_nothing_is_started_and_no_journal_is_made(host: fakehost.FakeHost) -> None:
    host.declare({"app": fakehost.service("app")})
    host.run("preflight", "--wait")
    assert not host.journal_path.exists()
    assert not (host.root / "run").exists()
    changing = ("systemctl start", "systemctl restart", "podman run", "podman pull", "podman load", "podman tag")
    assert not [call for call in host.calls() if call.startswith(changing)]


def test_a_switched_off_dependency_check_is_said(host: fakehost.FakeHost) -> None:
    host.declare(
        {"app": fakehost.service("app", dependsOn=["db"]), "db": fakehost.external(fakehost.free_port())},
        startup={"dependencyCheck": False, "timeoutSeconds": 1},
    )
    answer = host.run("preflight", "app")
    assert answer.code == 0
    assert "startup.dependencyCheck is false" in answer.err


@pytest.mark.parametrize(
    ("image", "kind", "detail"),
    [
        ({"ref": "registry.example/app:1"}, "ready", "is pulled at the start"),
        ({"ref": "localhost/app:1"}, "image missing", "no registry has a name under localhost/"),
        ({"ref": "x:1", "archive": "/nonexistent.tar"}, "image missing", "/nonexistent.tar does not exist"),
        ({"ref": "x:1", "archive": "/dev/null"}, "ready", "is loaded from /dev/null"),
        ({"ref": "x:1", "stream": "/nonexistent"}, "image missing", "/nonexistent does not exist"),
    ],
)
def test_an_image_that_cannot_be_had_is_a_problem(
    host: fakehost.FakeHost, image: dict[str, str], kind: str, detail: str
) -> None:
    entry = fakehost.service("app")
    host.declare({"app": {**entry, "image": {**entry["image"], **image}}})
    check = checks(host.run("preflight", "--json"), "app")[f"image {image['ref']}"]
    assert check["kind"] == kind
    assert detail in check["detail"]


def test_podman_that_fails_is_a_problem_of_each_service(host: fakehost.FakeHost) -> None:
    host.declare({"app": fakehost.service("app")})
    (host.root / "fake-programs" / "podman").write_text("#!/bin/sh\necho 'no \033[31mstorage' >&2\nexit 125\n")
    answer = host.run("preflight")
    assert answer.code == 3
    assert "image registry.example/app:1: image missing: podman image failed: no \\x1b[31mstorage" in answer.out


@pytest.mark.parametrize("content", [b"", b"\xff\xfe"])
def test_an_unusable_secret_is_named_and_never_shown(host: fakehost.FakeHost, content: bytes) -> None:
    path = host.root / "pw"
    path.write_bytes(content)
    host.declare({"app": fakehost.service("app", secrets=["PW"])}, secrets={"PW": {"file": str(path), "as": "env"}})
    answer = host.run("preflight")
    assert answer.code == 3
    assert f"secret PW: secret missing: {path}" in answer.out or f"cannot read {path}" in answer.out


def test_an_invalid_manifest_lists_all_that_is_wrong(host: fakehost.FakeHost) -> None:
    host.declare({"app": fakehost.service("app", dependsOn=["nope"])})
    answer = host.run("preflight")
    assert answer.code == 2
    assert "services.app.dependsOn names nope, which is not a service" in answer.err
    assert answer.err.count("\n") == 1
