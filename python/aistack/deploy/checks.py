"""What can be said of an image before it runs: its entry point, its Python, the environment it asks for.

The image is mounted to look at its files, and its own Python compiles and imports its program inside it, without a
network: what a syntax check lets pass, an import does not.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import posixpath
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aistack.errors import printable
from aistack.hooks import runtime
from aistack.hooks.recover import LABEL

if TYPE_CHECKING:
    from aistack.deploy.image import Image
    from aistack.hooks.manifest import Manifest, Service

IMPORT_SECONDS = 20  # what still runs then begins to serve when it is imported
_TIMEOUT = 120.0  # seconds for all that happens inside the image
_PYTHON = re.compile(r"(?:.*/)?(?:python|pypy)[0-9.]*$")
_SHELL = re.compile(r"(?:.*/)?(?:sh|bash|dash)$")
_MODULE_ARGUMENT = re.compile(r"[A-Za-z_][\w.]*(?=:[A-Za-z_]\w*(\(\))?$)")
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LARGEST_LINE = 256  # bytes of a first line, as the kernel reads it (BINPRM_BUF_SIZE)
_LINKS = 40  # symbolic links on the way to a file, as the kernel follows them (ELOOP)
_PLACEHOLDER = "validate"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """What was found: `problems` keep it from being deployed; `notes` say what was looked at, or could not be."""

    problems: list[str]
    notes: list[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Program:
    """How an image starts its Python program: a script, a module or code; `interpreter` is the command before it."""

    interpreter: list[str]
    script: str = ""
    module: str = ""
    code: str = ""


def check(manifest: Manifest, service: Service, image: Image, environment: dict[str, str], deployment: int) -> Found:
    """Look at an image, which is to run as `service` with `environment` (without secrets). Raises HookError."""
    argv = [*image.entrypoint, *(service.command or image.command)]
    if not argv:
        return Found(problems=["the image has neither an entry point nor a command, and `command` is empty"], notes=[])
    root = runtime.podman("image", "mount", image.id).strip()
    try:
        problems, program, notes = _entry(Path(root), image, argv)
    finally:
        runtime.run(["podman", "image", "unmount", image.id], runtime.PODMAN_TIMEOUT)
    if image.ports and service.port is not None and service.port not in image.ports:
        known = ", ".join(map(str, image.ports))
        notes.append(f"the image says that it listens on {known}, the service is declared on {service.port}")
    if not problems and program is not None:
        problems, more = _inside(manifest, service, image, program, environment=environment, deployment=deployment)
        notes += more
    return Found(problems=problems, notes=notes)


# --- the entry point -------------------------------------------------------------------------------------------------


def _entry(root: Path, image: Image, argv: list[str]) -> tuple[list[str], _Program | None, list[str]]:
    """Find the entry point in the mounted image, and the Python program that it is or starts."""
    path = _which(root, image, argv[0])
    if path is None:
        return [f"the entry point {argv[0]} is not in the image"], None, []
    file = _inside_root(root, path)
    if file is None or not file.is_file():
        return [f"the entry point {path} is not a file in the image"], None, []
    if not os.stat(file).st_mode & 0o111:
        return [f"the entry point {path} is not executable: chmod +x, or COPY --chmod=755"], None, []
    with file.open("rb") as opened:
        head = opened.read(_LARGEST_LINE)
    if head.startswith(b"\x7fELF"):
        return [], _program([path], argv[1:], image), [f"the entry point {path} is a program"]
    if not head.startswith(b"#!"):
        return [f"the entry point {path} is neither a program nor a script with a #! line"], None, []
    line = head[2:].partition(b"\n")[0].decode(errors="replace").strip(" \t")
    if line.endswith("\r"):
        return (
            [f"the first line of {path} ends in a carriage return, which becomes part of the interpreter's name"],
            None,
            [],
        )
    interpreter = _interpreter(line)
    missing = next((word for word in interpreter[:1] if _which(root, image, word) is None), None)
    if missing is not None:
        return [f"{path} wants {missing}, which is not in the image"], None, []
    if interpreter and _SHELL.match(interpreter[0]):
        return [], None, [f"the entry point {path} is a shell script"]
    if not interpreter or not _PYTHON.match(interpreter[0]):
        return [], None, [f"the entry point {path} is a script of {interpreter[0] if interpreter else line}"]
    # A program that pip installed: it is the argument that names what it serves.
    module = next((found[0] for word in argv[1:] if (found := _MODULE_ARGUMENT.match(word))), "")
    if module:
        return [], _Program(interpreter=interpreter, module=module), []
    return [], _Program(interpreter=interpreter, script=path), []


def _program(entry: list[str], arguments: list[str], image: Image) -> _Program | None:
    """The program of `python3 [options] SCRIPT`, `-m MODULE` or `-c CODE`; None for another interpreter."""
    if not _PYTHON.match(entry[0]):
        return None
    interpreter = list(entry)
    for number, word in enumerate(arguments):
        if word in ("-m", "-c") and number + 1 < len(arguments):
            following = arguments[number + 1]
            return _Program(interpreter=interpreter, **({"module": following} if word == "-m" else {"code": following}))
        if not word.startswith("-"):
            return _Program(interpreter=interpreter, script=posixpath.join(image.working_directory, word))
        interpreter.append(word)
    return None


def _interpreter(line: str) -> list[str]:
    """The command of a #! line; what env(1) would look up, where it is asked."""
    words = shlex.split(line) if line.startswith("/usr/bin/env -S") or " -S " in line else line.split(None, 1)
    if not words or posixpath.basename(words[0]) != "env":
        return words
    rest = [word for word in words[1:] if word != "-S" and "=" not in word]
    return rest[0].split() + rest[1:] if rest else []


def _which(root: Path, image: Image, name: str) -> str | None:
    """The path of a command inside the image; None if it is not there."""
    if "/" in name:
        path = posixpath.normpath(posixpath.join(image.working_directory, name))
        return path if _inside_root(root, path) is not None else None
    for folder in image.environment.get("PATH", _DEFAULT_PATH).split(":"):
        path = posixpath.join(folder, name)
        if _inside_root(root, path) is not None:
            return path
    return None


def _inside_root(root: Path, path: str) -> Path | None:
    """The file that a path of the image means, its links followed inside the image; None if there is none."""
    for _ in range(_LINKS):
        parts, done = path.strip("/").split("/"), ""
        for number, part in enumerate(parts):
            done = f"{done}/{part}"
            real = Path(f"{root}{done}")
            if real.is_symlink():
                target = posixpath.join(posixpath.dirname(done), os.readlink(real))
                path = posixpath.normpath(posixpath.join(target, *parts[number + 1 :]))
                break
        else:
            found = Path(f"{root}{done}")
            return found if found.exists() else None
    return None


# --- inside ----------------------------------------------------------------------------------------------------------


def _inside(
    manifest: Manifest,
    service: Service,
    image: Image,
    program: _Program,
    *,
    environment: dict[str, str],
    deployment: int,
) -> tuple[list[str], list[str]]:
    """Compile and import the program with the image's own Python, without a network and without secrets."""
    spec = {"script": program.script, "module": program.module, "code": program.code, "seconds": IMPORT_SECONDS}
    offered = {**environment, **_secrets(manifest, service)}
    variables = [f"--env={key}={value}" for key, value in sorted(offered.items())]
    code, out, errors = runtime.run(
        [
            *("podman", "run", "--rm", "--pull=never", "--network=none", "--read-only", "--cap-drop=all"),
            *(f"--label={LABEL}={deployment}", f"--timeout={_TIMEOUT:.0f}", "--log-driver=none", "--no-healthcheck"),
            *([f"--user={service.user}"] if service.user is not None else []),
            *variables,
            *(f"--entrypoint={json.dumps(program.interpreter)}", image.id),
            *("-c", Path(__file__).with_name("inside.py").read_text(encoding="utf-8"), json.dumps(spec)),
        ],
        _TIMEOUT + runtime.PODMAN_TIMEOUT,
    )
    found = _report(out)
    if found is None:
        said = (errors.strip() or out.strip()).rpartition("\n")[2]
        return [f"its Python ended with exit code {code} before it was imported: {printable(said, 300)}"], []
    problems: list[str] = [printable(text, 400) for text in found["problems"]]
    known = {*offered, *image.environment, "PATH", "HOME", "HOSTNAME"}
    for key, place in sorted(found["needs"].items()):
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            guess = f"; did you mean {near[0]}?" if near else ""
            problems.append(
                f"{printable(place, 200)} needs {printable(key, 80)}, which {service.name} does not get{guess} "
                f"(services.aistack.services.{service.name}.environment)"
            )
    what = program.script or program.module or "its code"
    note = f"{what}: {found['compiled']} files compile{', and it can be imported' if found['imported'] else ''}"
    return problems, [note]


def _secrets(manifest: Manifest, service: Service) -> dict[str, str]:
    """The keys by which it gets its secrets, with nothing secret in them."""
    found = {}
    for key in service.secrets:
        delivered = manifest.secrets.get(key, {}).get("as", "env")
        found[f"{key}_FILE" if delivered == "file" else key] = _PLACEHOLDER
    return found


def _report(out: str) -> dict[str, Any] | None:
    try:
        found = json.loads(out.strip().rpartition("\n")[2])
    except ValueError:
        return None
    return found if isinstance(found, dict) and "problems" in found else None
