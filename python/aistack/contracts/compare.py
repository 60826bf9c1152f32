"""Whether one side's documents fit the other side's schema, field by field.

`narrow` fits `wide` if every document that the first allows is allowed by the second. It is judged for what schemas of
contracts and of OpenAPI documents are made of here: types, enumerations, alternatives, objects, lists, and bounds.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aistack.contracts import Contract, Interaction, Schema

_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}
_PARAMETER = re.compile(r"\{[^}]*\}")


def misfits(narrow: Schema, wide: Schema, place: str = "") -> list[str]:
    """Where `narrow` allows what `wide` does not; empty if it fits."""
    if "const" in narrow or "enum" in narrow:
        values = narrow.get("enum", [narrow.get("const")])
        return [wrong for value in values for wrong in value_misfits(value, wide, place)]
    if (alternatives := _alternatives(narrow)) is not None:
        return [wrong for each in alternatives for wrong in misfits(each, wide, place)]
    if isinstance(narrow.get("type"), list):
        return [wrong for kind in narrow["type"] for wrong in misfits({**narrow, "type": kind}, wide, place)]
    if narrow.get("type") == "null":
        return value_misfits(None, wide, place)
    if (alternatives := _alternatives(wide)) is not None:
        found = [misfits(narrow, each, place) for each in alternatives]
        return [] if any(not wrong for wrong in found) else min(found, key=len)
    if "const" in wide or "enum" in wide:
        return [f"{place or 'the document'}: is not bound to {wide.get('enum', [wide.get('const')])}"]
    return _type_misfits(narrow, wide, place) or [
        *_bound_misfits(narrow, wide, place),
        *_parts(narrow, wide, place),
    ]


def value_misfits(value: Any, schema: Schema, place: str = "") -> list[str]:  # noqa: ANN401  (whatever JSON has)
    """Where a value is not what a schema allows; empty if it is."""
    here = place or "the document"
    if (alternatives := _alternatives(schema)) is not None:
        found = [value_misfits(value, each, place) for each in alternatives]
        return [] if any(not wrong for wrong in found) else min(found, key=len)
    if "const" in schema and value != schema["const"]:
        return [f"{here}: is {value!r}, not {schema['const']!r}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{here}: is {value!r}, none of {schema['enum']}"]
    kinds = _kinds(schema)
    if kinds is not None and not any(_is(value, kind) for kind in kinds):
        is_kind = next(kind for kind in _TYPES if _is(value, kind))
        return [f"{here}: is {is_kind}, not {' or '.join(sorted(kinds))}"]
    wrong = [f"{here}: {why}" for why in _beyond(value, schema)]
    if isinstance(value, dict):
        wrong += [f"{here}: has no {key}" for key in schema.get("required", []) if key not in value]
        properties = schema.get("properties", {})
        for key, each in value.items():
            if key in properties:
                wrong += value_misfits(each, properties[key], f"{place}.{key}".lstrip("."))
            elif schema.get("additionalProperties") is False:
                wrong.append(f"{here}: {key} is not known")
    if isinstance(value, list) and "items" in schema:
        for number, each in enumerate(value):
            wrong += value_misfits(each, schema["items"], f"{place}[{number}]")
    return wrong


def _alternatives(schema: Schema) -> list[Schema] | None:
    """A schema's alternatives, or None if it has none."""
    return schema.get("anyOf") or schema.get("oneOf")


def _kinds(schema: Schema) -> set[str] | None:
    """The types that a schema allows; None for any."""
    kinds = schema.get("type")
    return None if kinds is None else set(kinds) if isinstance(kinds, list) else {kinds}


def _is(value: Any, kind: str) -> bool:  # noqa: ANN401  (whatever JSON has)
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[kind]) and (not isinstance(value, bool) or kind == "boolean")


def _beyond(value: Any, schema: Schema) -> Iterator[str]:  # noqa: ANN401  (whatever JSON has)
    if isinstance(value, str):
        size, bounds, unit = len(value), ("minLength", "maxLength"), "characters"
        if "pattern" in schema and re.search(schema["pattern"], value) is None:
            yield f"does not look like {schema['pattern']}"
    elif isinstance(value, list):
        size, bounds, unit = len(value), ("minItems", "maxItems"), "entries"
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        size, bounds, unit = value, ("minimum", "maximum"), "in value"  # type: ignore[assignment]
    else:
        return
    if size < schema.get(bounds[0], size) or size > schema.get(bounds[1], size):
        yield f"is {size} {unit}, and may be {schema.get(bounds[0], 'any')} to {schema.get(bounds[1], 'any')}"


def _type_misfits(narrow: Schema, wide: Schema, place: str) -> list[str]:
    allowed, given = _kinds(wide), _kinds(narrow)
    if allowed is None:
        return []
    if "number" in allowed:
        allowed = allowed | {"integer"}
    if given is None or not given <= allowed:
        said = "anything" if given is None else " or ".join(sorted(given))
        return [f"{place or 'the document'}: is {said}, not {' or '.join(sorted(allowed))}"]
    return []


def _bound_misfits(narrow: Schema, wide: Schema, place: str) -> list[str]:
    here = place or "the document"
    low = [
        f"{here}: its {bound} is {narrow.get(bound, 'not given')}, not at least {wide[bound]}"
        for bound in _LOWER
        if bound in wide and narrow.get(bound, float("-inf")) < wide[bound]
    ]
    high = [
        f"{here}: its {bound} is {narrow.get(bound, 'not given')}, not at most {wide[bound]}"
        for bound in _UPPER
        if bound in wide and narrow.get(bound, float("inf")) > wide[bound]
    ]
    pattern = wide.get("pattern")
    if pattern is not None and narrow.get("pattern") != pattern:
        low.append(f"{here}: need not look like {pattern}")
    return low + high


def _parts(narrow: Schema, wide: Schema, place: str) -> list[str]:
    """What is wrong with an object's keys, and with a list's entries."""
    given, allowed = narrow.get("properties", {}), wide.get("properties", {})
    wrong = [
        f"{place or 'the document'}: {key} may be missing"
        for key in wide.get("required", [])
        if key not in narrow.get("required", [])
    ]
    for key, schema in given.items():
        inner = f"{place}.{key}".lstrip(".")
        if key in allowed:
            wrong += misfits(schema, allowed[key], inner)
        elif wide.get("additionalProperties") is False:
            wrong.append(f"{inner}: is not known")
    if "items" in wide and _kinds(narrow) == {"array"}:
        wrong += misfits(narrow.get("items", {}), wide["items"], f"{place}[]")
    return wrong


# --- against an OpenAPI document -------------------------------------------------------------------------------------


def provider_misfits(contract: Contract, openapi: dict[str, Any]) -> list[str]:
    """Where a provider's OpenAPI document does not keep the contract."""
    wrong = []
    for each in contract.interactions:
        operation = _operation(openapi, each)
        found = ["there is no such route"] if operation is None else _operation_misfits(each, operation, openapi)
        wrong += [f"{each.method} {each.path}: {why}" for why in found]
    return wrong


def _operation(openapi: dict[str, Any], interaction: Interaction) -> dict[str, Any] | None:
    wanted = _PARAMETER.sub("{}", interaction.path)
    for path, item in openapi["paths"].items():
        if _PARAMETER.sub("{}", path) == wanted and interaction.method.lower() in item:
            found: dict[str, Any] = item[interaction.method.lower()]
            return found
    return None


def _operation_misfits(interaction: Interaction, operation: dict[str, Any], openapi: dict[str, Any]) -> list[str]:
    wrong = []
    if interaction.request is not None:
        taken = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
        wrong += [f"its request: {why}" for why in misfits(interaction.request, resolved(taken, openapi))]
    known = {
        parameter["name"].lower(): parameter
        for parameter in operation.get("parameters", [])
        if parameter["in"] == "header"
    }
    for name, schema in interaction.headers.items():
        if name.lower() not in known:
            wrong.append(f"it does not know the header {name}")
        else:
            taken = resolved(known[name.lower()]["schema"], openapi)
            wrong += [f"the header {name}: {why}" for why in misfits(schema, taken)]
    for status, schema in interaction.responses.items():
        answer = operation["responses"].get(str(status))
        if answer is None:
            wrong.append(f"it says nothing of the answer {status}")
            continue
        content = resolved(answer, openapi).get("content", {})
        # Some answers have no body to speak of.
        given = next((each.get("schema", {}) for kind, each in content.items() if kind.endswith("json")), None)
        if given is None:
            wrong.append(f"its answer {status} is no JSON")
        else:
            wrong += [f"its answer {status}: {why}" for why in misfits(resolved(given, openapi), schema)]
    return wrong


def resolved(schema: Any, document: dict[str, Any]) -> Any:  # noqa: ANN401  (whatever JSON has)
    """A schema with what its references name in their place; what refers to itself allows anything there."""
    return _resolved(schema, document, ())


def _resolved(schema: Any, document: dict[str, Any], within: tuple[str, ...]) -> Any:  # noqa: ANN401  (as above)
    if isinstance(schema, list):
        return [_resolved(each, document, within) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if isinstance(reference := schema.get("$ref"), str):
        if reference in within:
            return {}
        found: Any = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
        return _resolved(found, document, (*within, reference))
    return {key: _resolved(value, document, within) for key, value in schema.items()}
