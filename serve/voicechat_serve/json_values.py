"""JSON that a client sends as a value or as a text, and that becomes a part of a prompt."""

import json
import sys
from typing import Any

DEEPEST = 100
"""Levels of lists and objects within each other: what copies or writes such a value calls itself for each level."""


def require_text(value: Any) -> int:
    """Return the number of bytes of the JSON text of a value.

    Raises:
        ValueError: it is nested too deep, or has a text that is no valid Unicode, or a number that JSON has not.
    """
    level, depth = [value], 0
    while level := [child for each in level for child in children(each)]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    try:
        return len(json.dumps(value, allow_nan=False, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        raise ValueError("it has a text that is no valid Unicode") from None
    except ValueError:
        raise ValueError("it has a number that JSON has not") from None


def children(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def object_of(text: str) -> dict[str, Any] | None:
    """Return the object that a JSON text describes; None for any other text, and for an object that no prompt can
    hold: see `require_text`."""
    try:
        value = json.loads(text, parse_float=finite, parse_constant=no_number)
        require_text(value)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def finite(text: str) -> float:
    """Return a number; the largest one for 1e999, which is JSON, but would become Infinity, which is none."""
    return max(-sys.float_info.max, min(float(text), sys.float_info.max))


def no_number(name: str) -> None:
    """Refuse NaN and Infinity, which Python reads and JSON has not."""
    raise ValueError(name)
