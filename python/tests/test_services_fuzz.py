"""Schemathesis asks the services what their OpenAPI allows, and what it does not: no answer may be out of its words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("fastapi", reason="the packages of the group `services` are not installed")
schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

import scripted_model  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from stand_in_forks import StandInForks  # noqa: E402

from aistack.services.aider_wrapper import app as aider_app  # noqa: E402
from aistack.services.aider_wrapper.settings import Settings  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

KEY = "a-key-of-32-characters-0123456789"
EXAMPLES = 60
"""For each route; more of them in a quiet hour found nothing else."""


def fuzz(app: Any, headers: dict[str, str]) -> None:  # noqa: ANN401
    """Ask an application, and check each answer against its own words."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=headers)
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in schemathesis.GenerationMode:
            strategy = operation.as_strategy(generation_mode=mode)

            @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
            @given(case=strategy)
            def check(case: Any) -> None:  # noqa: ANN401
                case.call_and_validate(headers=headers)

            # A route that takes nothing cannot be asked wrongly.
            nothing = operation.body or operation.query or operation.headers or operation.path_parameters
            if nothing or mode == schemathesis.GenerationMode.POSITIVE:
                check()


@pytest.mark.parametrize("key", [None, KEY], ids=["open", "with a key"])
def test_aider_wrapper_does_as_its_openapi_says(
    key: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aider_app, "Forks", StandInForks)
    (tmp_path / "workspaces").mkdir()
    if key is not None:
        (tmp_path / "key").write_text(key)
    with scripted_model.running() as model:
        made = aider_app.make(
            Settings(
                workspace_root=tmp_path / "workspaces",
                state_dir=tmp_path / "state",
                api_key_file=None if key is None else tmp_path / "key",
                llama_cpp_host="127.0.0.1",
                llama_cpp_port=model.port,
            )
        )
        fuzz(made, {} if key is None else {"X-API-Key": key})
