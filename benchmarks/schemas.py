"""Schemas as clients send them, made with a fixed seed: nested objects, enums, patterns, unions, bounded arrays, and
recursion."""

import random
from typing import Any

WORDS = ("name", "age", "city", "price", "tags", "items", "status", "email", "notes", "parent", "children", "score")
PATTERNS = ("^[A-Z]{2}-[0-9]{4}$", "^[a-z]+@[a-z]+\\.(com|org)$", "^#[0-9a-f]{6}$", "^(yes|no|maybe)$")
FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email")


def schemas(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return different schemas, each of an object."""
    generator = random.Random(seed)
    return [root(generator) for _ in range(count)]


def root(generator: random.Random) -> dict[str, Any]:
    schema = an_object(generator, depth=0)
    if generator.random() < 0.3:  # recursion, through the root or through a definition
        schema["properties"]["next"] = {"anyOf": [{"type": "null"}, {"$ref": "#"}]}
        schema["required"].append("next")
    if generator.random() < 0.3:
        schema["$defs"] = {"leaf": an_object(generator, depth=2)}
        schema["properties"]["leaves"] = {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 3}
    return schema


def an_object(generator: random.Random, depth: int) -> dict[str, Any]:
    names = generator.sample(WORDS, generator.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: a_value(generator, depth + 1) for name in names},
        "required": [name for name in names if generator.random() < 0.7],
        "additionalProperties": False,
    }


def a_value(generator: random.Random, depth: int) -> dict[str, Any]:
    kinds = ["string", "bounded string", "pattern", "format", "integer", "number", "boolean", "enum"]
    if depth < 3:
        kinds += ["object", "array", "union"]
    match generator.choice(kinds):
        case "string":
            return {"type": "string"}
        case "bounded string":
            return {"type": "string", "minLength": generator.randint(0, 5), "maxLength": generator.randint(5, 40)}
        case "pattern":
            return {"type": "string", "pattern": generator.choice(PATTERNS)}
        case "format":
            return {"type": "string", "format": generator.choice(FORMATS)}
        case "integer":
            low = generator.randint(-100, 100)
            return {"type": "integer", "minimum": low, "maximum": low + generator.randint(0, 1000)}
        case "number":
            return {"type": "number"}
        case "boolean":
            return {"type": "boolean"}
        case "enum":
            return {"enum": generator.sample(["red", "green", "blue", 1, 2.5, True, None], generator.randint(1, 5))}
        case "object":
            return an_object(generator, depth)
        case "array":
            least = generator.randint(0, 2)
            items = a_value(generator, depth + 1)
            return {"type": "array", "items": items, "minItems": least, "maxItems": least + generator.randint(0, 3)}
    return {"anyOf": [{"type": "null"}, a_value(generator, depth + 1), a_value(generator, depth + 1)]}
