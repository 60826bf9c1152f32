"""`aistack deploy`, `recover`, `lock`, `validate`, `preswitch` and `metrics`, as far as they touch nothing or refuse.

What a deployment does goes on in test_deploy_killed.py and in the scenarios.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fakehost
import pytest

from aistack.hooks import deploy_lock, deploys
from aistack.hooks.deploys import DEPLOYED, ROLLED_BACK, Deploys
from aistack.hooks.manifest import load
from aistack.hooks.releases import Store

ROOT = Path(__file__).parents[2]
# Among the tests' own programs, which need not be in the PATH.
PRE_COMMIT = shutil.which("pre-commit", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def app(host: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch) -> fakehost.FakeHost:
    """A host whose app serves release 1, which is good."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    host.declare({"app": fakehost.service("app"), "far": fakehost.external(1)})
    host.release("app", 1, "good")
    host.unit("app", "active")
    host.verdict("app", phase="ready", release=1)
    host.images(fakehost.image(1))
    return host


def attempt(host: fakehost.FakeHost, outcome: str | None = None) -> None:
    """Record a deployment: one that ended, or one that was cut off."""
    store = Store.open(str(host.journal_path))
    found = Deploys(store).begin("app", "local/new:2", "restart")
    if outcome is not None:
        Deploys(store).end(found, outcome, 0, "", spent=2.0)
    store.close()


def touched(host: fakehost.FakeHost) -> list[str]:
    """The calls that change something."""
    reading = (
        "podman image list",
        "podman image inspect",
        "podman container inspect",
        "podman ps",
        "podman network ls",
    )
    return [call for call in host.calls() if not call.startswith((*reading, "systemctl show", "journalctl"))]


# --- deploy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("deploy",), "Missing argument 'SVC'"),
        (("deploy", "app"), "say what to deploy: --image REF or --build DIR, and not both"),
        (("deploy", "app", "--image", "x", "--build", "."), "say what to deploy"),
        (("deploy", "apps", "--image", "x"), "apps"),
        (("deploy", "far", "--image", "x"), "far"),
        (("deploy", "app", "--image", "x", "--wait", "soon"), "'soon' is no time span (300, 300s, 5m, 1h)"),
        (("deploy", "app", "--build", "/nowhere", "--dry-run"), "/nowhere is not a directory"),
        (("deploy", "app", "--image", "x", "--no-test"), "add --yes to go ahead"),
        (("validate",), "say what to check: paths, or --staged"),
        (("metrics", "apps"), "apps"),
        (("lock", "steal"), "No such command 'steal'"),
        (("preswitch",), "Missing argument 'SYSTEM'"),
        (("recover", "app"), "unexpected extra argument"),
    ],
)
def test_what_makes_no_sense_is_code_2_and_touches_nothing(
    app: fakehost.FakeHost, words: tuple[str, ...], said: str
) -> None:
    answer = app.run(*words)
    assert answer.code == 2, answer
    assert said in answer.err
    assert answer.out == ""
    assert touched(app) == []
    store = Store.open(str(app.journal_path))
    assert Deploys(store).history() == []
    store.close()


@pytest.mark.parametrize("span", ["5m", "300", "300s", "5min", "0.5h"])
def test_time_spans(app: fakehost.FakeHost, span: str) -> None:
    assert app.run("deploy", "app", "--image", "x", "--wait", span, "--dry-run").code == 0


def test_a_dry_run_says_what_and_does_nothing(app: fakehost.FakeHost) -> None:
    answer = app.run("deploy", "app", "--image", "local/new:2", "--dry-run")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert lines[0] == "1. take local/new:2"
    assert lines[1].startswith("2. validate it; not tested: it has no probe")
    assert lines[2].startswith("3. switch podman-aistack-app.service from release 1 ")
    assert lines[2].endswith("by restart, verify it")
    assert lines[3].startswith("4. keep it if it stays healthy for 60 s, else go back")
    document = app.run("deploy", "app", "--image", "local/new:2", "--dry-run", "--json").json
    assert (document["schema_version"], document["dry_run"], len(document["plan"])) == (1, True, 4)
    assert touched(app) == []
    assert deploy_lock.holder(load()) is None


def test_while_another_one_is_under_way_it_is_code_4(app: fakehost.FakeHost) -> None:
    with deploy_lock.acquire(load(), "aistack deploy db"):
        answer = app.run("deploy", "app", "--image", "local/new:2", "--json")
    assert answer.code == 4
    assert answer.json["error"]["exit_code"] == 4
    assert "held by `aistack deploy db`" in answer.json["error"]["message"]
    assert touched(app) == []


def test_an_image_that_cannot_be_had_is_code_5_and_the_same_in_every_form(app: fakehost.FakeHost) -> None:
    answer = app.run("deploy", "app", "--image", "localhost/none:1")
    assert answer.code == 5
    assert answer.out == ""
    assert "app: image localhost/none:1 is not in podman's storage" in answer.err
    assert "serves" in answer.err
    document = app.run("deploy", "app", "--image", "localhost/none:1", "--json").json
    assert (document["schema_version"], document["exit_code"], document["outcome"]) == (1, 5, "refused")
    assert document["serves"]["id"] == 1
    assert (document["release"], document["unavailable_seconds"]) == (None, None)
    assert document["next"].startswith("podman images")
    lines = [
        json.loads(line) for line in app.run("deploy", "app", "--image", "localhost/none:1", "--jsonl").out.splitlines()
    ]
    assert [line["schema_version"] for line in lines] == [1] * len(lines)
    assert {line["event"] for line in lines[:-1]} == {"phase"}
    assert lines[-1]["event"] == "end"
    steps = [(line["phase"], line["status"]) for line in lines[:-1] if line["status"] != "note"]
    assert steps == [
        *(("plan", "started"), ("plan", "done"), ("lock", "started"), ("lock", "done")),
        *(("validate", "started"), ("validate", "done"), ("build", "started"), ("build", "failed")),
    ]
    assert {key for key in lines[-1] if key not in document} == set()
    store = Store.open(str(app.journal_path))
    assert [found.outcome for found in Deploys(store).history()] == ["refused"] * 3
    store.close()


def test_not_root_may_not(app: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    for words in (
        ("deploy", "app", "--image", "x"),
        ("recover",),
        ("lock", "status"),
        ("lock", "release"),
        ("metrics",),
    ):
        answer = app.run(*words)
        assert answer.code == 2, words
        assert "needs root" in answer.err
        assert "sudo aistack" in answer.err
    assert touched(app) == []


def test_not_root_may_not_before_the_first_start_either(
    host: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.declare({"app": fakehost.service("app")})
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    answer = host.run("deploy", "app", "--image", "x")
    assert (answer.code, "`aistack deploy` needs root" in answer.err) == (2, True)
    assert not host.journal_path.exists()


# --- recover and lock ------------------------------------------------------------------------------------------------


def test_recover_has_nothing_to_do(app: fakehost.FakeHost) -> None:
    answer = app.run("recover")
    assert (answer.code, answer.out) == (0, "")
    assert "no deployment was cut off: nothing to do" in answer.err
    assert app.run("recover", "--json").json == {"schema_version": 1, "recovered": []}


def test_recover_says_what_it_did(app: fakehost.FakeHost) -> None:
    attempt(app)
    document = app.run("recover", "--json").json
    stays = ", release 1 (registry.example/app:1, image 000000000000) stays"
    line = f"deployment 1 of app (local/new:2) was cut off in phase plan: nothing live was touched{stays}"
    assert document["recovered"] == [
        {
            "deployment": 1,
            "service": "app",
            "outcome": "interrupted",
            "exit_code": 130,
            "message": line,
            "serves": 1,
        }
    ]
    attempt(app)
    assert app.run("recover").out == line.replace("deployment 1", "deployment 2") + "\n"


def test_recover_leaves_a_deployment_that_lives(app: fakehost.FakeHost) -> None:
    attempt(app)
    with deploy_lock.acquire(load(), "aistack deploy app"):
        answer = app.run("recover")
    assert answer.code == 4
    assert "held by `aistack deploy app`" in answer.err


def test_the_lock_is_shown_and_not_taken_from_who_lives(app: fakehost.FakeHost) -> None:
    for words in (("lock",), ("lock", "status")):
        answer = app.run(*words)
        assert (answer.code, answer.out) == (0, "free: no deployment is under way\n")
    assert app.run("lock", "status", "--json").json == {"schema_version": 1, "held": False, "holder": None}
    with deploy_lock.acquire(load(), "aistack deploy app"):
        answer = app.run("lock", "status")
        assert answer.code == 4
        assert answer.out.startswith(f"held by `aistack deploy app` (process {os.getpid()}, for ")
        holder = app.run("lock", "status", "--json").json["holder"]
        assert (holder["pid"], holder["what"]) == (os.getpid(), "aistack deploy app")
        answer = app.run("lock", "release")
        assert answer.code == 4
        assert f"kill {os.getpid()}" in answer.err
        assert deploy_lock.holder(load()) is not None


def test_releasing_recovers_what_was_cut_off(app: fakehost.FakeHost) -> None:
    answer = app.run("lock", "release")
    assert (answer.code, answer.out) == (0, "free already: no deployment is under way, and none was cut off\n")
    attempt(app)
    answer = app.run("lock", "release")
    assert answer.code == 0
    assert "was cut off in phase plan" in answer.out
    assert app.run("lock", "release", "--json").json == {"schema_version": 1, "held": False, "recovered": []}


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_of_nothing(app: fakehost.FakeHost) -> None:
    answer = app.run("metrics")
    assert (answer.code, answer.out) == (0, "")
    assert "no deployments yet" in answer.err
    assert app.run("metrics", "--json").json["attempts"] == 0


def test_metrics_are_shown_and_written(app: fakehost.FakeHost) -> None:
    attempt(app, ROLLED_BACK)
    attempt(app, DEPLOYED)
    document = app.run("metrics", "app", "--json").json
    assert (document["service"], document["attempts"], document["changes"], document["rebuild_cycles"]) == (
        "app",
        2,
        1,
        2,
    )
    assert (document["outcomes"]["rolled-back"], document["lost_seconds"], document["median_seconds"]) == (1, 2.0, 2.0)
    assert "0 % (0 of 1)" in app.run("metrics").out
    path = app.root / "aistack.prom"
    assert app.run("metrics", "--textfile", str(path)).code == 0
    assert 'aistack_deploy_attempts_total{service="app",outcome="deployed"} 1' in path.read_text(encoding="utf-8")
    answer = app.run("metrics", "--textfile", str(app.root / "nowhere" / "x"))
    assert answer.code == 1
    assert f"cannot write {app.root}/nowhere/x" in answer.err


# --- preswitch -------------------------------------------------------------------------------------------------------


def system(host: fakehost.FakeHost, **changes: Any) -> Path:  # noqa: ANN401  (any JSON value)
    """An incoming system with this stack and changes of its app."""
    folder = host.root / "system"
    document = fakehost.manifest(host.root, {"app": fakehost.service("app", **changes)})
    (folder / "etc/aistack").mkdir(parents=True, exist_ok=True)
    (folder / "etc/aistack/stack.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def test_a_system_without_a_stack_may_be_activated(app: fakehost.FakeHost) -> None:
    assert app.run("preswitch", str(app.root / "nowhere"), "switch").code == 0
    assert app.run("preswitch", str(app.root / "nowhere"), "--json").json == {"schema_version": 1, "findings": []}


def test_what_is_not_activated_is_not_asked_about(app: fakehost.FakeHost) -> None:
    folder = system(app, image={**fakehost.service("app")["image"], "ref": "localhost/none:1"})
    for action in ("dry-activate", "check"):
        assert app.run("preswitch", str(folder), action).code == 0


def test_where_nothing_ever_served_nothing_is_tested(host: fakehost.FakeHost) -> None:
    host.declare({})
    assert host.run("preswitch", str(system(host)), "switch").code == 0
    assert not host.journal_path.exists()


def test_an_image_that_cannot_be_had_refuses_the_switch(app: fakehost.FakeHost) -> None:
    folder = system(app, image={**fakehost.service("app")["image"], "ref": "localhost/none:1"})
    answer = app.run("preswitch", str(folder), "switch", "--json")
    assert answer.code == 6
    (finding,) = answer.json["findings"]
    assert (finding["service"], finding["ok"]) == ("app", False)
    assert "localhost/none:1 cannot be had" in finding["message"]
    assert "the incoming generation is refused: app" in answer.err
    store = Store.open(str(app.journal_path))
    assert Deploys(store).history() == []
    store.close()


def test_one_that_was_cut_off_is_no_deployment_of_a_service(app: fakehost.FakeHost) -> None:
    store = Store.open(str(app.journal_path))
    Deploys(store).begin(deploys.INCOMING, "/system", "restart")
    store.close()
    assert app.run("recover").out == (
        "deployment 1 of the incoming generation (/system) was cut off in phase plan: nothing live was touched\n"
    )
    assert app.run("metrics", "--json").json["attempts"] == 0
    assert app.run("metrics").code == 0


# --- validate --------------------------------------------------------------------------------------------------------


def git(folder: Path, *words: str) -> None:
    """Run git as somebody."""
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    program = shutil.which("git") or pytest.skip("there is no git")
    subprocess.run([program, *who, *words], cwd=folder, env=environment, check=True, capture_output=True, timeout=60)


@pytest.fixture
def repository(host: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with some files that were committed, and a folder in it that is where this process is."""
    host.manifest_path.unlink()
    folder = host.root / "repository"
    (folder / "deep").mkdir(parents=True)
    for name in ("old.py", "gone.py", "left.py"):
        (folder / name).write_text("def f(:\n" if name == "left.py" else "x = 1\n", encoding="utf-8")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "first")
    monkeypatch.chdir(folder / "deep")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    return folder


def test_validate_says_what_is_wrong(host: fakehost.FakeHost) -> None:
    bad = host.root / "bad.py"
    bad.write_text("def f(:\n", encoding="utf-8")
    answer = host.run("validate", str(bad))
    assert answer.code == 5
    assert answer.out.startswith(f"{bad}:1: does not compile: ")
    document = host.run("validate", str(bad), "--json").json
    assert (document["schema_version"], len(document["problems"])) == (1, 1)
    bad.write_text("x = 1\n", encoding="utf-8")
    answer = host.run("validate", str(bad))
    assert (answer.code, answer.out) == (0, "")
    assert "1 files looked at" in answer.err


def test_a_damaged_manifest_is_said_and_keeps_nobody_from_validating(host: fakehost.FakeHost) -> None:
    host.manifest_path.write_text("{", encoding="utf-8")
    good = host.root / "a.env"
    good.write_text("KEY=1\n", encoding="utf-8")
    answer = host.run("validate", str(good))
    assert answer.code == 0
    assert "is not JSON" in answer.err


def test_nothing_staged_is_nothing_wrong(host: fakehost.FakeHost, repository: Path) -> None:
    (repository / "left.py").write_text("def g(:\n", encoding="utf-8")
    answer = host.run("validate", "--staged")
    assert (answer.code, answer.out) == (0, "")


def test_what_is_staged_is_checked_whatever_its_name(host: fakehost.FakeHost, repository: Path) -> None:
    names = ["with blank.py", "quote'd\".py", "täglich.py", "new\nline.py"]
    for name in names:
        (repository / name).write_text("def f(:\n", encoding="utf-8")
    git(repository, "add", ".")
    answer = host.run("validate", "--staged", "--json")
    assert answer.code == 5
    found = answer.json["problems"]
    assert len(found) == len(names), found
    for name in names:
        assert any(problem.startswith(f"{repository / name}:1: does not compile") for problem in found), name


def test_deleted_files_are_not_looked_for_and_renamed_ones_are_by_their_new_name(
    host: fakehost.FakeHost, repository: Path
) -> None:
    git(repository, "rm", "--quiet", "gone.py")
    git(repository, "mv", "left.py", "moved.py")
    answer = host.run("validate", "--staged", "--json")
    assert answer.code == 5
    (problem,) = answer.json["problems"]
    assert problem.startswith(f"{repository}/moved.py:1: does not compile")


def test_staged_outside_of_a_repository_is_code_2(host: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(host.root)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(host.root.parent))
    answer = host.run("validate", "--staged")
    assert answer.code == 2
    assert "--staged wants a git repository here: " in answer.err


def test_what_is_checked_is_what_is_committed_and_not_what_lies_beside_it(
    host: fakehost.FakeHost, repository: Path
) -> None:
    for name, added, since in (("good.py", "x = 1\n", "def f(:\n"), ("bad.py", "def f(:\n", "x = 1\n")):
        (repository / name).write_text(added, encoding="utf-8")
        git(repository, "add", name)
        (repository / name).write_text(since, encoding="utf-8")
    (repository / "Containerfile").write_text("FROM x:1\nCOPY old.py beside.txt /\n", encoding="utf-8")
    (repository / "beside.txt").touch()
    git(repository, "add", "Containerfile")
    answer = host.run("validate", "--staged", "--json")
    assert answer.code == 5
    assert [problem.partition(": ")[::2] for problem in answer.json["problems"]] == [
        (f"{repository}/Containerfile:2", f"beside.txt is not in {repository}"),
        (f"{repository}/bad.py:1", "does not compile: invalid syntax"),
    ]


def test_the_framework_calls_what_there_is() -> None:
    text = (ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8")
    keys = dict(re.findall(r"^(?:- |  )([a-z_]+): (.*)$", text, re.MULTILINE))
    assert set(keys) == {"id", "name", "description", "entry", "language", "types_or"}
    assert (keys["id"], keys["entry"], keys["language"]) == ("validate", "aistack validate", "system")
    assert keys["types_or"] == "[python, shell, nix, dockerfile]"
    # The guide's own is the same.
    guide = (ROOT / "docs/deploying.md").read_text(encoding="utf-8")
    for key in ("id", "name", "entry", "language", "types_or"):
        assert f"{key}: {keys[key]}\n" in guide


@pytest.mark.skipif(PRE_COMMIT is None, reason="there is no pre-commit")
def test_the_framework_refuses_a_commit(repository: Path) -> None:
    script = repository.parent / "fake-programs" / "aistack"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m aistack "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    hooks = (ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8")
    entries = "".join(f"      {line}\n" for line in hooks.splitlines() if not line.startswith("#"))
    config = f"repos:\n  - repo: local\n    hooks:\n{entries}"
    (repository / ".pre-commit-config.yaml").write_text(config, encoding="utf-8")
    git(repository, "add", ".pre-commit-config.yaml")
    (repository / "with blank.py").write_text("def f(:\n", encoding="utf-8")
    git(repository, "add", "with blank.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python"), "PRE_COMMIT_HOME": str(repository.parent / "pre")}
    command = [str(PRE_COMMIT), "run", "--color=never"]
    done = subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done
    assert "with blank.py:1: does not compile" in done.stdout
    assert "left.py" not in done.stdout
    (repository / "with blank.py").write_text("x = 1\n", encoding="utf-8")
    git(repository, "add", "with blank.py")
    done = subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done
    assert "Passed" in done.stdout
