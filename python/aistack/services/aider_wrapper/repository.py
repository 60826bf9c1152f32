"""The git repository of a workspace: its state before a run, what the run changed, and the way back.

A checkpoint is a commit under `refs/aistack/aider-wrapper/`, made with an index of its own: it holds every file that
git does not ignore, and neither the branch, the index nor the files are touched.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GIT_SECONDS = 60.0
"""For one command, in a large repository on a slow disk."""
REFS = "refs/aistack/aider-wrapper"
KEPT_REFS = 20
"""Runs that were undone, and are kept under REFS."""
IDENTITY = "aider-wrapper"

HARMLESS = {
    # Whatever a repository is configured to run: nobody looked at it.
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.pager": "cat",
    "commit.gpgSign": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    # It belongs to whoever made it: another service, another user.
    "safe.directory": "*",
    "core.quotePath": "false",
    "advice.addEmbeddedRepo": "false",
}


class GitFailed(Exception):
    """A git command failed, or did not end."""


class Busy(Exception):
    """Another run works in this workspace."""


class Checkpoint(BaseModel):
    """A workspace before a run.

    Attributes:
        run: the run's id.
        tree: the tree of all its files.
        head: the commit of HEAD; None if there is none yet.
        branch: the branch that HEAD names; None if it names a commit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    tree: str
    head: str | None
    branch: str | None


@dataclass(frozen=True)
class Changes:
    """What a run left: files relative to the workspace, and new commits, the oldest first."""

    files: list[str]
    commits: list[str]


def environment(git_config: Path) -> dict[str, str]:
    """Return the environment in which git, and aider, run nothing that a repository is configured to run.

    `git_config` names who commits where the repository does not say.
    """
    keys = {f"GIT_CONFIG_KEY_{number}": key for number, key in enumerate(HARMLESS)}
    values = {f"GIT_CONFIG_VALUE_{number}": value for number, value in enumerate(HARMLESS.values())}
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": str(git_config),
        "GIT_CONFIG_COUNT": str(len(HARMLESS)),
        "GIT_TERMINAL_PROMPT": "0",
        **keys,
        **values,
    }


def write_git_config(path: Path) -> None:
    """Write who commits where a repository does not say."""
    text = f"[user]\n\tname = {IDENTITY}\n\temail = {IDENTITY}@localhost\n[init]\n\tdefaultBranch = main\n"
    path.write_text(text, encoding="utf-8")


class Repository:
    """The repository of the workspace `path`."""

    def __init__(self, path: Path, git_config: Path) -> None:
        self.path = path
        self.directory = path / ".git"
        self._environment = {
            **environment(git_config),
            "GIT_DIR": str(self.directory),
            "GIT_WORK_TREE": str(path),
            "HOME": "/nonexistent",
        }

    def prepare(self) -> None:
        """Make a repository where there is none. Raises GitFailed."""
        if not self.directory.exists():
            self._git("init", "--quiet", "--initial-branch=main")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other run away, of whichever process.

        Raises:
            Busy: there is one.
        """
        descriptor = os.open(self.directory / "aider-wrapper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy from None
            yield
        finally:
            os.close(descriptor)

    def checkpoint(self, run: str) -> Checkpoint:
        """Remember the present state. Raises GitFailed."""
        self._unlock()
        tree = self.tree()
        head = self._git("rev-parse", "--verify", "--quiet", "HEAD^{commit}", accepted=(0, 1, 128)) or None
        branch = self._git("symbolic-ref", "--quiet", "HEAD", accepted=(0, 1)) or None
        # Referred to, so that no collection takes it away; there is one at a time.
        self._keep("before", tree, head)
        return Checkpoint(run=run, tree=tree, head=head, branch=branch)

    def tree(self) -> str:
        """Return the tree of all files. Raises GitFailed."""
        index = {"GIT_INDEX_FILE": str(self.directory / "aider-wrapper-index")}
        # What cannot be added (a repository in this one without a commit, a file nobody may read) is left out.
        self._git("add", "--all", "--ignore-errors", "--", ".", extra=index, accepted=(0, 1, 128))
        return self._git("write-tree", extra=index)

    def changes(self, before: Checkpoint) -> Changes:
        """Return what has changed since. Raises GitFailed."""
        after = self.tree()
        names = self._git("diff-tree", "-r", "-z", "--name-only", "--no-renames", before.tree, after)
        head = self._git("rev-parse", "--verify", "--quiet", "HEAD^{commit}", accepted=(0, 1, 128))
        commits = ""
        if head and head != before.head:
            since = () if before.head is None else (f"^{before.head}",)
            commits = self._git("rev-list", "--reverse", "--topo-order", head, *since)
        return Changes(files=[name for name in names.split("\0") if name], commits=commits.split())

    def restore(self, before: Checkpoint) -> None:
        """Put everything back, and keep what the run had done under REFS/undone/<run>. Raises GitFailed.

        What git ignores stays as it is. Only to be called when nobody works there any more.
        """
        self._unlock()
        after = self.tree()
        head = self._git("rev-parse", "--verify", "--quiet", "HEAD^{commit}", accepted=(0, 1, 128)) or None
        if (after, head) != (before.tree, before.head):
            self._keep(f"undone/{before.run}", after, head)
            self._git("read-tree", "--reset", "-u", before.tree)
            self._git("clean", "-d", "--force", "--force", "--quiet")
            if before.branch is not None:
                self._git("symbolic-ref", "HEAD", before.branch)
            if before.head is not None:
                self._git("update-ref", *([] if before.branch else ["--no-deref"]), "HEAD", before.head)
            elif before.branch is not None:
                self._git("update-ref", "-d", before.branch, accepted=(0, 1))
            if before.head is None:
                self._git("read-tree", "--empty")
            else:
                self._git("read-tree", "--reset", before.head)
            self._prune()

    def _keep(self, name: str, tree: str, head: str | None) -> None:
        parents = () if head is None else ("-p", head)
        commit = self._git("commit-tree", tree, *parents, "-m", f"aider-wrapper: {name}")
        self._git("update-ref", f"{REFS}/{name}", commit)

    def _prune(self) -> None:
        """Let go of the oldest runs that were undone."""
        shown = self._git("for-each-ref", "--sort=-committerdate", "--format=%(refname)", f"{REFS}/undone/")
        for name in shown.splitlines()[KEPT_REFS:]:
            self._git("update-ref", "-d", name)

    def _unlock(self) -> None:
        """Remove what a git that was killed left."""
        for lock in ("index.lock", "HEAD.lock", "config.lock", "packed-refs.lock", "aider-wrapper-index.lock"):
            (self.directory / lock).unlink(missing_ok=True)
        for left in (self.directory / "refs").rglob("*.lock"):
            left.unlink(missing_ok=True)

    def _git(self, *arguments: str, extra: dict[str, str] | None = None, accepted: tuple[int, ...] = (0,)) -> str:
        """Return what a git command prints."""
        process = subprocess.Popen(
            ["git", *arguments],  # noqa: S607 (found in the PATH of the image)
            cwd=self.path,
            env={
                **self._environment,
                "GIT_AUTHOR_NAME": IDENTITY,
                "GIT_AUTHOR_EMAIL": f"{IDENTITY}@localhost",
                "GIT_COMMITTER_NAME": IDENTITY,
                "GIT_COMMITTER_EMAIL": f"{IDENTITY}@localhost",
                **(extra or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )
        with process:
            try:
                output, complaints = process.communicate(timeout=GIT_SECONDS)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise GitFailed(f"git {arguments[0]} did not end within {GIT_SECONDS:g} s") from None
        if process.returncode not in accepted:
            why = complaints.decode(errors="replace").strip().splitlines()
            raise GitFailed(f"git {arguments[0]} failed: {why[-1] if why else f'exit code {process.returncode}'}")
        return output.decode(errors="surrogateescape").removesuffix("\n")
