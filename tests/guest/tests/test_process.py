from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from guest.errors import CommandFailed, GuestError
from guest.process import check, fetch, run

if TYPE_CHECKING:
    from pathlib import Path


def test_code_and_both_outputs() -> None:
    result = run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (result.code, result.out, result.err, result.timed_out) == (3, "out\n", "err\n", False)


def test_a_command_that_does_not_end_is_killed_with_its_children() -> None:
    began = time.monotonic()
    result = run(["sh", "-c", "echo first; sleep 60 & sleep 60"], timeout=0.3)
    assert time.monotonic() - began < 5
    assert (result.code, result.timed_out, result.out) == (124, True, "first\n")


def test_standard_input_from_bytes_and_nothing_by_default() -> None:
    assert run(["cat"], stdin=b"abc").out == "abc"
    assert run(["cat"]).out == ""


def test_a_failure_names_the_command_and_its_last_words() -> None:
    with pytest.raises(CommandFailed) as caught:
        check(["sh", "-c", "echo reason >&2; exit 7"])
    assert "exit code 7" in str(caught.value)
    assert "reason" in str(caught.value)


def test_a_failure_with_a_log_quotes_and_names_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(CommandFailed) as caught:
        check(["sh", "-c", "echo reason >&2; exit 7"], log=log)
    assert "reason" in str(caught.value)
    assert f"read {log}" in str(caught.value)


def test_a_download_without_a_network_is_said_plainly(tmp_path: Path) -> None:
    log = tmp_path / "log"
    fails = ["sh", "-c", "echo \"Err: Temporary failure resolving 'mirror'\" >&2; exit 25"]
    with pytest.raises(GuestError) as caught:
        fetch("the wheel", fails, timeout=10, log=log)
    assert str(caught.value).startswith("the wheel cannot be downloaded: is there a network?")
    assert "Temporary failure resolving 'mirror'" in str(caught.value)
    with pytest.raises(CommandFailed, match="a command failed"):
        fetch("the wheel", ["sh", "-c", "exit 1"], timeout=10, log=tmp_path / "other")
