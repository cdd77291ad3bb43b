"""Causal self-attention: standard attention, and metric attention with scores from a learned metric.

Letters: b batch, t query position, s key position, d model width, h head, g key-value head, k head width.

Both classes call transformers' attention interface (`ALL_ATTENTION_FUNCTIONS`), so a fused kernel for one also works
for the other.
"""

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from voicechat_platform.models.configuration import GPTConfig
from voicechat_platform.models.fused import RootMeanSquareNorm, split_turn, turn
from voicechat_platform.models.metrics import METRICS, Metric

Rotation = tuple[Tensor, Tensor] | None
"""Cosines and sines (b, 1, t, k) of positions; None if positions are learned embeddings."""


MaskAndCache = tuple[Tensor | None, Cache | None]


class Rotary(nn.Module):
    """Rotary positions (RoFormer, arXiv 2104.09864), in the half-split layout of transformers' Llama."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.width, self.theta = config.head_dim, config.rope_theta
        self.register_buffer("frequencies", self.compute_frequencies(), persistent=False)

    def compute_frequencies(self) -> Tensor:
        return self.theta ** -(torch.arange(0, self.width, 2, dtype=torch.float32) / self.width)

    def forward(self, positions_bt: Tensor, dtype: torch.dtype) -> Rotation:
        angles = positions_bt[:, None, :, None].float() * self.frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x_bhtk: Tensor, rotation: Rotation) -> Tensor:
    if rotation is None:
        return x_bhtk
    return turn(x_bhtk, *rotation)


class FusedLinear(nn.Linear):
    """Several projections of one input in one product, with their matrices stacked in one weight; no biases."""

    def __init__(self, in_features: int, *out_features: int):
        super().__init__(in_features, sum(out_features), bias=False)
        self.sizes = out_features


class CausalAttention(nn.Module):
    """The common part of all attentions: rotation, cache, kernel, output projection; and what a class must define."""

    is_causal = True  # transformers' attention interface reads this
    cannot_fold: str | None = None
    """The reason why no stock model has the same scores; None if `projections` gives an equal standard layer."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.config = config
        self.layer = layer
        self.head_width = config.head_dim
        self.key_value_width = config.num_key_value_heads * config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    @staticmethod
    def cached_shapes(config: GPTConfig) -> list[tuple[int, int]]:
        """Return (g, k) of each tensor that a layer's decoding cache stores per token."""
        return [(config.num_key_value_heads, config.head_dim)] * (1 if config.values == "tied" else 2)

    def initialise(self) -> None:
        """Initialise the class's own parameters and buffers; transformers' `_init_weights` calls this."""

    def projections(self, shared_metric: Metric | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return q (h·k, d), k and v (g·k, d) of the standard layer with equal scores, before norms and rotation."""
        raise NotImplementedError

    def split_heads(self, projections_btd: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Split (b, t, parts·h·k) into (b, h, t, k) for each part."""
        return projections_btd.unflatten(-1, (-1, self.head_width)).transpose(1, 2).chunk(parts, dim=1)

    def attend(
        self,
        q_bhtk: Tensor,
        k_bgtk: Tensor,
        v_bgtk: Tensor | None,
        key_rotation: Rotation,
        mask: Tensor | None,
        cache: Cache | None,
        **kwargs,
    ) -> Tensor:
        """Return the attention of rotated queries to keys after the output projection, (b, t, d).

        The keys are rotated, too. If `v_bgtk` is None, the keys are unrotated and are also the values. Then the cache
        holds only them and rotates them when it reads them, so it is half as large as a standard cache.
        """
        if v_bgtk is None:
            v_bgsk = k_bgtk
            if cache is not None:
                # The second tensor is empty: transformers' caches need two.
                v_bgsk, _ = cache.update(k_bgtk, k_bgtk[..., :0], self.layer, kwargs=kwargs)
            k_bgsk = rotate(v_bgsk, key_rotation)
        else:
            k_bgsk, v_bgsk = k_bgtk, v_bgtk
            if cache is not None:
                k_bgsk, v_bgsk = cache.update(k_bgsk, v_bgsk, self.layer, kwargs=kwargs)
        attention_function = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        y_bthk, _ = attention_function(
            self,
            q_bhtk,
            k_bgsk,
            v_bgsk,
            mask,
            dropout=self.config.dropout if self.training else 0.0,
            scaling=self.head_width**-0.5,
            **kwargs,
        )
        return self.o_proj(y_bthk.flatten(-2))


class StandardAttention(CausalAttention):
    """Multi-head attention (arXiv 1706.03762) with one fused projection for q, k and v; tied values are v = k."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__(config, layer)
        width = config.hidden_size
        self.qkv_proj = FusedLinear(width, *([width] * (2 if config.values == "tied" else 3)))

    def forward(
        self,
        x_btd: Tensor,
        shared_metric: Metric | None,
        rotation: Rotation,
        key_rotation: Rotation,
        mask_cache: MaskAndCache,
        **kwargs,
    ) -> Tensor:
        if self.config.values == "separate" and rotation is not None:
            q_bhtk, k_bhtk, v_bhtk = split_turn(self.qkv_proj(x_btd), *rotation)
            return self.attend(q_bhtk, k_bhtk, v_bhtk, None, *mask_cache, **kwargs)
        q_bhtk, k_bhtk, *v_bhtk = self.split_heads(self.qkv_proj(x_btd), 2 if self.config.values == "tied" else 3)
        v = v_bhtk[0] if v_bhtk else None
        return self.attend(rotate(q_bhtk, rotation), k_bhtk, v, key_rotation, *mask_cache, **kwargs)

    def projections(self, shared_metric: Metric | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, *v = self.qkv_proj.weight.split(self.qkv_proj.sizes)
        return q, k, v[0] if v else k


class MetricAttention(CausalAttention):
    """Attention with a learned metric of one projection: scores_bhts = (p_bhtk M_hkk) · p_bhsk / sqrt(k).

    Each head has its own projection, or all heads share one. The values are p itself (tied) or a separate projection.
    Each layer has its metric, or the whole model shares one. The rotation comes after the metric, q = R_t(M p_t) and k
    = R_s p_s; before it, the scores would depend on the absolute positions.
    """

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__(config, layer)
        parts = 1 if config.values == "tied" else 2
        self.pv_proj = FusedLinear(config.hidden_size, *([self.key_value_width] * parts))
        self.norm = RootMeanSquareNorm(config.head_dim, eps=config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.metric = None if config.metric_sharing == "model" else make_metric(config)
        if config.qk_norm:
            self.cannot_fold = "neither Llama nor GPT-2 has qk_norm, a norm between projection and metric"

    def metric_of(self, shared_metric: Metric | None) -> Metric:
        """Return the layer's own metric, or the one that the whole model shares."""
        metric = shared_metric if self.metric is None else self.metric
        assert metric is not None
        return metric

    def forward(
        self,
        x_btd: Tensor,
        shared_metric: Metric | None,
        rotation: Rotation,
        key_rotation: Rotation,
        mask_cache: MaskAndCache,
        **kwargs,
    ) -> Tensor:
        p_bgtk, *v_bgtk = self.split_heads(self.pv_proj(x_btd), 1 if self.config.values == "tied" else 2)
        p_bgtk = self.norm(p_bgtk)
        q_bhtk = rotate(self.metric_of(shared_metric)(p_bgtk), rotation)
        if v_bgtk:
            return self.attend(q_bhtk, rotate(p_bgtk, rotation), v_bgtk[0], None, *mask_cache, **kwargs)
        return self.attend(q_bhtk, p_bgtk, None, key_rotation, *mask_cache, **kwargs)

    def projections(self, shared_metric: Metric | None) -> tuple[Tensor, Tensor, Tensor]:
        p, *v = self.pv_proj.weight.split(self.pv_proj.sizes)
        q_hkd = self.metric_of(shared_metric).matrix().to(p.dtype).mT @ p.unflatten(0, (-1, self.head_width))
        return q_hkd.flatten(0, 1), p, v[0] if v else p


def make_metric(config: GPTConfig) -> Metric:
    return METRICS[config.metric](config.num_attention_heads, config.head_dim)


ATTENTION_CLASSES: dict[str, type[CausalAttention]] = {
    "standard": StandardAttention,
    "metric": MetricAttention,
}
