"""What can be said of files before anything is built: Containerfiles, Python, Nix, shell scripts, environment files.

`aistack validate PATH …` and the pre-commit hook call this for what they are given; a deployment for the directory that
it is to build. A tool that is not installed is a note, never a silent pass.
"""

from __future__ import annotations

import ast
import fnmatch
import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

from aistack.deploy.checks import Found
from aistack.deploy.ignored import Ignored
from aistack.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from aistack.hooks.manifest import Manifest

_TOOL_TIMEOUT = 60.0  # seconds for one file
_LARGEST = 5000  # files of a directory
_SKIPPED = {".git", "__pycache__", "node_modules", ".venv", "venv", ".mypy_cache", ".ruff_cache", "result"}
CONTAINERFILES = ("Containerfile", "Dockerfile")
_ENV_LINE = re.compile(r"([A-Z][A-Z0-9_]*)=([A-Za-z0-9_./:@%+,=-]*)")
_HEREDOC = re.compile(r"""(?<=\s)\d*<<(-?)(["']?)([A-Za-z_][\w.]*)\2(?=\s)""")
_FROM = re.compile(r"(?:--\S+\s+)*(\S+)(?:\s+[Aa][Ss]\s+(\S+))?")


def check(paths: Iterable[Path], manifest: Manifest | None) -> Found:
    """Check files, and all files of directories. `manifest` says which keys an environment file may have."""
    problems: list[str] = []
    notes: list[str] = []
    files = list(_files(paths))
    for file in files:
        found = _kind(file)
        if found is not None:
            problem = found(file, manifest, notes)
            problems += problem
    notes.append(f"{len(files)} files looked at")
    return Found(problems=problems, notes=list(dict.fromkeys(notes)))


def check_build(directory: Path, manifest: Manifest | None) -> Found:
    """Check a directory that is to be built: there must be a Containerfile, and all that it says must be there."""
    if containerfile(directory) is None:
        return Found(problems=[f"{directory} has no Containerfile (nor Dockerfile)"], notes=[])
    return check([directory], manifest)


def containerfile(directory: Path) -> Path | None:
    """The file that podman builds a directory from."""
    return next((directory / name for name in CONTAINERFILES if (directory / name).is_file()), None)


def _files(paths: Iterable[Path]) -> Iterable[Path]:
    for path in paths:
        if path.is_dir():
            own = [
                found for found in sorted(path.rglob("*")) if not _SKIPPED.intersection(found.relative_to(path).parts)
            ]
            yield from [found for found in own if found.is_file()][:_LARGEST]
        else:
            yield path


def _kind(path: Path) -> Callable[[Path, Manifest | None, list[str]], list[str]] | None:
    if path.name in CONTAINERFILES or path.name.startswith(("Containerfile.", "Dockerfile.")):
        return _containerfile
    if path.suffix == ".py":
        return _python
    if path.suffix == ".nix":
        return _nix
    if path.suffix in {".sh", ".bash"}:
        return _shell
    if path.name == ".env" or path.suffix == ".env":
        return _environment
    if path.suffix == ".json":
        return _json
    if not path.exists():
        return _missing
    if path.suffix == "" and path.is_file():
        with path.open("rb") as file:
            head = file.read(100).partition(b"\n")[0]
        if head.startswith(b"#!") and b"python" in head:
            return _python
        if re.match(rb"#!\s*\S*(/env\s+)?(ba|da)?sh\b", head) or head.rstrip().endswith(
            (b"/sh", b"/bash", b" bash", b" sh")
        ):
            return _shell
    return None


def _read(path: Path) -> tuple[str, list[str]]:
    try:
        return path.read_text(encoding="utf-8"), []
    except FileNotFoundError:
        return "", [f"{path} does not exist"]
    except (OSError, UnicodeDecodeError) as error:
        return "", [f"{path} cannot be read: {printable(error, 200)}"]


def _missing(path: Path, manifest: Manifest | None, notes: list[str]) -> list[str]:
    del manifest, notes
    return _read(path)[1]


def _python(path: Path, manifest: Manifest | None, notes: list[str]) -> list[str]:
    del manifest, notes
    text, problems = _read(path)
    if problems:
        return problems
    try:
        ast.parse(text, str(path))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        return [f"{path}{f':{line}' if line else ''}: does not compile: {printable(getattr(error, 'msg', error), 200)}"]
    return []


def _json(path: Path, manifest: Manifest | None, notes: list[str]) -> list[str]:
    del manifest, notes
    text, problems = _read(path)
    if problems:
        return problems
    try:
        json.loads(text)
    except ValueError as error:
        return [f"{path}: is no JSON: {printable(error, 200)}"]
    return []


def _tool(command: list[str], path: Path, notes: list[str], what: str) -> list[str]:
    if shutil.which(command[0]) is None:
        notes.append(f"{what} not checked: {command[0]} is not installed")
        return []
    try:
        done = subprocess.run(
            [*command, str(path)], stdin=subprocess.DEVNULL, capture_output=True, timeout=_TOOL_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return [f"{path}: {command[0]} took more than {_TOOL_TIMEOUT:.0f} s"]
    if done.returncode == 0:
        return []
    said = (done.stdout + done.stderr).decode(errors="replace").strip().splitlines()
    first = next((line for line in said if "error" in line.lower() or str(path) in line), said[0] if said else "failed")
    return [f"{path}: {command[0]}: {printable(first, 300)}"]


def _nix(path: Path, manifest: Manifest | None, notes: list[str]) -> list[str]:
    del manifest
    return _tool(["nix-instantiate", "--parse", "--quiet"], path, notes, "Nix files")


def _shell(path: Path, manifest: Manifest | None, notes: list[str]) -> list[str]:
    del manifest
    return _tool(["shellcheck", "--severity=warning", "--format=gcc"], path, notes, "shell scripts")


def _environment(path: Path, manifest: Manifest | None, notes: list[str]) -> list[str]:
    """Whether an environment file keeps the grammar, and has the keys that the stack's own has."""
    text, problems = _read(path)
    keys: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        match = _ENV_LINE.fullmatch(line)
        if match is None:
            problems.append(
                f"{path}:{number}: podman, systemd, python-dotenv and a shell would not read this line alike"
            )
            continue
        if match[1] in keys:
            problems.append(f"{path}:{number}: {match[1]} is there a second time (line {keys[match[1]]})")
        keys[match[1]] = number
    if manifest is None:
        notes.append("keys of environment files not compared: there is no stack on this machine")
        return problems
    known = {*manifest.environment, *manifest.secrets}
    for service in manifest.services.values():
        known.update(service.environment)
    problems += [f"{path}:{keys[key]}: {key} is no key of this stack" for key in keys if key not in known]
    missing = [key for key in manifest.declared if key not in keys]
    if missing:
        problems.append(
            f"{path}: has no {', '.join(missing[:5])}{f' and {len(missing) - 5} more' if len(missing) > 5 else ''}"
        )
    return problems


# --- Containerfiles --------------------------------------------------------------------------------------------------


def _containerfile(path: Path, manifest: Manifest | None, notes: list[str]) -> list[str]:
    del manifest, notes
    text, problems = _read(path)
    if problems:
        return problems
    ignored = Ignored(path)
    stages: set[str] = set()
    copied: list[str] = []
    for number, keyword, rest in _instructions(text):
        where = f"{path}:{number}"
        if keyword == "FROM":
            match = _FROM.match(rest)
            base = match[1] if match else rest
            if base.lower() not in stages and _floats(base):
                problems.append(f"{where}: the base {base} moves: give it a tag that stays, or a digest")
            if match and match[2]:
                stages.add(match[2].lower())
            copied = []
        elif keyword in {"COPY", "ADD"}:
            options, sources = _sources(rest)
            if any(option.startswith("--from=") for option in options):
                continue
            for source in sources:
                if "://" in source or "$" in source or source.startswith("<<"):
                    continue
                copied.append(source)
                if not _matches(path.parent, source):
                    problems.append(f"{where}: {source} is not in {path.parent}")
                elif (path.parent / _relative(source)).is_file() and _relative(source) in ignored:
                    problems.append(f"{where}: {ignored.name} leaves {source} out of the build")
    return problems + _local_modules(path, copied, ignored)


def _instructions(text: str) -> Iterable[tuple[int, str, str]]:
    """Yield line number, keyword and the rest of each instruction.

    Continued lines are joined; comments, empty lines and the text of heredocs are left out.
    """
    pending, begun = "", 0
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        begun = begun if pending else number
        pending += stripped.removesuffix("\\") + " "
        if stripped.endswith("\\"):
            continue
        yield begun, *_instruction(pending)
        for dash, _, end in _HEREDOC.findall(pending):
            # One after the other, each up to the line that is its word.
            next((None for _, inside in lines if (inside.lstrip("\t") if dash else inside) == end), None)
        pending = ""
    if pending:
        yield begun, *_instruction(pending)


def _instruction(text: str) -> tuple[str, str]:
    keyword, _, rest = text.strip().partition(" ")
    return keyword.upper(), rest.strip()


def _words(rest: str) -> list[str]:
    if rest.startswith("["):
        try:
            found = json.loads(rest)
        except ValueError:
            return rest.split()  # a pattern that begins with a set of characters
        return [str(word) for word in found]
    return rest.split()


def _sources(rest: str) -> tuple[list[str], list[str]]:
    """The options of a COPY, and what it copies."""
    words = rest.split()
    options = [word for word in words if word.startswith("--")]
    plain = " ".join(word for word in words if not word.startswith("--"))
    return options, _words(plain)[:-1]


def _floats(base: str) -> bool:
    """Whether a base image may be another one tomorrow."""
    if base == "scratch" or "@" in base or "$" in base:
        return False
    tag = base.rpartition("/")[2].partition(":")[2]
    return tag in {"", "latest"}


def _matches(folder: Path, source: str) -> bool:
    pattern = _relative(source)
    if any(char in pattern for char in "*?["):
        return any(True for _ in folder.glob(pattern))
    return (folder / pattern).exists()


def _relative(source: str) -> str:
    """What a COPY names, as it is called in the directory."""
    return source.removeprefix("./").removeprefix("/").rstrip("/") or "."


def _local_modules(path: Path, copied: list[str], ignored: Ignored) -> list[str]:
    """The modules beside the copied ones that they import, and that do not get into the image."""
    folder = path.parent
    names = [_relative(source) for source in copied]

    def is_named(relative: str) -> bool:
        return any(name == "." or fnmatch.fnmatch(relative, name) or relative.startswith(f"{name}/") for name in names)

    def is_copied(relative: str) -> bool:
        return is_named(relative) and relative not in ignored

    problems = []
    for file in sorted(folder.glob("*.py")):
        if not is_copied(file.name):
            continue
        for module, line in _imports(file):
            top = module.split(".")[0]
            for local in (f"{top}.py", f"{top}/__init__.py"):
                if not (folder / local).is_file() or is_copied(local):
                    continue
                if is_named(local):
                    problems.append(f"{file}:{line}: imports {top}, and {ignored.name} leaves {local} out")
                else:
                    problems.append(f"{file}:{line}: imports {top}, and {path.name} does not copy {local}")
    return problems


def _imports(path: Path) -> Iterable[tuple[str, int]]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return  # said already, by its own check
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module, node.lineno
