"""aider-wrapper with the real aider, and a scripted endpoint for its model."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("fastapi", reason="the packages of the group `services` are not installed")

import httpx
import scripted_model
import serving
from test_docs_ralph import differences

if TYPE_CHECKING:
    from collections.abc import Iterator

PYTHON = os.environ.get("AISTACK_AIDER_PYTHON", "")
pytestmark = pytest.mark.skipif(
    not PYTHON,
    reason="no Python with aider-chat, which needs one older than 3.13: the scenario in a guest runs the real one",
)


class Wrapper(serving.Running):
    """The service, and the folder of its workspaces."""

    root: Path

    def execute(self, prompt: str, workspace: str | None = None, **options: Any) -> dict[str, Any]:  # noqa: ANN401
        """One execution that is answered with a result."""
        response = self.post(prompt, workspace, **options)
        assert response.status_code == 200, response.text
        result: dict[str, Any] = response.json()
        return result

    def post(
        self,
        prompt: str,
        workspace: str | None = None,
        *,
        key: str | None = None,
        **body: Any,  # noqa: ANN401
    ) -> httpx.Response:
        """One request."""
        headers = {} if key is None else {"Idempotency-Key": key}
        return self.ask(
            "POST", "/api/execute", json={"prompt": prompt, "workspace": workspace, **body}, headers=headers
        )

    def metric(self, name: str) -> float:
        """A number of GET /metrics."""
        lines = self.ask("GET", "/metrics").text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0.0)

    def wait_metric(self, name: str, number: float) -> None:
        """Wait until a metric has this number."""
        deadline = time.monotonic() + 60
        while self.metric(name) != number:
            assert time.monotonic() < deadline, f"{name} is {self.metric(name)}"
            time.sleep(0.02)

    def wait_ready(self) -> None:
        """Wait until aider is imported."""
        deadline = time.monotonic() + 300
        while not (body := self.ask("GET", "/ready").json())["dependencies"]["aider"]["ok"]:
            assert time.monotonic() < deadline, body
            time.sleep(0.1)


@contextmanager
def wrapper(folder: Path, model: scripted_model.Model, **settings: str) -> Iterator[Wrapper]:
    """Run the service; aider is imported once the block begins."""
    root = folder / "workspaces"
    root.mkdir(exist_ok=True)
    environment = {
        "AIDER_WRAPPER_PORT": "{port}",
        "AIDER_WRAPPER_BIND_ADDRESS": "127.0.0.1",
        "AIDER_WRAPPER_WORKSPACE_ROOT": str(root),
        "AIDER_WRAPPER_STATE_DIR": str(folder / "state"),
        "LLAMA_CPP_HOST": "127.0.0.1",
        "LLAMA_CPP_PORT": str(model.port),
        "LLAMA_CPP_MODEL_FILE": "tiny.gguf",
        "TELEMETRY_PATH": str(folder / "telemetry"),
        **settings,
    }
    with serving.running("aistack.services.aider_wrapper", folder, environment, python=PYTHON) as running:
        running.__class__ = Wrapper
        assert isinstance(running, Wrapper)
        running.root = root
        running.wait_ready()
        yield running


@pytest.fixture(scope="module")
def model() -> Iterator[scripted_model.Model]:
    with scripted_model.running() as it:
        yield it


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, model: scripted_model.Model) -> Iterator[Wrapper]:
    """One for all tests that leave it as it is: each has a workspace of its own."""
    folder = tmp_path_factory.mktemp("wrapper")
    with wrapper(folder, model, AIDER_WRAPPER_SILENCE_SECONDS="30", AIDER_WRAPPER_MAX_CONCURRENT="4") as it:
        yield it


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Wrapper, scripted_model.Model]]:
    """One with narrow bounds and another edit format, and its own model."""
    settings = {
        "MAX_CONCURRENT": "1",
        "MAX_QUEUED": "1",
        "QUEUE_SECONDS": "0.2",
        "SILENCE_SECONDS": "2",
        "EDIT_FORMAT": "diff",
    }
    folder = tmp_path_factory.mktemp("narrow")
    prefixed = {f"AIDER_WRAPPER_{key}": value for key, value in settings.items()}
    with scripted_model.running() as model, wrapper(folder, model, **prefixed) as it:
        yield it, model


@pytest.fixture
def workspace(service: Wrapper, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A workspace with a commit, a change that is not committed, and a file that git does not know."""
    path = service.root / "".join(letter if letter.isalnum() else "-" for letter in request.node.name)[:80]
    make_workspace(path)
    yield path
    shutil.rmtree(path)


def make_workspace(path: Path) -> None:
    path.mkdir()
    git(path, "init", "--quiet", "--initial-branch=main")
    (path / "calc.py").write_text("def add(a, b):\n    return a - b\n")
    (path / "notes.txt").write_text("one\n")
    git(path, "add", "--all")
    git(path, "commit", "--quiet", "--message=first")
    (path / "notes.txt").write_text("two\n")
    (path / "new.txt").write_text("new\n")


def git(path: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=someone", "-c", "user.email=someone@localhost")
    done = subprocess.run(["git", "-C", path, *identity, *arguments], capture_output=True, text=True, check=True)  # noqa: S607
    return done.stdout.strip()


def snapshot(path: Path) -> dict[str, Any]:
    """All that a run must leave as it was, if it does not count."""
    files = {
        str(file.relative_to(path)): file.read_text()
        for file in sorted(path.rglob("*"))
        if file.is_file() and ".git" not in file.relative_to(path).parts
    }
    head = (path / ".git/HEAD").read_text()
    return {
        "files": files,
        "head": head,
        "log": git(path, "log", "--format=%H"),
        "status": git(path, "status", "--porcelain"),
    }


# --- what aider does -------------------------------------------------------------------------------


def test_a_right_edit_is_a_real_commit_that_git_names(service: Wrapper, workspace: Path) -> None:
    before = git(workspace, "rev-parse", "HEAD")
    result = service.execute("Write an adder. play:function", workspace.name)
    assert (result["exit_code"], result["completed"], result["error"], result["error_kind"]) == (0, True, None, None)
    assert result["files_modified"] == ["calc.py", "test_calc.py"]
    assert result["git_commits"] == git(workspace, "rev-list", "--reverse", f"{before}..HEAD").split()
    assert git(workspace, "log", "-1", "--format=%s") == "aider: Write an adder. play:function"
    assert "aider" in git(workspace, "log", "-1", "--format=%an")
    assert result["tokens"] > 0
    assert 0 < result["duration_seconds"] < 60
    subprocess.run([sys.executable, "test_calc.py"], cwd=workspace, check=True)
    # What was there and not committed is so still.
    assert git(workspace, "status", "--porcelain") == "M notes.txt\n?? new.txt"


def test_without_a_workspace_there_is_one(service: Wrapper) -> None:
    result = service.execute("test task play:function")
    assert result["files_modified"] == ["calc.py", "test_calc.py"]
    assert len(result["git_commits"]) == 1


def test_context_and_iteration_reach_the_model(service: Wrapper, workspace: Path, model: scripted_model.Model) -> None:
    service.execute(
        "Do it. play:answer", workspace.name, iteration=3, context={"goal": "the-goal", "seen": [1, {"a": "b"}]}
    )
    prompt = model.requests()[-1]["prompt"]
    assert "- goal: the-goal" in prompt
    assert '- seen: [1, {"a": "b"}]' in prompt
    assert "attempt 3" in prompt


def test_files_that_are_named_are_shown_to_the_model(service: Wrapper, workspace: Path) -> None:
    result = service.execute("Look. play:answer", workspace.name, files=["calc.py"])
    assert "Added calc.py to the chat" in result["output"] or result["completed"]


def test_a_prompt_of_a_megabyte(service: Wrapper, workspace: Path, model: scripted_model.Model) -> None:
    result = service.execute(f"play:function {'word ' * 200_000}", workspace.name)
    assert result["completed"], result
    assert model.requests()[-1]["size"] > 1_000_000


@pytest.mark.parametrize("prompt", ["/run touch ran", "!touch ran", "/web http://127.0.0.1:1/"])
def test_a_prompt_is_never_a_command(service: Wrapper, workspace: Path, prompt: str) -> None:
    assert service.execute(f"{prompt} play:answer", workspace.name)["completed"]
    assert not (workspace / "ran").exists()


def test_the_workspaces_configuration_is_not_followed(service: Wrapper, workspace: Path) -> None:
    (workspace / ".aider.conf.yml").write_text("lint-cmd: 'python: touch ran #'\nauto-lint: true\nmodel: gpt-4\n")
    (workspace / ".env").write_text("AIDER_MODEL=gpt-4\nOPENAI_API_BASE=http://127.0.0.1:1\n")
    hook = workspace / ".git/hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\ntouch ran\nexit 1\n")
    hook.chmod(0o755)
    result = service.execute("play:function", workspace.name)
    assert (result["completed"], len(result["git_commits"])) == (True, 1)
    assert not (workspace / "ran").exists()


# --- whose failure it was --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("play", "kind", "code"),
    [
        ("status:500", "infrastructure", 75),
        ("status:503", "infrastructure", 75),
        ("status:401", "infrastructure", 75),
        ("status:404", "infrastructure", 75),
        ("status:429", "limit", 75),
        ("status:400", "agent", 1),
        ("break-off", "infrastructure", 75),
        ("error-midway", "infrastructure", 75),
        ("repeat", "agent", 1),
        ("garbage", "infrastructure", 75),
        ("no-choices", "infrastructure", 75),
        ("malformed", "agent", 1),
        ("empty", "agent", 1),
        ("too-long", "agent", 1),
        ("escape", "agent", 1),
        ("absolute", "agent", 1),
        ("git-internals", "agent", 1),
    ],
)
def test_failures_are_typed_and_nothing_is_invented(
    service: Wrapper, workspace: Path, play: str, kind: str, code: int
) -> None:
    before = snapshot(workspace)
    result = service.execute(f"play:{play}", workspace.name)
    assert (result["error_kind"], result["exit_code"], result["completed"]) == (kind, code, False), result
    assert result["error"]
    assert (result["files_modified"], result["git_commits"]) == ([], [])
    assert snapshot(workspace) == before
    assert not any(place.exists() for place in (Path("/tmp/outside.txt"), service.root.parent / "outside.txt"))  # noqa: S108


def test_a_refusal_changes_nothing_and_says_so(service: Wrapper, workspace: Path) -> None:
    result = service.execute("play:refusal", workspace.name)
    assert (result["exit_code"], result["files_modified"], result["git_commits"]) == (0, [], [])


# --- time ------------------------------------------------------------------------------------------


def test_a_model_that_says_nothing_is_infrastructures_failure(service: Wrapper, workspace: Path) -> None:
    before = snapshot(workspace)
    result = service.execute("play:hang", workspace.name, timeout_seconds=2)
    assert result["error_kind"] == "infrastructure"
    assert snapshot(workspace) == before


def test_a_model_that_never_ends_is_the_agents_failure(service: Wrapper, workspace: Path) -> None:
    before = snapshot(workspace)
    result = service.execute("play:endless", workspace.name, timeout_seconds=10)
    assert (result["error_kind"], result["exit_code"]) == ("agent", 124)
    assert snapshot(workspace) == before


# --- who leaves, who comes again -------------------------------------------------------------------


def test_a_caller_who_leaves_ends_the_run(service: Wrapper, workspace: Path) -> None:
    before = snapshot(workspace)
    url = f"{service.url}/api/execute"
    headers = {"Idempotency-Key": "leaver"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            url, json={"prompt": "play:hang", "workspace": workspace.name}, headers=headers, timeout=2, trust_env=False
        )
    service.wait_metric("aistack_aider_executions_running", 0)
    assert children(service) == []
    assert snapshot(workspace) == before
    assert service.ask("GET", "/api/execute/leaver").json() == {"state": "cancelled", "result": None}


def test_the_same_key_gets_the_same_answer(service: Wrapper, workspace: Path, model: scripted_model.Model) -> None:
    first = service.execute("play:function#same", workspace.name, key="once")
    asked = len(model.requests())
    assert service.execute("play:function#same", workspace.name, key="once") == first
    assert len(model.requests()) == asked
    assert service.ask("GET", "/api/execute/once").json() == {"state": "finished", "result": first}
    other = service.post("another prompt", workspace.name, key="once")
    assert (other.status_code, other.json()["kind"]) == (409, "idempotency-mismatch")


def test_the_same_key_while_it_runs_waits_for_it(service: Wrapper, workspace: Path) -> None:
    def ask() -> dict[str, Any]:
        return service.execute("play:slow:2#both", workspace.name, key="both")

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: ask(), range(2))
    assert one == two
    assert len(git(workspace, "log", "--format=%h").split()) == 2


def test_what_did_not_count_is_done_again(service: Wrapper, workspace: Path) -> None:
    assert service.execute("play:flaky:1#again", workspace.name, key="again")["error_kind"] == "infrastructure"
    assert service.execute("play:flaky:1#again", workspace.name, key="again")["completed"]


def test_an_unknown_key_is_not_found(service: Wrapper) -> None:
    assert service.ask("GET", "/api/execute/contract.check.unknown").status_code == 404


# --- bounds ----------------------------------------------------------------------------------------


@contextmanager
def under_way(service: Wrapper, model: scripted_model.Model, label: str, workspace: str) -> Iterator[None]:
    """A run whose model says nothing, until its caller leaves at the end of the block."""
    play = f"play:hang#{label}"
    caller = http.client.HTTPConnection("127.0.0.1", service.port)
    body = json.dumps({"prompt": play, "workspace": workspace})
    caller.request("POST", "/api/execute", body, {"Content-Type": "application/json"})
    try:
        model_asked(model, play)
        yield
    finally:
        caller.close()
        service.wait_metric("aistack_aider_executions_running", 0)


def test_one_run_a_workspace(service: Wrapper, workspace: Path, model: scripted_model.Model) -> None:
    with under_way(service, model, "one", workspace.name):
        refused = service.post("play:function", workspace.name)
        assert (refused.status_code, refused.json()["kind"]) == (409, "busy")
        assert refused.headers["retry-after"]
        assert service.ask("GET", "/health").status_code == 200
    assert service.execute("play:function", workspace.name)["completed"]


@pytest.mark.parametrize("name", ["..", "../..", "../../etc", "/etc", "/", ".", "link", "a/../../..", "x\u0000y"])
def test_a_workspace_is_below_the_root(service: Wrapper, name: str) -> None:
    link = service.root / "link"
    if not link.is_symlink():
        link.symlink_to("/etc")
    assert service.post("play:function", name).status_code in {403, 422}
    link.unlink()


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", ".git/config", "sub/.GIT/hooks/x", "link/x", "."])
def test_a_file_is_within_its_workspace(service: Wrapper, workspace: Path, name: str) -> None:
    (workspace / "link").symlink_to("/etc")
    response = service.post("play:function", workspace.name, files=[name])
    assert (response.status_code, response.json()["kind"]) == (403, "outside-workspace")


def test_a_link_in_the_workspace_is_no_way_out(service: Wrapper, workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("the secret")
    (workspace / "link").symlink_to(tmp_path)
    (workspace / "shown.txt").symlink_to(tmp_path / "secret.txt")
    git(workspace, "add", "--all")
    git(workspace, "commit", "--quiet", "--message=links")
    result = service.execute("Write through link. play:through-link", workspace.name)
    assert result["error_kind"] == "agent"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["secret.txt"]
    result = service.execute("What is in shown.txt? play:answer", workspace.name)
    assert "the secret" not in result["output"]


def test_a_workspace_that_is_not_there(service: Wrapper) -> None:
    response = service.post("play:function", "nowhere")
    assert (response.status_code, response.json()["kind"]) == (404, "no-workspace")


def test_a_repository_elsewhere_is_refused(service: Wrapper, workspace: Path, tmp_path: Path) -> None:
    shutil.move(workspace / ".git", tmp_path / "elsewhere")
    (workspace / ".git").write_text(f"gitdir: {tmp_path / 'elsewhere'}\n")
    assert service.post("play:function", workspace.name).status_code == 403


def model_asked(model: scripted_model.Model, play: str) -> None:
    """Wait until the model is asked to play this."""
    deadline = time.monotonic() + 60
    while not any(request["play"] == play for request in model.requests()[-1:]):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def processes() -> list[tuple[int, int]]:
    """Each process and its parent."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = stat.read_text().split(" (", 1)
        except OSError:
            continue
        found.append((int(pid), int(rest.rpartition(") ")[2].split()[1])))
    return found


def children(service: Wrapper) -> list[int]:
    """The processes that its fork server has."""
    found = processes()
    forks = [pid for pid, parent in found if parent == service.process.pid]
    return [pid for pid, parent in found if parent in forks]


def test_aider_leaves_no_files(service: Wrapper, workspace: Path) -> None:
    before = {path.name for path in workspace.iterdir()}
    service.execute("play:function", workspace.name)
    assert {path.name for path in workspace.iterdir()} - before == {"test_calc.py"}


def test_telemetry_says_what_became_of_it_and_never_what_was_asked(service: Wrapper, workspace: Path) -> None:
    service.execute("play:function a-secret-word", workspace.name, iteration=2)
    text = (service.root.parent / "telemetry/aider-wrapper.jsonl").read_text()
    events = [json.loads(line) for line in text.splitlines()]
    ended = [event for event in events if event["event"] == "execution.ended" and event["iteration"] == 2][-1]
    assert ended["data"]["commits"] == 1
    assert "a-secret-word" not in text + service.log.read_text()


# --- with narrow bounds ----------------------------------------------------------------------------


def test_an_edit_in_the_diff_format(narrow: tuple[Wrapper, scripted_model.Model]) -> None:
    service, _ = narrow
    make_workspace(service.root / "diff")
    assert service.execute("calc.py play:diff", "diff")["files_modified"] == ["calc.py"]
    assert "return a + b" in (service.root / "diff/calc.py").read_text()


def test_so_many_runs_at_a_time_and_so_many_who_wait(narrow: tuple[Wrapper, scripted_model.Model]) -> None:
    service, model = narrow
    for name in "ab":
        (service.root / name).mkdir()
    with under_way(service, model, "queue", "a"):
        refused = service.post("play:function", "b")
        assert (refused.status_code, refused.json()["kind"]) == (429, "queue-full")
        assert refused.headers["retry-after"]
    assert service.execute("play:function", "b")["completed"]


def test_a_model_that_falls_silent_is_infrastructures_failure(narrow: tuple[Wrapper, scripted_model.Model]) -> None:
    result = narrow[0].execute("play:hang-midway", timeout_seconds=600)
    assert (result["error_kind"], result["exit_code"]) == ("infrastructure", 75), result


def test_a_fork_server_that_dies_is_started_again(narrow: tuple[Wrapper, scripted_model.Model]) -> None:
    service, model = narrow
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(service.execute, "play:slow:600#forks", timeout_seconds=600)
        model_asked(model, "play:slow:600#forks")
        (forks,) = [pid for pid, parent in processes() if parent == service.process.pid]
        os.kill(forks, signal.SIGKILL)
        assert asked.result()["error_kind"] == "infrastructure"
    service.wait_ready()
    assert service.execute("play:function")["completed"]
    assert service.metric("aistack_aider_fork_server_starts") == 2


def test_a_model_that_refuses_connections(narrow: tuple[Wrapper, scripted_model.Model]) -> None:
    service, model = narrow
    # The last one with this model: it does not come back.
    model.refuse(600)
    result = service.execute("play:function")
    assert (result["error_kind"], result["exit_code"]) == ("infrastructure", 75)
    # aider alone would have tried eight times in a minute.
    assert result["output"].count("Retrying") == 0
    body = service.ask("GET", "/ready").json()
    assert body["dependencies"]["llama-cpp"]["ok"] is False
    assert body["dependencies"]["aider"]["ok"] is True


# --- ends ------------------------------------------------------------------------------------------


def test_what_a_signal_cuts_off_is_undone(tmp_path: Path, model: scripted_model.Model) -> None:
    path = tmp_path / "workspaces/w"
    with wrapper(tmp_path, model) as service:
        make_workspace(path)
        before = snapshot(path)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(service.post, "play:hang#term", "w", key="term")
            model_asked(model, "play:hang#term")
            began = time.monotonic()
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(10) == 0
            assert time.monotonic() - began < 5
            result = asked.result().json()
        assert (result["error_kind"], result["exit_code"]) == ("infrastructure", 143)
        assert result["error"] == "interrupted: the service was stopped"
        assert snapshot(path) == before

    with wrapper(tmp_path, model) as service:
        assert service.ask("GET", "/api/execute/term").json() == {"state": "cancelled", "result": None}
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(service.post, "play:hang#kill", "w", key="kill")
            model_asked(model, "play:hang#kill")
            # As if aider had been about to commit.
            (path / "calc.py").write_text("half of an edit")
            (path / "left.py").write_text("left")
            git(path, "add", "left.py")
            git(path, "commit", "--quiet", "--message=half")
            (path / ".git/index.lock").write_text("")
            running = children(service)
            assert running
            service.process.kill()
            service.process.wait()
            assert isinstance(asked.exception(), httpx.HTTPError)
        wait_gone(running)

    with wrapper(tmp_path, model, LLAMA_CPP_HOST="no-such-host.invalid") as service:
        assert snapshot(path) == before
        assert service.ask("GET", "/api/execute/kill").json() == {"state": "cancelled", "result": None}
        # Nothing is lost: what was cut off is kept beside the branch.
        kept = git(path, "for-each-ref", "--format=%(objectname)", "refs/aistack/aider-wrapper/undone")
        assert "left.py" in git(path, "ls-tree", "--name-only", kept)
        result = service.execute("play:function", "w")
        assert (result["error_kind"], result["exit_code"]) == ("infrastructure", 75)


# --- the page --------------------------------------------------------------------------------------

EXAMPLE = re.compile(r"^```http\n(\S+) (\S+)\n(.*?)^HTTP (\d+)\n\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_page_is_true(service: Wrapper, model: scripted_model.Model) -> None:
    page = (Path(__file__).parents[2] / "docs/aider-wrapper.md").read_text()
    make_workspace(service.root / "calc")
    model.play("function")
    examples = EXAMPLE.findall(page)
    for method, path, request, status, shown in examples:
        head, _, body = request.partition("\n\n") if request.startswith(("Idem", "X-")) else ("", "", request)
        headers = dict(line.split(": ", 1) for line in head.splitlines())
        answer = service.ask(
            method, path, headers={**headers, "Content-Type": "application/json"}, content=body.strip()
        )
        assert answer.status_code == int(status), answer.text
        if answer.headers["Content-Type"].startswith("text/plain"):
            assert shown.strip() in answer.text
        else:
            assert differences(json.loads(shown), answer.json()) == [], path
    model.play(None)
    routes = set(service.ask("GET", "/openapi.json").json()["paths"])
    assert {path.replace("parser-7.1", "{key}") for _, path, *_ in examples} == routes
