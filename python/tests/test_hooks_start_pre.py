"""ExecStartPre: which release runs, what its container will see, and what is left behind where it cannot start."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import stat
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fakehost
import hookhost
import pytest
import scripted

from aistack.hooks import architecture, preflight, rollback, runtime
from aistack.hooks.errors import DEPENDENCY_MISSING, DONE, INVALID, TIMED_OUT, UNEXPECTED, HookError
from aistack.hooks.manifest import load
from aistack.hooks.start_pre import start_pre

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = os.geteuid() == 0
SECRET = "hunter2-0123456789"  # noqa: S105  (looked for everywhere)

small_disk = pytest.fixture(hookhost.small_disk)


@pytest.fixture
def stack(host: fakehost.FakeHost) -> hookhost.Host:
    """A host that has the image of an app."""
    made = hookhost.Host(host, "127.0.0.1")
    made.have(app=1)
    return made


def start(stack: hookhost.Host, *codes: int) -> str:
    """Prepare a start of the app that ends with one of these codes, or well; return what was said."""
    stack.said()
    try:
        found = start_pre(load(), "app")
    except HookError as error:
        # As the launcher does it.
        runtime.say(f"aistack: {error}")
        found = error.code
    said = stack.said()
    assert found in (codes or (DONE,)), said
    assert SECRET not in said
    return said


def environment(stack: hookhost.Host) -> dict[str, str]:
    """What the container gets by --env-file."""
    lines = (stack.root / "run/app/env").read_text().splitlines()
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def permissions(path: Path) -> str:
    """The mode of a file, in octal."""
    return f"{stat.S_IMODE(path.stat().st_mode):o}"


# --- what an interrupted start left -----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["podman-{}.ctr-id", "{}/ctr-id"])
def test_the_id_of_the_last_container_is_removed(
    stack: hookhost.Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr("aistack.hooks.start_pre._IDENTITIES", (f"{tmp_path}/none/{{}}", f"{tmp_path}/{place}"))
    left = tmp_path / place.format("aistack-app")
    other = tmp_path / place.format("aistack-redis")
    for file in (left, other):
        file.parent.mkdir(exist_ok=True)
        file.write_text("c0ffee")
    stack.declare(fakehost.service("app"))
    start(stack)
    assert (left.exists(), other.exists()) == (False, True)


# --- what the container will see -------------------------------------------------------------------------------------


def test_a_start_says_nothing_and_leaves_everything_in_place(stack: hookhost.Host) -> None:
    stack.declare(fakehost.service("app", environment={"MODE": "test"}))
    assert start(stack) == ""
    assert environment(stack) == {"MODE": "test", "REDIS_HOST": "redis"}
    assert stack.images() == {
        "registry.example/app:1": fakehost.image(1),
        "localhost/aistack/app:live": fakehost.image(1),
        f"localhost/aistack/app:{fakehost.image(1)[:12]}": fakehost.image(1),
    }
    verdict = stack.verdict()
    assert (verdict["phase"], verdict["ok"], verdict["release"], verdict["proven"]) == ("starting", False, 1, False)
    assert verdict["checks"][0]["subject"] == "network test-net"
    assert time.time() - 10 < verdict["beganAt"] <= time.time()
    assert 0 <= verdict["preflightSeconds"] < 10


@pytest.mark.parametrize(
    ("whole", "expected"),
    [
        (True, {"REDIS_HOST": "elsewhere", "REDIS_PORT": "6379", "MODE": "a b=c #d"}),
        (False, {"REDIS_HOST": "elsewhere", "MODE": "a b=c #d"}),
    ],
)
def test_the_stacks_environment_is_there_where_wanted_and_the_services_own_wins(
    stack: hookhost.Host, expected: dict[str, str], *, whole: bool
) -> None:
    stack.declare(
        fakehost.service("app", environment={"MODE": "a b=c #d", "REDIS_HOST": "elsewhere"}, stackEnvironment=whole),
        environment={"REDIS_HOST": "redis", "REDIS_PORT": "6379"},
    )
    start(stack)
    assert environment(stack) == expected


def test_files_and_directories_are_for_root_alone(stack: hookhost.Host) -> None:
    stack.declare(fakehost.service("app", secrets=["KEY"]), secrets=stack.secret("KEY", f"{SECRET}\n"))
    before = os.umask(0)
    try:
        start(stack)
    finally:
        os.umask(before)
    assert environment(stack)["KEY"] == SECRET
    assert permissions(stack.root / "run/app") == "700"
    assert permissions(stack.root / "run/app/env") == "400"
    assert sorted(path.name for path in (stack.root / "run/app").iterdir()) == ["env", "verdict.json"]


def test_a_secret_as_a_file(stack: hookhost.Host) -> None:
    value = "-----BEGIN KEY-----\nabc\n-----END KEY-----\n"
    stack.declare(
        fakehost.service("app", secrets=["KEY"], user="1000:1001" if ROOT else None),
        secrets=stack.secret("KEY", value, delivered="file"),
    )
    start(stack)
    assert environment(stack) == {"REDIS_HOST": "redis", "KEY_FILE": "/run/secrets/KEY"}
    path = stack.root / "run/app/secrets/KEY"
    assert path.read_text() == value.removesuffix("\n")
    assert permissions(path) == "400"
    if ROOT:
        assert (path.stat().st_uid, path.stat().st_gid) == (1000, 1001)


def test_what_an_earlier_start_wrote_does_not_stay(stack: hookhost.Host) -> None:
    stack.declare(
        fakehost.service("app", secrets=["OLD", "KEY"]),
        secrets=stack.secret("KEY", "k", delivered="file") | stack.secret("OLD", SECRET, delivered="file"),
    )
    start(stack)
    left_over = stack.root / "run/app/env.4711.new"  # of a start that was killed
    left_over.write_text(SECRET)
    stack.declare(fakehost.service("app", secrets=["KEY"]), secrets=stack.secret("KEY", "k", delivered="file"))
    start(stack)
    assert [path.name for path in (stack.root / "run/app/secrets").iterdir()] == ["KEY"]
    assert not left_over.exists()
    stack.declare(fakehost.service("app", secrets=["KEY"]), secrets=stack.secret("KEY", "k"))
    start(stack)
    assert list((stack.root / "run/app/secrets").iterdir()) == []


@pytest.mark.parametrize("value", [f"{SECRET}\nmore", f"{SECRET}\rmore", f"{SECRET}\0"])
def test_a_secret_of_several_lines_is_no_environment_variable(stack: hookhost.Host, value: str) -> None:
    stack.declare(fakehost.service("app", secrets=["KEY"]), secrets=stack.secret("KEY", value))
    said = start(stack, DEPENDENCY_MISSING)
    assert re.search(r"^  secret KEY: secret missing: \S+ has more than one line", said, re.MULTILINE)
    assert 'services.aistack.secrets.KEY.as = "file"' in said
    assert SECRET not in said
    assert not (stack.root / "run/app/env").exists()


def test_a_release_remembers_no_secret(stack: hookhost.Host) -> None:
    stack.declare(fakehost.service("app", secrets=["KEY"]), secrets=stack.secret("KEY", SECRET))
    start(stack)
    assert stack.current().environment == {"REDIS_HOST": "redis"}


def refuse(stack: hookhost.Host) -> None:
    """Break the start after its secrets were read: the container's port is taken."""
    entry = fakehost.service("app", secrets=["KEY", "LINES", "GONE"], probe=fakehost.probe("redis", 1, secret="KEY"))  # noqa: S106
    secrets = stack.secret("KEY", SECRET) | stack.secret("LINES", f"{SECRET}\n{SECRET}") | stack.secret("GONE", SECRET)
    Path(secrets["GONE"]["file"]).write_bytes(SECRET.encode() + b"\xff")
    stack.declare(entry, secrets=secrets)
    start(stack, DEPENDENCY_MISSING)


def disappear(stack: hookhost.Host) -> None:
    """Break the start after its environment was written: the image cannot be tagged."""
    stack.declare(fakehost.service("app", secrets=["KEY"]), secrets=stack.secret("KEY", SECRET))
    programs = stack.root / "fake-programs/podman"
    programs.write_text(programs.read_text().replace("tag*)", "tag*) env >&2; exit 125 ;;\nnever*)"))
    start(stack, UNEXPECTED)


def succeed(stack: hookhost.Host) -> None:
    """Start, and start again with nothing changed."""
    stack.declare(fakehost.service("app", secrets=["KEY"]), secrets=stack.secret("KEY", SECRET))
    start(stack)
    start(stack)


@pytest.mark.parametrize("way", [refuse, disappear, succeed])
def test_a_secret_is_nowhere_but_where_it_belongs(stack: hookhost.Host, way: Callable[[hookhost.Host], None]) -> None:
    way(stack)
    found = {
        str(path.relative_to(stack.root))
        for path in stack.root.rglob("*")
        if path.is_file() and SECRET.encode() in path.read_bytes()
    }
    assert {name for name in found if not name.startswith("secret-")} <= {"run/app/env"}


# --- writing ---------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "env"
    runtime.write_atomic(str(path), b"old", 0o400)

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(HookError, match=rf"cannot write {path}: Input/output error$"):
        runtime.write_atomic(str(path), b"new", 0o400)
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["env"]


def test_readers_see_one_version_or_the_other(tmp_path: Path) -> None:
    path = tmp_path / "env"
    versions = [bytes([byte]) * 100_000 for byte in b"ab"]
    runtime.write_atomic(str(path), versions[0], 0o600)
    over = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not over.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(100):
        runtime.write_atomic(str(path), versions[number % 2], 0o600)
    over.set()
    reader.join()
    assert seen <= set(versions)


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "passwd"
    target.write_text("root")
    (tmp_path / f"env.{os.getpid()}.new").symlink_to(target)
    with pytest.raises(HookError, match="cannot write"):
        runtime.write_atomic(str(tmp_path / "env"), b"new", 0o400)
    assert target.read_text() == "root"


def test_a_full_disk_leaves_the_old_environment(small_disk: Callable[[str], Path], stack: hookhost.Host) -> None:
    disk = small_disk("mode=0755")
    stack.declare(fakehost.service("app"), runtimeDir=str(disk))
    start(stack)
    old = (disk / "app/env").read_bytes()
    hookhost.fill(disk)
    stack.declare(fakehost.service("app", environment={"MORE": "x" * 5000}), runtimeDir=str(disk))
    said = start(stack, UNEXPECTED)
    assert f"aistack: cannot write {disk}/app/env: No space left on device (the disk is full: `df -h`)" in said
    assert (disk / "app/env").read_bytes() == old
    assert not list(disk.rglob("*.new"))


# --- the image -------------------------------------------------------------------------------------------------------


def test_tags_that_are_right_are_left_alone(stack: hookhost.Host) -> None:
    stack.declare(fakehost.service("app"))
    start(stack)
    start(stack)
    assert len(stack.calls("podman tag")) == 1


def test_another_release_moves_the_live_tag_and_keeps_the_old_image(stack: hookhost.Host) -> None:
    images = stack.root / "images"
    stack.declare(fakehost.service("app"))
    images.write_text(f"registry.example/app:1\t{'a' * 64}\n")
    start(stack)
    declared = "registry.example/app:1\t"
    images.write_text(images.read_text().replace(declared + "a" * 64, declared + "b" * 64))
    start(stack)
    assert stack.images() == {
        "registry.example/app:1": "b" * 64,
        "localhost/aistack/app:live": "b" * 64,
        "localhost/aistack/app:aaaaaaaaaaaa": "a" * 64,
        "localhost/aistack/app:bbbbbbbbbbbb": "b" * 64,
    }
    assert stack.history() == {1: "staged", 2: "staged"}


def test_a_missing_image_is_pulled(stack: hookhost.Host) -> None:
    stack.have()
    (stack.root / "registry").write_text(f"registry.example/app:1\t{fakehost.image(9)}\n")
    stack.declare(fakehost.service("app"))
    assert start(stack) == "app: pulling registry.example/app:1\n"
    assert stack.current().image_id == fakehost.image(9)


def test_an_image_that_cannot_be_had_at_the_first_start(stack: hookhost.Host) -> None:
    stack.have()
    stack.declare(fakehost.service("app"))
    said = start(stack, DEPENDENCY_MISSING)
    assert "image registry.example/app:1: image missing: podman pull failed: Error: cannot reach the registry" in said
    assert "podman pull registry.example/app:1, or correct services.aistack.services.app.image" in said
    verdict = stack.verdict()
    assert (verdict["phase"], verdict["release"]) == ("preflight", None)


_FOREIGN = "riscv64" if os.uname().machine != "riscv64" else "s390x"


def built_for(stack: hookhost.Host, words: str) -> None:
    """Let podman say of every image that it is for this system and architecture."""
    podman = stack.root / "fake-programs/podman"
    case = f"*Architecture*) printf 'podman %s\\n' \"$*\" >> \"$FAKE_HOST/calls\"; echo '{words}'; exit ;;"
    podman.write_text(podman.read_text().replace("#!/bin/sh\n", f'#!/bin/sh\ncase "$*" in\n{case}\nesac\n', 1))


@pytest.mark.parametrize("words", [f"linux {_FOREIGN}", "windows amd64"])
def test_an_image_for_another_machine_is_not_started(
    stack: hookhost.Host, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setattr(architecture, "_HANDLERS", "/nowhere")
    stack.declare(fakehost.service("app"))
    built_for(stack, words)
    said = start(stack, DEPENDENCY_MISSING)
    assert f"wrong architecture: it is for {words.replace(' ', '/')}, and this machine is linux/" in said
    assert stack.history() == {}


def test_what_ran_runs_on_where_the_declared_image_is_for_another_machine(
    stack: hookhost.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(architecture, "_HANDLERS", "/nowhere")
    stack.declare(fakehost.service("app"))
    start(stack)
    stack.have(app=2)
    with stack.store() as store:
        store.bless(stack.current())
        images = stack.root / "images"
        images.write_text(f"{images.read_text()}localhost/kept:1\t{stack.current().image_id}\n")
    built_for(stack, f"linux {_FOREIGN}")
    said = start(stack)
    assert f"cannot run here: it is for linux/{_FOREIGN}" in said
    assert "release 1 (" in said
    assert stack.history() == {1: "good"}
    assert "cannot run here" in stack.verdict()["notice"]


def test_an_emulator_runs_it(stack: hookhost.Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "handlers").mkdir()
    (tmp_path / f"handlers/qemu-{_FOREIGN}").touch()
    monkeypatch.setattr(architecture, "_HANDLERS", str(tmp_path / "handlers"))
    stack.declare(fakehost.service("app"))
    built_for(stack, f"linux {_FOREIGN}")
    start(stack)
    assert stack.history() == {1: "staged"}


def test_an_image_is_asked_what_it_is_for_once(stack: hookhost.Host) -> None:
    stack.declare(fakehost.service("app"))
    built_for(stack, "linux ")
    start(stack)
    start(stack)
    assert len([call for call in stack.calls("podman image inspect") if "Architecture" in call]) == 1


@pytest.mark.parametrize("jump", [10 * 86400.0, -10 * 86400.0])
def test_a_clock_that_jumps_in_a_start_makes_no_time_negative_or_long(
    stack: hookhost.Host, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    real, jumped = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + jumped[0])
    stack.declare(fakehost.service("app"))
    run = preflight.run

    def jumping(*arguments: Any, **options: Any) -> list[preflight.Check]:  # noqa: ANN401
        jumped[0] = jump
        return run(*arguments, **options)

    monkeypatch.setattr(preflight, "run", jumping)
    start(stack)
    verdict = stack.verdict()
    assert 0 <= verdict["preflightSeconds"] < 60
    assert 0 <= verdict["atBoot"] - verdict["beganAtBoot"] < 60


def test_a_local_image_is_not_looked_for_in_a_registry(stack: hookhost.Host) -> None:
    entry = fakehost.service("app")
    entry["image"]["ref"] = "localhost/mine:1"
    stack.declare(entry)
    assert "no registry has a name under localhost/" in start(stack, DEPENDENCY_MISSING)
    assert stack.calls("podman pull") == []


def test_the_last_good_release_runs_where_the_declared_image_cannot_be_had(stack: hookhost.Host) -> None:
    stack.declare(fakehost.service("app"))
    start(stack)
    with stack.store() as store:
        store.bless(stack.current())
    entry = fakehost.service("app")
    entry["image"]["ref"] = "registry.example/app:2"
    stack.declare(entry)
    said = start(stack)
    assert "the declared image registry.example/app:2 cannot be had" in said
    assert "release 1 (registry.example/app:1, image 000000000000) runs on" in said
    verdict = stack.verdict()
    assert (verdict["release"], verdict["proven"]) == (1, True)
    assert "cannot be had" in verdict["notice"]
    assert environment(stack) == {"REDIS_HOST": "redis"}


def archive(stack: hookhost.Host, **images: int) -> Path:
    """Write an archive with these images."""
    path = stack.root / "archive.tar"
    path.write_text(
        "".join(f"registry.example/{name}:1\t{fakehost.image(number)}\n" for name, number in images.items())
    )
    return path


def from_archive(path: Path) -> fakehost.Document:
    """Return an app whose image is in an archive."""
    entry = fakehost.service("app")
    entry["image"]["archive"] = str(path)
    return entry


def test_an_archive_is_loaded_once(stack: hookhost.Host) -> None:
    stack.have()
    path = archive(stack, app=5)
    stack.declare(from_archive(path))
    assert start(stack) == f"app: loading registry.example/app:1 from {path}\n"
    assert stack.current().image_id == fakehost.image(5)
    assert start(stack) == ""
    assert len(stack.calls("podman load")) == 1
    stack.have()  # podman system reset
    start(stack)
    assert len(stack.calls("podman load")) == 2


def test_an_archive_of_something_else(stack: hookhost.Host) -> None:
    stack.have()
    stack.declare(from_archive(archive(stack, other=5)))
    assert "holds another image than registry.example/app:1" in start(stack, DEPENDENCY_MISSING)


def stream(stack: hookhost.Host, script: str) -> Path:
    """Write a program that streams an image, and declare it."""
    path = stack.root / "stream image"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    entry = fakehost.service("app")
    entry["image"]["stream"] = str(path)
    stack.have()
    stack.declare(entry)
    return path


def test_a_streamed_image(stack: hookhost.Host) -> None:
    stream(stack, f"printf 'registry.example/app:1\\t{fakehost.image(6)}\\n'")
    start(stack)
    assert stack.current().image_id == fakehost.image(6)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (f"printf 'registry.example/app:1\\t{fakehost.image(6)}\\n'; exit 3", "stream image ended with 3"),
        ("exit 0", "stream image holds another image than registry.example/app:1"),
    ],
)
def test_a_stream_that_fails(stack: hookhost.Host, script: str, words: str) -> None:
    stream(stack, script)
    assert words in start(stack, DEPENDENCY_MISSING)


def test_a_stream_that_cannot_be_run(stack: hookhost.Host) -> None:
    stream(stack, "exit 0").chmod(0o644)
    assert "cannot run " in start(stack, DEPENDENCY_MISSING)


def test_a_stream_that_nobody_reads(stack: hookhost.Host) -> None:
    stream(stack, "exec yes")
    (stack.root / "fake-programs/podman").write_text(
        (stack.root / "fake-programs/podman")
        .read_text()
        .replace('"load --quiet")', '"load --quiet") echo "Error: no space" >&2; exit 125 ;;\nnever)')
    )
    began = time.monotonic()
    assert "`podman load --quiet` failed: Error: no space" in start(stack, DEPENDENCY_MISSING)
    assert time.monotonic() - began < 3


def test_a_stream_without_an_end_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_LAST_WORDS", 0.1)
    began = time.monotonic()
    with pytest.raises(HookError, match=r"`cat` took more than 0\.3 s") as caught:
        runtime.pipe(["/bin/sh", "-c", "trap '' PIPE; while :; do sleep 0.05; echo 2>/dev/null; done"], ["cat"], 0.3)
    assert caught.value.code == TIMED_OUT
    assert time.monotonic() - began < 2
    assert list(tmp_path.iterdir()) == []


# --- trouble ---------------------------------------------------------------------------------------------------------


def test_a_damaged_journal_does_not_keep_the_stack_down(stack: hookhost.Host) -> None:
    stack.declare(fakehost.service("app"))
    start(stack)
    stack.fake.journal_path.write_bytes(b"garbage" * 1000)
    said = start(stack)
    assert said.startswith(f"{stack.fake.journal_path} was damaged; it is kept as ")
    assert stack.history() == {1: "staged"}


def break_podman(stack: hookhost.Host) -> str:
    (stack.root / "podman-fails").write_text("Error: storage is locked\n")
    return "podman image failed: Error: storage is locked"


def remove_podman(stack: hookhost.Host) -> str:
    (stack.root / "fake-programs/podman").unlink()
    os.environ["PATH"] = str(stack.root / "fake-programs")
    return "podman is not installed or not on PATH"


def break_the_journal(stack: hookhost.Host) -> str:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{stack.fake.journal_path}{suffix}").unlink(missing_ok=True)
    stack.fake.journal_path.mkdir()
    return "releases.db: unable to open database file"


@pytest.mark.parametrize("breaking", [break_podman, remove_podman, break_the_journal])
def test_trouble_of_the_host_is_no_fault_of_a_release(
    stack: hookhost.Host, breaking: Callable[[hookhost.Host], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.environ["PATH"])
    stack.declare(fakehost.service("app"))
    start(stack)
    with stack.store() as store:
        store.bless(stack.current())
    stack.have(app=2)
    start(stack)
    with stack.store() as store:
        store.probation(stack.current())
    stack.fake.verdict("app", phase="ready", release=2, at=0, checks=[])
    path = os.environ["PATH"]
    words = breaking(stack)
    for _ in range(3):
        assert words in start(stack, UNEXPECTED, DEPENDENCY_MISSING)
    verdict = stack.verdict()
    assert (verdict["phase"], verdict["ok"]) == ("preflight", False)
    # The unit fails for good; its OnFailure= must not take the release for the culprit.
    os.environ["PATH"] = path
    if breaking is break_the_journal:
        stack.fake.journal_path.rmdir()
        return
    if breaking is remove_podman:
        hookhost.Host(stack.fake, stack.name_server)
        (stack.root / "fake-programs/podman").chmod(0o755)
    stack.fake.unit("app", "failed", NRestarts="3")
    assert rollback.on_failure(load(), "app") == DONE
    assert "not rolled back" in stack.said()
    assert stack.history() == {1: "good", 2: "probation"}


def test_a_podman_that_hangs_is_bounded(stack: hookhost.Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "PODMAN_TIMEOUT", 0.2)
    stack.declare(fakehost.service("app"))
    (stack.root / "fake-programs/podman").write_text("#!/bin/sh\nexec sleep 20\n")
    real = runtime.run
    monkeypatch.setattr(runtime, "run", lambda command, timeout, *more: real(command, min(timeout, 0.2), *more))
    began = time.monotonic()
    said = start(stack, DEPENDENCY_MISSING)
    assert "`podman image list" in said
    assert "took more than 0.2 s" in said
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("verdict", ["", "{", "[]", "null", '{"phase": 1}', "\x00", "x" * 100_000])
def test_a_verdict_that_is_no_verdict_is_none(stack: hookhost.Host, verdict: str) -> None:
    stack.declare(fakehost.service("app"))
    (stack.root / "run/app").mkdir(parents=True)
    (stack.root / "run/app/verdict.json").write_text(verdict)
    start(stack)
    assert stack.verdict()["phase"] == "starting"


def test_an_external_service_is_not_started(stack: hookhost.Host) -> None:
    stack.declare(fakehost.external(1))
    assert "outside this stack" in start(stack, INVALID)
    assert not (stack.root / "run").exists()


# --- being stopped meanwhile -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [0, 2], ids=["one dependency", "several"])
def test_a_stop_while_it_waits_is_no_failure(stack: hookhost.Host, others: int) -> None:
    asked = threading.Event()

    def busy(link: Any) -> None:  # noqa: ANN401  (a socket)
        link.recv(4096)
        asked.set()
        link.sendall(b"-LOADING\r\n")

    with contextlib.ExitStack() as servers:
        server = servers.enter_context(scripted.Tcp(busy))
        names = {f"db{number}": fakehost.external(server.port, "redis") for number in range(others + 1)}
        stack.declare(
            fakehost.service("app", dependsOn=list(names)),
            **names,
            startup={"dependencyCheck": True, "timeoutSeconds": 60},
        )
        process = stack.start("start-pre", "app")
        assert asked.wait(20)
        time.sleep(0.1)  # any moment of the wait is as good as another
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        out, said = process.communicate(timeout=20)
        spent = time.monotonic() - began
    assert (process.returncode, out, said) == (DONE, "", "")
    assert spent < 5
    assert not (stack.root / "run/app/verdict.json").exists()


def test_the_launcher_prepares_a_start(stack: hookhost.Host) -> None:
    stack.declare(fakehost.service("app"))
    process = stack.start("start-pre", "app")
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == DONE
    assert json.loads((stack.root / "run/app/verdict.json").read_text())["phase"] == "starting"
