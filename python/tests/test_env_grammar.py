"""The grammar of the .env: one in every place that has it, and read alike by python-dotenv and this machine's shell.

The other two readers, podman and systemd, are asked too by the scenario tests/nixos/env-readers.py.
"""

from __future__ import annotations

import io
import re
import shutil
import string
import subprocess
import tempfile
from pathlib import Path

import pytest
from dotenv import dotenv_values
from hypothesis import given, settings
from hypothesis import strategies as st

from aistack import model

ROOT = Path(__file__).parents[2]
PATTERNS = dict(
    re.findall(r'^  (\w+) =\s+key:\s+builtins\.match "([^"]+)"', (ROOT / "nix/lib/env.nix").read_text(), re.MULTILINE)
    + re.findall(
        r'^  (isValue) = value: builtins\.match "([^"]+)"', (ROOT / "nix/lib/env.nix").read_text(), re.MULTILINE
    )
)

keys = st.from_regex(model.ENV_KEY, fullmatch=True).filter(
    lambda key: re.fullmatch(PATTERNS["isShellOwn"], key) is None
)
values = st.from_regex(model.ENV_VALUE, fullmatch=True)


def by_shell(text: str) -> dict[str, str]:
    with tempfile.NamedTemporaryFile(suffix=".env") as file:
        file.write(text.encode())
        file.flush()
        program = ["/bin/sh", "-c", 'set -a; . "$0"; exec "$1" -0', file.name, str(shutil.which("env"))]
        done = subprocess.run(program, env={}, capture_output=True, check=True)
    assert done.stderr == b""
    pairs = (part.partition(b"=") for part in done.stdout.split(b"\0")[:-1])
    return {key.decode(): value.decode() for key, _, value in pairs}


@settings(deadline=None)
@given(st.dictionaries(keys, values, max_size=30))
def test_python_dotenv_and_the_shell_read_what_was_written(wanted: dict[str, str]) -> None:
    text = "# A comment\n\n" + "".join(f"{key}={value}\n" for key, value in wanted.items())
    assert dotenv_values(stream=io.StringIO(text), interpolate=True) == wanted
    read = by_shell(text)
    assert {key: read.get(key) for key in wanted} == wanted


def test_nix_and_the_model_have_the_same_grammar() -> None:
    assert f"^{PATTERNS['isKey']}$" == model.ENV_KEY
    assert f"^{PATTERNS['isValue']}$" == model.ENV_VALUE


def test_the_scenario_has_the_same_alphabet() -> None:
    scenario = (ROOT / "tests/nixos/env-readers.py").read_text()
    written = re.search(r"^ALPHABET = string\.ascii_letters \+ string\.digits \+ \"([^\"]*)\"$", scenario, re.MULTILINE)
    assert written is not None
    alphabet = {*string.ascii_letters, *string.digits, *written[1]}
    assert alphabet == {c for c in map(chr, range(128)) if c != "\n" and re.fullmatch(PATTERNS["isValue"], c)}


@pytest.mark.parametrize("value", [" ", '"', "'", "$", "\\", "#", ";", "`", "\n", "~", "é", "\x7f"])
def test_what_they_do_not_agree_on_is_no_value(value: str) -> None:
    assert re.fullmatch(PATTERNS["isValue"], value) is None
