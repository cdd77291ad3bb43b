"""Fast decoding: the family's models with weights prepared for inference, over a cache of fixed slots.

Letters: b batch (one row per request), t query position, s key position, d model width, h head, g key-value head, k
head width, f feed-forward width, v vocabulary, l layer.

The mathematics is that of `GPTForCausalLM`. Only the layout differs, and it is prepared once. A norm's weight moves
into the matrix that follows it. Metrics are computed. The two numbers i and i + k/2 of a rotary pair become neighbours,
so that a rotation is one product of complex numbers. This permutes queries, keys, metrics and, if values are keys, the
output projection, and changes no result.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voicechat_platform.models.attention import MetricAttention, StandardAttention
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
        for layer in self.layers:
            x_btd = layer.run(x_btd, turns_b1tk, self.turns_sk, mask_b1ts, store)
        return x_btd


Store = Callable[[Tensor, Tensor], Tensor]
"""(a cache (slots, g, s, k), new states (b, g, t, k)) -> the states that the queries may read, (b, g, s, k)."""


class DecodingLayer:
    """One block's weights, prepared for inference, and its cache."""

    def __init__(self, block: Block, model: GPTForCausalLM, slots: int, context: int, dtype: torch.dtype):
        config, attention = model.config, block.attention
        self.width, self.groups = config.head_dim, config.num_key_value_heads
        self.tied = config.values == "tied"
        pairs_k = pair_order(self.width) if config.positions == "rotary" else torch.arange(self.width)
        self.attention_norm, scale_d = split_norm(block.attention_norm, dtype)
        self.metric_hkk: Tensor | None = None
        self.p_norm: Callable[[Tensor], Tensor] | None = None
        if isinstance(attention, MetricAttention):
            num_paired = 1
            parts = attention.pv_proj.weight.split(attention.pv_proj.sizes)
            metric = model.shared_metric if attention.metric is None else attention.metric
            assert metric is not None
            self.metric_hkk = laid_out(metric.matrix()[:, pairs_k][:, :, pairs_k], dtype).to(model.device)
            if config.qk_norm:
                weight_k = laid_out(attention.norm.weight[pairs_k], dtype)
                self.p_norm = lambda x: F.rms_norm(x, (self.width,), weight_k, config.rms_norm_eps)
        else:
            assert isinstance(attention, StandardAttention)
            num_paired = 2
            parts = attention.qkv_proj.weight.split(attention.qkv_proj.sizes)
        permuted = [heads(part, self.width)[:, pairs_k].flatten(0, 1) for part in parts[:num_paired]]
        self.projection = laid_out(torch.cat([*permuted, *parts[num_paired:]]), dtype, scale_d)
        output_dhk = attention.o_proj.weight.unflatten(1, (-1, self.width))
        self.output = laid_out((output_dhk[:, :, pairs_k] if self.tied else output_dhk).flatten(1), dtype)

        self.mlp_norm, scale_d = split_norm(block.mlp_norm, dtype)
        self.gated = not isinstance(block.mlp, SquaredReluMLP)
        self.up = laid_out((block.mlp.gate_up_proj if self.gated else block.mlp.up_proj).weight, dtype, scale_d)
        self.down = laid_out(block.mlp.down_proj.weight, dtype)

        shape = (slots, self.groups, context, self.width)
        count = 1 if self.tied else 2
        self.caches = [torch.zeros(shape, dtype=dtype, device=model.device) for _ in range(count)]

    def run(
        self, x_btd: Tensor, turns_b1tk: Tensor | None, turns_sk: Tensor | None, mask_b1ts: Tensor, store: Store
    ) -> Tensor:
        """Return the block's output; `turns` are the rotations of the queries and all positions, None if positions are
        learned."""
        y_btd = self.attend(self.attention_norm(x_btd), turns_b1tk, turns_sk, mask_b1ts, store)
        x_btd = x_btd + F.linear(y_btd, self.output)
        up_btf = F.linear(self.mlp_norm(x_btd), self.up)
        if self.gated:
            gate_btf, up_btf = up_btf.chunk(2, -1)
            return x_btd + F.linear(F.silu(gate_btf) * up_btf, self.down)
        return x_btd + F.linear(F.relu(up_btf).square(), self.down)

    def attend(
        self, x_btd: Tensor, turns_b1tk: Tensor | None, turns_sk: Tensor | None, mask_b1ts: Tensor, store: Store
    ) -> Tensor:
        states_bhtk = F.linear(x_btd, self.projection).unflatten(-1, (-1, self.width)).transpose(1, 2)
        if self.metric_hkk is not None:
            k_bgtk = states_bhtk[:, : self.groups]
            if self.p_norm is not None:
                k_bgtk = self.p_norm(k_bgtk)
            v_bgtk = states_bhtk[:, self.groups :]
            q_bhtk = turned(self.measured(k_bgtk), turns_b1tk)
            if not self.tied:
                k_bgtk = turned(k_bgtk, turns_b1tk)
        elif self.tied:
            q_bhtk, k_bgtk = states_bhtk.chunk(2, 1)
            q_bhtk = turned(q_bhtk, turns_b1tk)
        else:
            turned_bhtk = turned(states_bhtk[:, : 2 * self.groups], turns_b1tk)
            q_bhtk, k_bgtk = turned_bhtk.chunk(2, 1)
            v_bgtk = states_bhtk[:, 2 * self.groups :]

        if self.tied:
            v_bgsk = store(self.caches[0], k_bgtk)
            k_bgsk = v_bgsk if turns_sk is None else turned(v_bgsk, turns_sk[: v_bgsk.shape[2]])
        else:
            k_bgsk, v_bgsk = store(self.caches[0], k_bgtk), store(self.caches[1], v_bgtk)
        if self.groups < q_bhtk.shape[1]:
            k_bgsk, v_bgsk = (x.expand(-1, q_bhtk.shape[1], -1, -1) for x in (k_bgsk, v_bgsk))
        y_bhtk = F.scaled_dot_product_attention(q_bhtk, k_bgsk, v_bgsk, mask_b1ts)
        return y_bhtk.transpose(1, 2).flatten(-2)

    def measured(self, p_bgtk: Tensor) -> Tensor:
        """Return p M for every head, (b, h, t, k), with one product per head: a broadcast product would copy M for
        every row."""
        assert self.metric_hkk is not None
        b, g, t, k = p_bgtk.shape
        p_gnk = p_bgtk.transpose(0, 1).reshape(g, b * t, k)
        q_hnk = torch.bmm(p_gnk.expand(len(self.metric_hkk), -1, -1), self.metric_hkk)
        return q_hnk.unflatten(1, (b, t)).transpose(0, 1)


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
