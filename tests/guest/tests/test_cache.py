from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

import pytest
from guest.cache import Entry, key_of, locked, mounts_below, remove
from guest.errors import GuestError

if TYPE_CHECKING:
    from pathlib import Path


def test_an_entry_is_built_once(cache: Path) -> None:
    built: list[Path] = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "content").write_text("x")

    entry = Entry("kind", "k1")
    assert entry.ensure(build) == cache / "kind-k1"
    assert entry.ensure(build) == cache / "kind-k1"
    assert len(built) == 1
    assert (cache / "kind-k1/content").read_text() == "x"


def test_a_build_that_fails_leaves_nothing_that_looks_built(cache: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").touch()
        raise GuestError("no network")

    with pytest.raises(GuestError, match="no network"):
        Entry("kind", "k1").ensure(build)
    assert not Entry("kind", "k1").present
    assert list(cache.glob("kind-*")) == []


def test_a_build_cut_off_before_is_begun_afresh(cache: Path) -> None:
    (cache / "kind-k1.part").mkdir()
    (cache / "kind-k1.part/stale").touch()
    Entry("kind", "k1").ensure(lambda folder: (folder / "new").touch())
    assert [file.name for file in (cache / "kind-k1").iterdir()] == ["new"]


def test_two_that_want_the_same_entry_build_it_once() -> None:
    built: list[int] = []
    started = threading.Event()
    release = threading.Event()

    def build(_: Path) -> None:
        built.append(1)
        started.set()
        assert release.wait(10)

    entry = Entry("kind", "k1")
    threads = [threading.Thread(target=entry.ensure, args=(build,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert started.wait(10)
    release.set()
    for thread in threads:
        thread.join(10)
    assert built == [1]


def test_all_but_the_newest_old_entry_are_pruned(cache: Path) -> None:
    for key in ("k1", "k2", "k3"):
        Entry("kind", key).ensure(lambda _: None)
    assert sorted(path.name for path in cache.glob("kind-*")) == ["kind-k2", "kind-k3"]


def test_an_entry_in_use_is_not_pruned(cache: Path) -> None:
    Entry("kind", "k1").ensure(lambda _: None)
    with Entry("kind", "k1").in_use():
        for key in ("k2", "k3"):
            Entry("kind", key).ensure(lambda _: None)
        assert (cache / "kind-k1").is_dir()


def test_what_a_guest_was_made_from_is_not_pruned(cache: Path) -> None:
    Entry("kind", "k1").ensure(lambda _: None)
    (cache / "guests/demo").mkdir(parents=True)
    (cache / "guests/demo/made-from.json").write_text(json.dumps({"root": str(cache / "kind-k1")}))
    for key in ("k2", "k3"):
        Entry("kind", key).ensure(lambda _: None)
    assert (cache / "kind-k1").is_dir()


def test_a_lock_that_somebody_has_is_refused_at_once_without_waiting(cache: Path) -> None:
    with locked(cache / "lock"), pytest.raises(BlockingIOError), locked(cache / "lock", wait=False):
        pass


def test_the_key_follows_names_content_and_modes(tmp_path: Path) -> None:
    folder = tmp_path / "context"
    folder.mkdir()
    file = folder / "entrypoint"
    file.write_text("a")
    keys = {key_of([folder])}
    file.write_text("b")
    keys.add(key_of([folder]))
    file.chmod(0o755)
    keys.add(key_of([folder]))
    file.rename(folder / "other")
    keys.add(key_of([folder]))
    assert len(keys) == 4
    assert key_of(["ab", "c"]) != key_of(["a", "bc"])


def test_what_is_mounted_inside_is_found(tmp_path: Path) -> None:
    row = "30 25 0:26 / {} rw - tmpfs tmpfs rw"
    rows = [row.format(name) for name in (tmp_path / "a/dev", f"{tmp_path}/a\\040b/sys", tmp_path / "b")]
    assert mounts_below(tmp_path / "a", "\n".join(rows)) == [f"{tmp_path}/a/dev"]
    assert mounts_below(tmp_path / "a b", "\n".join(rows)) == [f"{tmp_path}/a b/sys"]


def test_nothing_outside_the_cache_is_removed(tmp_path: Path) -> None:
    outside = tmp_path / "precious"
    outside.mkdir()
    with pytest.raises(GuestError, match="refusing"):
        remove(outside)
    assert outside.is_dir()
