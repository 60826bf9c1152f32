"""schema, version and completion."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fakehost
import jsonschema
import pytest

from aistack import __version__

PYTHON = Path(__file__).parents[1]


def test_schema_prints_a_schema_that_the_manifest_keeps_to(host: fakehost.FakeHost) -> None:
    host.declare({"far": fakehost.external(1)})
    answer = host.run("schema")
    assert answer.code == 0
    assert answer.err == ""
    jsonschema.validate(json.loads(host.manifest_path.read_text()), answer.json)


def test_schema_check_accepts_the_installed_manifest(host: fakehost.FakeHost) -> None:
    host.declare({"far": fakehost.external(1)})
    answer = host.run("schema", "--check")
    assert answer.code == 0
    assert "a valid manifest of version 1, 1 services" in answer.out
    document = host.run("schema", "--check", "--json").json
    assert document["valid"] is True
    assert document["services"] == ["far"]


def test_schema_check_names_every_problem_of_a_file(host: fakehost.FakeHost, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"schemaVersion": 1}')
    answer = host.run("schema", "--check", str(path))
    assert answer.code == 2
    assert answer.out == ""
    assert "stateDir: Field required" in answer.err
    assert "services: Field required" in answer.err
    assert answer.err.count("\n") == 1


def test_version_says_what_it_reads(host: fakehost.FakeHost) -> None:
    document = host.run("version", "--json").json
    assert document["schema_version"] == 1
    assert document["version"] == __version__
    assert document["manifest_schema_version"] == 1
    assert f"aistack {__version__}" in host.run("version").out


def test_the_bash_completion_script_is_bash(host: fakehost.FakeHost) -> None:
    script = host.run("completion", "bash").out
    assert "_AISTACK_COMPLETE=bash_complete" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)  # noqa: S607  (any bash)


@pytest.mark.parametrize(("shell", "name"), [("zsh", "zsh_complete"), ("fish", "fish_complete")])
def test_the_other_completion_scripts_are_complete(host: fakehost.FakeHost, shell: str, name: str) -> None:
    answer = host.run("completion", shell)
    assert answer.code == 0
    assert name in answer.out
    if shutil.which(shell) is not None:
        subprocess.run([shell, "-n"], input=answer.out, text=True, check=True)


def complete(words: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "aistack"],
        cwd=PYTHON,
        env={
            **os.environ,
            "_AISTACK_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.partition(",")[2] for line in done.stdout.split()]


def test_completion_offers_commands_and_declared_services(host: fakehost.FakeHost) -> None:
    host.declare(
        {
            "redis": fakehost.service("redis"),
            "relay": fakehost.external(1),
        }
    )
    assert complete("aistack rel") == ["releases"]
    assert sorted(complete("aistack status re")) == ["redis", "relay"]
    assert complete("aistack rollback re") == ["redis"]
    assert "--json" in complete("aistack status --")


def test_completion_offers_nothing_of_a_hostile_manifest(host: fakehost.FakeHost) -> None:
    host.declare({"re$(id)": fakehost.service("hostile")})
    assert complete("aistack status re") == []


def test_completion_without_a_manifest_is_silent(host: fakehost.FakeHost) -> None:
    host.manifest_path.unlink()
    assert complete("aistack status re") == []
