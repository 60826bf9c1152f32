"""What must hold before a start: all that is wrong at once, the hopeless at once, the rest waited for."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fakehost
import hookhost
import pytest
import scripted

from aistack.hooks import preflight, probe, runtime
from aistack.hooks.errors import HookError
from aistack.hooks.manifest import load
from aistack.hooks.preflight import (
    DEVICE_MISSING,
    DISK_FULL,
    FILE_MISSING,
    FILE_UNREADABLE,
    NETWORK_DIFFERS,
    NETWORK_MISSING,
    PORT_TAKEN,
    SECRET_MISSING,
    Check,
)
from aistack.hooks.probe import AUTH_REFUSED, NAME_UNKNOWN, NOT_READY, READY, REFUSED, WRONG_PROTOCOL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aistack.hooks.manifest import Manifest

NAME_SERVER = scripted.own_address()
ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="giving files to other users needs root")

PONG = scripted.says(b"+PONG\r\n")
small_disk = pytest.fixture(hookhost.small_disk)


@pytest.fixture
def stack(host: fakehost.FakeHost) -> hookhost.Host:
    """A host with images, whose network has this file's name server."""
    return hookhost.Host(host, NAME_SERVER)


@pytest.fixture
def containers() -> Iterator[Callable[..., scripted.Dns]]:
    """Start the network's name server."""
    yield from hookhost.containers(NAME_SERVER)


def needs(stack: hookhost.Host, seconds: float, **ports: int) -> Manifest:
    """Declare an app that needs a redis at each of these ports of the loopback, and waits that long for them."""
    app = fakehost.service("app", dependsOn=list(ports))
    elsewhere = {name: fakehost.external(port, "redis") for name, port in ports.items()}
    return stack.declare(app, **elsewhere, startup={"dependencyCheck": True, "timeoutSeconds": seconds})


def check(manifest: Manifest, *, wait: bool = True) -> tuple[dict[str, Check], float]:
    """Check what the app needs; return what is found, by subject, and the seconds it took."""
    began = time.monotonic()
    found = preflight.run(manifest, manifest.service("app"), wait=wait)
    assert len({one.subject for one in found}) == len(found)
    return {one.subject: one for one in found}, time.monotonic() - began


def local(stack: hookhost.Host, **app: object) -> Check:
    """Check an app that needs one thing of the host beside its network; return what is found about that."""
    manifest = stack.declare(fakehost.service("app", **app))
    network, found = preflight.local(manifest, manifest.service("app"))
    assert network.ok
    return found


# --- dependencies ----------------------------------------------------------------------------------------------------


def test_everything_that_is_missing_is_found_at_once(stack: hookhost.Host, tmp_path: Path) -> None:
    stack.root.joinpath("no-network").touch()
    (tmp_path / "empty").touch()
    with contextlib.ExitStack() as servers:
        taken = servers.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        web = servers.enter_context(scripted.Tcp(scripted.says(b"HTTP/1.1 400 Bad\r\n\r\n"))).port
        app = fakehost.service(
            "app",
            dependsOn=["down", "web"],
            preflight={
                "files": [{"path": str(tmp_path / "model.gguf"), "what": "model"}],
                "freeDisk": [{"path": str(tmp_path), "megabytes": 10**9}],
                "devices": ["/dev/no-such-gpu"],
            },
            secrets=["NEVER_WRITTEN", "EMPTY"],
            publish=[{"address": "127.0.0.1", "hostPort": taken, "containerPort": 80, "protocol": "tcp"}],
        )
        manifest = stack.declare(
            app,
            down=fakehost.external(fakehost.free_port(), "redis"),
            web=fakehost.external(web, "redis"),
            secrets={
                "NEVER_WRITTEN": {"file": str(tmp_path / "none"), "as": "env"},
                "EMPTY": {"file": str(tmp_path / "empty"), "as": "env"},
            },
            startup={"dependencyCheck": True, "timeoutSeconds": 30},
        )
        found, seconds = check(manifest)
    assert {subject: one.kind for subject, one in found.items()} == {
        "network test-net": NETWORK_MISSING,
        f"model {tmp_path}/model.gguf": FILE_MISSING,
        "secret NEVER_WRITTEN": SECRET_MISSING,
        "secret EMPTY": SECRET_MISSING,
        f"disk {tmp_path}": DISK_FULL,
        "device /dev/no-such-gpu": DEVICE_MISSING,
        f"port 127.0.0.1:{taken}/tcp": PORT_TAKEN,
        "dependency down": REFUSED,
        "dependency web": WRONG_PROTOCOL,
    }
    # It cannot start anyway, so the dependency that may still come is asked once.
    assert seconds < 5
    assert found["dependency down"].tries == 1
    report = preflight.report("app", list(found.values()))
    assert report.splitlines()[0] == "app cannot start: 9 of 9 checks failed"
    assert len(report.splitlines()) == 10


def test_what_waiting_does_not_mend_ends_the_wait_for_the_rest(stack: hookhost.Host) -> None:
    with scripted.Tcp(scripted.says(b"HTTP/1.1 400 Bad\r\n\r\n")) as web:
        found, seconds = check(needs(stack, 20, down=fakehost.free_port(), web=web.port))
    assert (found["dependency web"].kind, found["dependency web"].permanent) == (WRONG_PROTOCOL, True)
    assert (found["dependency down"].kind, found["dependency down"].permanent) == (REFUSED, False)
    assert seconds < 5


@pytest.mark.parametrize("later", ["before", "after"])
def test_a_wrong_password_that_shows_late_ends_the_wait_too(stack: hookhost.Host, later: str) -> None:
    answers = [b"-LOADING\r\n"] * 4

    def handler(link: socket.socket) -> None:
        link.recv(4096)
        link.sendall(answers.pop() if answers else b"-NOAUTH Authentication required.\r\n")
        scripted.silent(link)

    with scripted.Tcp(handler) as closed:
        down = fakehost.free_port()
        ports = {"a": closed.port, "b": down} if later == "before" else {"a": down, "b": closed.port}
        found, seconds = check(needs(stack, 20, **ports))
    assert {one.kind for one in found.values()} == {READY, AUTH_REFUSED, REFUSED}
    assert seconds < 3


def test_each_dependency_has_its_own_deadline_and_all_run_together(stack: hookhost.Host) -> None:
    found, seconds = check(needs(stack, 0.6, **{name: fakehost.free_port() for name in "abcdef"}))
    del found["network test-net"]
    assert all(one.kind == REFUSED and one.seconds >= 0.6 for one in found.values())
    assert all(one.tries > 3 for one in found.values())
    assert 0.6 <= seconds < 3


def test_one_dependency_alone_has_the_same_deadline(stack: hookhost.Host) -> None:
    found, seconds = check(needs(stack, 0.5, a=fakehost.free_port()))
    assert found["dependency a"].kind == REFUSED
    assert 0.5 <= found["dependency a"].seconds <= seconds < 5


def test_the_pauses_between_two_tries(stack: hookhost.Host, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    class Clock:
        """Time that passes only while somebody sleeps."""

        @staticmethod
        def monotonic() -> float:
            return sum(pauses)

        @staticmethod
        def sleep(seconds: float) -> None:
            pauses.append(seconds)

    monkeypatch.setattr(preflight, "time", Clock)
    monkeypatch.setattr(probe, "ask", lambda *_: probe.Result(REFUSED, "nothing listens"))
    manifest = needs(stack, 30, db=1)
    (found,) = preflight.dependencies(manifest, ["db"], 30)
    assert pauses[:3] == pytest.approx([0.005, 0.005, 0.005])
    assert max(pauses) == pauses[-2] == 0.25
    # Once that is more than the first pause, an answer is seen two hundredths of the time waited for it late at most.
    waited = [sum(pauses[:number]) for number in range(len(pauses))]
    assert all(pause <= max(0.005, 0.02 * before) + 1e-9 for pause, before in zip(pauses, waited, strict=True))
    assert sum(pauses) == found.seconds == pytest.approx(30)
    assert found.tries == len(pauses) + 1


def test_a_port_that_opens_later_is_found(stack: hookhost.Host) -> None:
    port = fakehost.free_port()
    over = threading.Event()

    def serve() -> None:
        over.wait(0.3)
        with scripted.Tcp(PONG, port=port):
            over.wait(20)

    server = threading.Thread(target=serve)
    server.start()
    with scripted.Tcp(PONG) as other:
        found, _ = check(needs(stack, 20, late=port, other=other.port))
    over.set()
    server.join()
    assert (found["dependency late"].kind, found["dependency other"].kind) == (READY, READY)
    # How long the pauses between are, the test above this one says.
    assert found["dependency late"].tries > 1
    assert found["dependency other"].tries == 1


def test_without_waiting_each_is_asked_once(stack: hookhost.Host) -> None:
    found, seconds = check(needs(stack, 20, a=fakehost.free_port(), b=fakehost.free_port()), wait=False)
    assert [one.tries for one in found.values()] == [1, 1, 1]
    assert seconds < 5


def test_dependencies_are_not_looked_at_where_the_stack_says_so(stack: hookhost.Host) -> None:
    app = fakehost.service("app", dependsOn=["down"])
    manifest = stack.declare(
        app,
        down=fakehost.external(fakehost.free_port()),
        startup={"dependencyCheck": False, "timeoutSeconds": 20},
    )
    found, _ = check(manifest)
    assert list(found) == ["network test-net"]


def test_a_dependency_without_a_probe_is_ready(stack: hookhost.Host) -> None:
    manifest = stack.declare(fakehost.service("app", dependsOn=["mute"]), mute=fakehost.service("mute"))
    found, _ = check(manifest)
    assert found["dependency mute"].ok


def test_the_password_of_a_dependency_is_needed_to_ask_it(stack: hookhost.Host) -> None:
    asked = fakehost.probe("redis", 6379, secret="KEY")  # noqa: S106  (its name)
    secrets = stack.secret("KEY", "")
    manifest = stack.declare(
        fakehost.service("app", dependsOn=["db"]), db=fakehost.service("db", probe=asked), secrets=secrets
    )
    found, seconds = check(manifest)
    assert (found["dependency db"].kind, found["dependency db"].permanent) == (SECRET_MISSING, True)
    assert found["dependency db"].detail == f"secret KEY: {stack.root}/secret-KEY is empty"
    assert seconds < 5


def test_the_advice_names_the_secret_that_was_refused(stack: hookhost.Host) -> None:
    with scripted.Tcp(scripted.says(b"-WRONGPASS no\r\n")) as server:
        db = fakehost.external(server.port, "redis")
        db["probe"] |= {"secret": "KEY"}
        mine = {**db, "external": None, "unit": "podman-aistack-db.service", "container": "aistack-db"}
        mine["image"] = fakehost.service("db")["image"]
        checks = {}
        for name, entry in (("far", db), ("near", mine)):
            manifest = stack.declare(
                fakehost.service("app", dependsOn=["db"]), db=entry, secrets=stack.secret("KEY", "guess")
            )
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(probe, "addresses", lambda *_: (["127.0.0.1"], None))
                checks[name] = check(manifest)[0]["dependency db"]
    assert checks["far"].fix == "it is external: check services.aistack.services.db.external and that machine"
    assert checks["near"].fix == "compare the secret KEY with what db was set up with"
    assert "guess" not in checks["near"].line()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "addresses", lambda *_: (["127.0.0.1"], None))
        refused = check(load(), wait=False)[0]["dependency db"]
    assert (refused.kind, refused.fix) == (REFUSED, "journalctl -u podman-aistack-db.service -n 50")


def test_a_container_that_nothing_will_start_is_not_waited_for(
    stack: hookhost.Host, containers: Callable[..., scripted.Dns]
) -> None:
    containers()
    redis = fakehost.service("redis", probe=fakehost.probe("redis", 6379))
    manifest = stack.declare(
        fakehost.service("app", dependsOn=["redis"]),
        redis=redis,
        startup={"dependencyCheck": True, "timeoutSeconds": 20},
    )
    for state in ("inactive", "failed"):
        stack.fake.unit("redis", state)
        found, seconds = check(manifest)
        one = found["dependency redis"]
        assert (one.kind, one.permanent) == (NAME_UNKNOWN, True)
        assert one.detail.endswith(f"; its unit is {state}")
        assert (
            one.fix == "systemctl start podman-aistack-redis.service; journalctl -u podman-aistack-redis.service -n 50"
        )
        assert seconds < 5


def test_a_resolver_in_trouble_is_waited_for_and_no_unit_asked(
    stack: hookhost.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Exception] = [socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")] * 3
    resolve = socket.getaddrinfo

    def fail(host: str, *more: Any, **options: Any) -> Any:  # noqa: ANN401  (what it stands for takes and returns)
        if host != "db.example":
            return resolve(host, *more, **options)
        if answers:
            raise answers.pop()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with scripted.Tcp(PONG) as server:
        db = fakehost.external(server.port, "redis", external={"host": "db.example", "port": server.port})
        found, _ = check(stack.declare(fakehost.service("app", dependsOn=["db"]), db=db))
    assert (found["dependency db"].kind, found["dependency db"].tries) == (READY, 4)
    assert stack.calls("systemctl") == []


@pytest.mark.parametrize("state", ["activating", "active", "deactivating", "no systemd"])
def test_a_container_on_its_way_is_waited_for(
    stack: hookhost.Host, containers: Callable[..., scripted.Dns], state: str
) -> None:
    containers()
    redis = fakehost.service("redis", probe=fakehost.probe("redis", 6379))
    manifest = stack.declare(
        fakehost.service("app", dependsOn=["redis"]),
        redis=redis,
        startup={"dependencyCheck": True, "timeoutSeconds": 0.4},
    )
    stack.fake.unit("redis", state)
    if state == "no systemd":
        stack.root.joinpath("fake-programs", "systemctl").write_text("#!/bin/sh\necho no bus >&2\nexit 1\n")
    found, seconds = check(manifest)
    one = found["dependency redis"]
    assert (one.kind, one.permanent) == (NAME_UNKNOWN, False)
    assert seconds >= 0.4


def test_a_unit_that_gives_up_meanwhile_is_noticed(
    stack: hookhost.Host, containers: Callable[..., scripted.Dns]
) -> None:
    containers()
    redis = fakehost.service("redis", probe=fakehost.probe("redis", 6379))
    manifest = stack.declare(
        fakehost.service("app", dependsOn=["redis"]),
        redis=redis,
        startup={"dependencyCheck": True, "timeoutSeconds": 30},
    )
    stack.fake.unit("redis", "activating")
    fails = threading.Timer(0.2, stack.fake.unit, ["redis", "failed"])
    fails.start()
    found, seconds = check(manifest)
    fails.join()
    assert found["dependency redis"].permanent
    assert seconds < 5


def test_what_nobody_foresaw_reaches_the_caller(stack: hookhost.Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("in a thread")

    monkeypatch.setattr(probe, "ask", fail)
    with pytest.raises(ZeroDivisionError, match="in a thread"):
        check(needs(stack, 20, a=1, b=2))
    assert stack.said() == ""


# --- files -----------------------------------------------------------------------------------------------------------


def file_check(stack: hookhost.Host, path: Path, **app: object) -> Check:
    """Check an app that needs this file."""
    wanted = {"files": [{"path": str(path), "what": "model"}], "freeDisk": [], "devices": []}
    return local(stack, preflight=wanted, **app)


def hardening(*dropped: str, added: tuple[str, ...] = ()) -> fakehost.Document:
    """Return the hardening of a service without these capabilities."""
    return {**fakehost.service("x")["hardening"], "capDrop": list(dropped), "capAdd": list(added)}


def test_a_file_that_is_there(stack: hookhost.Host, tmp_path: Path) -> None:
    (tmp_path / "model").write_text("12345")
    found = file_check(stack, tmp_path / "model")
    assert (found.kind, found.detail) == (READY, "5 bytes")


@pytest.mark.parametrize("kind", ["missing", "broken link", "below a file"])
def test_a_file_that_is_not_there(stack: hookhost.Host, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model"
    if kind == "broken link":
        path.symlink_to(tmp_path / "gone")
    if kind == "below a file":
        path.touch()
        path = path / "more"
    found = file_check(stack, path)
    assert found.kind == (FILE_UNREADABLE if kind == "below a file" else FILE_MISSING)
    assert str(path) in found.line()
    assert found.permanent


@needs_root
@pytest.mark.parametrize(
    ("mode", "owner", "user", "readable"),
    [
        (0o644, (0, 0), "1000:1000", True),
        (0o640, (0, 0), "1000:1000", False),
        (0o640, (0, 1000), "1000:1000", True),
        (0o640, (0, 1000), "1000", True),  # the group is the user's own number where none is given
        (0o640, (0, 1000), "1001:1000", True),
        (0o400, (1000, 0), "1000:1000", True),
        (0o040, (1000, 1000), "1000:1000", False),  # the owner's bits come first
        (0o004, (0, 1000), "1000:1000", False),  # and the group's before the others'
        (0o004, (0, 0), "1000:1000", True),
        (0o000, (0, 0), None, True),  # root reads everything
        (0o000, (0, 0), "0:0", True),
    ],
)
def test_the_users_of_a_file(
    stack: hookhost.Host, tmp_path: Path, mode: int, owner: tuple[int, int], user: str | None, *, readable: bool
) -> None:
    path = tmp_path / "model"
    path.touch()
    os.chown(path, *owner)
    path.chmod(mode)
    found = file_check(stack, path, user=user)
    assert found.kind == (READY if readable else FILE_UNREADABLE)
    if not readable:
        group = str(user).partition(":")[2]
        assert found.detail == (
            f"mode {mode:04o} of {owner[0]}:{owner[1]} keeps out the container's user 1000:{group or 1000}"
        )
        assert found.fix.startswith(f"chmod a+r {path}")


@needs_root
@pytest.mark.parametrize(("mode", "readable"), [(0o755, True), (0o744, False), (0o711, False), (0o700, False)])
def test_a_directory_must_be_listed_and_entered(
    stack: hookhost.Host, tmp_path: Path, mode: int, *, readable: bool
) -> None:
    path = tmp_path / "models"
    path.mkdir(mode=mode)
    path.chmod(mode)
    assert file_check(stack, path, user="1000:1000").ok is readable


@needs_root
@pytest.mark.parametrize(
    ("limits", "readable"),
    [
        (hardening(), True),
        (hardening("NET_RAW"), True),
        (hardening("all"), False),
        (hardening("ALL"), False),
        (hardening("CAP_DAC_OVERRIDE"), False),
        (hardening("dac_override"), False),
        (hardening("all", added=("DAC_OVERRIDE",)), True),
        (hardening("all", added=("cap_dac_read_search",)), True),
        (hardening("all", added=("CHOWN",)), False),
    ],
)
def test_root_without_its_capabilities_is_a_user_like_any_other(
    stack: hookhost.Host, tmp_path: Path, limits: fakehost.Document, *, readable: bool
) -> None:
    path = tmp_path / "model"
    path.touch()
    os.chown(path, 1000, 1000)
    path.chmod(0o600)
    found = file_check(stack, path, hardening=limits)
    assert found.ok is readable
    os.chown(path, 0, 0)
    assert file_check(stack, path, hardening=limits).ok


# --- secrets, disks, devices, the network ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        ("", "is empty"),
        ("\n", "is empty"),
        (None, "does not exist; create it (mode 0400)"),
        (b"\xff\xfesecret", "is no text in UTF-8"),
        ("pipe", "is not a regular file"),
    ],
)
def test_a_secret_that_is_no_use(
    stack: hookhost.Host, tmp_path: Path, content: str | bytes | None, detail: str
) -> None:
    path = tmp_path / "secret"
    if content == "pipe":
        os.mkfifo(path)
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    manifest = stack.declare(
        fakehost.service("app", secrets=["KEY"]), secrets={"KEY": {"file": str(path), "as": "env"}}
    )
    found, _ = check(manifest)
    assert found["secret KEY"].kind == SECRET_MISSING
    assert found["secret KEY"].detail == f"{path} {detail}"
    assert "0xff" not in found["secret KEY"].line()


def test_a_secret_of_somebody_else(stack: hookhost.Host) -> None:
    secrets = stack.secret("KEY", "x")
    manifest = stack.declare(fakehost.service("app", secrets=["KEY"]), secrets=secrets)
    Path(secrets["KEY"]["file"]).chmod(0)
    user = os.geteuid()
    if ROOT:
        os.seteuid(65534)  # who root is not may not read everything
    try:
        found = preflight.local(manifest, manifest.service("app"))
    finally:
        os.seteuid(user)
    assert (found[1].subject, found[1].kind) == ("secret KEY", SECRET_MISSING)
    assert "Permission denied" in found[1].detail


def test_a_secret_that_is_not_declared(stack: hookhost.Host) -> None:
    found, _ = check(stack.declare(fakehost.service("app", secrets=["KEY"])))
    assert found["secret KEY"].detail == "secret KEY is not declared: set services.aistack.secrets.KEY.file"


def test_a_secret_that_is_there_is_not_shown(stack: hookhost.Host) -> None:
    found, _ = check(stack.declare(fakehost.service("app", secrets=["KEY"]), secrets=stack.secret("KEY", "hush")))
    assert (found["secret KEY"].kind, found["secret KEY"].detail) == (READY, "present")


def test_the_secret_of_the_services_own_probe_is_checked_once(stack: hookhost.Host) -> None:
    asked = fakehost.probe("redis", 6379, secret="KEY")  # noqa: S106  (its name)
    secrets = stack.secret("KEY", "")
    alone, _ = check(stack.declare(fakehost.service("app", probe=asked), secrets=secrets))
    both, _ = check(stack.declare(fakehost.service("app", probe=asked, secrets=["KEY"]), secrets=secrets))
    assert alone["secret KEY"].kind == both["secret KEY"].kind == SECRET_MISSING


def disk_check(stack: hookhost.Host, path: Path, megabytes: int) -> Check:
    """Check an app that needs this much space."""
    wanted = {"files": [], "freeDisk": [{"path": str(path), "megabytes": megabytes}], "devices": []}
    return local(stack, preflight=wanted)


def test_a_disk_with_space(stack: hookhost.Host, tmp_path: Path) -> None:
    assert disk_check(stack, tmp_path, 0).ok
    assert disk_check(stack, tmp_path / "not" / "yet" / "there", 1).ok


def test_a_disk_without_enough_space(stack: hookhost.Host, tmp_path: Path) -> None:
    found = disk_check(stack, tmp_path / "not" / "yet", 2**50)
    assert (found.kind, found.permanent) == (DISK_FULL, True)
    assert found.detail.endswith(f" MiB free, {2**50} MiB needed")
    assert found.fix.startswith(f"df -h {tmp_path};")


def test_a_disk_that_really_is_full(stack: hookhost.Host, small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("size=4m")
    assert disk_check(stack, disk, 3).ok
    hookhost.fill(disk)
    assert disk_check(stack, disk, 1).detail == "0 MiB free, 1 MiB needed"


def test_a_disk_without_inodes(stack: hookhost.Host, small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("nr_inodes=3")
    assert disk_check(stack, disk, 0).ok
    (disk / "a").touch()
    (disk / "b").touch()
    found = disk_check(stack, disk, 0)
    assert (found.kind, found.detail, found.fix) == (DISK_FULL, "no free inodes", f"df -i {disk}")


@pytest.mark.parametrize(("path", "kind"), [("/dev/null", READY), ("/dev/no-such-gpu", DEVICE_MISSING)])
def test_devices(stack: hookhost.Host, path: str, kind: str) -> None:
    assert local(stack, preflight={"files": [], "freeDisk": [], "devices": [path]}).kind == kind


def test_a_network_that_cannot_be_asked_for(stack: hookhost.Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found, _ = check(stack.declare(fakehost.service("app")))
    assert found["network test-net"].kind == NETWORK_MISSING
    assert "podman is not installed" in found["network test-net"].detail
    assert found["network test-net"].fix == "aistack network repair; journalctl -u aistack-network -n 50"


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        ("{}", READY, "exists"),
        (
            '{"subnets": [{"subnet": "10.1.0.0/24"}]}',
            NETWORK_DIFFERS,
            "subnet is 10.1.0.0/24, declared is 10.89.100.0/24",
        ),
        ('{"network_interface": "podman1"}', NETWORK_DIFFERS, "interface is podman1, declared is aistack0"),
        ('{"network_interface', NETWORK_DIFFERS, "its definition is damaged"),
    ],
)
def test_a_network_of_that_name_that_is_not_the_stacks(
    stack: hookhost.Host, monkeypatch: pytest.MonkeyPatch, content: str, kind: str, words: str
) -> None:
    monkeypatch.setattr(runtime, "NETWORKS", str(stack.root))
    gateway = stack.name_server
    whole = {
        "driver": "bridge",
        "network_interface": "aistack0",
        "subnets": [{"subnet": "10.89.100.0/24", "gateway": gateway}],
        "dns_enabled": True,
    }
    path = stack.root / "test-net.json"
    with contextlib.suppress(ValueError):
        content = json.dumps({**whole, **json.loads(content)})
    path.write_text(content)
    found, _ = check(stack.declare(fakehost.service("app")))
    assert found["network test-net"].kind == kind
    assert words in found["network test-net"].detail
    # Nobody was asked: this is on the way of every start.
    assert stack.calls("podman") == []


# --- ports -----------------------------------------------------------------------------------------------------------


def port_check(stack: hookhost.Host, port: int, address: str = "127.0.0.1", protocol: str = "tcp") -> Check:
    """Check an app that is published on a port of the host."""
    return local(stack, publish=[{"address": address, "hostPort": port, "containerPort": 80, "protocol": protocol}])


@pytest.mark.parametrize(
    ("address", "protocol"),
    [("127.0.0.1", "tcp"), ("127.0.0.1", "udp"), ("0.0.0.0", "tcp"), ("[::1]", "tcp"), ("[::]", "udp")],  # noqa: S104
)
def test_a_free_port(stack: hookhost.Host, address: str, protocol: str) -> None:
    found = port_check(stack, fakehost.free_port(), address, protocol)
    assert (found.kind, found.detail) == (READY, "free")


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),  # noqa: S104
        ("0.0.0.0", "127.0.0.1"),  # noqa: S104
        ("::1", "[::1]"),
        ("::", "[::1]"),
    ],
)
def test_a_taken_port_names_who_holds_it(stack: hookhost.Host, held: str, wanted: str, protocol: str) -> None:
    family = socket.AF_INET6 if ":" in held else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM) as holder:
        holder.bind((held, 0))
        if protocol == "tcp":
            holder.listen()
        port = holder.getsockname()[1]
        found = port_check(stack, port, wanted, protocol)
    assert (found.kind, found.permanent) == (PORT_TAKEN, True)
    assert found.detail == f"already in use by {own_name()} (pid {os.getpid()})"
    assert found.fix == f"ss -lpn 'sport = :{port}'"


def own_name() -> str:
    """The name of this very program, as /proc has it."""
    return Path(Path("/proc/self/cmdline").read_text().split("\0")[0]).name


def test_a_connection_in_its_last_minutes_keeps_nobody_out(stack: hookhost.Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        link, _ = server.accept()
        link.close()  # the side that closes first stays behind in TIME-WAIT
        client.recv(1)
        client.close()
    assert port_check(stack, port).ok


def test_an_address_of_another_machine(stack: hookhost.Host) -> None:
    found = port_check(stack, fakehost.free_port(), "192.0.2.1")
    assert found.kind == PORT_TAKEN
    assert found.detail == "cannot be listened on: Cannot assign requested address"
    assert found.fix == "is 192.0.2.1 an address of this host? ip address"


@contextlib.contextmanager
def conmon(container: str, address: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """Let a process called as podman calls a container's monitor hold a port."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server((address, port)) as server:
        # cat waits for ever for somebody to write to the pipe that has the container's name.
        os.mkfifo(Path(folder) / container)
        process = subprocess.Popen(
            ["conmon", "-n", container],  # noqa: S607
            executable="/bin/cat",
            cwd=folder,
            pass_fds=[server.fileno()],
            stderr=subprocess.DEVNULL,
        )
        held = server.getsockname()[1]
        server.close()
        try:
            yield held
        finally:
            process.kill()
            process.wait()


def test_the_services_own_old_container_holds_no_port(stack: hookhost.Host) -> None:
    with conmon("aistack-app") as port:
        found = port_check(stack, port)
    assert (found.kind, found.detail) == (READY, "held by this service's own old container")


def test_another_container_is_named(stack: hookhost.Host) -> None:
    with conmon("somebody-else") as port:
        found = port_check(stack, port)
    assert (found.kind, found.detail) == (PORT_TAKEN, "already in use by container somebody-else")


def test_only_who_holds_the_port_at_that_address_is_named(stack: hookhost.Host) -> None:
    # This process, the older one, is found first, and holds the port elsewhere.
    with socket.create_server(("127.0.0.2", 0)) as server:
        port = server.getsockname()[1]
        with conmon("somebody-else", "127.0.0.1", port):
            found = port_check(stack, port)
    assert (found.kind, found.detail) == (PORT_TAKEN, "already in use by container somebody-else")


# --- the report ------------------------------------------------------------------------------------------------------


def test_a_line_says_what_where_why_and_what_to_do() -> None:
    waited = Check(
        "dependency db", REFUSED, "nothing listens at x", fix="look", permanent=False, seconds=3.21, tries=17
    )
    assert waited.line() == "dependency db: refused: nothing listens at x after 3.2 s and 17 tries; look"
    once = Check("dependency db", REFUSED, "nothing listens at x", seconds=0.01)
    assert once.line() == "dependency db: refused: nothing listens at x"
    fine = Check("disk /", READY, "5 MiB free", fix="df -h")
    assert fine.line() == "disk /: ready: 5 MiB free"


def test_a_line_is_one_line() -> None:
    line = Check("model /a\nb", FILE_MISSING, "\x1b[2J", fix="x" * 5000).line()
    assert line.startswith(r"model /a\nb: file missing: \x1b[2J; xxx")
    assert line.isprintable()
    assert len(line) <= 1000


def test_a_check_as_data() -> None:
    assert Check("s", NOT_READY, "d", address="a", fix="f", permanent=False, seconds=1.23456, tries=2).data() == {
        "subject": "s",
        "kind": "not ready yet",
        "ok": False,
        "permanent": False,
        "detail": "d",
        "address": "a",
        "seconds": 1.235,
        "tries": 2,
        "fix": "f",
    }


def test_the_report_has_the_failed_checks_alone() -> None:
    checks = [Check("a", READY, "fine"), Check("b", DISK_FULL, "full"), Check("c", REFUSED, "no", fix="look")]
    assert preflight.report("app", checks) == (
        "app cannot start: 2 of 3 checks failed\n  b: disk full: full\n  c: refused: no; look"
    )


def test_an_unknown_dependency_is_found_when_the_manifest_is_read(stack: hookhost.Host) -> None:
    with pytest.raises(HookError, match="dependsOn names redi, which is not a service"):
        stack.declare(fakehost.service("app", dependsOn=["redi"]))
    stack.declare(fakehost.service("app"))
    assert load().service("app").depends_on == []
