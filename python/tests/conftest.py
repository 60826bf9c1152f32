"""Fixtures that several test files share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import fakehost
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> fakehost.FakeHost:
    """A host with a manifest that declares nothing yet, seen by this process."""
    return fakehost.make(tmp_path, monkeypatch, capsys)


@pytest.fixture
def server() -> Iterator[fakehost.Server]:
    """A TCP server on the loopback."""
    running = fakehost.Server()
    yield running
    running.close()
