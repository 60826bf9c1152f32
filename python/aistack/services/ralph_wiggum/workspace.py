"""Workspaces: folders with a git repository, one for a task at a time, with a checkpoint before each iteration.

A checkpoint is a commit under refs/aistack/<task>/, made with an index of its own: neither the branch, the index nor
the files are touched. It holds every file that git does not ignore, except the agent's own notes (.aider*).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import select
import signal
import subprocess
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_PATIENCE = 120.0  # seconds for one git command; a large repository on a slow disk
_NOTES = (":(exclude,glob)**/.aider*", ":(exclude,glob)**/.aider*/**")
# What a repository's own configuration could make git run: an agent writes there.
_HARMLESS = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.pager=cat",
    "commit.gpgSign=false",
    "gc.auto=0",
    "safe.directory=*",
    "core.quotePath=false",
    "advice.addEmbeddedRepo=false",
)
# As `git -c` for each of them, also for a git that a script starts.
_SETTINGS = {
    "GIT_CONFIG_COUNT": str(len(_HARMLESS)),
    **{f"GIT_CONFIG_KEY_{number}": each.partition("=")[0] for number, each in enumerate(_HARMLESS)},
    **{f"GIT_CONFIG_VALUE_{number}": each.partition("=")[2] for number, each in enumerate(_HARMLESS)},
}
_HASH = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
# A repository inside this one that has no commit, or a file nobody may read, cannot be added: the rest is.
_TREE = f"""
git add --all --ignore-errors -- . {" ".join(f"'{note}'" for note in _NOTES)} || test "$?" -eq 1
tree=$(git write-tree)
"""
# One process of ours, whose own are cheap: this is what an iteration costs beside the agent's work.
_CHECKPOINT = f"""{_TREE}
message=$1 reference=$2
shift 2
commit=$(git commit-tree "$tree" "$@" -m "$message")
git update-ref "$reference" "$commit"
echo "$tree $commit"
"""
_EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"


class Escape(Exception):
    """The workspace is not within the workspace root, or its repository is not within the workspace."""


class GitFailed(Exception):
    """git could not do what it was asked."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The contents of a workspace: the commit that keeps them, and their tree, which is equal for equal contents."""

    commit: str
    tree: str


class Workspace:
    """A task's workspace."""

    def __init__(self, root: Path, name: str, task_id: str) -> None:
        """Describe it; nothing is touched yet."""
        self.root = root
        self.path = root / name
        self.task_id = task_id
        self._index = self.path / ".git" / "aistack-index"
        self._own_index = {"GIT_INDEX_FILE": str(self._index)}
        self._process: subprocess.Popen[bytes] | None = None
        self._aborted = False

    def abort(self) -> None:
        """End whatever git does there now, from another thread; nothing can be done with this object any more."""
        self._aborted = True
        if (process := self._process) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def prepare(self) -> None:
        """Make it, with a repository, if it is not there; and remove what a Ralph that was killed left.

        Raises:
            Escape: it, or its repository, leads out of the workspace root.
            GitFailed, OSError: it cannot be made.
        """
        self.check()
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / ".git").exists():
            self._git("init", "--quiet", "--initial-branch=main", repository=False)
        self.check()
        # Nobody else has this index.
        self._index.with_suffix(".lock").unlink(missing_ok=True)

    def check(self) -> None:
        """See that it is where it says. Raises Escape."""
        root = self.root.resolve()
        found = self.path.resolve()
        if found == root or not found.is_relative_to(root):
            raise Escape(f"the workspace {self.path.relative_to(self.root)} leads out of {self.root}")
        # A link on the way to another task's workspace is inside the root, and still not this one.
        if found != root / self.path.relative_to(self.root):
            raise Escape(f"the workspace {self.path.relative_to(self.root)} is a link to another folder")
        repository = self.path / ".git"
        if repository.is_symlink() or (repository.exists() and not repository.is_dir()):
            raise Escape(f"the repository of the workspace {self.path.relative_to(self.root)} is not within it")

    def checkpoint(self, name: str) -> Checkpoint:
        """Keep the present contents under refs/aistack/<task>/<name>. Raises Escape, GitFailed."""
        self.check()
        message = f"{name} of task {self.task_id}\n\nHEAD: {self._branch()}"
        head = self._head()
        parents = () if head is None else ("-p", head)
        arguments = [message, f"refs/aistack/{self.task_id}/{name}", *parents]
        kept = self._run(["sh", "-euc", _CHECKPOINT, "sh", *arguments], "the checkpoint", environment=self._own_index)
        tree, _, commit = kept.partition(" ")
        return Checkpoint(commit=commit, tree=tree)

    def tree(self) -> str:
        """The tree of the present contents. Raises GitFailed."""
        return self._run(["sh", "-euc", _TREE + 'echo "$tree"', "sh"], "git write-tree", environment=self._own_index)

    def restore(self, commit: str) -> None:
        """Make files, branch and index what they were at a checkpoint. What git ignores stays as it is.

        Only to be called while nobody else works there. Raises Escape, GitFailed.
        """
        self.check()
        self.unlock()
        message = self._git("log", "-1", "--format=%B", commit)
        branch = message.partition("HEAD: ")[2].strip()
        parents = self._git("log", "-1", "--format=%P", commit)
        tree = self._git("rev-parse", f"{commit}^{{tree}}")
        self._git("read-tree", "--reset", "-u", tree)
        self._git("clean", "-d", "--force", "--force", "--quiet", "--exclude=.aider*")
        if branch:
            self._git("symbolic-ref", "HEAD", branch)
        if parents and branch:
            self._git("update-ref", branch, parents)
        elif parents:
            self._git("update-ref", "--no-deref", "HEAD", parents)
        elif branch:
            # There was no commit yet.
            self._git("update-ref", "-d", branch, accepted=(0, 1))
        self._git("read-tree", "--reset", parents or _EMPTY_TREE)

    def unlock(self) -> None:
        """Remove what a git that was killed left. Only to be called while nobody else works there."""
        repository = self.path / ".git"
        left = [repository / lock for lock in ("index.lock", "HEAD.lock")]
        for lock in (*left, *(repository / "refs").rglob("*.lock")):
            lock.unlink(missing_ok=True)

    def _head(self) -> str | None:
        """The commit that HEAD names. The usual case is read here: each git process costs milliseconds."""
        branch = self._branch()
        repository = self.path / ".git"
        if branch:
            try:
                found = (repository / branch).read_text(encoding="ascii").strip()
            except FileNotFoundError:
                if not (repository / "packed-refs").exists() and (repository / "refs" / "heads").is_dir():
                    return None
            except (OSError, UnicodeDecodeError):
                pass
            else:
                if _HASH.fullmatch(found):
                    return found
        return self._git("rev-parse", "--verify", "--quiet", "HEAD^{commit}", accepted=(0, 1, 128)) or None

    def _branch(self) -> str:
        """The branch that HEAD names, empty if it names a commit."""
        reference, _, branch = (self.path / ".git" / "HEAD").read_text(encoding="utf-8").strip().partition("ref: ")
        if not reference and not branch.endswith(".invalid"):
            return branch
        # A commit, or a repository that keeps its references otherwise.
        return self._git("symbolic-ref", "--quiet", "HEAD", accepted=(0, 1, 128))

    def _git(self, *arguments: str, accepted: Sequence[int] = (0,), repository: bool = True) -> str:
        return self._run(["git", *arguments], f"git {arguments[0]}", accepted=accepted, repository=repository)

    def _run(
        self,
        command: Sequence[str],
        what: str,
        *,
        environment: dict[str, str] | None = None,
        accepted: Sequence[int] = (0,),
        repository: bool = True,
    ) -> str:
        """What git prints. It sees this repository and no other, runs nothing of its configuration, and is bounded."""
        where = {"GIT_DIR": str(self.path / ".git"), "GIT_WORK_TREE": str(self.path)} if repository else {}
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as complaints:
            process = subprocess.Popen(
                command,
                cwd=self.path,
                env={
                    "PATH": os.environ.get("PATH", os.defpath),
                    "HOME": "/nonexistent",
                    "LC_ALL": "C",
                    "GIT_CONFIG_NOSYSTEM": "1",
                    "GIT_CONFIG_GLOBAL": os.devnull,
                    "GIT_TERMINAL_PROMPT": "0",
                    "GIT_AUTHOR_NAME": "ralph-wiggum",
                    "GIT_AUTHOR_EMAIL": "ralph-wiggum@localhost",
                    "GIT_COMMITTER_NAME": "ralph-wiggum",
                    "GIT_COMMITTER_EMAIL": "ralph-wiggum@localhost",
                    **_SETTINGS,
                    **where,
                    **(environment or {}),
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=complaints,
                start_new_session=True,
            )
            self._process = process
            try:
                if self._aborted:
                    self.abort()
                code = _wait(process, _PATIENCE)
            except subprocess.TimeoutExpired:
                self.abort()
                process.wait()
                raise GitFailed(f"{what} did not end within {_PATIENCE:g} s in {self.path}") from None
            finally:
                self._process = None
            output.seek(0)
            if code not in accepted:
                complaints.seek(0)
                why = complaints.read(2000).decode(errors="replace").strip()
                raise GitFailed(f"{what} failed in {self.path}: {why}")
            return output.read().decode(errors="replace").strip()


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int:
    """As `process.wait`, which looks whether a process has ended only after 0.5, 1.5, 3.5 ms and so on.

    Raises subprocess.TimeoutExpired.
    """
    descriptor = os.pidfd_open(process.pid)
    try:
        ended = select.poll()
        ended.register(descriptor, select.POLLIN)
        return process.wait(0 if not ended.poll(seconds * 1000) else None)
    finally:
        os.close(descriptor)
