"""Runs inside the image that is validated, with the image's own Python: standard library alone, any version from 3.8.

Reads {"script", "module", "code", "seconds"} from its first argument, compiles all that lies beside the entry point,
imports the entry point without starting it, and prints one JSON document as its last line:
{"problems": [TEXT], "compiled": N, "imported": BOOL, "needs": {KEY: "FILE:LINE"}}.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import runpy
import signal
import socket
import sys

LARGEST = 1000  # files
SKIPPED = {"site-packages", "dist-packages", "node_modules", ".git", "__pycache__"}


class StillRunning(BaseException):
    """What is imported begins to serve, or goes on when the time is up: so it can be imported."""


def sources(script: str, module: str) -> list[str]:
    """The Python files to compile: those beside the script, or of the module's package."""
    top = module.partition(".")[0]
    if script:
        root = os.path.dirname(script)
    elif module:
        root = os.path.join(os.getcwd(), top)
        for folder in sys.path:
            candidate = os.path.join(folder or os.getcwd(), top)
            if os.path.isdir(candidate):
                root = candidate
                break
    else:
        return []
    # Of a directory of programs, or of the whole system, only the program itself is the image's own.
    if root in ("/", "/bin", "/usr/bin", "/usr/local/bin", "/sbin", "/usr/sbin"):
        return [script] if script else []
    found = [script] if script else []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED]
        found += [os.path.join(folder, name) for name in files if name.endswith(".py")]
        if len(found) > LARGEST:
            break
    return sorted(set(found))[:LARGEST]


def needs(tree: ast.AST, path: str) -> dict[str, str]:
    """The environment variables that a program cannot do without: os.environ["KEY"], asked for in no other way."""
    names: set[str] = set()
    required: dict[str, str] = {}
    optional: set[object] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and is_environ(node.value, set()):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
    guarded: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Try):
            guarded.update(id(inner) for part in node.body for inner in ast.walk(part))
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and is_environ(node.value, names) and isinstance(node.ctx, ast.Load):
            index = getattr(node.slice, "value", node.slice)
            key = index if isinstance(index, str) else getattr(index, "value", None)
            if isinstance(key, str) and id(node) not in guarded:
                required.setdefault(key, f"{path}:{node.lineno}")
        if isinstance(node, ast.Compare):
            asked = any(is_environ(other, names) for other in node.comparators)
            optional.update([node.left.value] if asked and isinstance(node.left, ast.Constant) else [])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            first = node.args[0]
            if node.func.attr in ("get", "setdefault", "pop", "getenv") and isinstance(first, ast.Constant):
                optional.add(first.value)
    return {key: place for key, place in required.items() if key not in optional}


def is_environ(node: ast.AST, names: set[str]) -> bool:
    """Whether an expression is os.environ, or a name that was given to it."""
    if isinstance(node, ast.Attribute):
        return node.attr == "environ"
    return isinstance(node, ast.Name) and (node.id == "environ" or node.id in names)


def describe(error: BaseException) -> str:
    """An error in the words of the traceback's last line, with the last place that is the program's own."""
    place = ""
    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if not name.startswith("<") and os.sep + "lib" + os.sep + "python" not in name:
            place = f" ({name}:{trace.tb_lineno})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {error}{place}"


def load(spec: dict[str, str]) -> None:
    """Import the entry point; raises what it raises."""
    if spec["script"]:
        sys.path.insert(0, os.path.dirname(spec["script"]))
        runpy.run_path(spec["script"], run_name="aistack_validate")
    elif spec["module"]:
        sys.path.insert(0, os.getcwd())
        importlib.import_module(spec["module"])


def main() -> None:
    """Check, and print what was found."""
    spec = json.loads(sys.argv[1])
    problems: list[str] = []
    wanted: dict[str, str] = {}
    compiled = 0
    trees: list[tuple[str, str | bytes]] = [("the entry point's -c", spec["code"])] if spec["code"] else []
    for path in sources(spec["script"], spec["module"]):
        try:
            with open(path, "rb") as file:
                trees.append((path, file.read()))
        except OSError as error:
            problems.append(f"{path} cannot be read: {error.strerror}")
    for path, text in trees:
        try:
            tree = compile(text, path, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
            compile(text, path, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None)
            where = f"{path}:{line}" if line else path
            problems.append(f"{where} does not compile: {getattr(error, 'msg', error)}")
            continue
        compiled += 1
        for key, place in needs(tree, path).items():
            wanted.setdefault(key, place)
    imported = False
    if not problems and (spec["script"] or spec["module"]):
        sys.argv = [spec["script"] or spec["module"]]
        sys.dont_write_bytecode = True

        def stop(*_: object) -> None:
            raise StillRunning

        # A program without a guard serves when it is imported.
        socket.socket.listen = stop  # type: ignore[method-assign]
        signal.signal(signal.SIGALRM, stop)
        signal.alarm(int(spec["seconds"]))
        try:
            load(spec)
            imported = True
        except StillRunning:
            imported = True
        except SystemExit as error:
            if error.code not in (None, 0):
                problems.append(f"importing it ends with exit code {error.code}")
        except BaseException as error:  # noqa: BLE001  (whatever an import raises is what is to be known)
            problems.append(f"it cannot be imported: {describe(error)}")
        signal.alarm(0)
    report = {"problems": problems, "compiled": compiled, "imported": imported, "needs": wanted}
    sys.stdout.write("\n" + json.dumps(report) + "\n")
    sys.stdout.flush()
    # Threads of what was imported must not keep it from ending.
    os._exit(0)


main()
