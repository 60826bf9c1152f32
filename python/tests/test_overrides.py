"""Overrides: what a start makes of overrides.json, whatever is in it, and who may write it how."""

from __future__ import annotations

import copy
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fakehost
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aistack.hooks import overrides, runtime
from aistack.hooks.errors import DONE, INVALID, LOCK_HELD, HookError
from aistack.hooks.main import main
from aistack.hooks.manifest import Manifest, Override, load
from aistack.hooks.releases import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGES = Path(__file__).parents[1]

ENVIRONMENT = {
    "ADAPTIVE": "true",
    "ADAPTIVE_TOO": "true",
    "ENDPOINT": "http://collector:4318",
    "LIMIT": "10",
    "OFFSET": "0",
    "REDIS_HOST": "redis",
    "SELF_HEALING_ENABLED": "false",
    "STARTUP_DEPENDENCY_CHECK": "true",
    "STARTUP_TIMEOUT_SECONDS": "1",
}


def entry(kind: str, *keys: str, low: int | None = None, high: int | None = None) -> dict[str, Any]:
    """An entry of `overridable`."""
    return {"type": kind, "min": low, "max": high, "option": f"services.aistack.{keys[0].lower()}", "keys": list(keys)}


OVERRIDABLE = {
    "ADAPTIVE": entry("bool", "ADAPTIVE", "ADAPTIVE_TOO"),
    "ADAPTIVE_TOO": entry("bool", "ADAPTIVE", "ADAPTIVE_TOO"),
    "ENDPOINT": entry("string", "ENDPOINT"),
    "LIMIT": entry("int", "LIMIT", low=1, high=100),
    "OFFSET": entry("int", "OFFSET"),
    "SELF_HEALING_ENABLED": entry("bool", "SELF_HEALING_ENABLED"),
    "STARTUP_DEPENDENCY_CHECK": entry("bool", "STARTUP_DEPENDENCY_CHECK"),
    "STARTUP_TIMEOUT_SECONDS": entry("int", "STARTUP_TIMEOUT_SECONDS", low=1, high=60),
}
CHANGES = {
    "environment": ENVIRONMENT,
    "environmentOptions": {key: f"services.aistack.{key.lower()}" for key in ENVIRONMENT},
    "overridable": OVERRIDABLE,
}


def write(manifest: Manifest, content: object) -> Path:
    """Put something where the overrides are."""
    path = Path(overrides.location(manifest))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def document(values: object, **changes: object) -> dict[str, object]:
    """The file as it is written."""
    return {"schemaVersion": 1, "values": values, "history": [], **changes}


@pytest.fixture(autouse=True)
def stack(host: fakehost.FakeHost) -> fakehost.FakeHost:
    """An app that gets the stack's environment, and a cache that does not."""
    services = {"app": fakehost.service("app"), "cache": fakehost.service("cache", stackEnvironment=False)}
    host.declare(services, **copy.deepcopy(CHANGES))
    host.images()
    return host


def override(kind: str, low: int | None = None, high: int | None = None) -> Override:
    return Override(entry(kind, "KEY", low=low, high=high))


# --- what holds ------------------------------------------------------------------------------------------------------


def test_without_overrides_nix_holds_and_nothing_of_them_is_imported() -> None:
    code = "import sys; from aistack.hooks.manifest import load; m = load(); print(m.environment == m.declared)\n"
    code += "print('aistack.hooks.overrides' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGES, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_an_override_holds_over_what_nix_declares() -> None:
    write(load(), document({"LIMIT": "15", "ENDPOINT": "https://other:4317/v1"}))
    found = load()
    assert found.environment == {**ENVIRONMENT, "LIMIT": "15", "ENDPOINT": "https://other:4317/v1"}
    assert found.declared == ENVIRONMENT
    assert found.overrides_problem is None
    app, cache = (runtime.public_environment(found, found.service(name)) for name in ("app", "cache"))
    assert app["LIMIT"] == "15"
    assert "LIMIT" not in cache


def test_keys_of_one_option_move_together() -> None:
    write(load(), document({"ADAPTIVE_TOO": "false"}))
    assert {k: v for k, v in load().environment.items() if v == "false"} == {
        "ADAPTIVE": "false",
        "ADAPTIVE_TOO": "false",
        "SELF_HEALING_ENABLED": "false",
    }


def test_the_hooks_go_by_it_too() -> None:
    before = load()
    assert (before.startup_timeout, before.dependency_check, before.self_healing) == (1, True, False)
    values = {"STARTUP_TIMEOUT_SECONDS": "42", "STARTUP_DEPENDENCY_CHECK": "false", "SELF_HEALING_ENABLED": "true"}
    write(before, document(values))
    assert set(values) == overrides.OF_HOOKS
    after = load()
    assert (after.startup_timeout, after.dependency_check, after.self_healing) == (42, False, True)


def test_the_container_gets_it_and_its_release_remembers_it(stack: fakehost.FakeHost) -> None:
    stack.images(fakehost.image(1))
    stack.document["services"]["app"]["image"]["ref"] = "localhost/kept/0:1"
    stack.declare(stack.document["services"], **CHANGES)
    write(load(), document({"LIMIT": "15"}))
    assert main(["start-pre", "app"]) == DONE
    assert "LIMIT=15\n" in (stack.root / "run/app/env").read_text()
    store = Store.open(str(stack.journal_path))
    release = store.current("app")
    assert release is not None
    assert release.environment["LIMIT"] == "15"
    store.close()


# --- what is no use --------------------------------------------------------------------------------------------------

NO_USE = {
    "empty": "",
    "cut": '{"schemaVersion": 1, "values": {"LIMIT"',
    "a list": "[]",
    "deep": "[" * 100_000,
    "no version": json.dumps({"values": {}}),
    "newer": json.dumps(document({}, schemaVersion=2)),
    "true": json.dumps(document({}, schemaVersion=True)),
    "hostile version": json.dumps(document({}, schemaVersion="\x1b[2J\n")),
    "values are a list": json.dumps(document(["LIMIT"])),
    "a value is a number": json.dumps(document({"LIMIT": 15})),
    "a value is null": json.dumps(document({"LIMIT": None})),
    "too large": json.dumps(document({"LIMIT": "1" * 1_100_000})),
    "a huge number": '{"schemaVersion": ' + "9" * 5000 + "}",
}


@pytest.mark.parametrize("text", NO_USE.values(), ids=NO_USE.keys())
def test_a_file_that_is_no_use_is_one_line_and_kept(text: str) -> None:
    path = write(load(), text)
    found = load()
    assert found.environment == ENVIRONMENT
    assert found.overrides_problem is not None
    assert found.overrides_problem.startswith(f"{path} is no use: ")
    assert found.overrides_problem.isprintable()
    assert f"mv {path} {path}.damaged" in found.overrides_problem
    with pytest.raises(overrides.Malformed):
        overrides.change(found, "root", "set", lambda _: {"LIMIT": "15"})
    assert path.read_text() == text


def test_what_is_no_file_is_no_use_either() -> None:
    path = Path(overrides.location(load()))
    path.parent.mkdir(parents=True)
    path.mkdir()
    assert "Is a directory" in str(load().overrides_problem)
    path.rmdir()
    os.mkfifo(path)
    assert "not a regular file" in str(load().overrides_problem)  # and nobody waits for a writer
    path.unlink()
    path.symlink_to("/nowhere")
    assert load().overrides_problem is None
    path.unlink()
    path.write_bytes(b"\xff\xfe\x00")
    assert "not JSON" in str(load().overrides_problem)


@pytest.mark.parametrize(
    ("values", "holds", "says"),
    [
        ({"LIMIT": "101"}, {}, "LIMIT must be a whole number from 1 to 100, and not '101'"),
        ({"GONE": "1"}, {}, "GONE cannot be overridden"),
        ({"REDIS_HOST": "x"}, {}, "REDIS_HOST cannot be overridden"),
        ({"ADAPTIVE": "yes"}, {}, "ADAPTIVE must be true or false, and not 'yes'"),
        ({"ADAPTIVE": "true", "ADAPTIVE_TOO": "false"}, {}, "ADAPTIVE is true, and ADAPTIVE_TOO, which moves with it"),
        ({"LIMIT": "0", "OFFSET": "-7"}, {"OFFSET": "-7"}, "LIMIT must be a whole number from 1 to 100"),
        ({"\x1b[2J\nX": "1", "LIMIT": "9"}, {"LIMIT": "9"}, r"\x1b[2J\nX cannot be overridden"),
        ({"ENDPOINT": "a b\x1b[2J"}, {}, r"ENDPOINT must be letters, digits and"),
    ],
)
def test_a_value_that_does_not_fit_any_more_is_ignored_alone(
    values: dict[str, str], holds: dict[str, str], says: str
) -> None:
    path = write(load(), document(values))
    found = load()
    assert found.overrides == holds
    assert found.environment == {**ENVIRONMENT, **holds}
    assert found.overrides_problem is not None
    assert says in found.overrides_problem
    assert found.overrides_problem.startswith(f"{path}: ignored: ")
    assert found.overrides_problem.isprintable()


def test_a_start_says_it_in_one_line_and_goes_on(stack: fakehost.FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    stack.images(fakehost.image(1))
    stack.document["services"]["app"]["image"]["ref"] = "localhost/kept/0:1"
    stack.declare(stack.document["services"], **CHANGES)
    path = write(load(), "{")
    assert main(["start-pre", "app"]) == DONE
    said = capsys.readouterr().err
    assert said.count("is no use") == 1
    assert said.startswith(f"app: {path} is no use: it is not JSON")
    assert "LIMIT=10\n" in (stack.root / "run/app/env").read_text()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda s: (
            st.lists(s) | st.dictionaries(st.sampled_from(["schemaVersion", "values", "history", "LIMIT", "x"]), s)
        ),
    )
)
def test_no_document_keeps_a_stack_from_starting(content: object) -> None:
    for text in (json.dumps(content), json.dumps(document(content)), json.dumps(document({}, history=[content]))):
        write(load(), text)
        found = load()
        assert set(found.environment) == set(ENVIRONMENT)
        assert found.overrides_problem is None or found.overrides_problem.isprintable()
        try:
            overrides.read(found)
        except overrides.Malformed as error:
            caught = error
        else:
            continue
        assert caught.code == INVALID
        assert str(caught).isprintable()


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "good", "bad"),
    [
        (override("bool"), ["true", "false"], ["", "True", "yes", "1", "on", " true", "true\n", "truefalse"]),
        (
            override("int"),
            ["0", "7", "-7", "123456789012"],
            [
                "",
                "-",
                "+7",
                "07",
                "-0",
                "1e3",
                "1.0",
                "0x10",
                "1_000",
                " 7",
                "7 ",
                "7\n",
                "\u0667",
                "\u00b2",
                "9" * 17,
                "true",
            ],
        ),
        (override("int", 1, 100), ["1", "100"], ["0", "101", "-1"]),
        (override("int", 1), ["1", "9999999"], ["0"]),
        (override("int", None, 5), ["-100", "5"], ["6"]),
        (
            override("string"),
            ["", "a", "http://host:4318/v1", "a=b", "%h", "user@host", "http://user@host/", "1:2:3", "git@host:22"],
            [" ", "a b", "a\n", "a\x1b", "'a'", '"a"', "$HOME", "a#b", "a\\b", "ä", "a;b", "http://u:p@h", "\udcff"],
        ),
    ],
    ids=["bool", "int", "range", "minimum", "maximum", "string"],
)
def test_what_is_accepted(spec: Override, good: list[str], bad: list[str]) -> None:
    assert [value for value in good if overrides.problem(spec, value) is not None] == []
    assert [value for value in bad if overrides.problem(spec, value) is None] == []
    for value in bad:
        assert str(overrides.problem(spec, value)).isprintable()


@given(
    st.sampled_from(["bool", "int", "string"]),
    st.none() | st.integers(-50, 0),
    st.none() | st.integers(0, 50),
    st.text() | st.integers().map(str) | st.from_regex(r"[A-Za-z0-9_./:@%+,=-]*", fullmatch=True),
)
def test_what_is_accepted_is_in_range_in_the_grammar_and_written_in_one_way(
    kind: str, low: int | None, high: int | None, value: str
) -> None:
    if overrides.problem(override(kind, low, high), value) is not None:
        return
    assert all((c.isascii() and c.isalnum()) or c in "_./:@%+,=-" for c in value)
    if kind == "bool":
        assert value in ("true", "false")
    if kind == "int":
        assert str(int(value)) == value
        assert low is None or int(value) >= low
        assert high is None or int(value) <= high


def test_differences_in_words() -> None:
    write(load(), document({"LIMIT": "45"}))
    found = load()
    runs = {"LIMIT": "10", "OFFSET": "1", "OLD": "x\x1b[2J", "SAME": "1"}
    should = {"LIMIT": "45", "OFFSET": "0", "NEW": "", "SAME": "1"}
    assert overrides.differences(runs, should) == [
        ("LIMIT", "10", "45"),
        ("NEW", None, ""),
        ("OFFSET", "1", "0"),
        ("OLD", "x\x1b[2J", None),
    ]
    assert overrides.in_words(found, runs, should) == (
        "LIMIT=10, not the overridden 45; NEW unset, not the declared ''; OFFSET=1, not the declared 0; "
        r"OLD=x\x1b[2J, which is declared no more"
    )
    assert overrides.in_words(found, should, should) == ""
    many = overrides.in_words(found, {f"K{number}": "x" * 5000 for number in range(40)}, {})
    assert many.endswith("; and 35 other keys")
    assert len(many) < 1000


# --- writing ---------------------------------------------------------------------------------------------------------


def names(manifest: Manifest) -> list[str]:
    """What is beside the overrides."""
    return sorted(path.name for path in Path(manifest.state_dir).iterdir())


def put(manifest: Manifest, **values: str) -> tuple[overrides.Document, overrides.Document]:
    return overrides.change(manifest, "root", f"set {values}", lambda before: {**before.values, **values})


def test_a_change_is_recorded_with_who_when_and_what() -> None:
    manifest = load()
    before, after = put(manifest, LIMIT="15")
    assert (before.values, before.history) == ({}, [])
    assert after.values == {"LIMIT": "15"}
    put(manifest, OFFSET="3")
    found = overrides.read(load())
    assert [(e.id, e.by, e.values) for e in found.history] == [
        (1, "root", {"LIMIT": "15"}),
        (2, "root", {"LIMIT": "15", "OFFSET": "3"}),
    ]
    assert found.history[0].at <= found.history[1].at
    path = Path(overrides.location(manifest))
    assert path.stat().st_mode & 0o777 == 0o644  # it holds no secret, and `aistack env show` is for everybody


def test_a_change_that_changes_nothing_writes_nothing() -> None:
    manifest = load()
    put(manifest, LIMIT="15")
    path = Path(overrides.location(manifest))
    inode = path.stat().st_ino
    before, after = put(manifest, LIMIT="15")
    assert before is after
    assert path.stat().st_ino == inode


def test_a_decision_against_it_writes_nothing_and_lets_go_of_the_lock() -> None:
    def refuse(_: overrides.Document) -> dict[str, str]:
        raise ZeroDivisionError

    manifest = load()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            overrides.change(manifest, "root", "set", refuse)
    assert not Path(overrides.location(manifest)).exists()
    put(manifest, LIMIT="15")


def test_the_history_is_bounded_and_its_numbers_go_on() -> None:
    manifest = load()
    for number in range(1, 61):
        put(manifest, OFFSET=str(number))
    history = overrides.read(manifest).history
    assert [e.id for e in history] == list(range(11, 61))
    assert history[-1].values == {"OFFSET": "60"}


def test_who_and_what_are_on_one_line_and_of_bounded_length() -> None:
    manifest = load()
    overrides.change(manifest, "eve\n\x1b[2J" * 50, "set\n" * 1000, lambda _: {"LIMIT": "15"})
    (found,) = overrides.read(manifest).history
    assert found.by.isprintable()
    assert found.what.isprintable()
    assert len(found.by) + len(found.what) < 500


def test_a_second_writer_waits_and_then_says_who_has_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = load()
    put(manifest, LIMIT="15")
    lock = Path(manifest.state_dir, "overrides.lock")
    monkeypatch.setattr(overrides, "_LOCK_PATIENCE", 0.05)
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(HookError, match=f"fuser -v {lock}") as caught:
            put(manifest, LIMIT="16")
        assert caught.value.code == LOCK_HELD
        assert load().environment["LIMIT"] == "15"  # readers need no lock
    put(manifest, LIMIT="16")


def test_the_lock_is_not_inherited() -> None:
    manifest = load()

    def look(_: overrides.Document) -> dict[str, str]:
        command = ["/bin/ls", "-l", "/proc/self/fd"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, close_fds=False)
        assert "overrides.lock" not in done.stdout
        return {"LIMIT": "15"}

    overrides.change(manifest, "root", "set", look)


_WRITER = """
import sys
from aistack.hooks import overrides
from aistack.hooks.manifest import load
manifest = load()
sys.stdin.readline()
for _ in range(int(sys.argv[1])):
    def more(before):
        return {"OFFSET": str(int(before.values.get("OFFSET", "0")) + 1)}
    overrides.change(manifest, "root", "more", more)
"""


def test_no_change_of_several_writers_is_lost() -> None:
    command = [sys.executable, "-c", _WRITER, "10"]
    writers = [subprocess.Popen(command, cwd=PACKAGES, stdin=subprocess.PIPE) for _ in range(4)]
    for process in writers:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    assert [process.wait(60) for process in writers] == [0] * 4
    for process in writers:
        assert process.stdin is not None
        process.stdin.close()
    found = overrides.read(load())
    assert found.values == {"OFFSET": "40"}
    assert [e.id for e in found.history] == list(range(1, 41))


# Ends itself as kill -9 does when a function is called for the n-th time.
_KILLED = """
import os, signal, sys
from aistack.hooks import overrides
from aistack.hooks.manifest import load
manifest = load()
name, left = sys.argv[1], int(sys.argv[2])
real = getattr(os, name)
def hit(*arguments, **named):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **named)
setattr(os, name, hit)
overrides.change(manifest, "root", "set", lambda _: {"ADAPTIVE": "false", "ADAPTIVE_TOO": "false", "LIMIT": "99"})
"""
# Before the new file takes the old one's place; and after, when its directory is made to last.
_BEFORE = [("open", 1), ("open", 2), ("open", 3), ("fchown", 1), ("fchmod", 1), ("fsync", 1), ("replace", 1)]
_AFTER = [("open", 4), ("fsync", 2)]


@pytest.mark.parametrize(("name", "count"), [*_BEFORE, *_AFTER])
def test_a_writer_killed_at_any_step_leaves_the_old_or_the_new(name: str, count: int) -> None:
    manifest = load()
    put(manifest, LIMIT="15")
    old = Path(overrides.location(manifest)).read_bytes()
    done = subprocess.run([sys.executable, "-c", _KILLED, name, str(count)], cwd=PACKAGES, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    found = load()
    assert found.overrides_problem is None
    if (name, count) in _AFTER:
        assert found.overrides == {"ADAPTIVE": "false", "ADAPTIVE_TOO": "false", "LIMIT": "99"}
    else:
        assert Path(overrides.location(manifest)).read_bytes() == old
    # The lock went with it, and the next writer clears up.
    put(manifest, LIMIT="16")
    assert names(manifest) == ["overrides.json", "overrides.lock"]


_ENDLESS = """
from aistack.hooks import overrides
from aistack.hooks.manifest import load
manifest = load()
number = 0
while True:
    number = number % 100 + 1
    overrides.change(manifest, "root", "set", lambda _: {"LIMIT": str(number), "OFFSET": str(number)})
    print(number, flush=True)
"""


def test_a_writer_killed_at_some_moment_leaves_one_whole_document() -> None:
    manifest = load()
    for moment in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", _ENDLESS], cwd=PACKAGES, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert process.stdout is not None
        for _ in range(moment + 1):
            process.stdout.readline()
        process.kill()
        process.wait(30)
        process.stdout.close()
        found = load()
        assert found.overrides_problem is None
        assert found.environment["LIMIT"] == found.environment["OFFSET"]
        assert overrides.read(manifest).history[-1].values == found.overrides
    put(manifest, LIMIT="16")
    assert names(manifest) == ["overrides.json", "overrides.lock"]


def test_a_full_disk_is_one_line_and_leaves_the_old(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = load()
    put(manifest, LIMIT="15")
    real = os.fsync

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HookError, match=r"cannot write .*disk is full"):
        put(manifest, LIMIT="16")
    monkeypatch.setattr(os, "fsync", real)
    assert load().environment["LIMIT"] == "15"
    assert names(manifest) == ["overrides.json", "overrides.lock"]


@pytest.fixture
def quick() -> Iterator[Path]:
    """A directory in memory: hypothesis writes often."""
    memory = Path("/dev/shm")  # noqa: S108  (a fresh directory is made below it)
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


_VALUES = st.fixed_dictionaries(
    {},
    optional={
        "LIMIT": st.integers(1, 100).map(str),
        "OFFSET": st.integers(-(10**14), 10**14).map(str),
        "ENDPOINT": st.from_regex(r"[A-Za-z0-9_./%+,=-]{0,40}", fullmatch=True),
        "SELF_HEALING_ENABLED": st.sampled_from(["true", "false"]),
    },
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(st.lists(_VALUES, min_size=1, max_size=4))
def test_what_was_set_is_what_holds(quick: Path, rounds: list[dict[str, str]]) -> None:
    path = quick / "stack.json"
    path.write_text(json.dumps({**fakehost.manifest(quick, {"app": fakehost.service("app")}), **CHANGES}))
    for values in rounds:
        overrides.change(load(str(path)), "root", "set", lambda _, new=values: dict(new))  # type: ignore[misc]
        found = load(str(path))
        assert found.overrides_problem is None
        assert found.overrides == values
        assert found.environment == {**ENVIRONMENT, **values}
        assert overrides.read(found).values == values
