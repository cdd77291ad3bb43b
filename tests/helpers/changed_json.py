"""Every way in which one part of a JSON value can be another one, or be missing."""

import copy
from collections.abc import Iterable, Iterator
from typing import Any

DROPPED = "drop"


def changed_copies(whole: Any, hostile: Iterable[Any]) -> Iterator[tuple[tuple, Any, Any]]:
    """For each part at any depth: its place, what stands there instead (DROPPED: nothing), and the whole with that."""
    hostile = (*hostile, DROPPED)
    for *above, last in places(whole):
        for value in hostile:
            changed = copy.deepcopy(whole)
            target: Any = changed
            for key in above:
                target = target[key]
            if value is DROPPED:
                del target[last]
            else:
                target[last] = copy.deepcopy(value)
            yield (*above, last), value, changed


def places(value: Any, at: tuple = ()) -> Iterator[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield (*at, key)
        yield from places(part, (*at, key))
