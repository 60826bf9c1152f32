"""docs/ralph.md is true: every example is run, in its order, against a Ralph that runs; and no route lacks one."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ralphs

if TYPE_CHECKING:
    import httpx
    from ralphs import Ralph

PAGE = Path(__file__).resolve().parents[2] / "docs/ralph.md"
_BLOCK = re.compile(r"^```http\n(\S+) (\S+)\n(.*?)^HTTP (\d+)\n\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANYTHING = "…"


def differences(wanted: Any, found: Any, place: str = "") -> list[str]:  # noqa: ANN401  (JSON)
    """Where an answer is not what the page shows; it may have more keys."""
    if wanted in (ANYTHING, found):
        return []
    if isinstance(wanted, dict) and isinstance(found, dict):
        return [
            wrong
            for key, value in wanted.items()
            for wrong in (differences(value, found[key], f"{place}.{key}") if key in found else [f"{place}: no {key}"])
        ]
    if isinstance(wanted, list) and isinstance(found, list):
        if wanted[:1] == [ANYTHING]:
            wanted, found = wanted[1:], found[-len(wanted) + 1 :]
        if len(wanted) == len(found):
            pairs = enumerate(zip(wanted, found, strict=True))
            return [wrong for number, (one, other) in pairs for wrong in differences(one, other, f"{place}[{number}]")]
    return [f"{place}: {found!r}, and the page says {wanted!r}"]


def ask(ralph: Ralph, method: str, path: str, head: str, body: str) -> httpx.Response:
    """Make one request of the page."""
    headers = dict(line.split(": ", 1) for line in head.splitlines() if line)
    if body:
        headers["Content-Type"] = "application/json"
    return ralph.raw(method, path, headers=headers, content=body)


def shows(ralph: Ralph, method: str, path: str, answer: httpx.Response, wanted: str) -> list[str]:
    """Where an answer is not what the page shows."""
    kind = answer.headers["Content-Type"]
    if kind.startswith("text/event-stream"):
        names = [line for line in answer.text.splitlines() if line.startswith("event: ")]
        return [] if names == wanted.split("\n") else [f"{names}"]
    if kind.startswith("text/plain"):
        text, deadline = answer.text, time.monotonic() + ralphs.BOUND
        while missing := [line for line in wanted.splitlines() if line not in text]:
            if time.monotonic() > deadline:
                return missing
            time.sleep(0.05)
            text = ralph.raw(method, path).text
        return []
    return differences(json.loads(wanted), answer.json())


def test_every_example_is_true(tmp_path: Path) -> None:
    blocks = _BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert PAGE.read_text(encoding="utf-8").count("```http") == len(blocks) > 15
    task, etag = "none", "none"
    used = set()
    with ralphs.running(tmp_path) as ralph:
        ralph.wait(ralph.submit("hang")["task_id"], "running")
        for method, shown, rest, status, expected in blocks:
            used.add(f"{method} {shown.partition('?')[0].replace('TASK', '{task_id}')}")
            head, _, body = rest.partition("\n") if rest.startswith("\n") else rest.partition("\n\n")
            path, body, wanted = (text.replace("TASK", task).strip() for text in (shown, body, expected))
            if method == "GET" and path == f"/tasks/{task}":
                ralph.wait(task)
            answer = ask(ralph, method, path, head.replace("ETAG", etag), body)
            where = f"{method} {path}"
            assert answer.status_code == int(status), f"{where}: {answer.text}"
            wrong = shows(ralph, method, path, answer, wanted)
            assert not wrong, f"{where}: {wrong}"
            if "ETag" in answer.headers:
                etag = answer.headers["ETag"]
            if (method, path) == ("POST", "/tasks"):
                task = answer.json()["task_id"]
        document = ralph.ask("GET", "/openapi.json")
    routes = {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item}
    assert routes == used
