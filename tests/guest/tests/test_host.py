from __future__ import annotations

import os
import platform
import shutil
from typing import TYPE_CHECKING, NamedTuple

import pytest
from guest import cgroup, host, nspawn
from guest.errors import GuestError
from guest.process import run

if TYPE_CHECKING:
    from pathlib import Path


class Usage(NamedTuple):
    """What shutil.disk_usage returns."""

    total: int
    used: int
    free: int


def refused() -> str:
    with pytest.raises(GuestError) as caught:
        host.require(disk_megabytes=6000)
    return str(caught.value)


def test_everything_that_is_missing_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 1, 5 * 2**20))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    message = refused()
    assert "not root (uid 1000)" in message
    assert "use sudo" in message
    assert "aarch64" in message
    assert "5 MB free" in message
    assert "6000 MB are needed" in message
    assert "apt-get install mmdebstrap" in message


def test_a_cache_on_an_overlay_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for check in ("_root", "_architecture", "_commands"):
        monkeypatch.setattr(host, check, list)
    answer = run(["echo", "overlayfs"])
    monkeypatch.setattr(host, "run", lambda *_: answer)
    assert "is on overlayfs" in refused()
    assert "set AISTACK_CACHE" in refused()


def test_no_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    for check in ("_root", "_architecture", "_commands"):
        monkeypatch.setattr(host, check, list)
    monkeypatch.setattr(host, "_disk", lambda _: [])
    monkeypatch.setattr(host, "_file_system", list)
    refusal = run(["sh", "-c", "echo Operation not permitted >&2; exit 1"])
    monkeypatch.setattr(host, "run", lambda *_: refusal)
    assert "namespaces cannot be made here (Operation not permitted)" in refused()


HYBRID = """\
30 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
31 25 0:27 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
UNIFIED = "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.mark.parametrize(("mounts", "expected"), [(HYBRID, "/sys/fs/cgroup/unified"), (UNIFIED, "/sys/fs/cgroup")])
def test_where_the_unified_hierarchy_is(mounts: str, expected: str) -> None:
    assert str(cgroup.mount_point(mounts)) == expected


def test_no_unified_hierarchy_is_an_error_with_the_next_step() -> None:
    with pytest.raises(GuestError, match="mount -t cgroup2"):
        cgroup.mount_point("")


def test_a_process_is_known_by_its_start_time_too() -> None:
    started = nspawn.start_time(os.getpid())
    assert started is not None
    assert nspawn.Leader(os.getpid(), started).alive
    assert not nspawn.Leader(os.getpid(), started + 1).alive
    assert nspawn.start_time(2**22 + 1) is None


def test_the_guests_commands_quote_what_they_are_given(tmp_path: Path) -> None:
    odd = tmp_path / "a b;c"
    mounts = nspawn.Mounts(odd / "l", odd / "u", odd / "w", odd / "r", ((odd, "/x"),))
    script = nspawn.script(mounts, "g", odd)
    assert f"'{odd}/cgroup.procs'" in script
    assert f"'lowerdir={odd}/l,upperdir={odd}/u,workdir={odd}/w'" in script
    assert f"'--bind={odd}:/x'" in script
