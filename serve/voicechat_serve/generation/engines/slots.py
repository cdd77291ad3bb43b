"""The assignment of requests to rows of the cache, and the reuse of earlier tokens for a new prompt.

Rows 0..decoding-1 decode together. The rows after them are in prefill, or free. A free row keeps the tokens of its last
request: the next turn of a conversation begins with them, and the engine need not read them again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

LEAST_COPIED = 16
"""In tokens: to read fewer again is faster than to copy them."""


class Rows(Protocol):
    """The cache itself."""

    slots: int

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one row over another."""
        ...

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange the first `length` positions of two rows."""
        ...

    def keep(self, row: int, length: int) -> int:
        """Forget what a row holds after its first `length` positions. Return the number of positions that it still
        holds: fewer if the cache cannot go back to that place."""
        ...


@dataclass(eq=False)
class Row:
    token_ids: list[int] = field(default_factory=list)
    """Tokens whose states are in the cache, from position 0 on."""
    adapter: int = 0
    """The adapter that computed the states."""
    used: int = 0
    """The time of its last release, as a count."""


class Slots:
    def __init__(self, cache: Rows):
        self.cache = cache
        self.rows = [Row() for _ in range(cache.slots)]
        self.decoding: list[Row] = []
        self.filling: list[Row] = []
        self.clock = 0

    def free(self) -> list[Row]:
        return [row for row in self.rows[len(self.decoding) :] if row not in self.filling]

    def take(self, prompt_ids: Sequence[int], adapter: int = 0) -> Row | None:
        """Return a row for a new prompt with the longest beginning that any row of the same adapter holds, or None if
        all rows are taken.

        At least the last token of the prompt remains unread: its logits give the first token of the answer.
        """
        free = self.free()
        if not free:
            return None
        wanted = list(prompt_ids[:-1])
        shared = {id(row): common_length(row.token_ids, wanted) if row.adapter == adapter else 0 for row in self.rows}
        best = max(self.rows, key=lambda row: shared[id(row)])
        length = shared[id(best)]
        if length and best in free and (length == len(best.token_ids) or len(free) == 1):
            taken = best  # the new request continues its whole text
        else:
            taken = min(free, key=lambda row: (len(row.token_ids) > 0, row.used))
            if length < LEAST_COPIED:
                length = shared[id(taken)]
            elif taken is not best:
                self.cache.copy(self.rows.index(best), self.rows.index(taken), length)
        taken.adapter = adapter
        length = self.cache.keep(self.rows.index(taken), length)
        taken.token_ids = wanted[:length]
        self.filling.append(taken)
        return taken

    def begin_decoding(self, row: Row) -> None:
        """Move a filled row to the end of the decoding rows."""
        self.filling.remove(row)
        self.exchange(self.rows.index(row), len(self.decoding))
        self.decoding.append(row)

    def release(self, row: Row) -> None:
        """Free the row; it keeps its tokens for a prompt that begins with them."""
        self.clock += 1
        row.used = self.clock
        if row in self.filling:
            self.filling.remove(row)
            return
        place = self.rows.index(row)
        self.exchange(place, len(self.decoding) - 1)
        self.decoding[place] = self.decoding[-1]
        self.decoding.pop()

    def exchange(self, one: int, other: int) -> None:
        if one != other:
            length = max(len(self.rows[one].token_ids), len(self.rows[other].token_ids))
            self.cache.swap(one, other, length)
            self.rows[one], self.rows[other] = self.rows[other], self.rows[one]

    def forget(self) -> None:
        """Free and empty every row, because the content of the cache may be wrong."""
        self.rows = [Row() for _ in self.rows]
        self.decoding, self.filling = [], []


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the number of tokens at which two texts begin to differ."""
    limit = min(len(one), len(other))
    if list(one[:limit]) == list(other[:limit]):  # compared at C's speed: by far the most frequent case
        return limit
    return next(place for place in range(limit) if one[place] != other[place])
