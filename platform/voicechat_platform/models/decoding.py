"""Fast decoding: the family's models with weights prepared for inference, over a cache of fixed slots.

Letters: b batch (one row per request), t query position, s key position, d model width, h head, g key-value head, k
head width, f feed-forward width, v vocabulary, l layer.

The mathematics is that of `GPTForCausalLM`. Only the layout differs, and it is prepared once. A norm's weight moves
into the matrix that follows it. Metrics are computed. The two numbers i and i + k/2 of a rotary pair become neighbours,
so that a rotation is one product of complex numbers. This permutes queries, keys, metrics and, if values are keys, the
output projection, and changes no result.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voicechat_platform.models.attention import CausalAttention, MetricAttention, StandardAttention
from voicechat_platform.models.gpt import Block, GPTForCausalLM, SquaredReluMLP


class SlotRows:
    """Operations on the rows of any cache of fixed slots."""

    def tensors(self) -> Iterable[Tensor]:
        """Return every tensor of the cache, (slots, g, s, k)."""
        raise NotImplementedError

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one row over another."""
        for cache_bgsk in self.tensors():
            cache_bgsk[target, :, :length] = cache_bgsk[source, :, :length]

    @torch.inference_mode()
    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange the first `length` positions of two rows."""
        for cache_bgsk in self.tensors():
            saved_gsk = cache_bgsk[one, :, :length].clone()
            cache_bgsk[one, :, :length] = cache_bgsk[other, :, :length]
            cache_bgsk[other, :, :length] = saved_gsk

    def keep(self, row: int, length: int) -> int:
        """Forget what a row holds after its first `length` positions: here the next tokens overwrite it."""
        return length

    def close(self) -> None:
        """Free the model: here it goes with its last reference."""


class SlotDecoder(SlotRows):
    """A model of the family over a cache of `slots` rows, each at its own position.

    Tied values are cached once, unrotated: half of a standard cache. A running request holds one row. Rows that decode
    together are the first ones, so a step reads the cache through a view, without a copy.

    Args:
        model: the decoder copies what it needs, so the caller may delete the model afterwards.
        slots: rows of the cache.
        context: positions of each row, at most the model's own.
        dtype: type of the computation and the cache; by default the model's own. The weights are prepared before they
            are rounded.
    """

    @torch.inference_mode()
    def __init__(self, model: GPTForCausalLM, slots: int, context: int, dtype: torch.dtype | None = None):
        config = model.config
        dtype = dtype or model.dtype
        self.slots, self.context = slots, context
        self.device = model.device
        self.embedding_vd = laid_out(model.embedding.weight, dtype)
        is_rotary = config.positions == "rotary"
        self.positions_sd = None if is_rotary else laid_out(model.position_embedding.weight, dtype)
        self.turns_sk = rotary_turns(model, context) if is_rotary else None
        self.layers = [DecodingLayer(block, model, slots, context, dtype) for block in model.blocks]
        self.norm, scale_d = split_norm(model.norm, dtype)
        self.head_vd = laid_out(model.lm_head.weight, dtype, scale_d)

    @property
    def bytes_per_slot(self) -> int:
        return sum(cache.nbytes for cache in self.tensors()) // self.slots

    def tensors(self) -> Iterable[Tensor]:
        return (cache for layer in self.layers for cache in layer.caches)

    @torch.inference_mode()
    def prefill(self, row: int, ids_t: Tensor, start: int, every: bool = False) -> Tensor:
        """Read a prompt, or a piece of it, into a row from position `start` on.

        Returns:
            (t, v) logits after every token, or (1, v) after the last.
        """
        end = start + len(ids_t)
        positions_t = torch.arange(start, end, device=self.device)
        blocked_ts = positions_t[:, None] < torch.arange(end, device=self.device)

        def store(cache_bgsk: Tensor, new_bgtk: Tensor) -> Tensor:
            cache_bgsk[row, :, start:end] = new_bgtk[0]
            return cache_bgsk[row : row + 1, :, :end]

        x_btd = self.run(ids_t[None], positions_t[None], additive(blocked_ts, self.head_vd.dtype)[None, None], store)
        return F.linear(self.norm(x_btd[0] if every else x_btd[0, -1:]), self.head_vd)

    @torch.inference_mode()
    def decode(self, ids_b: Tensor, positions_b: Tensor, width: int) -> Tensor:
        """Decode one more token for each of the first b rows.

        Args:
            ids_b: the last token of each row.
            positions_b: its position.
            width: the number of positions to read: one more than the greatest of `positions_b`.

        Returns:
            (b, v) logits.
        """
        rows_b = torch.arange(len(ids_b), device=self.device)
        blocked_bs = positions_b[:, None] < torch.arange(width, device=self.device)

        def store(cache_bgsk: Tensor, new_bgtk: Tensor) -> Tensor:
            cache_bgsk[rows_b, :, positions_b] = new_bgtk[:, :, 0]
            return cache_bgsk[: len(ids_b), :, :width]

        mask_b11s = additive(blocked_bs, self.head_vd.dtype)[:, None, None]
        x_btd = self.run(ids_b[:, None], positions_b[:, None], mask_b11s, store)
        return F.linear(self.norm(x_btd[:, -1]), self.head_vd)

    def run(self, ids_bt: Tensor, positions_bt: Tensor, mask_b1ts: Tensor, store: "Store") -> Tensor:
        """Return the states (b, t, d) before the last norm."""
        x_btd = F.embedding(ids_bt, self.embedding_vd)
        turns_b1tk = None
        if self.positions_sd is not None:
            x_btd = x_btd + F.embedding(positions_bt, self.positions_sd)
        elif self.turns_sk is not None:
            turns_b1tk = self.turns_sk[positions_bt][:, None]
        positions = Positions(positions_bt, turns_b1tk, self.turns_sk, mask_b1ts)
        for layer in self.layers:
            x_btd = layer.run(x_btd, positions, store)
        return x_btd


Store = Callable[[Tensor, Tensor], Tensor]
"""(a cache (slots, g, s, k), new states (b, g, t, k)) -> the states that the queries may read, (b, g, s, k)."""


class DecodingLayer:
    """One block's weights, prepared for inference, and its cache."""

    def __init__(self, block: Block, model: GPTForCausalLM, slots: int, context: int, dtype: torch.dtype):
        self.attention_norm, scale_d = split_norm(block.attention_norm, dtype)
        self.attention = DECODING[type(block.attention)](block.attention, model, scale_d, dtype)
        shapes = block.attention.cached_shapes(model.config)
        self.caches = [torch.zeros(slots, g, context, k, dtype=dtype, device=model.device) for g, k in shapes]
        self.mlp_norm, scale_d = split_norm(block.mlp_norm, dtype)
        self.gated = not isinstance(block.mlp, SquaredReluMLP)
        self.up = laid_out((block.mlp.gate_up_proj if self.gated else block.mlp.up_proj).weight, dtype, scale_d)
        self.down = laid_out(block.mlp.down_proj.weight, dtype)

    def run(self, x_btd: Tensor, positions: "Positions", store: Store) -> Tensor:
        """Return the block's output."""
        x_btd = x_btd + self.attention.attend(self.attention_norm(x_btd), positions, self.caches, store)
        up_btf = F.linear(self.mlp_norm(x_btd), self.up)
        if self.gated:
            gate_btf, up_btf = up_btf.chunk(2, -1)
            return x_btd + F.linear(F.silu(gate_btf) * up_btf, self.down)
        return x_btd + F.linear(F.relu(up_btf).square(), self.down)


class Positions(NamedTuple):
    """The positions of the queries of one call, and the mask of their keys."""

    queries_bt: Tensor
    turns_b1tk: Tensor | None
    """The queries' rotations, complex; None with learned positions."""
    all_turns_sk: Tensor | None
    """Every position's."""
    mask_b1ts: Tensor
    """Added to the scores: minus infinity where a key is hidden."""


class DecodingAttention:
    """One layer's attention, laid out for inference: what all classes share.

    Args:
        attention: the layer's.
        scale_d: weight of the norm before it, to be multiplied into the projection.
    """

    paired_parts: int
    """How many of the projection's parts, from the first on, are rotated."""

    def __init__(self, attention: Any, model: GPTForCausalLM, scale_d: Tensor | None, dtype: torch.dtype):
        config = model.config
        self.width, self.groups, self.tied = config.head_dim, config.num_key_value_heads, config.values == "tied"
        self.pairs_k = pair_order(self.width) if config.positions == "rotary" else torch.arange(self.width)
        parts = self.parts(attention)
        permuted = [heads(part, self.width)[:, self.pairs_k].flatten(0, 1) for part in parts[: self.paired_parts]]
        self.projection = laid_out(torch.cat([*permuted, *parts[self.paired_parts :]]), dtype, scale_d)
        output_dhk = attention.o_proj.weight.unflatten(1, (-1, self.width))
        self.output = laid_out((output_dhk[:, :, self.pairs_k] if self.tied else output_dhk).flatten(1), dtype)

    def parts(self, attention: Any) -> tuple[Tensor, ...]:
        """The projection's matrices."""
        raise NotImplementedError

    def queries_keys_values(
        self, states_bhtk: Tensor, turns_b1tk: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rotated q (b, h, t, k) and k (b, g, t, k), and v (b, g, t, k); with tied values unrotated k, and no v.

        Args:
            states_bhtk: what the projection gives, all parts' heads one after the other.
        """
        raise NotImplementedError

    def attend(self, x_btd: Tensor, positions: Positions, caches: list[Tensor], store: Store) -> Tensor:
        """(b, t, d)."""
        states_bhtk = F.linear(x_btd, self.projection).unflatten(-1, (-1, self.width)).transpose(1, 2)
        q_bhtk, k_bgtk, v_bgtk = self.queries_keys_values(states_bhtk, positions.turns_b1tk)
        if v_bgtk is None:
            turns_sk = positions.all_turns_sk
            v_bgsk = store(caches[0], k_bgtk)
            k_bgsk = v_bgsk if turns_sk is None else turned(v_bgsk, turns_sk[: v_bgsk.shape[2]])
        else:
            k_bgsk, v_bgsk = store(caches[0], k_bgtk), store(caches[1], v_bgtk)
        if self.groups < q_bhtk.shape[1]:
            k_bgsk, v_bgsk = (x.expand(-1, q_bhtk.shape[1], -1, -1) for x in (k_bgsk, v_bgsk))
        y_bhtk = F.scaled_dot_product_attention(q_bhtk, k_bgsk, v_bgsk, positions.mask_b1ts)
        return F.linear(y_bhtk.transpose(1, 2).flatten(-2), self.output)


class DecodingStandardAttention(DecodingAttention):
    paired_parts = 2

    def parts(self, attention: StandardAttention) -> tuple[Tensor, ...]:
        return attention.qkv_proj.weight.split(attention.qkv_proj.sizes)

    def queries_keys_values(
        self, states_bhtk: Tensor, turns_b1tk: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.tied:
            q_bhtk, k_bhtk = states_bhtk.chunk(2, 1)
            return turned(q_bhtk, turns_b1tk), k_bhtk, None
        q_bhtk, k_bhtk = turned(states_bhtk[:, : 2 * self.groups], turns_b1tk).chunk(2, 1)
        return q_bhtk, k_bhtk, states_bhtk[:, 2 * self.groups :]


class DecodingMetricAttention(DecodingAttention):
    paired_parts = 1

    def __init__(self, attention: MetricAttention, model: GPTForCausalLM, scale_d: Tensor | None, dtype: torch.dtype):
        super().__init__(attention, model, scale_d, dtype)
        matrix_hkk = attention.metric_of(model.shared_metric).matrix()
        self.metric_hkk = laid_out(matrix_hkk[:, self.pairs_k][:, :, self.pairs_k], dtype).to(model.device)
        self.norm: Callable[[Tensor], Tensor] | None = None
        if model.config.qk_norm:
            weight_k = laid_out(attention.norm.weight[self.pairs_k], dtype)
            self.norm = lambda x: F.rms_norm(x, (self.width,), weight_k, model.config.rms_norm_eps)

    def parts(self, attention: MetricAttention) -> tuple[Tensor, ...]:
        return attention.pv_proj.weight.split(attention.pv_proj.sizes)

    def queries_keys_values(
        self, states_bhtk: Tensor, turns_b1tk: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        p_bgtk = states_bhtk[:, : self.groups]
        if self.norm is not None:
            p_bgtk = self.norm(p_bgtk)
        q_bhtk = turned(self.measured(p_bgtk), turns_b1tk)
        if self.tied:
            return q_bhtk, p_bgtk, None
        return q_bhtk, turned(p_bgtk, turns_b1tk), states_bhtk[:, self.groups :]

    def measured(self, p_bgtk: Tensor) -> Tensor:
        """Return p M for every head, (b, h, t, k), with one product per head.

        A broadcast product would copy M for every row.
        """
        b, g, t, k = p_bgtk.shape
        p_gnk = p_bgtk.transpose(0, 1).reshape(g, b * t, k)
        q_hnk = torch.bmm(p_gnk.expand(len(self.metric_hkk), -1, -1), self.metric_hkk)
        return q_hnk.unflatten(1, (b, t)).transpose(0, 1)


DECODING: dict[type[CausalAttention], type[DecodingAttention]] = {
    StandardAttention: DecodingStandardAttention,
    MetricAttention: DecodingMetricAttention,
}


def turned(x_bhtk: Tensor, turns_tk: Tensor | None) -> Tensor:
    """Rotate each neighbouring pair of k; `turns_tk` are complex, with half the width of k."""
    if turns_tk is None:
        return x_bhtk
    pairs = torch.view_as_complex(x_bhtk.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns_tk).flatten(-2).to(x_bhtk.dtype)


def rotary_turns(model: GPTForCausalLM, context: int) -> Tensor:
    """Return the rotations (s, k/2), complex: the factor of each pair at position s."""
    positions_s = torch.arange(context, device=model.device, dtype=torch.float32)
    angles_sk = positions_s[:, None] * model.rotary.frequencies.float()
    return torch.polar(torch.ones_like(angles_sk), angles_sk)


def pair_order(width: int) -> Tensor:
    """Return the order (k,) 0, k/2, 1, k/2 + 1, …, which puts the two halves of a pair side by side."""
    return torch.arange(width).view(2, -1).T.flatten()


def heads(weight: Tensor, width: int) -> Tensor:
    return weight.unflatten(0, (-1, width))


def split_norm(norm: nn.Module, dtype: torch.dtype) -> tuple[Callable[[Tensor], Tensor], Tensor | None]:
    """Return a norm without its weight, and the weight for the matrix that follows; LayerNorm keeps its weight."""
    if isinstance(norm, nn.RMSNorm):
        width, least = norm.normalized_shape[0], torch.tensor(norm.eps, dtype=dtype, device=norm.weight.device)

        def normalised(x: Tensor) -> Tensor:
            if x.device.type != "cpu" or dtype != torch.float32:
                return F.rms_norm(x, (width,), None, norm.eps)
            # This takes half the time of F.rms_norm on a CPU, which combines more operations.
            size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            return x * torch.addcmul(least, size, size, value=1 / width).rsqrt_()

        return normalised, norm.weight
    assert isinstance(norm, nn.LayerNorm)
    weight, bias = laid_out(norm.weight, dtype), laid_out(norm.bias, dtype)
    return lambda x: F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps), None


def laid_out(weight: Tensor, dtype: torch.dtype, scale_d: Tensor | None = None) -> Tensor:
    """Return a copy for the computation, with scaled columns."""
    scaled = weight.detach() if scale_d is None else weight.detach() * scale_d
    return scaled.to(dtype, memory_format=torch.contiguous_format, copy=True)


def additive(blocked: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask to add to the scores: minus infinity where a query must not see a key."""
    return torch.zeros(blocked.shape, dtype=dtype, device=blocked.device).masked_fill_(blocked, float("-inf"))
