"""The contracts between services: well-formed, and kept by both sides."""

from __future__ import annotations

import copy
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import ralphs
import serving
from hypothesis import given
from hypothesis import strategies as st
from scripted_backend import ScriptedBackend

from aistack import contracts
from aistack.contracts import Contract, NoContract, compare

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(params=contracts.names())
def contract(request: pytest.FixtureRequest) -> Contract:
    """Each of them."""
    return contracts.load(request.param)


def test_there_is_a_contract_for_each_edge() -> None:
    assert contracts.names() == [
        "all-to-llama-cpp",
        "hybrid-coordinator-to-ralph-wiggum",
        "ralph-wiggum-to-aider-wrapper",
    ]


def test_a_contract_is_named_after_its_sides(contract: Contract) -> None:
    assert contract.name == f"{contract.consumer}-to-{contract.provider}"
    assert contract.semantics


def test_its_schemas_are_schemas_and_its_examples_fit_them(contract: Contract) -> None:
    for each in contract.interactions:
        schemas = [schema for schema in (each.request, *each.responses.values()) if schema is not None]
        for schema in schemas:
            jsonschema.Draft202012Validator.check_schema(schema)
        assert each.examples, f"{each.name} has no example"
        for example in each.examples:
            assert set(example.status) <= set(each.responses), f"{each.name}: {example.name}"
            if example.body is not None and each.request is not None:
                fits = jsonschema.Draft202012Validator(each.request).is_valid(example.body)
                assert fits or min(example.status) >= 400, f"{each.name}: {example.name}"


def test_an_unknown_contract_is_said() -> None:
    with pytest.raises(NoContract, match=r"there are: .*ralph-wiggum-to-aider-wrapper"):
        contracts.load("nobody-to-nothing")


# --- whether one schema fits another ---------------------------------------------------------------------------------


STRING: dict[str, Any] = {"type": "string"}
OBJECT: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 1}, "b": {"type": ["string", "null"]}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        (STRING, STRING),
        (STRING, {}),
        (STRING, {"type": ["string", "null"]}),
        ({"type": "integer"}, {"type": "number"}),
        ({"enum": ["a", None]}, {"type": ["string", "null"]}),
        ({"const": "a"}, {"enum": ["a", "b"]}),
        ({"type": "string", "maxLength": 5}, {"type": "string", "maxLength": 5}),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, {"type": ["string", "null"]}),
        ({"type": ["string", "null"]}, {"anyOf": [{"type": "string"}, {"type": "null"}]}),
        (OBJECT, OBJECT),
        ({**OBJECT, "required": ["a", "b"]}, OBJECT),
        (OBJECT, {**OBJECT, "required": [], "properties": {**OBJECT["properties"], "c": {}}}),
        ({"type": "array", "items": STRING}, {"type": "array", "items": {}}),
    ],
)
def test_what_fits(narrow: dict[str, Any], wide: dict[str, Any]) -> None:
    assert compare.misfits(narrow, wide) == []


@pytest.mark.parametrize(
    ("narrow", "wide", "why"),
    [
        (STRING, {"type": "integer"}, "is string, not integer"),
        ({}, STRING, "is anything, not string"),
        ({"type": "number"}, {"type": "integer"}, "is number, not integer"),
        ({"type": ["string", "null"]}, STRING, "is null, not string"),
        ({"enum": ["a", "b"]}, {"enum": ["a"]}, "is 'b', none of"),
        (STRING, {"enum": ["a"]}, "is not bound to"),
        (STRING, {"type": "string", "maxLength": 5}, "maxLength is not given, not at most 5"),
        ({"type": "integer", "minimum": 0}, {"type": "integer", "minimum": 1}, "minimum is 0, not at least 1"),
        ({**OBJECT, "required": []}, OBJECT, "a may be missing"),
        ({**OBJECT, "properties": {**OBJECT["properties"], "c": {}}}, OBJECT, "c: is not known"),
        ({**OBJECT, "properties": {"a": STRING}}, OBJECT, "a: is string, not integer"),
        ({"type": "array", "items": STRING}, {"type": "array", "items": {"type": "null"}}, "[]: is string, not null"),
    ],
)
def test_what_does_not_fit(narrow: dict[str, Any], wide: dict[str, Any], why: str) -> None:
    (found,) = compare.misfits(narrow, wide)
    assert why in found


@given(
    document=st.fixed_dictionaries(
        {}, optional={"a": st.integers(-1, 3) | st.booleans(), "b": st.none() | st.text(max_size=3), "c": st.none()}
    )
)
def test_a_value_is_judged_as_the_library_judges_it(document: dict[str, Any]) -> None:
    assert (compare.value_misfits(document, OBJECT) == []) == jsonschema.Draft202012Validator(OBJECT).is_valid(document)


# --- both sides of each edge -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ralph_openapi(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Ralph's OpenAPI document."""
    from aistack.services.ralph_wiggum.app import make
    from aistack.services.ralph_wiggum.settings import RalphSettings

    return make(RalphSettings(data_path=tmp_path_factory.mktemp("data"), api_key_file=None)).openapi()


def test_ralph_keeps_what_it_promises_the_coordinator(ralph_openapi: dict[str, Any]) -> None:
    contract = contracts.load("hybrid-coordinator-to-ralph-wiggum")
    assert compare.provider_misfits(contract, ralph_openapi) == []


def test_ralph_asks_aider_wrapper_what_it_may_and_understands_what_it_gets() -> None:
    from aistack.services.ralph_wiggum.backend import Order, Reply

    execute = contracts.load("ralph-wiggum-to-aider-wrapper").interaction("execute")
    assert execute.request is not None
    asked = Order.model_json_schema(mode="serialization")
    assert compare.misfits(compare.resolved(asked, asked), execute.request) == []
    understood = Reply.model_json_schema()
    assert compare.misfits(execute.responses[200], compare.resolved(understood, understood)) == []


def test_aider_wrapper_keeps_what_it_promises_ralph(tmp_path: Path) -> None:
    from aistack.services.aider_wrapper.app import make
    from aistack.services.aider_wrapper.settings import Settings

    key = tmp_path / "key"
    key.write_text("a key")
    app = make(Settings(api_key_file=key, state_dir=tmp_path / "state", workspace_root=tmp_path))
    assert compare.provider_misfits(contracts.load("ralph-wiggum-to-aider-wrapper"), app.openapi()) == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda document: document["paths"].pop("/stats"), "GET /stats: there is no such route"),
        (
            lambda document: document["paths"]["/tasks"]["post"]["responses"].pop("409"),
            "POST /tasks: it says nothing of the answer 409",
        ),
        (
            lambda document: document["paths"]["/tasks"]["post"]["parameters"].clear(),
            "POST /tasks: it does not know the header Idempotency-Key",
        ),
        (
            lambda document: document["components"]["schemas"]["Submission"]["properties"].pop("max_iterations"),
            "POST /tasks: its request: max_iterations: is not known",
        ),
        (
            lambda document: document["components"]["schemas"]["Task"]["required"].remove("iterations"),
            "POST /tasks: its answer 202: the document: iterations may be missing",
        ),
        (
            lambda document: document["components"]["schemas"]["State"]["enum"].append("gone"),
            "POST /tasks: its answer 202: state: is 'gone'",
        ),
    ],
)
def test_a_provider_that_drifts_is_told(
    ralph_openapi: dict[str, Any], change: Callable[[dict[str, Any]], object], why: str
) -> None:
    document = copy.deepcopy(ralph_openapi)
    change(document)
    found = compare.provider_misfits(contracts.load("hybrid-coordinator-to-ralph-wiggum"), document)
    assert any(each.startswith(why) for each in found), found


# --- against a service that runs -------------------------------------------------------------------------------------


def check(edge: str, url: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Run the check as a command."""
    command = [sys.executable, "-m", "aistack.contracts", "check", "--edge", edge, "--url", url, *more]
    environment = {**os.environ, "PYTHONPATH": str(Path(contracts.__file__).parents[2])}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


def test_a_service_that_is_not_there_fails() -> None:
    port = serving.free_port()
    for edge in contracts.names():
        found = check(edge, f"http://127.0.0.1:{port}")
        assert found.returncode == 3, found.stdout
        assert "nobody answers" in found.stdout


def test_a_ralph_that_runs_keeps_its_contract(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("the key")
    with ralphs.running(tmp_path, RALPH_WIGGUM_API_KEY_FILE=str(key)) as ralph:
        found = check("hybrid-coordinator-to-ralph-wiggum", ralph.service.url, "--key-file", str(key))
        assert found.returncode == 0, found.stdout
        assert found.stdout.count("ok ") == 10
        refused = check("hybrid-coordinator-to-ralph-wiggum", ralph.service.url)
        assert refused.returncode == 5
        assert "answered with 401" in refused.stdout


def test_the_stand_ins_keep_the_contracts_of_what_they_stand_in_for(tmp_path: Path) -> None:
    workspaces = tmp_path / "workspaces"
    (workspaces / "default").mkdir(parents=True)
    backend = ScriptedBackend(workspaces)
    try:
        found = check("ralph-wiggum-to-aider-wrapper", f"http://127.0.0.1:{backend.port}")
    finally:
        backend.close()
    assert found.returncode == 0, found.stdout


def test_the_scripted_endpoint_keeps_llama_cpp_s(tmp_path: Path) -> None:
    script = Path(contracts.__file__).parents[3] / "images/scripted-endpoint/scripted_endpoint.py"
    port = serving.free_port()
    process = subprocess.Popen([sys.executable, "-I", str(script), str(port)], cwd=tmp_path)
    try:
        wait_listening(port)
        found = check("all-to-llama-cpp", f"http://127.0.0.1:{port}")
        assert found.returncode == 0, found.stdout
    finally:
        process.terminate()
        process.wait(10)


def wait_listening(port: int) -> None:
    """Wait until somebody listens."""
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < deadline
            # Nothing tells when a process begins to listen.
            time.sleep(0.02)
        else:
            return


def test_the_contracts_are_listed() -> None:
    command = [sys.executable, "-m", "aistack.contracts", "list"]
    environment = {**os.environ, "PYTHONPATH": str(Path(contracts.__file__).parents[2])}
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    assert found.stdout.split() == contracts.names()
