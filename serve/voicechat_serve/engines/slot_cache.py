"""A key-value cache of fixed slots, one request each, in which every row is at a position of its own.

Letters: b row of the batch (one request), t query position, s key position, h head, k head width.

Requests in flight always lie in the first rows, so that a decode step reads the cache through a view, not a copy.
"""

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values. The second tensor may be 0 wide: metric attention caches one tensor alone."""

    def __init__(self, cache: "SlotCache"):
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        def slots(new_bhtk: Tensor) -> Tensor:
            _, heads, _, width = new_bhtk.shape
            shape = (self.cache.slots, heads, self.cache.context, width)
            return torch.zeros(shape, dtype=new_bhtk.dtype, device=new_bhtk.device)

        self.keys, self.values = slots(key_states), slots(value_states)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self.cache.write(self.keys, key_states), self.cache.write(self.values, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.width, 0

    def get_seq_length(self) -> int:
        return 0  # positions and masks are given with every call, and counted by nobody else

    def get_max_length(self) -> int:
        return self.cache.context


class SlotCache(Cache):
    """The cache of a whole model: `num_layers` layers of (slots, h, context, k).

    Before each forward call, say which rows and positions it is for: `prefill` or `decode`.
    """

    def __init__(self, num_layers: int, slots: int, context: int):
        self.slots, self.context = slots, context
        self.width = 0
        super().__init__(layers=[SlotLayer(self) for _ in range(num_layers)])

    def prefill(self, row: int, length: int) -> None:
        """The next call fills one row from position 0 with `length` tokens."""
        self.row, self.width, self.decoding = row, length, False

    def decode(self, rows_b: Tensor, positions_b: Tensor, width: int) -> None:
        """The next call adds one token to each of the first rows, and reads their first `width` positions."""
        self.rows_b, self.positions_b, self.width, self.decoding = rows_b, positions_b, width, True

    def write(self, slots_bhsk: Tensor, new_bhtk: Tensor) -> Tensor:
        """Stores the new states and returns all that the step's queries may read, as a view (b, h, s, k)."""
        if self.decoding:
            if new_bhtk.shape[-1]:
                slots_bhsk[self.rows_b, :, self.positions_b] = new_bhtk[:, :, 0]
            return slots_bhsk[: len(self.rows_b), :, : self.width]
        slots_bhsk[self.row, :, : self.width] = new_bhtk[0]
        return slots_bhsk[self.row : self.row + 1, :, : self.width]

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of one row over another."""
        for layer in self.layers:
            for slots_bhsk in (layer.keys, layer.values):
                slots_bhsk[target, :, :length] = slots_bhsk[source, :, :length]
