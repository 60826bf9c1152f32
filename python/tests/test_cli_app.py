"""The command line as a whole: errors, streams, start-up cost."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import fakehost
import pytest

from aistack import __version__
from aistack.cli import app

PYTHON = Path(__file__).parents[1]
COMMANDS = ["status", "preflight", "releases", "rollback", "schema", "completion", "version"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aistack", *arguments],
        cwd=PYTHON,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_version_is_one_line_of_data() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"aistack {__version__}\n", "")


def test_help_names_every_command_and_imports_none_of_them() -> None:
    code = (
        "import sys; sys.argv = ['aistack', '--help']\n"
        "from aistack.cli import main\n"
        "code = main()\n"
        "heavy = {'pydantic', 'rich', 'requests', 'sqlite3', 'subprocess', 'aistack.cli.status'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PYTHON, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == "[]\n"
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout


def test_the_lines_of_help_are_the_commands_own() -> None:
    context = app.cli.make_context("aistack", [], resilient_parsing=True)
    for name, line in app.COMMANDS.items():
        command = app.cli.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert line.endswith(".")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(host: fakehost.FakeHost, name: str) -> None:
    answer = host.run(name, "--help")
    assert answer.code == 0
    assert f"Usage: aistack {name}" in answer.out
    assert answer.err == ""


def test_no_command_at_all_shows_help_as_an_error(host: fakehost.FakeHost) -> None:
    answer = host.run()
    assert answer.code == 2
    assert answer.out == ""
    assert "Commands:" in answer.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("nope",),
        ("status\n\x1b[2J",),
        ("-rf",),
        ("../../etc/passwd",),
        ("status", "--nope"),
        ("status", "-rf"),
        ("status", "--", "-rf"),
        ("status", "no\nsuch\x1b[31m"),
        ("status", "../x"),
        ("status", ""),
        ("preflight", "\udcff\udcfe"),
        ("releases", "x"),
        ("releases", "--log", "x"),
        ("releases", "--log", "9" * 40),
        ("rollback",),
        ("rollback", "-rf"),
        ("rollback", "--", "-rf"),
        ("rollback", "../x", "--to", "1"),
        ("completion", "tcsh"),
        ("schema", "extra"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_code_2(host: fakehost.FakeHost, arguments: tuple[str, ...]) -> None:
    host.declare({})
    answer = host.run(*arguments)
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.startswith("aistack: ")
    assert answer.err.count("\n") == 1
    assert answer.err[:-1].isprintable()


def test_with_json_an_error_is_a_document_too(host: fakehost.FakeHost) -> None:
    answer = host.run("status", "nope", "--json")
    assert answer.code == 2
    assert answer.json["schema_version"] == 1
    assert answer.json["error"]["code"] == "usage"
    assert answer.json["error"]["exit_code"] == 2
    assert "nope" in answer.json["error"]["message"]
    assert answer.err.count("\n") == 1


BAD_MANIFESTS = {
    "empty": b"",
    "cut": b'{"schemaVersion": 1, "services": {',
    "binary": b"\xff\xfe\x00",
    "a list": b"[]",
    "a number": b"1",
    "version 2": b'{"schemaVersion": 2}',
    "version text": b'{"schemaVersion": "\\u001b[2J\\n"}',
    "no keys": b'{"schemaVersion": 1}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("command", ["status", "preflight", "releases", "rollback x"])
@pytest.mark.parametrize("text", BAD_MANIFESTS.values(), ids=BAD_MANIFESTS.keys())
def test_a_bad_manifest_is_one_line_and_code_2(host: fakehost.FakeHost, command: str, text: bytes) -> None:
    host.manifest_path.write_bytes(text)
    answer = host.run(*command.split())
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.count("\n") == 1
    assert str(host.manifest_path) in answer.err


@pytest.mark.parametrize("command", ["status", "preflight", "releases", "rollback x"])
def test_a_missing_manifest_names_the_path_and_the_fix(host: fakehost.FakeHost, command: str) -> None:
    host.manifest_path.unlink()
    answer = host.run(*command.split())
    assert answer.code == 2
    assert str(host.manifest_path) in answer.err
    assert "services.aistack.enable" in answer.err
    assert answer.err.count("\n") == 1


def test_a_directory_for_a_manifest_is_one_line_and_code_2(host: fakehost.FakeHost) -> None:
    host.manifest_path.unlink()
    host.manifest_path.mkdir()
    answer = host.run("status")
    assert answer.code == 2
    assert answer.err.count("\n") == 1


@pytest.mark.parametrize("command", ["status", "preflight", "releases"])
def test_a_manifest_with_wrong_types_is_blamed_for_what_it_breaks(host: fakehost.FakeHost, command: str) -> None:
    host.document["services"] = {"x": 5}
    host.manifest_path.write_text(json.dumps(host.document))
    answer = host.run(command)
    assert answer.code == 2
    assert str(host.manifest_path) in answer.err
    assert answer.err.count("\n") == 1


def test_an_error_nobody_foresaw_is_blamed_on_the_manifest_if_it_is_invalid(
    host: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.document["network"]["dns"] = "yes"
    host.manifest_path.write_text(json.dumps(host.document))
    monkeypatch.setattr("aistack.cli.status.load", lambda: 1 / 0)
    answer = host.run("status")
    assert answer.code == 2
    assert "network.dns: Input should be a valid boolean" in answer.err


def test_an_error_nobody_foresaw_is_one_line_without_a_traceback(
    host: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aistack.cli.status.load", lambda: 1 / 0)
    answer = host.run("status")
    assert answer.code == 1
    assert answer.out == ""
    assert "unexpected ZeroDivisionError" in answer.err
    assert "AISTACK_DEBUG=1" in answer.err
    assert answer.err.count("\n") == 1
    monkeypatch.setenv("AISTACK_DEBUG", "1")
    assert "Traceback" in host.run("status").err


def test_an_interrupt_is_one_line_and_code_130(host: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("aistack.cli.status.load", interrupted)
    answer = host.run("status")
    assert answer.code == 130
    assert answer.err == "aistack: interrupted\n"


def test_a_missing_systemctl_is_one_line(host: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    host.declare({"a": fakehost.service("a")})
    monkeypatch.setenv("PATH", "/nonexistent")
    answer = host.run("status")
    assert answer.code == 1
    assert "systemctl is not installed" in answer.err
    assert answer.err.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "aistack", "schema"],
            cwd=PYTHON,
            stdout=gone,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 0
    assert done.stderr == b""


def test_a_full_disk_behind_standard_output_is_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "aistack", "schema"],
            cwd=PYTHON,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.usefixtures("host")
def test_a_locale_without_the_characters_shows_them_escaped() -> None:
    done = run("status", "r\u00e9dis", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 2
    assert done.stderr.isascii()
    assert "Traceback" not in done.stderr


def terminal(*arguments: str, **environment: str) -> str:
    """What a command shows on a terminal."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as shown:
        process = subprocess.Popen(
            [sys.executable, "-m", "aistack", *arguments],
            cwd=PYTHON,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120", **environment},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        text = b""
        while True:
            try:
                data = shown.read(4096)
            except OSError:  # the other end is closed: EIO on Linux
                break
            if not data:
                break
            text += data
        process.wait(30)
    return text.decode()


def test_colour_is_for_terminals_that_want_it(host: fakehost.FakeHost) -> None:
    host.declare({"a": fakehost.service("a"), "b": fakehost.service("b")})
    host.unit("a", "active")
    host.unit("b", "failed")
    host.verdict("b", phase="preflight", reason="[red]b", checks=[])
    coloured = terminal("status")
    assert "\x1b[32mready" in coloured
    assert "[red]b" in coloured
    assert "\x1b[32m" not in terminal("status", NO_COLOR="1")
    assert "\x1b" not in terminal("status", TERM="dumb")
    assert "\x1b" not in host.run("status").out
