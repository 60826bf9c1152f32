"""The parts of aider-wrapper that need no aider: repositories, paths, prompts and records."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fastapi", reason="the packages of the group `services` are not installed")

import serving
from stand_in_forks import StandInForks

from aistack.services.aider_wrapper import app as aider_app
from aistack.services.aider_wrapper import prompt, workspaces
from aistack.services.aider_wrapper.records import Record, Records
from aistack.services.aider_wrapper.repository import KEPT_REFS, Busy, Checkpoint, Repository, write_git_config
from aistack.services.aider_wrapper.schema import ExecuteRequest, ExecuteResult
from aistack.services.aider_wrapper.settings import Settings
from aistack.services.common import ServiceError

if TYPE_CHECKING:
    from pathlib import Path

    import httpx
    from fastapi import FastAPI


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository without a commit."""
    write_git_config(tmp_path / "gitconfig")
    path = tmp_path / "w"
    path.mkdir()
    made = Repository(path, tmp_path / "gitconfig")
    made.prepare()
    return made


def git(repository: Repository, *arguments: str) -> str:
    identity = ("-c", "user.name=someone", "-c", "user.email=someone@localhost")
    done = subprocess.run(
        ["git", "-C", repository.path, *identity, *arguments],  # noqa: S607
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def commit(repository: Repository, name: str, text: str) -> str:
    (repository.path / name).write_text(text)
    git(repository, "add", name)
    git(repository, "commit", "--quiet", f"--message={name}")
    return git(repository, "rev-parse", "HEAD")


# --- repositories ----------------------------------------------------------------------------------


def test_changes_are_those_since_the_checkpoint_and_no_others(repository: Repository) -> None:
    commit(repository, "old", "1")
    (repository.path / "dirty").write_text("was there")
    before = repository.checkpoint("r")
    assert repository.changes(before).files == []
    one = commit(repository, "one", "1")
    two = commit(repository, "old", "2")
    (repository.path / "not committed ü").write_text("x")
    changes = repository.changes(before)
    assert changes.files == ["not committed ü", "old", "one"]
    assert changes.commits == [one, two]


def test_changes_of_a_repository_without_a_commit(repository: Repository) -> None:
    before = repository.checkpoint("r")
    one = commit(repository, "one", "1")
    assert repository.changes(before).commits == [one]


@pytest.mark.parametrize("first", [True, False], ids=["with a commit", "without a commit"])
def test_restoring_puts_back_all_but_what_git_ignores(repository: Repository, *, first: bool) -> None:
    head = None
    if first:
        head = commit(repository, "old", "1")
        (repository.path / "old").write_text("changed and not committed")
    (repository.path / "untracked").write_text("was there")
    (repository.path / ".git/info/exclude").write_text("ignored\n")
    (repository.path / "ignored").write_text("kept")
    status = git(repository, "status", "--porcelain")
    before = repository.checkpoint("r")

    (repository.path / "untracked").unlink()
    (repository.path / "folder").mkdir()
    (repository.path / "folder/new").write_text("new")
    commit(repository, "one", "1")
    git(repository, "checkout", "--quiet", "-b", "elsewhere")
    (repository.path / "ignored").write_text("kept all the same")
    (repository.path / ".git/index.lock").write_text("")
    repository.restore(before)

    assert git(repository, "status", "--porcelain") == status
    assert git(repository, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert (repository.path / "untracked").read_text() == "was there"
    assert (repository.path / "ignored").read_text() == "kept all the same"
    assert not (repository.path / "folder").exists()
    if head is not None:
        assert git(repository, "rev-parse", "HEAD") == head
        assert (repository.path / "old").read_text() == "changed and not committed"
    undone = git(repository, "ls-tree", "-r", "--name-only", "refs/aistack/aider-wrapper/undone/r").splitlines()
    assert {"one", "folder/new"} <= set(undone)


def test_a_head_that_names_a_commit_is_put_back(repository: Repository) -> None:
    commit(repository, "old", "1")
    git(repository, "checkout", "--quiet", "--detach")
    before = repository.checkpoint("r")
    commit(repository, "one", "1")
    repository.restore(before)
    assert (repository.path / ".git/HEAD").read_text().strip() == before.head


def test_only_so_many_undone_runs_are_kept(repository: Repository) -> None:
    commit(repository, "old", "1")
    for number in range(KEPT_REFS + 2):
        before = repository.checkpoint(f"r{number}")
        (repository.path / "x").write_text(str(number))
        repository.restore(before)
    assert len(git(repository, "for-each-ref", "refs/aistack/aider-wrapper/undone").splitlines()) == KEPT_REFS


def test_a_repository_is_locked_for_one(repository: Repository) -> None:
    with repository.locked(), pytest.raises(Busy), repository.locked():
        pass
    with repository.locked():
        pass


def test_what_a_repository_is_configured_to_run_is_not_run(repository: Repository) -> None:
    ran = repository.path.parent / "ran"
    hook = repository.path / ".git/hooks/reference-transaction"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {ran}\n")
    hook.chmod(0o755)
    git(repository, "config", "core.fsmonitor", str(hook))
    repository.changes(repository.checkpoint("r"))
    assert not ran.exists()


# --- paths -----------------------------------------------------------------------------------------


def refused(error: pytest.ExceptionInfo[ServiceError]) -> tuple[int, str]:
    return error.value.status_code, error.value.body["kind"]


@pytest.mark.parametrize("name", ["..", "/", "/etc", "../../etc", "a/../..", "link", "w/.git", "w/.GIT"])
def test_workspaces_outside_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "root/w/.git").mkdir(parents=True)
    (tmp_path / "root/w/.GIT").mkdir(parents=True)
    (tmp_path / "root/link").symlink_to("/etc")
    with pytest.raises(ServiceError) as error:
        workspaces.workspace(tmp_path / "root", name)
    assert refused(error) == (403, "outside-workspace")


@pytest.mark.parametrize("name", ["nowhere", "x" * 400, "circle", "file"])
def test_workspaces_that_are_no_folders_are_not_found(tmp_path: Path, name: str) -> None:
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError) as error:
        workspaces.workspace(tmp_path, name)
    assert refused(error) == (404, "no-workspace")


def test_a_workspace_may_be_named_either_way(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    assert workspaces.workspace(tmp_path, "a/b") == workspaces.workspace(tmp_path, f"{tmp_path}/a/b")
    assert workspaces.workspace(tmp_path, None) == tmp_path / "default"


@pytest.mark.parametrize("name", ["..", ".", "/etc/passwd", "link/x", ".git/config", "a/.Git/x", "circle"])
def test_files_outside_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to("/etc")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(ServiceError) as error:
        workspaces.files(tmp_path, [name])
    assert refused(error) == (403, "outside-workspace")


def test_files_are_named_relative_to_the_workspace(tmp_path: Path) -> None:
    assert workspaces.files(tmp_path, ["a", f"{tmp_path}/b/../c"]) == ["a", "c"]


# --- prompts ---------------------------------------------------------------------------------------


def test_the_subject_is_one_printable_line_that_fits() -> None:
    request = ExecuteRequest(prompt=f"  Add\n\x1b[31m an adder\u202e {'x' * 100}")
    subject = prompt.subject(request)
    assert subject.startswith("aider: Add [31m an adder xxx")
    assert len(subject) <= len("aider: ") + prompt.SUBJECT_LENGTH
    assert prompt.subject(ExecuteRequest(prompt="\x1b")) == "aider"


def test_the_first_attempt_is_the_prompt_alone() -> None:
    assert prompt.compose(ExecuteRequest(prompt="Do it.")) == "Do it."


# --- records ---------------------------------------------------------------------------------------


def record(key: str, **members: object) -> Record:
    before = Checkpoint(run="r", tree="t", head=None, branch="refs/heads/main")
    base = {"key": key, "fingerprint": "f", "workspace": "/w", "state": "running", "before": before}
    return Record.model_validate({**base, **members})


def result(**members: object) -> ExecuteResult:
    base = {
        "exit_code": 0,
        "output": "",
        "completed": True,
        "error": None,
        "error_kind": None,
        "files_modified": [],
        "git_commits": [],
        "duration_seconds": 1.0,
        "tokens": 1,
    }
    return ExecuteResult.model_validate({**base, **members})


def test_a_record_is_there_for_whoever_starts_next(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.put(record("a/../b"))
    records.put(record("c", state="finished", result=result()))
    (tmp_path / "left.new").write_text("{")
    again = Records(tmp_path)
    assert [found.key for found in again.running()] == ["a/../b"]
    found = again.get("c")
    assert found is not None
    assert found.result == result()
    assert again.get("d") is None
    assert not list(tmp_path.glob("*.new"))


def test_a_record_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.put(record("a"))
    next(tmp_path.glob("*.json")).write_text("{")
    assert records.get("a") is None
    assert records.running() == []


@pytest.mark.parametrize(
    ("kind", "stands"), [(None, True), ("agent", True), ("infrastructure", False), ("limit", False), ("policy", False)]
)
def test_only_what_counts_stands_for_whoever_asks_again(kind: str | None, *, stands: bool) -> None:
    assert record("a", state="finished", result=result(error_kind=kind)).stands is stands


def test_the_oldest_records_go_and_none_that_is_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aistack.services.aider_wrapper.records.KEPT", 2)
    records = Records(tmp_path)
    for number, state in enumerate(["running", "cancelled", "cancelled", "cancelled"]):
        records.put(record(str(number), state=state))
    records.prune()
    assert [records.get(str(number)) is not None for number in range(4)] == [True, False, True, True]


# --- executions ------------------------------------------------------------------------------------


@pytest.fixture
def app(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """The application over the repository's folder, with a stand-in for aider."""
    monkeypatch.setattr(aider_app, "Forks", StandInForks)
    root = repository.path.parent
    return aider_app.make(Settings(workspace_root=root, state_dir=root / "state"))


def execute(app: FastAPI, key: str) -> httpx.Response:
    body = {"prompt": "do it", "workspace": "w"}
    return serving.ask(app, "POST", "/api/execute", json=body, headers={"Idempotency-Key": key})


def test_a_workspace_that_could_not_be_put_back_is_put_back_before_the_next_run(
    repository: Repository, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(repository, "old", "1")
    away = repository.path.parent / "away"

    def fail(workspace: Path) -> str:
        (workspace / "half").write_text("half")
        (workspace / ".git/objects").rename(away)
        return "infrastructure"

    monkeypatch.setattr(StandInForks, "work", staticmethod(fail))
    answer = execute(app, "one").json()
    assert answer["error"] == "as the test says: infrastructure; the workspace could not be put back"
    assert (repository.path / "half").exists()

    monkeypatch.setattr(StandInForks, "work", staticmethod(lambda _: None))
    refused = execute(app, "two")
    assert (refused.status_code, refused.json()["kind"]) == (503, "workspace-unusable")

    shutil.rmtree(repository.path / ".git/objects", ignore_errors=True)
    away.rename(repository.path / ".git/objects")
    assert execute(app, "two").json()["files_modified"] == []
    assert not (repository.path / "half").exists()
    assert serving.ask(app, "GET", "/api/execute/one").json()["state"] == "cancelled"


def test_an_end_that_cannot_be_written_down_is_no_end(
    repository: Repository, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(repository, "old", "1")
    records = repository.path.parent / "state/executions"

    def work(workspace: Path) -> None:
        (workspace / "new").write_text("new")
        # Stands in for a full disk.
        records.rename(records.with_name("away"))
        records.write_text("")

    monkeypatch.setattr(StandInForks, "work", staticmethod(work))
    assert execute(app, "one").status_code == 503
    records.unlink()
    records.with_name("away").rename(records)

    monkeypatch.setattr(StandInForks, "work", staticmethod(lambda _: None))
    assert serving.ask(app, "GET", "/api/execute/one").json() == {"state": "cancelled", "result": None}
    again = execute(app, "one").json()
    assert (again["completed"], again["files_modified"]) == (True, [])
    assert not (repository.path / "new").exists()


@pytest.mark.parametrize(("kind", "left"), [(None, True), ("agent", True), ("infrastructure", False), ("limit", False)])
def test_only_a_run_that_counts_leaves_what_it_did(
    repository: Repository, app: FastAPI, monkeypatch: pytest.MonkeyPatch, kind: str | None, *, left: bool
) -> None:
    def work(workspace: Path) -> str | None:
        (workspace / "new").write_text("new")
        return kind

    monkeypatch.setattr(StandInForks, "work", staticmethod(work))
    answer = execute(app, "one").json()
    assert answer["files_modified"] == (["new"] if left else [])
    assert (repository.path / "new").exists() is left
