"""The hook as systemd calls it: exit codes, and one line for every kind of bad input, never a traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import fakehost
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aistack.hooks import main as entry
from aistack.hooks.errors import DONE, INVALID, UNEXPECTED, HookError, printable
from aistack.hooks.main import INTERRUPTED, VERBS, main

if TYPE_CHECKING:
    from collections.abc import Callable

HOOK = Path(__file__).parents[1] / "aistack-hook"
OF_A_SERVICE = [verb for verb in VERBS if verb not in {"health", "network", "recover"}]
HOSTILE = ["", "-rf", "../etc", "a\nb", "\x1b[2J", "\x1b]0;title\x07", "redis; rm -rf /", "x" * 100_000, "\u202eevil"]


@pytest.fixture
def run(host: fakehost.FakeHost, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run a hook on a host with one service; return its exit code and what it said."""
    host.declare({"redis": fakehost.service("redis"), "far": fakehost.external(6379)})

    def call(*arguments: str) -> tuple[int, str]:
        code = main(list(arguments))
        out, err = capsys.readouterr()
        assert out == ""
        return code, err

    return call


def one_line(said: str) -> bool:
    """Whether it is one line, and nothing in it can drive a terminal."""
    return said.endswith("\n") and said[:-1].isprintable() and said[:-1] != ""


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["start-pre"],
        ["secrets", "redis"],
        ["start-pre", "redis", "more"],
        ["stop", "redis"],
        ["--help"],
        ["heal", "redis"],
        ["", ""],
        ["START-PRE", "redis"],
        ["\x1b[2J", "redis"],
    ],
)
def test_bad_usage(run: Callable[..., tuple[int, str]], arguments: list[str]) -> None:
    verbs = "start-pre|await-ready|health|network|rollback|bless|retry|recover"
    others = "(health: SECONDS, network: NETWORK, recover: before-start|late)"
    usage = f"usage: aistack-hook {verbs} SERVICE {others}, or secrets\n"
    assert run(*arguments) == (INVALID, usage)


@pytest.mark.parametrize("verb", OF_A_SERVICE)
@pytest.mark.parametrize("name", HOSTILE)
def test_an_unknown_name_is_one_line(run: Callable[..., tuple[int, str]], verb: str, name: str) -> None:
    code, said = run(verb, name)
    assert code == INVALID
    assert one_line(said)
    assert said.startswith("aistack: no service is called ")
    assert said.endswith("stack.json: far, redis\n")
    assert len(said) < 1000


@pytest.mark.parametrize("verb", OF_A_SERVICE)
def test_an_external_service_has_no_hooks(run: Callable[..., tuple[int, str]], verb: str) -> None:
    code, said = run(verb, "far")
    assert code == INVALID
    assert said == "aistack: far runs at 127.0.0.1:6379, outside this stack; there is no container here to act on\n"


@pytest.mark.parametrize("verb", OF_A_SERVICE)
def test_a_malformed_manifest_is_one_line(
    host: fakehost.FakeHost, run: Callable[..., tuple[int, str]], verb: str
) -> None:
    host.manifest_path.write_text('{"schemaVersion": 1, "stateDir": "/x\\u001b[2J')
    code, said = run(verb, "redis")
    assert code == INVALID
    assert one_line(said)
    assert "is not JSON" in said


@pytest.mark.parametrize("seconds", HOSTILE)
def test_a_health_check_ends_well_whatever_it_is_asked(run: Callable[..., tuple[int, str]], seconds: str) -> None:
    code, said = run("health", seconds)
    assert code == DONE
    assert one_line(said)
    assert said.endswith(" is no number of seconds\n")
    assert len(said) < 1000


@pytest.mark.parametrize("name", HOSTILE)
def test_another_network_than_the_manifests_is_one_line(run: Callable[..., tuple[int, str]], name: str) -> None:
    code, said = run("network", name)
    assert code == INVALID
    assert one_line(said)
    assert said.startswith("aistack: the network is called local-ai in ")
    assert said.endswith("; install units and manifest from the same rendering\n")
    assert len(said) < 1000


def test_a_path_with_a_line_break_is_one_line(
    run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AISTACK_MANIFEST", "/no\nwhere\x1b[2J")
    code, said = run("retry", "redis")
    assert code == INVALID
    assert one_line(said)


def test_what_nobody_foresaw_is_one_line(run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise ZeroDivisionError("a\nb\x1b[2J")

    monkeypatch.setattr(entry, "_verb", fail)
    code, said = run("retry", "redis")
    assert code == UNEXPECTED
    assert said == r"aistack: unexpected ZeroDivisionError: a\nb\x1b[2J; AISTACK_DEBUG=1 shows where" + "\n"
    monkeypatch.setenv("AISTACK_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["retry", "redis"])


def test_the_code_of_an_error_is_the_exit_code(
    run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> None:
        raise HookError("a\nb", 8)

    monkeypatch.setattr(entry, "_verb", fail)
    assert run("retry", "redis") == (8, "aistack: a\\nb\n")


def test_ctrl_c_is_no_traceback(run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: str) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(entry, "_verb", interrupt)
    assert run("retry", "redis") == (INTERRUPTED, "aistack: interrupted\n")


# --- the launcher ----------------------------------------------------------------------------------------------------


def launch(*arguments: str | bytes, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the launcher as a unit does."""
    return subprocess.run(
        [sys.executable, "-I", "-S", HOOK, *arguments],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
        timeout=30,
    )


def test_the_launcher_runs_a_hook(host: fakehost.FakeHost) -> None:
    host.declare({"redis": fakehost.service("redis")})
    host.unit("redis", "failed")
    done = launch(
        "retry", "redis", AISTACK_MANIFEST=str(host.manifest_path), FAKE_HOST=str(host.root), PATH=os.environ["PATH"]
    )
    assert (done.returncode, done.stdout, done.stderr) == (DONE, "", "")
    assert host.calls()[-1] == "systemctl start --no-block podman-aistack-redis.service"


def test_the_launcher_says_how_it_is_used() -> None:
    done = launch()
    assert (done.returncode, done.stdout) == (INVALID, "")
    assert one_line(done.stderr)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "POSIX"])
@pytest.mark.parametrize("name", [b"\xff\xfe", b"\x1b[2J\n", "r\u00e9dis".encode()])
def test_bytes_that_are_no_text(host: fakehost.FakeHost, name: bytes, locale: str) -> None:
    host.declare({"redis": fakehost.service("redis")})
    done = launch("start-pre", name, AISTACK_MANIFEST=str(host.manifest_path), LC_ALL=locale, PYTHONUTF8="0")
    assert done.returncode == INVALID
    assert done.stderr.startswith("aistack: no service is called ")
    assert done.stderr.count("\n") == 1


def test_the_launcher_is_found_through_a_link(tmp_path: Path) -> None:
    link = tmp_path / "hook"
    link.symlink_to(HOOK)
    done = subprocess.run([sys.executable, "-I", "-S", link], capture_output=True, check=False)
    assert done.returncode == INVALID


# --- what every line goes through ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("  around \n", "around"),
        ("a\nb\tc\0", r"a\nb\tc\x00"),
        ("\x1b[2J\x9b", r"\x1b[2J\x9b"),
        ("\u202eevil \ud800", r"\u202eevil \ud800"),
        ("it's \\ fine, größe", "it's \\ fine, größe"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=st.text(st.characters(codec=None)), limit=st.integers(1, 50))
def test_printable_is_always_one_short_line(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit


def test_a_manifest_of_another_version(host: fakehost.FakeHost, run: Callable[..., tuple[int, str]]) -> None:
    host.manifest_path.write_text(json.dumps({**host.document, "schemaVersion": 2}))
    code, said = run("start-pre", "redis")
    assert code == INVALID
    assert "install the program and the manifest from the same release" in said
