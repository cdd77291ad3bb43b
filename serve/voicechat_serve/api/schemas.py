"""Check a client's JSON Schema before an engine compiles it, to say where it cannot be used."""

from collections.abc import Iterator
from typing import Any

from voicechat_serve.api.errors import APIError, shortened
from voicechat_serve.json_values import require_text

MOST_BYTES = 65_536
"""Of one schema."""

DEEPEST = 32
"""Levels of schemas within schemas."""

LARGEST_BOUND = 4096
"""For minItems, minLength and minProperties: no answer is longer."""

ONE, MANY, NAMED = (
    ("items", "additionalProperties"),
    ("anyOf", "oneOf", "allOf", "prefixItems"),
    ("properties", "patternProperties", "$defs", "definitions"),
)
"""Keywords whose value is a schema, a list of schemas, and schemas by name."""

NOT_KEPT = frozenset(
    {
        *("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "propertyNames"),
        *("dependentRequired", "dependentSchemas", "dependencies", "unevaluatedItems", "unevaluatedProperties"),
        *("additionalItems", "$dynamicRef", "$recursiveRef", "contentEncoding", "contentMediaType", "contentSchema"),
    }
)
"""Keywords that constrain, and that a grammar here cannot keep."""


def require_usable(schema: Any, param: str, is_strict: bool) -> None:
    """Check a schema.

    Args:
        schema: as the client sent it.
        param: its place in the request.
        is_strict: whether a keyword that cannot be kept is an error; otherwise the answer may break it.

    Raises:
        APIError: 400, it is no schema, is too large, refers to another document, or has such a keyword.
    """
    if not isinstance(schema, dict):
        raise invalid(param, "a schema is an object")
    try:
        size = require_text(schema)
    except ValueError as error:
        raise invalid(param, f"the schema cannot be used: {error}") from None
    if size > MOST_BYTES:
        raise invalid(param, f"the schema has {size:,} bytes, and may have {MOST_BYTES:,}")
    for path, part, depth in parts(schema, param):
        if isinstance(part, bool):
            continue
        if not isinstance(part, dict):
            raise invalid(path, "a schema is an object")
        if depth > DEEPEST:
            raise invalid(path, f"schemas are nested more than {DEEPEST} levels deep")
        for keyword, value in part.items():
            place = f"{path}.{shortened(keyword, 100)}"
            if is_strict and keyword in NOT_KEPT:
                raise invalid(place, f"{keyword} is not supported in a strict schema")
            if keyword.startswith("min") and keyword != "minimum" and isinstance(value, int) and value > LARGEST_BOUND:
                raise invalid(place, f"{value} is more than an answer can have")
            if keyword == "required" and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
                raise invalid(place, "it must be a list of names")
            if keyword == "$ref":
                require_reference(schema, value, place)


def parts(schema: Any, path: str, depth: int = 0) -> Iterator[tuple[str, Any, int]]:
    """Yield (path, schema, depth) of a schema and all schemas within it."""
    yield path, schema, depth
    if not isinstance(schema, dict) or depth > DEEPEST:
        return
    for keyword, value in schema.items():
        inner: list[tuple[str, Any]] = []
        if keyword in ONE and not isinstance(value, list):
            inner = [(keyword, value)]
        elif keyword in MANY and isinstance(value, list):
            inner = [(f"{keyword}.{number}", each) for number, each in enumerate(value)]
        elif keyword in NAMED and isinstance(value, dict):
            inner = [(f"{keyword}.{shortened(name, 100)}", each) for name, each in value.items()]
        elif keyword in (*MANY, *NAMED):
            raise invalid(f"{path}.{keyword}", "it must be a list" if keyword in MANY else "it must be an object")
        for name, each in inner:
            yield from parts(each, f"{path}.{name}", depth + 1)


def require_reference(schema: dict[str, Any], reference: Any, path: str) -> None:
    """Check a $ref: within the schema alone, so that nothing is ever fetched.

    Raises:
        APIError: 400, it leads elsewhere or nowhere.
    """
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        raise invalid(path, "only references within the schema are supported, such as #/$defs/name")
    found: Any = schema
    for step in reference.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isascii() and name.isdigit() and int(name[:9]) < len(found):
            found = found[int(name)]
        elif isinstance(found, dict) and name in found:
            found = found[name]
        else:
            raise invalid(path, f"{shortened(reference, 100)} is not in the schema")


def invalid(path: str, message: str) -> APIError:
    return APIError(400, f"{path}: {message}", param=path, code="invalid_json_schema")
