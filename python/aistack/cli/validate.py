"""`aistack validate`: what can be said of files before anything is built, and a pre-commit hook."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aistack.cli import output
from aistack.cli.options import json_option
from aistack.errors import ExitCode, UsageError
from aistack.hooks.errors import HookError
from aistack.hooks.manifest import load, manifest_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aistack.hooks.manifest import Manifest

_GIT_TIMEOUT = 30.0  # seconds


@click.command("validate")
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--staged", is_flag=True, help="Check what git is about to commit, here.")
@json_option
def command(*, paths: tuple[Path, ...], staged: bool, as_json: bool) -> int:
    """Check files, and all files of directories: Containerfiles, Python, Nix, shell scripts, .env files.

    Exit code 0 if nothing is wrong, 5 if something is. What cannot be checked, for want of a tool, is
    said. An image itself is looked into by `aistack deploy`, before its test.
    """
    from aistack.deploy import checks, sources

    if not paths and not staged:
        raise UsageError("say what to check: paths, or --staged")
    manifest = _manifest()
    found = sources.check(paths, manifest)
    if staged:
        with _index() as (folder, root, names):
            more = sources.check([Path(folder, name) for name in names], manifest)
        problems = [problem.replace(folder, root) for problem in more.problems]
        found = checks.Found(problems=[*found.problems, *problems], notes=[*found.notes, *more.notes])
    if as_json:
        output.document({"problems": found.problems, "notes": found.notes})
    else:
        for problem in found.problems:
            output.line(problem)
        for note in found.notes:
            output.note(f"aistack: {note}")
    return int(ExitCode.VALIDATION_FAILED if found.problems else ExitCode.DONE)


def _manifest() -> Manifest | None:
    """The stack of this machine, if it has one."""
    if not Path(manifest_path()).exists():
        return None
    try:
        return load()
    except HookError as error:
        output.note(f"aistack: {error}")
        return None


@contextlib.contextmanager
def _index() -> Iterator[tuple[str, str, list[str]]]:
    """Yield a folder with all of git's index, the repository that it is of, and what of it is about to be committed.

    Not the files beside it: those may have been changed since they were added.
    """
    with tempfile.TemporaryDirectory(prefix="aistack-validate-") as folder:
        try:
            root = _git("rev-parse", "--show-toplevel").removesuffix("\n")
            # Those that were added, copied, modified or renamed.
            names = _git("diff", "--cached", "--name-only", "--diff-filter=ACMR", "-z").split("\0")
            _git("-C", root, "checkout-index", "--all", f"--prefix={folder}/")
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", b"") or b""
            raise UsageError(
                "--staged wants a git repository here", why=said.decode(errors="replace").strip() or str(error)
            ) from None
        yield folder, root, [name for name in names if name]


def _git(*arguments: str) -> str:
    # Whichever git it is that the caller commits with.
    command = ["git", *arguments]
    done = subprocess.run(command, capture_output=True, timeout=_GIT_TIMEOUT, check=True)
    return done.stdout.decode(errors="surrogateescape")
