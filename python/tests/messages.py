"""Every message that the sources can say to a user, as a template: what is filled in while it runs is `…`.

Read from the sources themselves, so that docs/troubleshooting.md cannot fall behind them (test_troubleshooting.py).
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).resolve().parents[2]
HOLE = "…"

# What says something, beside exceptions: lines of the journal, notes of the command line, and reasons that end in them.
SAYING = {"say", "note", "problem", "_nothing", "Decision", "warn", "fail"}
# Which of their arguments that is, where others are names or the command to run next.
_SAID_IN = {"problem": slice(0, 1), "warn": slice(1, 2), "fail": slice(1, 2)}
# What becomes part of such a line.
_REASONS = {"reason", "why"}

Found = dict[str, str]
"""Each template, with the place where it is said (`path:line`)."""


def template(text: str) -> str:
    """A message as the page shows it: on one line, every hole the same, no backquote."""
    return re.sub(rf"{HOLE}+", HOLE, " ".join(text.replace("`", "'").split()))


def speaks(text: str) -> bool:
    """Whether there are words in it; `…: …` only passes on what somebody else said."""
    return len(re.findall(r"[A-Za-z]{2,}", text)) > 1


def add(found: Found, text: str | None, place: str) -> None:
    """Record a message."""
    if text is not None and speaks(text):
        found.setdefault(template(text), place)


# --- Python ----------------------------------------------------------------------------------------


def literal(node: ast.AST) -> str | None:
    """The template of a string, or None for what is none."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = literal(node.left), literal(node.right)
        return None if sides == (None, None) else "".join(HOLE if side is None else side for side in sides)
    return None


def name_of(node: ast.AST) -> str:
    """The last part of a dotted name."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def exceptions(modules: Iterable[ast.Module]) -> set[str]:
    """The names of all classes that are errors, by the names of their bases."""
    classes = [node for module in modules for node in ast.walk(module) if isinstance(node, ast.ClassDef)]
    known = {"Exception", "HookError", "AistackError", "ClickException", "UsageError"}
    while True:
        more = {node.name for node in classes if any(name_of(base) in known for base in node.bases)} - known
        if not more:
            return known
        known |= more


class _Reader(ast.NodeVisitor):
    """Collects the messages of one module."""

    def __init__(self, module: ast.Module, where: str, errors: set[str], found: Found) -> None:
        self.where, self.errors, self.found = where, errors, found
        self.functions = {node.name: node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)}
        self.inside = ""

    def _add(self, node: ast.AST) -> None:
        """Record a message, or what a function of this module returns as one."""
        place = f"{self.where}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.IfExp):
            self._add(node.body)
            self._add(node.orelse)
        elif isinstance(node, ast.Call) and name_of(node.func) in self.functions:
            for inner in ast.walk(self.functions[name_of(node.func)]):
                if isinstance(inner, ast.Return) and inner.value is not None:
                    add(self.found, literal(inner.value), f"{self.where}:{inner.lineno}")
        else:
            add(self.found, literal(node), place)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Remember whose methods these are."""
        outer, self.inside = self.inside, node.name
        self.generic_visit(node)
        self.inside = outer

    def visit_Call(self, node: ast.Call) -> None:
        """Take what an error is made with, or what is said."""
        called = name_of(node.func)
        if called in self.errors | SAYING or (called == "__init__" and self.inside in self.errors):
            for argument in node.args[_SAID_IN.get(called, slice(None))]:
                self._add(argument)
            for keyword in node.keywords:
                if keyword.arg in _REASONS:
                    self._add(keyword.value)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        """Take a reason that is said later."""
        if {name_of(target) for target in node.targets} & _REASONS:
            self._add(node.value)
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        """Take the words that go with a decision: `return DEGRADED, "…"`."""
        if isinstance(node.value, ast.Tuple) and name_of(node.value.elts[0]).isupper():
            for element in node.value.elts[1:]:
                self._add(element)
        self.generic_visit(node)


def of_python(paths: Iterable[Path], root: Path = ROOT) -> Found:
    """The messages of Python modules."""
    modules = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    errors = exceptions(modules.values())
    found: Found = {}
    for path, module in modules.items():
        _Reader(module, str(path.relative_to(root)), errors, found).visit(module)
    return found


# --- Nix -------------------------------------------------------------------------------------------


def _skip(text: str, at: int) -> int:
    """The end of the string, the bracket or the word that begins at `at`."""
    if text[at] == '"':
        at += 1
        while text[at] != '"':
            if text[at] == "\\":
                at += 2
            elif text.startswith("${", at):
                at = _skip(text, at + 1)
            else:
                at += 1
        return at + 1
    if text[at] in "({[":
        at += 1
        while text[at] not in ")}]":
            at = _skip(text, at)
        return at + 1
    word = re.compile(r"[^\s\"(){}\[\]]+|\s+").match(text, at)
    assert word is not None, text[at : at + 40]
    return word.end()


def _holes(string: str) -> str:
    """The template of a quoted string of Nix."""
    said, at = "", 1
    while at < len(string) - 1:
        if string.startswith("${", at):
            said, at = said + HOLE, _skip(string, at + 1)
        elif string[at] == "\\":
            said, at = said + string[at + 1], at + 2
        else:
            said, at = said + string[at], at + 1
    return said


def _expressions(text: str, at: int) -> Iterator[str]:
    """The arguments that follow a function, one after the other."""
    while at < len(text):
        at = re.compile(r"\s*").match(text, at).end()  # type: ignore[union-attr]
        end = _skip(text, at)
        yield text[at:end]
        at = end


def of_refusals(paths: Iterable[Path], root: Path = ROOT) -> Found:
    """The messages of `refuse CONDITION WHAT FIX` in Nix, without their fixes."""
    found: Found = {}
    for path in paths:
        text = re.sub(r"^\s*#.*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for call in re.finditer(r"\(refuse(?=\s)|(?<=\s)refuse(?=\s+\()", text):
            _, what, *_ = (argument for _, argument in zip(range(2), _expressions(text, call.end()), strict=False))
            line = text.count("\n", 0, call.start()) + 1
            assert what.startswith('"'), f"{path}:{line}: cannot tell what is refused: {what}"
            found[template(_holes(what))] = f"{path.relative_to(root)}:{line}"
    return found


# --- Shell -----------------------------------------------------------------------------------------

_QUOTED = r"""("(?:[^"\\]|\\.)*"|'[^']*')"""
_SAID = re.compile(rf"(?:\bdie \d+ |\b\w+\+=\(|\becho ){_QUOTED}")


def of_shell(paths: Iterable[Path], root: Path = ROOT) -> Found:
    """What shell scripts complain of: `die N "…"`, `echo "…"`, and what is collected to be said in the end."""
    found: Found = {}
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for match in _SAID.finditer(line):
                said = match[1][1:-1]
                if match[1][0] == '"':
                    said = re.sub(r"\$\((?:[^()]|\([^()]*\))*\)|\$\{[^}]*\}|\$\w+", HOLE, said)
                add(found, said.replace("\\n", " "), f"{path.relative_to(root)}:{number}")
    return found


def all_of_them() -> Found:
    """Every message of the project that a user can see."""
    package = ROOT / "python/aistack"
    # What a service answers carries its own next step, and a kind to go by.
    modules = [path for path in package.rglob("*.py") if "services" not in path.relative_to(package).parts]
    return {
        **of_python(sorted([*modules, ROOT / "nix/portable/render.py"])),
        **of_refusals(sorted((ROOT / "nix/modules/assertions").glob("*.nix"))),
        **of_shell([ROOT / "bundle/install", ROOT / "bundle/uninstall", ROOT / "nix/portable/render"]),
    }
