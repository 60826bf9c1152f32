"""Errors and what they print."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aistack.errors import AistackError, DownError, ExitCode, UsageError, printable
from aistack.hooks import errors as hook_errors


@given(st.text())
def test_whatever_is_printed_is_one_line_without_control_characters(text: str) -> None:
    line = printable(text)
    assert line.isprintable()
    line.encode()


@pytest.mark.parametrize(
    "hostile", ["a\nb", "a\rb", "\x1b[31mred", "a\x00b", "\u202eevil", "\udcff", "a\x9bb", "a\u2028b"]
)
def test_what_drives_a_terminal_is_escaped(hostile: str) -> None:
    assert printable(hostile).isprintable()
    assert "\\" in printable(hostile)


def test_an_error_says_what_why_and_what_next_in_one_line() -> None:
    error = UsageError("cannot do\nthat", why="it is\x1b[1m bad", hint="do this")
    assert str(error) == "cannot do\\nthat: it is\\x1b[1m bad; do this"
    assert error.message == "cannot do\\nthat: it is\\x1b[1m bad"
    assert error.hint == "do this"
    assert error.code == ExitCode.USAGE


def test_exit_codes_are_those_of_the_hooks() -> None:
    assert ExitCode.UNEXPECTED == hook_errors.UNEXPECTED
    assert ExitCode.USAGE == hook_errors.INVALID
    assert ExitCode.DEPENDENCY_MISSING == hook_errors.DEPENDENCY_MISSING
    assert ExitCode.LOCK_HELD == hook_errors.LOCK_HELD
    assert ExitCode.ROLLED_BACK == hook_errors.ROLLED_BACK
    assert ExitCode.DOWN == hook_errors.DOWN
    assert ExitCode.TIMED_OUT == hook_errors.TIMED_OUT


def test_a_code_has_a_word_and_an_unknown_one_is_unexpected() -> None:
    assert ExitCode.DEPENDENCY_MISSING.word == "dependency-missing"
    assert ExitCode.of(77) is ExitCode.UNEXPECTED
    assert ExitCode.of(DownError("x").code) is ExitCode.DOWN
    assert ExitCode.of(AistackError("x").code) is ExitCode.UNEXPECTED
