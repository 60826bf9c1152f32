"""The pydantic model of stack.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fakehost
import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aistack import model
from aistack.errors import ManifestError
from aistack.hooks import manifest as quick

if TYPE_CHECKING:
    from collections.abc import Callable

REFERENCE = Path(__file__).parents[2] / "bundle/reference/etc/aistack/stack.json"


def document(**services: Any) -> fakehost.Document:  # noqa: ANN401  (any JSON value)
    return fakehost.manifest(Path("/var/lib/x"), services)


def problems(content: fakehost.Document) -> list[str]:
    return model.problems(json.dumps(content))


def small_stack() -> fakehost.Document:
    return document(
        db=fakehost.service("db", probe=fakehost.probe("tcp", 5432)),
        app=fakehost.service("app", dependsOn=["db"], wants=["far"]),
        far=fakehost.external(1234),
    )


def test_a_complete_manifest_is_valid() -> None:
    assert problems(small_stack()) == []


def test_the_rendered_reference_is_valid_for_model_schema_and_quick_reader() -> None:
    if not REFERENCE.exists():
        pytest.skip(f"{REFERENCE} is not rendered: make render")
    text = REFERENCE.read_text()
    assert model.problems(text) == []
    jsonschema.validate(json.loads(text), model.json_schema())
    read = quick.load(str(REFERENCE))
    assert sorted(read.services) == sorted(json.loads(text)["services"])


def test_the_schema_is_itself_valid_and_accepts_what_the_model_accepts() -> None:
    schema = model.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(small_stack(), schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def paths(content: Any, at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:  # noqa: ANN401  (any JSON value)
    """Every key of a document, as the way to it."""
    if not isinstance(content, dict):
        return []
    return [path for key, value in content.items() for path in [(*at, key), *paths(value, (*at, key))]]


def parent(content: fakehost.Document, path: tuple[str, ...]) -> fakehost.Document:
    for key in path[:-1]:
        content = content[key]
    return content


# Below these the keys are data (names of services, of variables), which may be there or not.
FREE = (("environment",), ("environmentOptions",), ("overridable",), ("secrets",), ("services",))
FIXED = [
    path
    for path in paths(small_stack())
    if not any(path[:-1] == free for free in FREE) and "environment" not in path[:-1]
]


@pytest.mark.parametrize("path", FIXED, ids=".".join)
def test_every_key_is_required(path: tuple[str, ...]) -> None:
    content = small_stack()
    del parent(content, path)[path[-1]]
    assert f"{'.'.join(path)}: Field required" in problems(content)


@pytest.mark.parametrize("path", [path for path in [(), *FIXED] if path in [(), ("network",), ("services", "db")]])
def test_no_unknown_key_is_accepted(path: tuple[str, ...]) -> None:
    content = small_stack()
    parent(content, (*path, "extra"))["extra"] = 1
    assert problems(content) == [f"{'.'.join((*path, 'extra'))}: Extra inputs are not permitted"]


@pytest.mark.parametrize("path", FIXED, ids=".".join)
def test_no_key_takes_a_value_of_another_type(path: tuple[str, ...]) -> None:
    content = small_stack()
    parent(content, path)[path[-1]] = [{"not": "this"}]
    found = problems(content)
    assert found
    assert any(problem.startswith(".".join(path)) for problem in found), found


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m: m.update(schemaVersion=2), "schemaVersion: Input should be 1"),
        (lambda m: m["services"]["app"].update(dependsOn=["dbb"]), "dbb, which is not a service"),
        (lambda m: m["services"]["app"].update(wants=["x"]), "wants names x, which is not"),
        (lambda m: m["services"]["db"].update(probe=None), "names db, which has no probe"),
        (lambda m: m["services"]["app"].update(secrets=["PW"]), "secret PW, which is not in"),
        (lambda m: m["services"]["app"].update(unit="x.service"), "services.app.unit is x.service"),
        (lambda m: m["services"]["app"].update(image=None), "not external needs image"),
        (lambda m: m["services"]["far"].update(unit="u.service"), "external service has no unit"),
        (lambda m: m["services"]["db"]["probe"].update(port=None), "kind tcp needs a port"),
        (lambda m: m["services"]["db"]["probe"].update(kind="exec"), "exec needs a command"),
        (lambda m: m["services"]["db"]["probe"].update(port=65536), "less than or equal to 65535"),
        (lambda m: m["services"]["db"]["probe"].update(port="5432"), "valid integer"),
        (lambda m: m["environment"].update(A="two words"), "environment.A: String should match"),
        (lambda m: m["environment"].update({"lower": "x"}), "environment.lower"),
        (
            lambda m: m.update(environment={"PW": "x"}, secrets={"PW": {"file": "/etc/pw", "as": "env"}}),
            "secrets.PW is also a key of environment",
        ),
        (
            lambda m: m["services"]["db"].update(dependsOn=["app"]),
            "names app, which has no probe",
        ),
        (lambda m: m["services"].update({"-rf": m["services"]["db"]}), "services.-rf"),
        (lambda m: m["services"].update({"../x": m["services"]["db"]}), "services.../x"),
    ],
)
def test_what_cannot_be_meant_is_named(change: Callable[[fakehost.Document], None], expected: str) -> None:
    content = small_stack()
    change(content)
    found = "; ".join(problems(content))
    assert expected in found


def overridable(**changes: Any) -> dict[str, Any]:  # noqa: ANN401  (any JSON value)
    """Two keys of one option that may be overridden, the second with these changes."""
    entry = {"type": "int", "min": 1, "max": 9, "option": "services.aistack.x", "keys": ["A", "B"]}
    return {"A": entry, "B": {**entry, **changes}}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (overridable(), ""),
        (overridable(max=None), "overridable.A.keys is not the same for all of them"),
        (overridable(keys=["A"]), "overridable.B.keys is not the same for all of them"),
        (overridable(keys=[]), "overridable.B.keys: List should have at least 1 item"),
        (overridable(min="1"), "overridable.B.min: Input should be a valid integer"),
        (overridable(type="float"), "overridable.B.type: Input should be 'bool', 'int' or 'string'"),
        ({"C": overridable()["A"]}, "overridable.C is not a key of environment"),
        ({"A": {**overridable()["A"], "keys": ["A"], "min": 10}}, "overridable.A.min is above its max"),
        ({"A": {**overridable()["A"], "keys": ["A"], "type": "bool"}}, "overridable.A is no int and has a range"),
    ],
)
def test_overrides_that_cannot_be_meant_are_named(entries: dict[str, Any], expected: str) -> None:
    content = small_stack()
    content["environment"] = {"A": "1", "B": "1"}
    content["environmentOptions"] = dict.fromkeys("AB", "services.aistack.x")
    content["overridable"] = entries
    found = "; ".join(problems(content))
    assert expected in found
    assert bool(expected) == bool(found)


def test_every_key_has_an_option_and_every_option_a_key() -> None:
    content = small_stack()
    content["environmentOptions"] = {"X": "services.aistack.x"}
    missing, extra = "environmentOptions.REDIS_HOST is missing", "environmentOptions.X is not a key of environment"
    assert problems(content) == [f"{missing}; {extra}"]


def test_a_cycle_is_named_in_order() -> None:
    tcp = fakehost.probe("tcp", 1)
    content = document(
        a=fakehost.service("a", dependsOn=["b"], probe=tcp),
        b=fakehost.service("b", dependsOn=["c"], probe=tcp),
        c=fakehost.service("c", dependsOn=["b"], probe=tcp),
    )
    assert problems(content) == ["services.b.dependsOn is a cycle: b -> c -> b"]


def test_a_diamond_is_no_cycle() -> None:
    tcp = fakehost.probe("tcp", 1)
    content = document(
        top=fakehost.service("top", dependsOn=["left", "right"]),
        left=fakehost.service("left", dependsOn=["base"], probe=tcp),
        right=fakehost.service("right", dependsOn=["base"], probe=tcp),
        base=fakehost.service("base", probe=tcp),
    )
    assert problems(content) == []


def test_a_name_in_a_problem_cannot_forge_a_line() -> None:
    content = small_stack()
    content["services"]["x\naistack: all is well\x1b[2J"] = content["services"]["db"]
    found = problems(content)
    assert found
    assert all(problem.isprintable() for problem in found)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schemaVersion": 1'])
def test_text_that_is_no_manifest_has_problems(text: bytes) -> None:
    assert model.problems(text)


@given(st.binary(max_size=200))
def test_no_text_at_all_raises_anything(text: bytes) -> None:
    assert model.problems(text)


def test_a_missing_file_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"cannot read the manifest .*No such file"):
        model.load(tmp_path / "none")


def test_an_invalid_file_names_the_file_and_every_problem(tmp_path: Path) -> None:
    path = tmp_path / "stack.json"
    content = small_stack()
    del content["stateDir"]
    content["network"]["dns"] = "yes"
    path.write_text(json.dumps(content))
    with pytest.raises(ManifestError) as caught:
        model.load(path)
    assert str(path) in str(caught.value)
    assert "stateDir: Field required" in str(caught.value)
    assert "network.dns: Input should be a valid boolean" in str(caught.value)
    assert caught.value.code == 2


def test_the_model_reads_what_it_writes() -> None:
    text = json.dumps(small_stack())
    read = model.Manifest.model_validate_json(text)
    assert json.loads(read.model_dump_json(by_alias=True)) == json.loads(text)
