"""The release journal: what a release may become, who writes at the same time, and files that are no journal."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import hookhost
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aistack.hooks import start_pre
from aistack.hooks.deploys import Deploys
from aistack.hooks.errors import UNEXPECTED, HookError
from aistack.hooks.manifest import Manifest
from aistack.hooks.releases import BAD, GOOD, PROBATION, STAGED, Damaged, Release, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKAGES = Path(__file__).parents[1]


def declare(store: Store, number: int, service: str = "redis") -> Release:
    """Declare the image with this number; return the release to run."""
    return store.declare(service, f"{number:064x}", f"redis:{number}", {"N": str(number)}, {"number": number})


def good(store: Store, number: int) -> Release:
    """Declare an image, and let it prove itself."""
    release = declare(store, number)
    store.probation(release)
    store.bless(release)
    return release


def bad(store: Store, number: int) -> Release:
    """Declare an image, and let it fail; what is good takes its place."""
    release = declare(store, number)
    store.condemn(release, "never ready", "the log", store.last_good("redis", release))
    return release


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where the journal of a test is; its directory is made with it."""
    return str(tmp_path / "state" / "releases.db")


@pytest.fixture
def store(path: str) -> Iterator[Store]:
    """An empty journal."""
    opened = Store.open(path)
    yield opened
    opened.close()


def current(store: Store) -> int | None:
    """The id of the release that runs at the next start."""
    release = store.current("redis")
    return release.id if release is not None else None


# --- what a release may become ---------------------------------------------------------------------------------------


def test_the_way_of_a_good_release(store: Store) -> None:
    release = declare(store, 1)
    assert (release.state, release.proven, current(store)) == (STAGED, False, release.id)
    store.probation(release)
    assert (store.history()[0].state, store.history()[0].proven) == (PROBATION, False)
    store.bless(release)
    assert (store.history()[0].state, store.history()[0].proven) == (GOOD, True)
    assert str(release) == "release 1 (redis:1, image 000000000000)"


def test_a_release_remembers_what_it_was_made_of(store: Store) -> None:
    release = declare(store, 7)
    found = store.get("redis", release.id)
    assert found is not None
    assert (found.image_id, found.image_ref, found.source) == (f"{7:064x}", "redis:7", "declared")
    assert (found.environment, found.entry) == ({"N": "7"}, {"number": 7})
    assert 0 <= found.changed - found.created < 1
    assert store.get("postgres", release.id) is None


def test_a_bad_release_keeps_its_reason_and_log(store: Store) -> None:
    first = good(store, 1)
    second = bad(store, 2)
    found = store.history()[0]
    assert (found.id, found.state, found.reason, found.log) == (second.id, BAD, "never ready", "the log")
    assert current(store) == first.id


def test_an_unchanged_declaration_keeps_what_runs_after_a_rollback(store: Store) -> None:
    first = good(store, 1)
    second = bad(store, 2)
    assert declare(store, 2).id == first.id
    declared = store.declared("redis")
    assert declared is not None
    assert (declared.id, declared.state) == (second.id, BAD)


def test_an_unchanged_declaration_keeps_what_an_administrator_chose(store: Store) -> None:
    first = good(store, 1)
    second = good(store, 2)
    store.choose(first)
    assert declare(store, 2).id == first.id
    assert store.history()[0].id == second.id


def test_a_new_declaration_runs(store: Store) -> None:
    good(store, 1)
    bad(store, 2)
    third = declare(store, 3)
    assert (third.state, current(store)) == (STAGED, third.id)


def test_an_older_declaration_that_was_good_needs_no_probation(store: Store) -> None:
    first = good(store, 1)
    good(store, 2)
    again = declare(store, 1)
    assert (again.id, again.proven, current(store)) == (first.id, True, first.id)


def test_a_bad_declaration_is_not_tried_again(store: Store) -> None:
    bad(store, 1)
    good(store, 2)
    third = good(store, 3)
    assert declare(store, 1).id == third.id
    bad(store, 4)
    fifth = good(store, 5)
    assert declare(store, 4).id == fifth.id


def test_a_bad_declaration_is_tried_again_when_there_is_nothing_else(store: Store) -> None:
    first = bad(store, 1)
    assert current(store) == first.id
    again = declare(store, 1)
    assert (again.id, again.state) == (first.id, BAD)


def test_a_bad_release_that_works_after_all_becomes_good(store: Store) -> None:
    release = bad(store, 1)
    store.probation(release)
    store.bless(release)
    found = store.history()[0]
    assert (found.state, found.reason) == (GOOD, "")


def test_an_administrator_can_try_a_bad_release_again(store: Store) -> None:
    good(store, 1)
    second = bad(store, 2)
    store.choose(second)
    assert (store.history()[0].state, current(store)) == (STAGED, second.id)
    assert declare(store, 2).id == second.id


def test_choosing_a_good_release_leaves_it_good(store: Store) -> None:
    first = good(store, 1)
    declare(store, 2)
    store.choose(first)
    assert [release.state for release in store.history()] == [STAGED, GOOD]


@pytest.mark.parametrize(
    ("before", "expected"),
    [(None, 4), (1, 4), (2, 4), (3, 4), (4, 2), (5, 4)],
)
def test_the_last_good_release_is_the_one_that_ran_last(store: Store, before: int | None, expected: int) -> None:
    for number, prove in enumerate([bad, good, bad, good, bad], start=1):
        prove(store, number)
    release = store.get("redis", before) if before is not None else None
    found = store.last_good("redis", release)
    assert found is not None
    assert found.id == expected


def test_a_good_release_that_ran_again_is_the_last_good_one_not_the_newest(store: Store) -> None:
    first = good(store, 1)
    good(store, 2)
    assert declare(store, 1).id == first.id
    broken = declare(store, 3)
    assert [release.id for release in store.good("redis", broken)] == [1, 2]
    store.condemn(broken, "never ready", "", store.last_good("redis", broken))
    assert current(store) == first.id
    # A start that changes nothing is no turn.
    declare(store, 3)
    assert [release.id for release in store.good("redis")] == [1, 2]


def test_a_known_bad_declaration_leaves_what_runs_alone(store: Store) -> None:
    first = good(store, 1)
    good(store, 2)
    bad(store, 3)
    declare(store, 1)
    assert declare(store, 3).id == first.id


def test_there_is_no_last_good_release_without_one(store: Store) -> None:
    first = good(store, 1)
    declare(store, 2)
    assert store.last_good("redis", first) is None
    assert store.last_good("postgres") is None


def test_where_none_is_good_one_that_was_ready_is_better_than_nothing(store: Store) -> None:
    first = declare(store, 1)
    store.probation(first)
    found = store.last_good("redis", declare(store, 2))
    assert found is not None
    assert found.id == first.id
    third = good(store, 3)
    found = store.last_good("redis", declare(store, 4))
    assert found is not None
    assert found.id == third.id


def test_the_environment_and_the_entry_make_another_release(store: Store) -> None:
    def ids(environment: dict[str, str], entry: dict[str, object]) -> int:
        return store.declare("redis", "a" * 64, "redis:1", environment, entry).id

    first = ids({"A": "1", "B": "2"}, {"port": 1, "user": None})
    assert ids({"B": "2", "A": "1"}, {"user": None, "port": 1}) == first
    assert len({first, ids({"A": "1"}, {"port": 1, "user": None}), ids({"A": "1", "B": "2"}, {"port": 2})}) == 3


def test_services_do_not_touch_each_other(store: Store) -> None:
    first = declare(store, 1)
    other = declare(store, 1, "postgres")
    store.condemn(first, "bad", "", None)
    assert [release.id for release in store.history("postgres")] == [other.id]
    assert [release.id for release in store.history()] == [other.id, first.id]
    assert store.history("postgres")[0].state == STAGED


def test_a_loaded_archive_is_remembered(store: Store) -> None:
    assert store.loaded("/a.tar") is None
    store.remember_loaded("/a.tar", "1" * 64)
    store.remember_loaded("/a.tar", "2" * 64)
    assert store.loaded("/a.tar") == "2" * 64


def test_pruning_keeps_the_last_of_each_kind_and_what_is_in_use(store: Store) -> None:
    for number in range(1, 6):
        good(store, number)
    for number in range(6, 10):
        bad(store, number)
    oldest = store.get("redis", 1)
    assert oldest is not None
    store.choose(oldest)
    gone = store.prune("redis", 2)
    assert sorted(release.id for release in gone) == [2, 3, 4, 6, 7]
    assert sorted(release.id for release in store.history()) == [1, 5, 8, 9]
    assert current(store) == 1


def test_pruning_keeps_what_is_declared(store: Store) -> None:
    bad(store, 1)
    for number in range(2, 6):
        good(store, number)
    for number in range(6, 9):
        bad(store, number)
    declare(store, 1)
    store.prune("redis", 1)
    declared = store.declared("redis")
    assert declared is not None
    assert declared.id == 1
    assert sorted(release.id for release in store.history()) == [1, 5, 8]


def test_a_number_is_never_given_twice(store: Store) -> None:
    good(store, 1)
    bad(store, 2)
    declare(store, 1)
    assert [release.id for release in store.prune("redis", 0)] == [2]
    assert declare(store, 3).id == 3


def test_an_error_undoes_the_whole_change(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = good(store, 1)
    second = declare(store, 2)

    def fail(_: Release) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(store, "_choose", fail)
    with pytest.raises(RuntimeError):
        store.condemn(second, "bad", "", first)
    assert [release.state for release in store.history()] == [STAGED, GOOD]
    assert current(store) == second.id
    monkeypatch.undo()
    store.condemn(second, "bad", "", first)
    assert current(store) == first.id


# --- the same, at length ---------------------------------------------------------------------------------------------


def memory() -> Path | None:
    """A file system in memory, where hundreds of transactions wait for no disk."""
    shared = Path("/dev/shm")  # noqa: S108  (directories of their own are made below it)
    return shared if shared.is_dir() else None


class Journal(RuleBasedStateMachine):
    """Does anything to one service's releases, and keeps beside them what should come of it."""

    @initialize()
    def begin(self) -> None:
        """Start with an empty journal."""
        self.folder = tempfile.mkdtemp(dir=memory())
        self.path = f"{self.folder}/releases.db"
        self.store = Store.open(self.path)
        self.states: dict[int, str] = {}  # by id, which rises with time
        self.numbers: dict[int, int] = {}  # id -> what was declared
        self.current = 0
        self.turns: list[int] = []  # in the order in which they were last chosen
        self.declared = 0

    def run(self, identifier: int) -> None:
        """From now on it is the one to run."""
        if identifier != self.current:
            self.turns = [i for i in self.turns if i != identifier] + [identifier]
        self.current = identifier

    def teardown(self) -> None:
        """Remove the journal."""
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)

    def back(self, before: int) -> int | None:
        """The release to go back to from `before` (0: from nowhere)."""
        for wanted in (GOOD, PROBATION):
            found = [i for i in self.turns if self.states.get(i) == wanted and i != before]
            if found:
                return found[-1]
        return None

    def release(self, identifier: int) -> Release:
        """The release as the journal has it."""
        found = self.store.get("redis", identifier)
        assert found is not None
        return found

    @rule(number=st.integers(1, 5))
    def declare(self, number: int) -> None:
        """A start, with something declared."""
        known = next((i for i, n in self.numbers.items() if n == number), None)
        chosen = declare(self.store, number)
        if known is None:
            known = max(release.id for release in self.store.history())
            assert known not in self.states
            self.states[known], self.numbers[known] = STAGED, number
        wanted = known if self.declared != known else self.current
        self.declared = known
        self.run((self.back(0) or known) if self.states[wanted] == BAD else wanted)
        assert chosen.id == self.current

    @precondition(lambda self: self.current and self.states[self.current] != GOOD)
    @rule()
    def ready(self) -> None:
        """What runs answered."""
        self.store.probation(self.release(self.current))
        self.states[self.current] = PROBATION

    @precondition(lambda self: self.current and self.states[self.current] == PROBATION)
    @rule()
    def bless(self) -> None:
        """What runs stayed ready."""
        self.store.bless(self.release(self.current))
        self.states[self.current] = GOOD

    @precondition(lambda self: self.current and self.states[self.current] != GOOD)
    @rule()
    def fail(self) -> None:
        """What runs failed before it was proven."""
        back_to = self.store.last_good("redis", self.release(self.current))
        expected = self.back(self.current)
        assert (back_to.id if back_to is not None else None) == expected
        self.store.condemn(self.release(self.current), "failed", "log", back_to)
        self.states[self.current] = BAD
        self.run(expected or self.current)

    @precondition(lambda self: self.states)
    @rule(data=st.data())
    def choose(self, data: st.DataObject) -> None:
        """An administrator chose a release."""
        wanted = data.draw(st.sampled_from(sorted(self.states)))
        self.store.choose(self.release(wanted))
        if self.states[wanted] == BAD:
            self.states[wanted] = STAGED
        self.run(wanted)

    @rule(retain=st.integers(0, 3))
    def prune(self, retain: int) -> None:
        """Old releases are forgotten."""
        keep = {self.current, self.declared}
        last = [i for i in reversed(self.turns) if self.states.get(i) == GOOD]
        newest = sorted((i for i, state in self.states.items() if state != GOOD), reverse=True)
        keep |= {*last[:retain], *newest[:retain]}
        gone = {release.id for release in self.store.prune("redis", retain)}
        assert gone == set(self.states) - keep
        for identifier in gone:
            del self.states[identifier], self.numbers[identifier]

    @rule()
    def reopen(self) -> None:
        """Another process goes on."""
        self.store.close()
        self.store = Store.open(self.path)

    @invariant()
    def agree(self) -> None:
        """The journal says what was kept beside it."""
        if not hasattr(self, "store"):
            return
        assert {release.id: release.state for release in self.store.history()} == self.states
        running, declared = self.store.current("redis"), self.store.declared("redis")
        assert (running.id if running else 0) == self.current
        assert (declared.id if declared else 0) == self.declared
        if running is not None and running.state == BAD:
            # A bad release runs only where no other one ever served.
            assert not {GOOD, PROBATION} & set(self.states.values())


Journal.TestCase.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestJournal = Journal.TestCase


# --- several at once, and ends in the middle -------------------------------------------------------------------------

_WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from aistack.hooks.start_pre import open_store
from aistack.hooks.manifest import Manifest
manifest = Manifest.__new__(Manifest)
manifest.state_dir = sys.argv[2]
name, count = sys.argv[3], int(sys.argv[4])
sys.stdin.readline()
number = 0
while number < count or count == 0:
    number += 1
    store = open_store(manifest)
    release = store.declare(name, f"{number:064x}", f"{name}:{number}", {"N": str(number)}, {})
    store.probation(release)
    store.bless(release)
    store.prune(name, 2)
    store.close()
    print(number, flush=True)
"""


def writer(path: str, name: str, count: int) -> subprocess.Popen[str]:
    """Start a process that writes as starts do, `count` times or for ever (0), as soon as it gets a line."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WRITER, PACKAGES, os.path.dirname(path), name, str(count)],  # noqa: PTH120
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def write_at_once(path: str, count: int) -> list[str]:
    """Let eight services start at the same moment; return what they said on standard error."""
    writers = [writer(path, f"service-{number}", count) for number in range(8)]
    for process in writers:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[1] for process in writers]
    assert [process.returncode for process in writers] == [0] * 8, said
    return [text for text in said if text]


def check(path: str) -> list[Release]:
    """Return the history of a journal in which nothing contradicts anything."""
    store = Store.open(path, create=False)
    try:
        history = store.history()
        ids = {release.id for release in history}
        assert len(ids) == len(history)
        for service in {release.service for release in history}:
            assert store.current(service) is not None
            assert store.declared(service) is not None
        return history
    finally:
        store.close()


def test_eight_services_start_at_once(path: str) -> None:
    assert write_at_once(path, 6) == []
    history = check(path)
    assert len(history) == 16
    assert {release.state for release in history} == {GOOD}
    newest = {release.service: release.image_ref for release in reversed(history)}
    assert newest == {f"service-{number}": f"service-{number}:6" for number in range(8)}


def test_eight_services_find_a_damaged_journal_at_once(path: str) -> None:
    garbage = b"no journal " * 500
    Path(path).parent.mkdir()
    Path(path).write_bytes(garbage)
    said = write_at_once(path, 1)
    assert len(said) == 1
    assert "was damaged; it is kept as" in said[0]
    assert len(check(path)) == 8
    (kept,) = Path(path).parent.glob("*.damaged-*")
    assert kept.read_bytes() == garbage


@pytest.mark.parametrize("after", [1, 2, 3, 5, 8])
def test_a_process_killed_while_it_writes(path: str, after: int) -> None:
    process = writer(path, "redis", 0)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    for _ in range(after):
        done = int(process.stdout.readline())
    process.kill()
    rest = process.communicate(timeout=30)[0].split()
    done = int(rest[-1]) if rest else done
    assert process.returncode == -signal.SIGKILL
    history = check(path)
    # What was said to be done is done; at most one more was begun.
    newest = next(release.image_ref for release in history if release.state == GOOD)
    assert newest in {f"redis:{done}", f"redis:{done + 1}"}
    store = Store.open(path)
    assert declare(store, 0).state == STAGED
    store.close()


# --- files that are no journal ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a journal of several pages."""
    path = tmp_path_factory.mktemp("sound") / "releases.db"
    store = Store.open(str(path))
    for number in range(1, 9):
        release = declare(store, number)
        store.condemn(release, "bad", "line of a log\n" * 200, None)
    store.close()
    return path.read_bytes()


def lay(path: str, data: bytes) -> str:
    """Put a file where the journal should be."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data)
    return path


def begin_anew(path: str, capsys: pytest.CaptureFixture[str]) -> list[Path]:
    """Start on what is there as a hook does; return what was set aside."""
    stack = Manifest.__new__(Manifest)
    stack.state_dir = str(Path(path).parent)
    store = start_pre.open_store(stack)
    assert store.history() == []
    assert declare(store, 1).id == 1
    store.close()
    aside = sorted(Path(path).parent.glob("*.damaged-*"))
    assert capsys.readouterr().err.count("\n") == (1 if aside else 0)
    return aside


def test_a_journal_cut_off_anywhere(path: str, sound: bytes) -> None:
    lengths = {*range(2, 200, 33), *range(512, len(sound), 1500), *range(4096, len(sound), 4096), len(sound) - 1}
    damaged = 0
    for length in sorted(lengths):
        lay(path, sound[:length])
        try:
            history = check(path)
        except Damaged:
            damaged += 1
            assert Path(path).read_bytes() == sound[:length]
        else:
            # Of the last page SQLite misses neither unused bytes nor the end of a text.
            assert [(release.id, release.state) for release in history] == [(i, BAD) for i in range(8, 0, -1)]
            assert length > len(sound) - 4096
    assert damaged > len(lengths) - 4


@pytest.mark.parametrize("kind", ["cut off", "garbage", "text", "page of zeros"])
def test_a_damaged_journal_is_set_aside_whole(
    path: str, sound: bytes, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {
        "cut off": sound[: len(sound) // 2],
        "garbage": bytes(range(256)) * 40,
        "text": b"#!/bin/sh\n",
        "page of zeros": sound[:4096] + bytes(4096) + sound[8192:],
    }[kind]
    lay(path, data)
    with pytest.raises(Damaged, match="running services are not touched") as caught:
        Store.open(path)
    assert caught.value.code == UNEXPECTED
    (aside,) = begin_anew(path, capsys)
    assert aside.read_bytes() == data


def test_damaged_journals_of_one_second_are_all_kept(path: str) -> None:
    for number in range(3):
        lay(path, b"garbage %d " % number * 100)
        with pytest.raises(Damaged) as caught:
            Store.open(path)
        assert caught.value.set_aside() is not None
        assert caught.value.set_aside() is None
        # Another start was faster, and has begun a new one already.
        Store.open(path).close()
        assert caught.value.set_aside() is None
        assert check(path) == []
    kept = sorted(found.read_bytes()[:9] for found in Path(path).parent.glob("*.damaged-*"))
    assert kept == [b"garbage 0", b"garbage 1", b"garbage 2"]


def test_an_empty_file_is_a_new_journal(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    # SQLite makes the file before it writes to it: whoever was killed in between lost nothing.
    lay(path, b"")
    assert begin_anew(path, capsys) == []


@pytest.mark.parametrize("version", [0, 1, 7])
def test_another_programs_database_is_set_aside_unchanged(
    path: str, capsys: pytest.CaptureFixture[str], version: int
) -> None:
    lay(path, b"")
    foreign = sqlite3.connect(path)
    foreign.execute("CREATE TABLE release (title TEXT)")
    foreign.execute("INSERT INTO release VALUES ('mine')")
    foreign.execute(f"PRAGMA user_version = {version}")
    foreign.commit()
    foreign.close()
    data = Path(path).read_bytes()
    with pytest.raises(Damaged, match="it is another program's database"):
        Store.open(path)
    assert Path(path).read_bytes() == data
    (aside,) = begin_anew(path, capsys)
    assert aside.read_bytes() == data


def test_a_journal_of_a_newer_version_is_refused_and_left_alone(path: str) -> None:
    Store.open(path).close()
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version = 1000")
    newer.close()
    with pytest.raises(HookError, match=r"written by a newer aistack \(version 1000\); install that one") as caught:
        Store.open(path)
    assert not isinstance(caught.value, Damaged)


def test_a_journal_of_version_1_is_taken_over(path: str) -> None:
    store = Store.open(path)
    first, second = good(store, 1), good(store, 2)
    declare(store, 1)
    third = declare(store, 3)
    store.close()
    older = sqlite3.connect(path)
    older.executescript(
        "ALTER TABLE release DROP COLUMN turn; ALTER TABLE release DROP COLUMN base; DROP TABLE deploy;"
        "PRAGMA user_version = 1;"
    )
    older.close()
    store = Store.open(path)
    # In which order the others ran is not known: the newest comes first.
    assert [release.id for release in store.good("redis", third)] == [second.id, first.id]
    assert current(store) == third.id
    declare(store, 1)
    assert [release.id for release in store.good("redis", third)] == [first.id, second.id]
    store.close()


def test_a_journal_of_version_2_is_taken_over(path: str) -> None:
    store = Store.open(path)
    first = good(store, 1)
    store.close()
    older = sqlite3.connect(path)
    older.executescript("ALTER TABLE release DROP COLUMN base; DROP TABLE deploy; PRAGMA user_version = 2;")
    older.close()
    store = Store.open(path)
    (found,) = store.history()
    assert (found.id, found.base, found.deployed) == (first.id, first.image_id, False)
    assert Deploys(store).history() == []
    store.close()


def test_a_release_that_was_given_up_while_it_started_stays_bad(store: Store) -> None:
    first = good(store, 1)
    second = declare(store, 2)
    store.probation(second)
    seen_by_its_start = store.get("redis", second.id)
    assert seen_by_its_start is not None
    store.condemn(second, "ended", "", first)
    store.probation(seen_by_its_start)
    found = store.get("redis", second.id)
    assert found is not None
    assert (found.state, found.reason) == (BAD, "ended")


def test_a_row_that_is_no_release(path: str, store: Store) -> None:
    declare(store, 1)
    other = sqlite3.connect(path)
    other.execute("UPDATE release SET entry = 'no json'")
    other.commit()
    other.close()
    with pytest.raises(Damaged):
        store.history()


def test_garbage_in_the_log_of_a_sound_journal_is_ignored(path: str, sound: bytes) -> None:
    lay(path, sound)
    Path(f"{path}-wal").write_bytes(b"garbage" * 1000)
    assert len(check(path)) == 8


def test_a_directory_in_its_place(path: str) -> None:
    Path(path).mkdir(parents=True)
    with pytest.raises(HookError, match=r"cannot use .*unable to open database file; ls -ld") as caught:
        Store.open(path)
    assert not isinstance(caught.value, Damaged)


def test_no_journal_yet(path: str) -> None:
    with pytest.raises(HookError, match="it is made at the first start of a service"):
        Store.open(path, create=False)
    assert not Path(path).parent.exists()


def test_a_journal_that_somebody_keeps_locked(path: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **options: connect(path, **{**options, "timeout": 0.1}))
    other = Store.open(path)
    with store, pytest.raises(HookError, match=rf"database is locked; who has it open: fuser -v {path}"):
        declare(other, 1)
    declare(other, 1)
    other.close()


def test_whoever_opens_the_journal_waits_for_whoever_sets_it_aside(path: str) -> None:
    Store.open(path).close()
    with Path(f"{path}.lock").open("rb") as lock:
        # Shared, so that only one who wants it for himself has to wait.
        fcntl.flock(lock, fcntl.LOCK_SH)
        opened = threading.Thread(target=lambda: Store.open(path).close())
        opened.start()
        opened.join(0.2)
        assert opened.is_alive()
    opened.join(10)
    assert not opened.is_alive()


small_disk = pytest.fixture(hookhost.small_disk)


def bad_ones(store: Store, count: int) -> None:
    """Write a lot."""
    for number in range(2, count):
        bad(store, number)


def test_a_full_disk_is_one_clear_error_and_harms_nothing(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("mode=0755")
    path = str(disk / "releases.db")
    store = Store.open(path)
    first = good(store, 1)
    filler = hookhost.fill(disk)
    with pytest.raises(HookError, match=rf"database or disk is full; df -h {disk}") as caught:
        bad_ones(store, 50)
    assert caught.value.code == UNEXPECTED
    assert not isinstance(caught.value, Damaged)
    store.close()
    filler.unlink()
    store = Store.open(path)
    assert store.last_good("redis") is not None
    assert current(store) == first.id
    assert declare(store, 99).state == STAGED
    store.close()


def test_a_full_disk_before_the_first_start(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("mode=0755")
    hookhost.fill(disk)
    with pytest.raises(HookError, match=r"(disk is full; df -h|disk I/O error)"):
        Store.open(str(disk / "releases.db"))


def test_a_read_only_file_system(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("ro")
    with pytest.raises(HookError, match=r"cannot open .*: Read-only file system") as caught:
        Store.open(str(disk / "releases.db"))
    assert caught.value.code == UNEXPECTED


def test_a_journal_that_became_read_only(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("mode=0755")
    path = str(disk / "releases.db")
    Store.open(path).close()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)  # noqa: S607
    for create, words in ((True, "Read-only file system"), (False, "unable to open|readonly")):
        with pytest.raises(HookError, match=words) as caught:
            Store.open(path, create=create)
        assert not isinstance(caught.value, Damaged)


def test_the_schema_of_a_release_is_documented_by_its_columns(store: Store) -> None:
    release = declare(store, 1)
    assert {name: type(getattr(release, name)) for name in release.__slots__} == {
        "base": str,
        "changed": float,
        "created": float,
        "entry": dict,
        "environment": dict,
        "fingerprint": str,
        "id": int,
        "image_id": str,
        "image_ref": str,
        "log": str,
        "reason": str,
        "service": str,
        "source": str,
        "state": str,
        "turn": int,
    }
    assert json.dumps([release.environment, release.entry])
