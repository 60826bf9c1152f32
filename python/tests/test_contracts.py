"""The contracts between services: well-formed, and kept by both sides."""

from __future__ import annotations

import jsonschema
import pytest

from aistack import contracts
from aistack.contracts import Contract, NoContract


@pytest.fixture(params=contracts.names())
def contract(request: pytest.FixtureRequest) -> Contract:
    """Each of them."""
    return contracts.load(request.param)


def test_there_is_a_contract_for_each_edge() -> None:
    assert "ralph-wiggum-to-aider-wrapper" in contracts.names()


def test_a_contract_is_named_after_its_sides(contract: Contract) -> None:
    assert contract.name == f"{contract.consumer}-to-{contract.provider}"


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
