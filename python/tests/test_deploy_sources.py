"""What `aistack validate` and a build find out about files before anything is built."""

from __future__ import annotations

import os
import shutil
import subprocess
import textwrap
from typing import TYPE_CHECKING

import fakehost
import pytest

from aistack.deploy import sources
from aistack.hooks.manifest import load

if TYPE_CHECKING:
    from pathlib import Path

    from aistack.hooks.manifest import Manifest

BASE = "FROM registry.example/python:3.13\n"


def write(folder: Path, name: str, text: str) -> Path:
    """Write a file, its text not indented."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def problems(path: Path, manifest: Manifest | None = None) -> list[str]:
    """What is wrong with a file or a directory, without the path in front."""
    found = sources.check([path], manifest).problems
    return [problem.replace(f"{path}", "HERE").replace(f"{path.parent}/", "") for problem in found]


def built(folder: Path, containerfile: str) -> list[str]:
    """What is wrong with a directory that has this Containerfile."""
    write(folder, "Containerfile", containerfile)
    return problems(folder)


# --- Containerfiles --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "base",
    [
        "registry.example/python:3.13",
        "registry.example:5000/python:3.13",
        "python@sha256:0123",
        "python:latest@sha256:0123",
        "scratch",
        "$BASE",
        "--platform=linux/amd64 python:3.13 AS base",
    ],
)
def test_a_base_that_stays_is_none_to_complain_about(tmp_path: Path, base: str) -> None:
    assert built(tmp_path, f"FROM {base}\n") == []


@pytest.mark.parametrize(
    ("base", "named"),
    [
        ("python", "python"),
        ("python:latest", "python:latest"),
        ("registry.example:5000/python", "registry.example:5000/python"),
        ("--platform=linux/amd64 python as base", "python"),
    ],
)
def test_a_base_that_moves_is_named(tmp_path: Path, base: str, named: str) -> None:
    assert built(tmp_path, f"# comment\n\nFROM {base}\n") == [
        f"HERE/Containerfile:3: the base {named} moves: give it a tag that stays, or a digest"
    ]


def test_a_stage_before_is_a_base_that_stays_and_what_it_has_is_not_looked_for_here(tmp_path: Path) -> None:
    text = """\
        FROM golang:1.24 AS Build
        COPY main.go .
        from Build as tested
        COPY --from=Build /out/program /program
        FROM scratch
        COPY --from=tested --chmod=755 /program /program
        """
    write(tmp_path, "main.go", "package main\n")
    assert built(tmp_path, textwrap.dedent(text)) == []


def test_stages_are_known_whatever_their_capitals(tmp_path: Path) -> None:
    assert built(tmp_path, "FROM golang:1.24 AS Build\nFROM build\n") == []


def test_what_is_copied_has_to_be_there(tmp_path: Path) -> None:
    write(tmp_path, "app.py", "")
    text = BASE + "COPY app.py gone.py /app/\nADD https://example.org/x.tar.gz $OTHER ./nowhere/ /app/\n"
    assert built(tmp_path, text) == [
        "HERE/Containerfile:2: gone.py is not in HERE",
        "HERE/Containerfile:3: ./nowhere/ is not in HERE",
    ]


def test_continued_lines_are_one_instruction_at_the_line_where_it_begins(tmp_path: Path) -> None:
    text = (
        BASE
        + "RUN apt-get update && \\\n    # a comment between\n    apt-get install x\n"
        + "COPY --chown=1:1 \\\n  gone.py \\\n\n  /app/\n"
    )
    assert built(tmp_path, text) == ["HERE/Containerfile:5: gone.py is not in HERE"]


def test_an_instruction_that_the_file_ends_in_is_one(tmp_path: Path) -> None:
    assert built(tmp_path, BASE + "COPY gone.py /app/ \\") == ["HERE/Containerfile:2: gone.py is not in HERE"]


def test_globs_and_json_are_read_as_podman_reads_them(tmp_path: Path) -> None:
    write(tmp_path, "conf/a.toml", "")
    write(tmp_path, "with blank.txt", "")
    text = BASE + 'COPY conf/*.toml /etc/\nCOPY ["with blank.txt", "/etc/"]\nCOPY [a-z]*.ini *.yaml /etc/\n'
    assert built(tmp_path, text) == [
        "HERE/Containerfile:4: [a-z]*.ini is not in HERE",
        "HERE/Containerfile:4: *.yaml is not in HERE",
    ]


def test_a_heredoc_is_what_it_says_and_not_instructions(tmp_path: Path) -> None:
    text = (
        BASE
        + "COPY <<EOF /etc/motd\nCOPY gone.py /\nFROM python\nEOF\n"
        + "RUN <<-'END' bash\n\tCOPY gone.py /\n\tEND\n"
        + "COPY other.py /\n"
    )
    assert built(tmp_path, text) == ["HERE/Containerfile:9: other.py is not in HERE"]


def test_a_shift_in_a_shell_command_begins_no_heredoc(tmp_path: Path) -> None:
    assert built(tmp_path, BASE + "RUN echo $((1 << 3)) <<< x\nCOPY gone.py /\n") == [
        "HERE/Containerfile:3: gone.py is not in HERE"
    ]


def test_the_whole_directory_may_be_copied(tmp_path: Path) -> None:
    write(tmp_path, "app.py", "import helper\n")
    write(tmp_path, "helper.py", "")
    for source in (".", "./", "/"):
        assert built(tmp_path, BASE + f"COPY {source} /app/\n") == []


def test_a_module_that_is_imported_and_not_copied_is_named_with_the_line(tmp_path: Path) -> None:
    write(tmp_path, "app.py", "import os, json\nfrom helper.deep import x\nimport package\nfrom . import sibling\n")
    write(tmp_path, "helper.py", "")
    write(tmp_path, "package/__init__.py", "")
    assert built(tmp_path, BASE + "COPY app.py /app/\n") == [
        "HERE/app.py:2: imports helper, and Containerfile does not copy helper.py",
        "HERE/app.py:3: imports package, and Containerfile does not copy package/__init__.py",
    ]
    assert built(tmp_path, BASE + "COPY app.py helper.py /app/\nCOPY package /app/package\n") == []
    assert built(tmp_path, BASE + "COPY *.py /app/\nCOPY package/ /app/package\n") == []


@pytest.mark.parametrize(
    ("patterns", "left_out"),
    [
        ("helper.py\n", True),
        ("# nothing\n\n/helper.py", True),
        ("*.py\n!app.py\n", True),
        ("*\n!app.py\n!helper.py\n", False),
        ("*\n!*.py\n", False),
        ("**/helper.py", True),
        ("h?lp[e]r.py", True),
        ("tests\nhelper", False),
        ("helper.py\n!helper.py", False),
        ("*.pyc\n**/__pycache__", False),
        ("[", False),
    ],
)
@pytest.mark.parametrize("name", [".containerignore", ".dockerignore", "Containerfile.dockerignore"])
def test_a_module_that_is_ignored_never_gets_into_the_image(
    tmp_path: Path, name: str, patterns: str, *, left_out: bool
) -> None:
    write(tmp_path, "app.py", "import helper\n")
    write(tmp_path, "helper.py", "")
    write(tmp_path, name, patterns)
    expected = [f"HERE/app.py:1: imports helper, and {name} leaves helper.py out"] if left_out else []
    assert built(tmp_path, BASE + "COPY . /app/\n") == expected


def test_what_is_copied_by_its_name_must_not_be_ignored(tmp_path: Path) -> None:
    write(tmp_path, "data/model.json", "{}")
    write(tmp_path, ".dockerignore", "data\n")
    write(tmp_path, "data/kept.json", "{}")
    text = BASE + "COPY data/model.json /app/\nCOPY data /app/data\n"
    assert built(tmp_path, text) == [
        "HERE/Containerfile:2: .dockerignore leaves data/model.json out of the build",
    ]
    write(tmp_path, ".containerignore", "data/kept.json\n")
    assert built(tmp_path, text) == []


def test_what_only_an_earlier_stage_copies_is_not_copied(tmp_path: Path) -> None:
    write(tmp_path, "app.py", "import helper\n")
    write(tmp_path, "helper.py", "")
    text = "FROM python:3 AS test\nCOPY . /src\nFROM python:3\nCOPY app.py /app/\n"
    assert built(tmp_path, text) == ["HERE/app.py:1: imports helper, and Containerfile does not copy helper.py"]


def test_a_directory_to_build_needs_one(tmp_path: Path) -> None:
    assert sources.check_build(tmp_path, None).problems == [f"{tmp_path} has no Containerfile (nor Dockerfile)"]
    write(tmp_path, "Dockerfile", BASE)
    assert sources.check_build(tmp_path, None).problems == []
    assert sources.containerfile(tmp_path) == tmp_path / "Dockerfile"
    write(tmp_path, "Containerfile", BASE)
    assert sources.containerfile(tmp_path) == tmp_path / "Containerfile"


# --- Python, JSON, what nobody knows ---------------------------------------------------------------------------------


def test_python_that_does_not_compile_is_named_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, "good.py", "x = 1\n")
    write(tmp_path, "bad.py", "x = 1\ndef f(:\n")
    write(tmp_path, "tool", "#!/usr/bin/env python3\nprint 'x'\n")
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00")
    found = problems(tmp_path)
    assert found[0].startswith("HERE/bad.py:2: does not compile: invalid syntax")
    assert found[1].startswith("HERE/binary.py cannot be read: ")
    assert found[2].startswith("HERE/tool:2: does not compile: ")
    assert len(found) == 3


def test_json_is_json(tmp_path: Path) -> None:
    write(tmp_path, "a.json", '{"a": 1}')
    write(tmp_path, "b.json", '{"a": 1,}')
    (found,) = problems(tmp_path)
    assert found.startswith("HERE/b.json: is no JSON: ")


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    for name in ("x.py", "Containerfile", "x.json", "x.env", "x"):
        found = sources.check([tmp_path / name], None)
        assert found.problems == [f"{tmp_path / name} does not exist"], name


def test_what_git_and_tools_keep_is_not_looked_into(tmp_path: Path) -> None:
    for folder in (".git", "__pycache__", ".venv/lib", "node_modules/x"):
        write(tmp_path, f"{folder}/bad.py", "def f(:\n")
    write(tmp_path, "bad.txt", "def f(:\n")
    found = sources.check([tmp_path], None)
    assert found.problems == []
    assert "1 files looked at" in found.notes


def test_a_folder_below_one_of_such_a_name_is_looked_into(tmp_path: Path) -> None:
    write(tmp_path, "venv/project/bad.py", "def f(:\n")
    assert len(sources.check([tmp_path / "venv" / "project"], None).problems) == 1


# --- Nix and shell ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("nix-instantiate") is None, reason="there is no nix-instantiate")
def test_nix_is_parsed(tmp_path: Path) -> None:
    write(tmp_path, "good.nix", "{ a = 1; }\n")
    write(tmp_path, "bad.nix", "{ a = 1 }\n")
    (found,) = problems(tmp_path)
    assert found.startswith("HERE/bad.nix: nix-instantiate: error: syntax error")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="there is no shellcheck")
def test_shell_scripts_are_checked_whatever_their_name(tmp_path: Path) -> None:
    write(tmp_path, "good.sh", '#!/bin/sh\necho "$1"\n')
    write(tmp_path, "style.sh", "#!/bin/sh\necho $1\n")
    write(tmp_path, "bad.sh", "#!/bin/sh\nif true; then\n")
    write(tmp_path, "run", "#!/usr/bin/env bash\nfor x in; do\n")
    found = problems(tmp_path)
    assert [problem.partition(": ")[0] for problem in found] == ["HERE/bad.sh", "HERE/run"]
    assert all(": shellcheck: " in problem and "error:" in problem for problem in found)


def test_a_tool_that_is_not_there_is_a_note_once_and_never_a_silent_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    for name in ("a.nix", "b.nix", "a.sh", "b.sh"):
        write(tmp_path, name, "{")
    found = sources.check([tmp_path], None)
    assert found.problems == []
    assert found.notes == [
        "Nix files not checked: nix-instantiate is not installed",
        "shell scripts not checked: shellcheck is not installed",
        "4 files looked at",
    ]


def test_a_tool_that_hangs_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = write(tmp_path, "tools/shellcheck", "#!/bin/sh\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sources, "_TOOL_TIMEOUT", 0.3)
    script = write(tmp_path, "a.sh", "#!/bin/sh\n")
    assert sources.check([script], None).problems == [f"{script}: shellcheck took more than 0 s"]


# --- environment files -----------------------------------------------------------------------------------------------


@pytest.fixture
def manifest(host: fakehost.FakeHost) -> Manifest:
    """A stack whose environment is REDIS_HOST and POSTGRES_HOST, with a secret and a key of one service."""
    app = fakehost.service("app", environment={"APP_MODE": "x"})
    environment = {"REDIS_HOST": "redis", "POSTGRES_HOST": "postgres"}
    secrets = {"API_KEY": {"file": "/run/key", "as": "env"}}
    host.declare({"app": app}, environment=environment, secrets=secrets)
    return load()


def test_an_environment_file_has_the_stacks_keys(tmp_path: Path, manifest: Manifest) -> None:
    good = "# comment\n\nREDIS_HOST=redis\nPOSTGRES_HOST=pg.example\nAPP_MODE=y\nAPI_KEY=\n"
    assert problems(write(tmp_path, "good.env", good), manifest) == []
    bad = write(tmp_path, ".env", "REDIS_HOST=a\nPOSTGRES_HOSTS=b\nREDIS_HOST=c\n")
    assert problems(bad, manifest) == [
        "HERE:3: REDIS_HOST is there a second time (line 1)",
        "HERE:2: POSTGRES_HOSTS is no key of this stack",
        "HERE: has no POSTGRES_HOST",
    ]


@pytest.mark.parametrize(
    "line",
    ['KEY="x"', "export KEY=x", "KEY = x", " KEY=x", "key=x", "KEY=a b", "KEY=$HOME", "KEY=x # y", "KEY", "KEY=x\\"],
)
def test_a_line_that_programs_read_differently_is_refused(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, "a.env", "OTHER=1\n")
    path.write_text(f"OTHER=1\n{line}\n", encoding="utf-8")
    assert problems(path) == ["HERE:2: podman, systemd, python-dotenv and a shell would not read this line alike"]


def test_the_lines_that_are_accepted_mean_the_same_to_a_shell(tmp_path: Path) -> None:
    value = "a_Z0./:@%+,=-"
    path = write(tmp_path, "a.env", f"KEY={value}\nEMPTY=\n")
    assert problems(path) == []
    shown = subprocess.run(
        ["/bin/sh", "-c", f'. {path}; printf "%s|%s" "$KEY" "$EMPTY"'], capture_output=True, check=True, text=True
    ).stdout
    assert shown == f"{value}|"


def test_without_a_stack_the_keys_are_not_compared_and_that_is_said(tmp_path: Path) -> None:
    found = sources.check([write(tmp_path, "a.env", "ANY=1\n")], None)
    assert found.problems == []
    assert "keys of environment files not compared: there is no stack on this machine" in found.notes
