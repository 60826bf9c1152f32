from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from guest import storage

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A podman storage with one layer."""
    layer = tmp_path / "source/storage/overlay/abc"
    (layer / "diff/etc/diff").mkdir(parents=True)
    (layer / "diff/etc/passwd").write_text("root")
    (layer / "diff/etc/diff/deep").write_text("deep")
    (layer / "diff/etc/link").symlink_to("passwd")
    (layer / "link").write_text("SHORT")
    (tmp_path / "source/storage/overlay/l").mkdir()
    (tmp_path / "source/storage/overlay/l/SHORT").symlink_to("../abc/diff")
    (tmp_path / "source/storage/db.sql").write_text("database")
    return tmp_path / "source"


def test_layers_are_linked_and_records_are_copied(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    storage.copy(source, target)

    def same(name: str) -> bool:
        return (source / "storage" / name).samefile(target / "storage" / name)

    assert same("overlay/abc/diff/etc/passwd")
    assert same("overlay/abc/diff/etc/diff/deep")
    assert not same("overlay/abc/link")
    assert not same("db.sql")
    assert (target / "storage/db.sql").read_text() == "database"
    assert (target / "storage/overlay/l/SHORT").readlink() == source.__class__("../abc/diff")
    assert not list(target.rglob("*.part"))


def test_what_a_guest_writes_or_removes_stays_its_own(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    storage.copy(source, target)
    (target / "storage/db.sql").write_text("changed")
    (target / "storage/overlay/abc/diff/etc/passwd").unlink()
    (target / "storage/overlay/abc/link").write_text("OTHER")
    assert (source / "storage/db.sql").read_text() == "database"
    assert (source / "storage/overlay/abc/diff/etc/passwd").read_text() == "root"
    assert (source / "storage/overlay/abc/link").read_text() == "SHORT"
