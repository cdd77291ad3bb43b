"""Which request holds which row of the cache, and which earlier tokens a new prompt can take over.

Rows 0..decoding-1 decode together; the rows after them are being filled with a prompt, or are free. A free row keeps
the tokens of the request that held it last: a conversation's next turn begins with them, and they need not be read
again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

LEAST_COPIED = 16
"""Tokens: fewer are read again sooner than they are copied."""


class Rows(Protocol):
    """The cache itself: a `SlotDecoder` or a `TransformersDecoder`."""

    slots: int

    def copy(self, source: int, target: int, length: int) -> None: ...

    def swap(self, one: int, other: int, length: int) -> None: ...


@dataclass(eq=False)
class Row:
    token_ids: list[int] = field(default_factory=list)
    """Tokens whose states lie in the cache, from position 0 on."""
    used: int = 0
    """When it was last let go, as a count."""


class Slots:
    def __init__(self, cache: Rows):
        self.cache = cache
        self.rows = [Row() for _ in range(cache.slots)]
        self.decoding: list[Row] = []
        self.filling: list[Row] = []
        self.clock = 0

    def free(self) -> list[Row]:
        return [row for row in self.rows[len(self.decoding) :] if row not in self.filling]

    def take(self, prompt_ids: Sequence[int]) -> Row | None:
        """A row for a new prompt, beginning with as many of its tokens as any row knows; None when all are taken.

        At least the prompt's last token is left to be read: its logits choose the first token of the answer.
        """
        free = self.free()
        if not free:
            return None
        wanted = list(prompt_ids[:-1])
        shared = {id(row): common_length(row.token_ids, wanted) for row in self.rows}
        best = max(self.rows, key=lambda row: shared[id(row)])
        length = shared[id(best)]
        if length and best in free and (length == len(best.token_ids) or len(free) == 1):
            taken = best  # its whole text goes on
        else:
            taken = min(free, key=lambda row: (len(row.token_ids) > 0, row.used))
            if length < LEAST_COPIED:
                length = shared[id(taken)]
            elif taken is not best:
                self.cache.copy(self.rows.index(best), self.rows.index(taken), length)
        taken.token_ids = wanted[:length]
        self.filling.append(taken)
        return taken

    def begin_decoding(self, row: Row) -> None:
        """A filled row joins those that decode, as the last of them."""
        self.filling.remove(row)
        self.exchange(self.rows.index(row), len(self.decoding))
        self.decoding.append(row)

    def release(self, row: Row) -> None:
        """The row is free, and keeps its tokens for a prompt that begins with them."""
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
        """Every row is free and empty: what the cache holds is not to be trusted."""
        self.rows = [Row() for _ in self.rows]
        self.decoding, self.filling = [], []


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts have in common at their beginnings."""
    limit = min(len(one), len(other))
    if list(one[:limit]) == list(other[:limit]):  # compared at C's speed: by far the most frequent case that matters
        return limit
    return next(place for place in range(limit) if one[place] != other[place])
