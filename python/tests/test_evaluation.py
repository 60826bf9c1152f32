"""The module, evaluated: each case of tests/eval is one test here, and all of them share one Nix process.

The names of the cases are read from the files, so that they are counted, and shown as skipped, where there is no Nix.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from aistack import model
from aistack.hooks import manifest as hooks_manifest

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT / "tests" / "eval"
EXAMPLES = ROOT / "examples"

# A case starts with its sentence, indented by two blanks; anything else of a case is deeper.
_SENTENCE = re.compile(r'^  "([^"\\]+)" =', re.MULTILINE)


def sentences(path: Path) -> list[str]:
    """The sentences of the cases in one file."""
    return _SENTENCE.findall(path.read_text(encoding="utf-8"))


RESULTS = [f"{path.stem}: {name}" for path in sorted((CASES / "cases").glob("*.nix")) for name in sentences(path)]
ERRORS = sentences(CASES / "errors.nix")


def instantiate(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run nix-instantiate, wherever it is."""
    command = [shutil.which("nix-instantiate") or "nix-instantiate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


@cache
def unavailable() -> str | None:
    """Why nothing can be evaluated here, or None."""
    if shutil.which("nix-instantiate") is None:
        return "evaluation was not run: there is no nix-instantiate"
    if instantiate("--find-file", "nixpkgs").returncode != 0:
        return "evaluation was not run: <nixpkgs> does not resolve"
    return None


@dataclass(frozen=True)
class Evaluation:
    """What Nix made of an expression: its value, or why there is none."""

    value: Any
    error: str


@cache
def evaluate(attribute: str) -> Evaluation:
    """Evaluate one attribute of tests/eval, once."""
    done = instantiate("--eval", "--strict", "--json", "--read-write-mode", str(CASES), "--attr", attribute)
    if done.returncode != 0:
        return Evaluation(None, done.stderr)
    return Evaluation(json.loads(done.stdout), "")


@pytest.fixture(autouse=True)
def nix() -> None:
    """Skip, and say why, where there is nothing to evaluate with."""
    reason = unavailable()
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("name", RESULTS)
def test_case(name: str) -> None:
    together = evaluate("results")
    if together.error:
        # One case broke the evaluation of all: each on its own shows which.
        alone = evaluate(f'failing."{name}"')
        assert not alone.error, alone.error
        result = alone.value
    else:
        result = together.value[name]
    expected, actual = (json.dumps(result[key], indent=2) for key in ("expected", "actual"))
    assert result["ok"], f"expected {expected}\ngot {actual}"


def test_no_case_is_overlooked() -> None:
    found = evaluate("results")
    assert not found.error, found.error
    assert sorted(found.value) == sorted(RESULTS)
    assert len(set(RESULTS)) == len(RESULTS)


@pytest.mark.parametrize("name", ERRORS)
def test_wrong_type_is_explained(name: str) -> None:
    expected = evaluate(f'errors."{name}".says')
    assert not expected.error, expected.error
    found = evaluate(f'errors."{name}".expr')
    assert found.error, f"accepted as {found.value}"
    missing = [part for part in expected.value if part not in found.error]
    assert not missing, f"{missing} not in:\n{found.error}"


@pytest.mark.parametrize("example", sorted(path.stem for path in EXAMPLES.glob("*.nix")))
def test_rendered_manifest_is_valid_for_both_readers(example: str, tmp_path: Path) -> None:
    rendered = evaluate("rendered")
    assert not rendered.error, rendered.error
    text = rendered.value[example]["manifest"]
    assert model.problems(text) == []
    path = tmp_path / "stack.json"
    path.write_text(text, encoding="utf-8")
    read = hooks_manifest.load(str(path))
    assert set(read.services) == set(json.loads(text)["services"])
