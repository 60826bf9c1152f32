"""The endpoint that plays a model does as its script says."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("httpx", reason="the packages of the group `services` are not installed")

import httpx
import scripted_model

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def model() -> Iterator[scripted_model.Model]:
    with scripted_model.running() as it:
        yield it


def complete(model: scripted_model.Model, prompt: str, *, stream: bool = False, system: str = "") -> Any:  # noqa: ANN401
    messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
    body = {"messages": messages, "stream": stream, "stream_options": {"include_usage": True}}
    return httpx.post(f"{model.url}/v1/chat/completions", json=body, timeout=30, trust_env=False)


def said(answer: Any) -> str:  # noqa: ANN401
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def test_the_prompt_says_what_is_played(model: scripted_model.Model) -> None:
    assert "return a + b" in said(complete(model, "please play:function now"))
    assert "return a - b" in said(complete(model, "play:wrong"))
    assert complete(model, "play:status:503").status_code == 503
    assert complete(model, "play:nothing-known").status_code == 400


def test_a_play_counts_by_its_label(model: scripted_model.Model) -> None:
    answers = [said(complete(model, f"play:eventually:2#{label}")) for label in ("a", "b", "a")]
    assert ["return a + b" in answer for answer in answers] == [False, False, True]


def test_the_control_route_says_what_is_played_otherwise(model: scripted_model.Model) -> None:
    model.play("refusal")
    assert said(complete(model, "hello")) == "I cannot help with that."
    assert [(seen["play"], seen["prompt"]) for seen in model.requests()] == [("play:refusal", "hello")]
    model.play(None)


def test_a_streamed_answer_is_the_same_answer(model: scripted_model.Model) -> None:
    lines = [line[6:] for line in complete(model, "play:function", stream=True).text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
    assert text == said(complete(model, "play:function"))
    assert chunks[-1]["usage"]["total_tokens"] > 0


def test_edits_come_in_the_format_that_is_asked_for(model: scripted_model.Model) -> None:
    assert "<<<<<<< SEARCH" in said(complete(model, "play:function", system="use *SEARCH/REPLACE* blocks"))


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_breaks_off_is_seen_to(model: scripted_model.Model, *, stream: bool) -> None:
    try:
        text = complete(model, "play:break-off", stream=stream).text
    except httpx.HTTPError:
        return
    assert "[DONE]" not in text


def test_it_refuses_connections_for_a_while_and_comes_back(model: scripted_model.Model) -> None:
    # Long enough that a busy machine cannot miss it.
    model.refuse(2)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            assert said(complete(model, "play:refusal"))
        except httpx.HTTPError:
            continue
        return
    pytest.fail("it did not come back")
