"""Ralph as its container runs it: a process of its own, real git, a real database. The backend is a stand-in."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import ralphs
from ralphs import Ralph
from scripted_backend import PARTIAL

from aistack.services.common.lifecycle import Lifecycle
from aistack.services.ralph_wiggum import routes
from aistack.services.ralph_wiggum.records import Event
from aistack.services.ralph_wiggum.states import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="module")
def ralph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ralph]:
    """One that all tests here share."""
    with ralphs.running(tmp_path_factory.mktemp("ralph"), RALPH_ITERATION_TIMEOUT_SECONDS="60") as running:
        yield running


# --- what counts, and what it comes to -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "end"),
    [
        (["done"], ("completed", "verified", 1, 0)),
        (["edit", "edit", "done"], ("completed", "verified", 3, 0)),
        (["edit", "fail:one", "fail:two", "edit", "fail:one", "done"], ("completed", "verified", 6, 0)),
        (["block:not yet", "done"], ("completed", "verified", 2, 0)),
        (["edit"], ("exhausted", "iteration_limit", 6, 0)),
        (["lie"], ("failed", "circuit_open", 3, 0)),
        (["fail:no module x"], ("failed", "circuit_open", 3, 0)),
        (["policy:not this"], ("failed", "policy", 0, 1)),
        (["403"], ("failed", "policy", 0, 1)),
        (["422"], ("failed", "refused", 0, 1)),
        ([["infra:no model", "done"]], ("completed", "verified", 1, 1)),
        ([["503", "500", "503", "done"]], ("completed", "verified", 1, 3)),
        ([["drop", "malformed", "409", "404", "401", "done"]], ("completed", "verified", 1, 5)),
        ([["429:0", "limit:slow down", "done"]], ("completed", "verified", 1, 2)),
        ([["edit"], ["503", "503", "503", "503", "503", "503", "done"]], ("completed", "verified", 2, 6)),
        (["budget:all spent"], ("exhausted", "token_budget", 0, 1)),
    ],
)
def test_a_task_ends_as_its_agent_did(ralph: Ralph, script: list[object], end: tuple[str, str, int, int]) -> None:
    state, _, iterations, uncounted = end
    submitted = ralph.submit(*script, verify=["test -s work.txt"], max_iterations=6)
    task = ralph.wait(submitted["task_id"])
    found = (task["state"], task["reason"], task["iterations"], task["uncounted"])
    assert found == end, task["detail"]
    calls = ralph.iterations(task["task_id"])
    assert [call["number"] for call in calls if call["counted"]] == list(range(1, iterations + 1))
    assert len([call for call in calls if not call["counted"]]) == uncounted
    assert {call["phase"] for call in calls} <= {"closed"}
    assert not (ralph.workspace(task) / PARTIAL).exists() or state == "failed"
    assert task["finished_at"] is not None


def test_nothing_to_verify_is_done_but_not_verified(ralph: Ralph) -> None:
    assert ralph.wait(ralph.submit("done")["task_id"])["reason"] == "done"


def test_a_verify_command_has_the_last_word_and_the_agent_is_told(ralph: Ralph) -> None:
    verify = ["test -d .git", "grep -qx 2 work.txt || { echo only one line; exit 4; }"]
    task = ralph.wait(ralph.submit("done", verify=verify)["task_id"])
    assert (task["state"], task["iterations"]) == ("completed", 2)
    first, second = ralph.iterations(task["task_id"])
    assert (first["outcome"], first["counted"]) == ("verify_failed", True)
    assert [(each["ok"], each["exit_code"]) for each in first["verify"]] == [(True, 0), (False, 4)]
    assert first["verify"][1]["output"] == "only one line\n"
    assert second["outcome"] == "done"
    prompts = [call["prompt"] for call in ralph.backend.calls_of(task["task_id"])]
    assert prompts[0] == "do it"
    assert prompts[1].startswith("do it\n\n")
    assert "only one line" in prompts[1]


def test_the_exit_code_that_blocks_keeps_the_prompt_and_adds_the_reason(ralph: Ralph) -> None:
    task = ralph.wait(ralph.submit("block:the door is shut", "done")["task_id"])
    assert [call["outcome"] for call in ralph.iterations(task["task_id"])] == ["blocked", "done"]
    prompts = [call["prompt"] for call in ralph.backend.calls_of(task["task_id"])]
    assert prompts == ["do it", "do it\n\nAbout the last attempt:\nthe door is shut"]


def test_a_task_that_need_not_change_anything(ralph: Ralph) -> None:
    task = ralph.wait(ralph.submit("lie", expect_changes=False)["task_id"])
    assert (task["state"], task["iterations"]) == ("completed", 1)


def test_what_did_not_count_left_nothing_in_the_workspace(ralph: Ralph) -> None:
    task = ralph.wait(ralph.submit("edit", ["drop", "503", "done"])["task_id"])
    assert task["state"] == "completed"
    assert (ralph.workspace(task) / "work.txt").read_text() == "1\n2\n"
    assert not (ralph.workspace(task) / PARTIAL).exists()
    first, *others = ralph.iterations(task["task_id"])
    assert {call["checkpoint"] for call in others} != {first["checkpoint"]}
    assert len({call["checkpoint"] for call in others}) == 1


def test_budgets_of_tokens_and_of_time(ralph: Ralph) -> None:
    spent = ralph.wait(ralph.submit("edit", max_tokens=25)["task_id"])
    assert (spent["state"], spent["reason"], spent["tokens"]) == ("exhausted", "token_budget", 30)
    late = ralph.wait(ralph.submit("503", max_seconds=1)["task_id"])
    assert (late["state"], late["reason"], late["iterations"]) == ("exhausted", "time_budget", 0)
    again = ralph.act(spent["task_id"], "resume", 409)
    assert "max_tokens" in again["detail"]
    assert ralph.act(spent["task_id"], "resume", max_tokens=45)["state"] == "queued"
    assert ralph.wait(spent["task_id"])["tokens"] == 50


def test_an_exhausted_task_goes_on_with_a_higher_limit_and_keeps_its_count(ralph: Ralph) -> None:
    task = ralph.wait(ralph.submit("edit", "edit", "edit", "done", max_iterations=2)["task_id"])
    assert (task["state"], task["iterations"]) == ("exhausted", 2)
    assert "max_iterations" in ralph.act(task["task_id"], "resume", 409)["detail"]
    ralph.act(task["task_id"], "resume", max_iterations=10)
    task = ralph.wait(task["task_id"])
    assert (task["state"], task["iterations"], task["limit"]["value"]) == ("completed", 4, 10)
    assert task["limit"]["steps"][-1]["rule"] == "resumed"
    assert (ralph.workspace(task) / "work.txt").read_text() == "1\n2\n3\n4\n"


# --- submitting ------------------------------------------------------------------------------------------------------


def test_the_answer_says_the_limit_and_how_it_came_about(ralph: Ralph) -> None:
    task = ralph.submit("done", prompt="implement a test of the thing")
    assert task["limit"]["value"] == 50
    assert [(step["rule"], step["value"]) for step in task["limit"]["steps"]] == [("base", 20), ("adaptive", 50)]
    assert task["limit"]["steps"][1]["evidence"]["counted"] == ["+2 for the word implement", "+1 for the word test"]
    ralph.wait(task["task_id"])


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"max_iterations": 0}, "max_iterations"),
        ({"max_iterations": -1}, "max_iterations"),
        ({"max_iterations": "3"}, "max_iterations"),
        ({"max_iterations": True}, "max_iterations"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n"}, "prompt"),
        ({"prompt": "a\0b"}, "prompt"),
        ({"prompt": "x" * 100_001}, "prompt"),
        ({"prompt": "x" * 1_000_000}, "prompt"),
        ({"backend": "nobody"}, "backend"),
        ({"complexity": "hard"}, "complexity"),
        ({"verify": ["true"] * 21}, "verify"),
        ({"verify": [""]}, "verify"),
        ({"workspace": "../outside"}, "workspace"),
        ({"workspace": "/etc"}, "workspace"),
        ({"workspace": "a/../../b"}, "workspace"),
        ({"workspace": ".git"}, "workspace"),
        ({"workspace": "a/.git"}, "workspace"),
        ({"priority": 1000}, "priority"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(ralph: Ralph, changes: dict[str, Any], where: str) -> None:
    problem = ralph.submit("done", status=422, **changes)
    assert any(each["location"].startswith(f"body.{where}") for each in problem["errors"]), problem
    assert len(json.dumps(problem)) < 10_000


def test_what_is_no_json_or_too_much_is_refused(ralph: Ralph) -> None:
    headers = {"Content-Type": "application/json"}
    for body in ('{"prompt": ', "", "[]", "nonsense", '{"prompt": "\\ud800"}'):
        assert ralph.raw("POST", "/tasks", content=body, headers=headers).status_code in {400, 422}, body
    deep = '{"prompt": "x", "context": ' + '{"a":' * 5000 + "1" + "}" * 5001
    assert ralph.raw("POST", "/tasks", content=deep, headers=headers).status_code in {202, 400, 422}
    assert ralph.raw("POST", "/tasks", content=b"x" * 5_000_000, headers=headers).status_code == 413


def test_the_same_key_is_the_same_task(ralph: Ralph) -> None:
    headers = {"Idempotency-Key": "one-and-the-same"}
    body = {"prompt": "do it", "context": {"script": ["done"]}}
    answers: list[httpx.Response] = []

    def send() -> None:
        answers.append(ralph.raw("POST", "/tasks", json=body, headers=headers))

    senders = [threading.Thread(target=send) for _ in range(8)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["task_id"] for answer in answers}) == 1
    assert sorted(answer.headers.get("Idempotent-Replayed", "") for answer in answers) == [""] + ["true"] * 7
    task = ralph.wait(answers[0].json()["task_id"])
    assert len(ralph.backend.calls_of(task["task_id"])) == 1
    other = ralph.raw("POST", "/tasks", json={**body, "prompt": "another"}, headers=headers)
    assert (other.status_code, other.json()["kind"]) == (409, "idempotency-key-reused")


def test_one_task_a_workspace_and_a_bounded_number_at_a_time(ralph: Ralph) -> None:
    context = {"seconds": 0.1}
    same = [ralph.submit("edit", "done", workspace="shared/one", context=context) for _ in range(3)]
    inside = ralph.submit("done", workspace="shared/one/inner", context=context)
    others = [ralph.submit("done", context=context) for _ in range(4)]
    for each in (*same, inside, *others):
        assert ralph.wait(each["task_id"])["state"] == "completed"
    assert not ralph.backend.together
    assert ralph.backend.most_at_a_time <= 2
    moments = [
        (call["opened_at"], call["closed_at"]) for each in (*same, inside) for call in ralph.iterations(each["task_id"])
    ]
    moments.sort()
    assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(moments))


# --- approval --------------------------------------------------------------------------------------------------------


def test_approval_comes_before_the_first_iteration_and_holds_up_nobody_else(ralph: Ralph) -> None:
    held = ralph.submit("done", require_approval=True)
    assert held["state"] == "awaiting_approval"
    assert held["approval_expires_at"] is not None
    assert ralph.wait(ralph.submit("done")["task_id"])["state"] == "completed"
    assert ralph.task(held["task_id"])["state"] == "awaiting_approval"
    assert not ralph.backend.calls_of(held["task_id"])
    ralph.ask("POST", f"/tasks/{held['task_id']}/approve", 422, json={"by": "me"})
    ralph.ask("POST", f"/tasks/{held['task_id']}/approve", 422, json={"by": " ", "reason": "x"})
    ralph.act(held["task_id"], "approve", by="ada", reason="looks harmless")
    task = ralph.wait(held["task_id"])
    assert task["state"] == "completed"
    assert [(each["action"], each["by"], each["reason"]) for each in task["decisions"]] == [
        ("approve", "ada", "looks harmless")
    ]
    refused = ralph.act(held["task_id"], "approve", 409)
    assert (refused["kind"], refused["state"]) == ("not-in-this-state", "completed")


def test_a_rejected_task_never_begins(ralph: Ralph) -> None:
    held = ralph.submit("done", require_approval=True)
    task = ralph.act(held["task_id"], "reject", by="ada", reason="no")
    assert (task["state"], task["reason"]) == ("rejected", "rejected")
    ralph.act(held["task_id"], "resume", 409)
    assert not ralph.backend.calls_of(held["task_id"])


# --- stopping --------------------------------------------------------------------------------------------------------


def test_a_queued_task_that_is_stopped_never_begins(ralph: Ralph) -> None:
    running = [ralph.submit("hang", workspace=f"busy-{number}") for number in range(2)]
    for each in running:
        ralph.wait(each["task_id"], "running")
    queued = ralph.submit("done")
    assert ralph.act(queued["task_id"], "stop")["state"] == "stopped"
    for each in running:
        ralph.act(each["task_id"], "stop")
    assert ralph.wait(ralph.submit("done")["task_id"])["state"] == "completed"
    assert not ralph.backend.calls_of(queued["task_id"])
    ralph.act(queued["task_id"], "stop", 409)


def test_a_running_task_is_stopped_at_once_and_its_call_does_not_count(ralph: Ralph) -> None:
    task = ralph.submit("edit", ["hang", "done"])
    task_id = task["task_id"]
    ralph.backend.wait_for_call_of(task_id, 2)
    deadline = time.monotonic() + ralphs.BOUND
    stopped = ralph.act(task_id, "stop", by="ada", reason="enough")
    assert (stopped["state"], stopped["reason"], stopped["iterations"]) == ("stopped", "stopped", 1)
    assert [call["outcome"] for call in ralph.iterations(task_id)] == ["incomplete", "stopped"]
    # The backend notices that its caller has gone.
    key = ralph.backend.calls_of(task_id)[-1]["key"]
    while ralph.backend.state[key] != "cancelled":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ralph.act(task_id, "resume", by="ada", reason="on second thoughts")
    done = ralph.wait(task_id)
    assert (done["state"], done["iterations"]) == ("completed", 2)
    assert [each["action"] for each in done["decisions"]] == ["stop", "resume"]


def test_a_verify_command_under_way_is_stopped_with_its_task(ralph: Ralph) -> None:
    task = ralph.submit("done", verify=["echo $$ > pid; sleep 1000"])
    pid = ralph.workspace(task) / "pid"
    deadline = time.monotonic() + ralphs.BOUND
    while not pid.exists() or not pid.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert ralph.act(task["task_id"], "stop")["iterations"] == 0
    assert ralph.wait(ralph.submit("done")["task_id"])["state"] == "completed"


# --- reading ---------------------------------------------------------------------------------------------------------


def test_pages_have_every_task_once_the_newest_first(ralph: Ralph) -> None:
    made = [ralph.submit("done", priority=-1)["task_id"] for _ in range(5)]
    seen: list[str] = []
    cursor: str | None = None
    while True:
        query = {"limit": "2"} | ({} if cursor is None else {"cursor": cursor})
        page = ralph.ask("GET", "/tasks", params=query)
        seen += [task["task_id"] for task in page["tasks"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert len(seen) == len(set(seen))
    assert seen[:5] == list(reversed(made))
    for each in made:
        ralph.wait(each)
    completed = ralph.ask("GET", "/tasks", params={"state": "completed", "limit": "200"})["tasks"]
    assert set(made) <= {task["task_id"] for task in completed}
    assert {task["state"] for task in completed} == {"completed"}


@pytest.mark.parametrize(
    "query", ["cursor=nonsense", "cursor=%00", "cursor=0", "limit=0", "limit=201", "state=gone", "limit=x"]
)
def test_a_page_that_cannot_be_is_refused(ralph: Ralph, query: str) -> None:
    ralph.ask("GET", f"/tasks?{query}", 422)


@pytest.mark.parametrize("path", ["", "/iterations", "/events"])
def test_there_is_no_such_task(ralph: Ralph, path: str) -> None:
    assert ralph.ask("GET", f"/tasks/nobody{path}", 404)["kind"] == "not-found"
    for action in ("approve", "reject", "stop", "resume"):
        ralph.act("nobody", action, 404)


def events(ralph: Ralph, task_id: str, **headers: str) -> list[dict[str, Any]]:
    """All events of a task, until its stream ends."""
    found: list[dict[str, Any]] = []
    url = f"{ralph.service.url}/tasks/{task_id}/events"
    with httpx.stream("GET", url, headers=headers, timeout=ralphs.BOUND, trust_env=False) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        found += [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    return found


def test_events_come_as_they_happen_and_go_on_where_one_left_off(ralph: Ralph) -> None:
    task_id = ralph.submit("edit", ["503", "done"], require_approval=True)["task_id"]
    seen: list[dict[str, Any]] = []
    reader = threading.Thread(target=lambda: seen.extend(events(ralph, task_id)))
    reader.start()
    ralph.act(task_id, "approve")
    ralph.wait(task_id)
    reader.join(ralphs.BOUND)
    names = [event["event"] for event in seen]
    assert names[0] == "task.submitted"
    assert names[-1] == "task.ended"
    assert names.count("iteration.completed") == 3
    numbers = [event["id"] for event in seen]
    assert numbers == sorted(set(numbers))
    assert events(ralph, task_id, **{"Last-Event-ID": str(numbers[2])}) == seen[3:]
    assert [event["counted"] for event in seen if event["event"] == "iteration.completed"] == [True, False, True]


def test_events_of_a_task_that_ends_while_they_are_read_are_all_there() -> None:
    """Between any two questions to the store, the task may end."""

    class Store:
        """One in which the task ends when it has been asked a number of questions."""

        def __init__(self, ends_after: int) -> None:
            self.left = ends_after
            self.bell = asyncio.Event()

        def answered(self) -> None:
            self.left -= 1
            if self.left == 0:
                self.bell.set()

        def events(self, *, after: int, **_: object) -> list[Event]:
            found = [Event(id=1, at=0.0, task_id="t", name="task.submitted", data={})]
            if self.left <= 0:
                found.append(Event(id=2, at=0.0, task_id="t", name="task.ended", data={}))
            self.answered()
            return [event for event in found if event.id > after]

        def task(self, _: str) -> SimpleNamespace:
            state = State.COMPLETED if self.left <= 0 else State.RUNNING
            self.answered()
            return SimpleNamespace(state=state)

    class Engine:
        """Asks it."""

        def __init__(self, store: Store) -> None:
            self.store = store
            self.bell = SimpleNamespace(waiter=lambda: store.bell)

        async def read(self, ask: Callable[..., object], *args: object, **kwargs: object) -> object:
            return ask(*args, **kwargs)

    async def said(ends_after: int) -> list[str]:
        engine: Any = Engine(Store(ends_after))
        task: Any = SimpleNamespace(id="t")
        return [text async for text in routes.stream(engine, Lifecycle(), task, 0)]

    for ends_after in range(1, 5):  # then it waits for the bell
        text = "".join(asyncio.run(said(ends_after)))
        assert [line[4:] for line in text.splitlines() if line.startswith("id: ")] == ["1", "2"], ends_after


def test_numbers_add_up(ralph: Ralph) -> None:
    before = ralph.ask("GET", "/stats")
    ralph.wait(ralph.submit("edit", ["503", "done"])["task_id"])
    after = ralph.ask("GET", "/stats")
    assert after["tasks"]["completed"] == before["tasks"]["completed"] + 1
    assert after["iterations"] == before["iterations"] + 2
    assert after["uncounted"] == before["uncounted"] + 1
    assert after["backend"] in {"up", "down"}
    deadline = time.monotonic() + ralphs.BOUND
    expected = f'ralph_tasks{{state="completed"}} {after["tasks"]["completed"]}.0'
    while expected not in (shown := ralph.raw("GET", "/metrics").text):
        assert time.monotonic() < deadline, shown
        time.sleep(0.05)
    assert 'ralph_iterations_total{counted="false",outcome="infrastructure"}' in shown


def test_telemetry_has_every_event_once_and_of_one_schema(ralph: Ralph) -> None:
    task_id = ralph.wait(ralph.submit("done")["task_id"])["task_id"]
    numbers = {event["id"] for event in events(ralph, task_id)}
    file = ralph.folder / "telemetry" / "ralph-wiggum.jsonl"
    deadline = time.monotonic() + ralphs.BOUND
    while True:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        mine = [line["data"]["event_id"] for line in lines if line["task_id"] == task_id]
        if set(mine) == numbers:
            break
        assert time.monotonic() < deadline, mine
        time.sleep(0.05)
    assert len(mine) == len(numbers)
    assert len({tuple(sorted(line)) for line in lines}) == 1


# --- settings --------------------------------------------------------------------------------------------------------


def test_settings_hold_for_what_is_submitted_from_then_on(ralph: Ralph) -> None:
    running = ralph.submit("hang", "done", complexity="medium", prompt="something new")
    ralph.wait(running["task_id"], "running")
    queued = ralph.submit("done", require_approval=True, complexity="medium", prompt="something new")
    answer = ralph.raw("GET", "/settings")
    shown = answer.json()
    assert shown["updated_at"] is None
    change: dict[str, Any] = {
        "max_iterations": {**shown["max_iterations"], "default": 7, "medium": 8},
        "adaptive": False,
    }
    assert ralph.ask("PUT", "/settings", 428, json=change)["kind"] == "precondition-required"
    ralph.ask("PUT", "/settings", 412, json=change, headers={"If-Match": '"999"'})
    tag = {"If-Match": answer.headers["ETag"]}
    for wrong in (0, -1, 101, "7", True):
        bad = {**change, "max_iterations": {**change["max_iterations"], "simple": wrong}}
        ralph.ask("PUT", "/settings", 422, json=bad, headers=tag)
    changed = ralph.raw("PUT", "/settings", json=change, headers=tag)
    assert changed.status_code == 200
    assert changed.headers["ETag"] != answer.headers["ETag"]
    ralph.ask("PUT", "/settings", 412, json=change, headers=tag)
    new = ralph.submit("done", prompt="implement it")
    assert (new["limit"]["value"], len(new["limit"]["steps"])) == (7, 1)
    for each in (running, queued):
        assert ralph.task(each["task_id"])["limit"] == each["limit"]
        assert each["limit"]["value"] == 30
    back = {"max_iterations": shown["max_iterations"], "adaptive": True}
    ralph.ask("PUT", "/settings", json=back, headers={"If-Match": changed.headers["ETag"]})
    for each in (running, queued):
        ralph.act(each["task_id"], "stop")
    ralph.wait(new["task_id"])


# --- ways out --------------------------------------------------------------------------------------------------------


def test_a_workspace_that_leads_out_fails_its_task_and_touches_nothing(ralph: Ralph) -> None:
    outside = ralph.folder / "outside"
    outside.mkdir()
    (ralph.folder / "workspaces" / "way-out").symlink_to(outside)
    task = ralph.wait(ralph.submit("done", workspace="way-out")["task_id"])
    assert (task["state"], task["reason"], task["iterations"]) == ("failed", "workspace", 0)
    below = ralph.wait(ralph.submit("done", workspace="way-out/below")["task_id"])
    assert (below["state"], below["reason"]) == ("failed", "workspace")
    assert not list(outside.iterdir())


def test_a_link_that_the_agent_makes_leads_nowhere(ralph: Ralph) -> None:
    task = ralph.wait(ralph.submit("escape", "done")["task_id"])
    assert task["state"] == "completed"
    assert (ralph.workspace(task) / "link").is_symlink()
