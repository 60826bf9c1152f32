"""Workspaces with real git: checkpoints that touch nothing, restores that bring everything back, and no way out.

And verify commands, which run there.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from aistack.services.ralph_wiggum import verify
from aistack.services.ralph_wiggum.workspace import Escape, GitFailed, Workspace


def git(folder: Path, *arguments: str) -> str:
    """What an agent's own git says."""
    who = ["-c", "user.name=agent", "-c", "user.email=agent@localhost"]
    command = ["git", *who, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A prepared workspace."""
    made = Workspace(tmp_path, "project", "task-1")
    made.prepare()
    return made


def test_a_new_workspace_is_an_empty_repository(workspace: Workspace) -> None:
    assert git(workspace.path, "status", "--porcelain") == ""
    assert git(workspace.path, "symbolic-ref", "HEAD") == "refs/heads/main"


def test_one_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "trunk")
    (folder / "a").write_text("1")
    Workspace(tmp_path, "project", "t").prepare()
    assert git(folder, "symbolic-ref", "HEAD") == "refs/heads/trunk"
    assert git(folder, "status", "--porcelain") == "?? a"


def test_a_checkpoint_touches_neither_branch_nor_index_nor_files(workspace: Workspace) -> None:
    path = workspace.path
    (path / "a").write_text("1")
    git(path, "add", "a")
    git(path, "commit", "-qm", "one")
    (path / "a").write_text("2")
    git(path, "add", "a")
    (path / "a").write_text("3")
    (path / "new").write_text("4")
    before = git(path, "status", "--porcelain"), git(path, "log", "--format=%H"), git(path, "diff", "--cached")
    found = workspace.checkpoint("1.1")
    assert (
        git(path, "status", "--porcelain"),
        git(path, "log", "--format=%H"),
        git(path, "diff", "--cached"),
    ) == before
    assert git(path, "show", f"{found.commit}:a") == "3"
    assert git(path, "show", f"{found.commit}:new") == "4"
    assert git(path, "rev-parse", "refs/aistack/task-1/1.1") == found.commit


def test_equal_contents_are_equal_trees_whoever_committed_them(workspace: Workspace) -> None:
    path = workspace.path
    empty = workspace.tree()
    (path / "a").write_text("1")
    changed = workspace.tree()
    assert changed != empty
    git(path, "add", "a")
    git(path, "commit", "-qm", "one")
    assert workspace.tree() == changed
    (path / "a").unlink()
    assert workspace.tree() == empty


def test_what_git_ignores_and_the_agent_s_notes_are_no_change(workspace: Workspace) -> None:
    path = workspace.path
    (path / ".gitignore").write_text("*.pyc\n")
    before = workspace.tree()
    (path / "x.pyc").write_text("1")
    (path / ".aider.chat.history.md").write_text("words")
    (path / "sub").mkdir()
    (path / "sub" / ".aider.tags").mkdir()
    (path / "sub" / ".aider.tags" / "cache").write_text("words")
    assert workspace.tree() == before


def test_restore_brings_back_files_branch_and_commits(workspace: Workspace) -> None:
    path = workspace.path
    (path / "a").write_text("1")
    (path / "gone").write_text("x")
    git(path, "add", ".")
    git(path, "commit", "-qm", "one")
    head = git(path, "rev-parse", "HEAD")
    (path / "a").write_text("2")
    (path / "unsaved").write_text("y")
    found = workspace.checkpoint("1.1")
    # What an agent that was cut off leaves.
    git(path, "checkout", "-qb", "elsewhere")
    git(path, "rm", "-qf", "gone")
    (path / "a").write_text("half")
    (path / "junk").write_text("z")
    (path / "deep").mkdir()
    (path / "deep" / "junk").write_text("z")
    git(path, "add", ".")
    git(path, "commit", "-qm", "two")
    (path / "stray").write_text("z")
    (path / ".git" / "index.lock").write_text("")
    (path / ".git" / "refs" / "heads" / "main.lock").write_text("")
    workspace.restore(found.commit)
    assert workspace.tree() == found.tree
    assert sorted(each.name for each in path.iterdir()) == [".git", "a", "gone", "unsaved"]
    assert (path / "a").read_text() == "2"
    assert git(path, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert git(path, "rev-parse", "HEAD") == head
    assert git(path, "status", "--porcelain").split() == ["M", "a", "??", "unsaved"]


def test_restore_to_before_the_first_commit(workspace: Workspace) -> None:
    path = workspace.path
    found = workspace.checkpoint("1.1")
    (path / "a").write_text("1")
    git(path, "add", ".")
    git(path, "commit", "-qm", "one")
    workspace.restore(found.commit)
    assert not (path / "a").exists()
    assert git(path, "status", "--porcelain") == ""
    assert git(path, "for-each-ref", "refs/heads") == ""


def test_restore_with_a_detached_head(workspace: Workspace) -> None:
    path = workspace.path
    (path / "a").write_text("1")
    git(path, "add", ".")
    git(path, "commit", "-qm", "one")
    git(path, "checkout", "-q", "--detach")
    found = workspace.checkpoint("1.1")
    head = git(path, "rev-parse", "HEAD")
    (path / "a").write_text("2")
    git(path, "commit", "-qam", "two")
    workspace.restore(found.commit)
    assert git(path, "rev-parse", "HEAD") == head
    assert (path / "a").read_text() == "1"


def test_a_repository_within_and_a_file_nobody_may_read_stop_nothing(workspace: Workspace) -> None:
    path = workspace.path
    (path / "inner").mkdir()
    git(path / "inner", "init", "-q")
    (path / "a").write_text("1")
    found = workspace.checkpoint("1.1")
    assert git(path, "show", f"{found.commit}:a") == "1"


def test_what_the_agent_configures_is_not_run(workspace: Workspace) -> None:
    path = workspace.path
    trap = path.parent / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {path.parent / 'sprung'}\n")
    trap.chmod(0o755)
    git(path, "config", "core.fsmonitor", str(trap))
    for hook in ("pre-commit", "post-index-change", "reference-transaction", "post-checkout"):
        (path / ".git" / "hooks").mkdir(exist_ok=True)
        (path / ".git" / "hooks" / hook).symlink_to(trap)
    (path / "a").write_text("1")
    found = workspace.checkpoint("1.1")
    workspace.restore(found.commit)
    assert not (path.parent / "sprung").exists()


# --- ways out --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../outside", "..", ".", "a/../../outside"])
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(Escape):
        Workspace(root, name, "t").prepare()
    assert [each.name for each in tmp_path.iterdir()] == ["root"]


@pytest.mark.parametrize("place", ["link", "link/below"])
def test_a_link_that_leads_out_is_refused(tmp_path: Path, place: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "link").symlink_to(outside)
    with pytest.raises(Escape):
        Workspace(root, place, "t").prepare()
    assert not list(outside.iterdir())


def test_a_link_to_another_workspace_is_refused(tmp_path: Path) -> None:
    Workspace(tmp_path, "other", "t").prepare()
    (tmp_path / "link").symlink_to(tmp_path / "other")
    with pytest.raises(Escape):
        Workspace(tmp_path, "link", "t").prepare()


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_repository_elsewhere_is_refused(workspace: Workspace, tmp_path: Path, kind: str) -> None:
    path = workspace.path
    (path / ".git").rename(tmp_path / "elsewhere")
    if kind == "link":
        (path / ".git").symlink_to(tmp_path / "elsewhere")
    else:
        (path / ".git").write_text(f"gitdir: {tmp_path / 'elsewhere'}\n")
    for act in (workspace.prepare, lambda: workspace.checkpoint("1.1"), lambda: workspace.restore("HEAD")):
        with pytest.raises(Escape):
            act()


def test_a_link_within_is_kept_as_a_link(workspace: Workspace) -> None:
    (workspace.path / "etc").symlink_to("/etc")
    found = workspace.checkpoint("1.1")
    assert git(workspace.path, "ls-tree", found.commit).startswith("120000 blob")
    workspace.restore(found.commit)
    assert (workspace.path / "etc").is_symlink()


def test_an_aborted_workspace_does_nothing_any_more(workspace: Workspace) -> None:
    workspace.abort()
    with pytest.raises(GitFailed):
        workspace.checkpoint("1.1")


def test_a_broken_repository_is_said(workspace: Workspace) -> None:
    (workspace.path / ".git" / "HEAD").write_text("nonsense\n")
    with pytest.raises(GitFailed, match="checkpoint failed in"):
        workspace.checkpoint("1.1")


# --- verify commands -------------------------------------------------------------------------------------------------


def run(folder: Path, *commands: str, seconds: float = 60.0) -> list[dict[str, Any]]:
    """What they come to."""
    return asyncio.run(verify.run_all(commands, folder, seconds=seconds))


def test_commands_run_in_the_workspace_until_one_fails(tmp_path: Path) -> None:
    found = run(tmp_path, "pwd", "echo out; echo err >&2; exit 3", "touch never")
    assert [(each["ok"], each["exit_code"]) for each in found] == [(True, 0), (False, 3)]
    assert found[0]["output"] == f"{tmp_path}\n"
    assert found[1]["output"] == "out\nerr\n"
    assert not (tmp_path / "never").exists()


def test_a_command_sees_nothing_of_ralph_s_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RALPH_WIGGUM_API_KEY_FILE", "/run/secrets/key")
    (found,) = run(tmp_path, "env; cat")
    assert "RALPH" not in found["output"]
    assert found["ok"]


def test_a_command_that_does_not_end_is_stopped_with_all_it_began(tmp_path: Path) -> None:
    (found,) = run(tmp_path, "sleep 1000 & echo $! > pid; sleep 1000", seconds=1.0)
    assert not found["ok"]
    assert found["exit_code"] is None
    assert "stopped after 1 s" in found["output"]
    gone(int((tmp_path / "pid").read_text()))


def test_what_a_command_leaves_in_the_background_ends_with_it(tmp_path: Path) -> None:
    began = time.monotonic()
    (found,) = run(tmp_path, "sleep 1000 & echo $! > pid; echo done")
    assert found["ok"]
    assert found["output"] == "done\n"
    assert time.monotonic() - began < 30
    gone(int((tmp_path / "pid").read_text()))


def gone(pid: int) -> None:
    """Wait until a process has ended."""
    deadline = time.monotonic() + 10
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        assert time.monotonic() < deadline, f"{pid} still runs"
        time.sleep(0.01)


def test_only_the_end_of_a_long_output_is_kept(tmp_path: Path) -> None:
    (found,) = run(tmp_path, "yes 0123456789 | head -c 10000000; echo; printf 'the \\000end'")
    assert found["ok"]
    assert len(found["output"]) <= verify.KEPT
    assert found["output"].endswith("the \ufffdend")


def test_a_cancelled_command_is_killed(tmp_path: Path) -> None:
    async def go() -> None:
        work = asyncio.create_task(verify.run_all(["echo $$ > pid; sleep 1000"], tmp_path, seconds=60))
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():  # noqa: ASYNC110  (a file)
            await asyncio.sleep(0.01)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(go())
    gone(int((tmp_path / "pid").read_text()))
