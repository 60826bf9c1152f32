"""The module, evaluated: each case of tests/eval is one test here, and all of them share one Nix process.

The names of the cases are read from the files, so that they are counted, and shown as skipped, where there is no Nix.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import nixhost
import pytest

from aistack import model
from aistack.hooks import manifest as hooks_manifest

if TYPE_CHECKING:
    from pathlib import Path

CASES = nixhost.ROOT / "tests/eval"
EXAMPLES = nixhost.ROOT / "examples"

# A case starts with its sentence, indented by two blanks; anything else of a case is deeper.
_SENTENCE = re.compile(r'^  "([^"\\]+)" =', re.MULTILINE)


def sentences(path: Path) -> list[str]:
    """The sentences of the cases in one file."""
    return _SENTENCE.findall(path.read_text(encoding="utf-8"))


RESULTS = [f"{path.stem}: {name}" for path in sorted((CASES / "cases").glob("*.nix")) for name in sentences(path)]
ERRORS = sentences(CASES / "errors.nix")


@dataclass(frozen=True)
class Evaluation:
    """What Nix made of an expression: its value, or why there is none."""

    value: Any
    error: str


@cache
def evaluate(attribute: str) -> Evaluation:
    """Evaluate one attribute of tests/eval, once."""
    command = ("nix-instantiate", "--eval", "--strict", "--json", "--read-write-mode", CASES, "--attr", attribute)
    done = nixhost.run(*command)
    if done.returncode != 0:
        return Evaluation(None, done.stderr)
    return Evaluation(json.loads(done.stdout), "")


@pytest.fixture(autouse=True)
def nix() -> None:
    """Skip, and say why, where there is nothing to evaluate with."""
    reason = nixhost.unavailable()
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
    says = evaluate("says")
    assert not says.error, says.error
    found = evaluate(f'errors."{name}".expr')
    assert found.error, f"accepted as {found.value}"
    missing = [part for part in says.value[name] if part not in found.error]
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
