"""Decoders in PyTorch: the platform's `SlotDecoder` for this project's models, and one for any causal language model of
transformers.

Letters: b row of the batch (one request), t query position, s key position, h head, k head width, v vocabulary.

The requests that decode together are in the first rows, so that a step reads the cache through a view, without a copy.
"""

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from voicechat_platform.models import GPTForCausalLM
from voicechat_platform.models.decoding import SlotDecoder, SlotRows, additive
from voicechat_platform.training.throughput import cache_bytes_per_token
from voicechat_serve.generation.engines.interface import CACHE_BYTES, LONGEST_CONTEXT, slots_within


def make_torch_decoder(
    model,
    *,
    slots: int | None = None,
    context: int | None = None,
    cache_bytes: int = CACHE_BYTES,
    dtype: torch.dtype | None = None,
) -> "SlotDecoder | TransformersDecoder":
    """Return the decoder of a model.

    Args:
        model: a causal language model, ready to run; a model of the family is copied into a faster layout.
        slots: the most decoding requests; None for as many as `cache_bytes` hold.
        context: the most positions of a request; None for the model's own, `LONGEST_CONTEXT` at most.
        cache_bytes: the size of the cache.
        dtype: the type of the computation, for a model of the family; None for the model's own.
    """
    config = model.config.get_text_config()
    longest = config.max_position_embeddings
    context = min(longest, context or LONGEST_CONTEXT)
    dtype = dtype or model.dtype
    slots = slots or slots_within(cache_bytes, cache_bytes_per_token(config, dtype) * context)
    if isinstance(model, GPTForCausalLM):
        return SlotDecoder(model, slots, context, dtype)
    return TransformersDecoder(model, slots, context)


class TransformersDecoder(SlotRows):
    """A transformers model over a cache of slots.

    Args:
        model: accepts a cache, position ids and a complete attention mask, as transformers' causal models do.
        slots: rows of the cache.
        context: positions of each row.
    """

    def __init__(self, model, slots: int, context: int):
        self.model = model.eval()
        self.slots, self.context = slots, context
        self.device = model.device
        self.cache = SlotCache(model.config.get_text_config().num_hidden_layers, slots, context)

    @torch.inference_mode()
    def prefill(self, row: int, ids_t: Tensor, start: int, every: bool = False) -> Tensor:
        """Read a prompt, or a piece of it, into a row from position `start` on; return (t, v) or (1, v) logits."""
        end = start + len(ids_t)
        self.cache.prefill(row, start, end)
        positions_t = torch.arange(start, end, device=self.device)
        blocked_ts = positions_t[:, None] < torch.arange(end, device=self.device)
        return self.forward(ids_t[None], positions_t[None], blocked_ts[None, None], 0 if every else 1)[0]

    @torch.inference_mode()
    def decode(self, ids_b: Tensor, positions_b: Tensor, width: int) -> Tensor:
        """Decode one more token for each of the first b rows; return (b, v) logits."""
        rows_b = torch.arange(len(ids_b), device=self.device)
        self.cache.decode(rows_b, positions_b, width)
        blocked_bs = positions_b[:, None] < torch.arange(width, device=self.device)
        return self.forward(ids_b[:, None], positions_b[:, None], blocked_bs[:, None, None], 1)[:, -1]

    def forward(self, ids_bt: Tensor, positions_bt: Tensor, blocked_b1ts: Tensor, logits_to_keep: int) -> Tensor:
        output = self.model(
            input_ids=ids_bt,
            attention_mask=additive(blocked_b1ts, self.model.dtype),
            position_ids=positions_bt,
            cache=self.cache,
            use_cache=True,
            logits_to_keep=logits_to_keep,
        )
        return output.logits

    def tensors(self) -> list[Tensor]:
        layers = [layer for layer in self.cache.layers if layer.is_initialized]
        return [tensor for layer in layers for tensor in (layer.keys, layer.values)]


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values."""

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
        return self.cache.end, 0

    def get_seq_length(self) -> int:
        return 0  # every call gives positions and masks, so nothing reads this

    def get_max_length(self) -> int:
        return self.cache.context


class SlotCache(Cache):
    """The cache of a whole model: `num_layers` layers of (slots, h, context, k).

    Before each call of the model, `prefill` or `decode` sets the slots that the call writes and reads.
    """

    def __init__(self, num_layers: int, slots: int, context: int):
        self.slots, self.context = slots, context
        super().__init__(layers=[SlotLayer(self) for _ in range(num_layers)])
        self.rows_b: Tensor | None = None
        """During decoding: the rows that each get one token."""

    def prefill(self, row: int, start: int, end: int) -> None:
        """Prepare a call that fills positions `start` to `end` of one row."""
        self.row, self.start, self.end, self.rows_b = row, start, end, None

    def decode(self, rows_b: Tensor, positions_b: Tensor, width: int) -> None:
        """Prepare a call that adds one token to each of the first rows and reads their first `width` positions."""
        self.rows_b, self.positions_b, self.end = rows_b, positions_b, width

    def write(self, slots_bhsk: Tensor, new_bhtk: Tensor) -> Tensor:
        """Store the new states, and return the states that the step's queries may read, as a view (b, h, s, k)."""
        if self.rows_b is not None:
            slots_bhsk[self.rows_b, :, self.positions_b] = new_bhtk[:, :, 0]
            return slots_bhsk[: len(self.rows_b), :, : self.end]
        slots_bhsk[self.row, :, self.start : self.end] = new_bhtk[0]
        return slots_bhsk[self.row : self.row + 1, :, : self.end]
