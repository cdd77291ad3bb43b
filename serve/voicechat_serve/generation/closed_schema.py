"""A JSON Schema without properties that it does not list: a model would write such properties without an end."""

from typing import Any

from voicechat_serve.generation.answer_form import Schema

COMBINING = ("$ref", "anyOf", "oneOf", "allOf")
OPEN = ("additionalProperties", "patternProperties", "minProperties", *COMBINING)
"""Keywords of an object that may have, or must have, properties that it does not list."""

OBJECTS = ("properties", "required", *OPEN)
"""Keywords that describe the properties of an object."""

NAMED = ("properties", "$defs", "definitions")
LISTS = ("anyOf", "oneOf", "prefixItems")


def closed(schema: Schema) -> Schema:
    """Return a schema that allows no property that it does not list, except where it says that it allows others.

    What the result allows, the schema allows too. It stays as it is if it joins objects of several parts, where each
    part lists only its own properties.
    """
    return schema if joins(schema) else closed_part(schema)


def joins(schema: Any) -> bool:
    """Whether several parts of a schema describe one object."""
    if isinstance(schema, list):
        return any(map(joins, schema))
    if not isinstance(schema, dict):
        return False
    if "allOf" in schema or (any(each in schema for each in COMBINING) and sum(each in schema for each in OBJECTS) > 1):
        return True
    return any(map(joins, schema.values()))


def closed_part(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    result = dict(schema)
    for keyword, value in schema.items():
        if keyword in NAMED and isinstance(value, dict):
            result[keyword] = {name: closed_part(each) for name, each in value.items()}
        elif keyword in LISTS and isinstance(value, list):
            result[keyword] = [closed_part(each) for each in value]
        elif keyword in ("items", "additionalProperties"):
            result[keyword] = closed_part(value)
    listed, required = schema.get("properties"), schema.get("required", [])
    is_open = any(keyword in schema for keyword in OPEN)
    if isinstance(listed, dict) and not is_open and all(name in listed for name in required):
        result["additionalProperties"] = False
    return result
