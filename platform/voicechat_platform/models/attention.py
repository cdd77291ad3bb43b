"""Causal self-attention: the standard one, and one whose scores are a learned metric.

Letters: b batch, t query position, s key position, d model width, h head, k head width,
p packed entry of a symmetric k x k matrix (k(k+1)/2 of them).

Both classes end in the same call of transformers' attention interface (`ALL_ATTENTION_FUNCTIONS`), so every fused
kernel that serves the one serves the other.
"""

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from voicechat_platform.models.configuration import GPTConfig


class Rotary(nn.Module):
    """Rotary positions (RoFormer, arXiv 2104.09864), in the half-split layout of transformers' Llama."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.width, self.theta = config.head_dim, config.rope_theta
        self.register_buffer("frequencies", self.compute_frequencies(), persistent=False)

    def compute_frequencies(self) -> Tensor:
        return self.theta ** -(torch.arange(0, self.width, 2, dtype=torch.float32) / self.width)

    def forward(self, positions_bt: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines, each (b, 1, t, k), of the given positions."""
        angles = positions_bt[:, None, :, None].float() * self.frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x_bhtk: Tensor, cosines_b1tk: Tensor, sines_b1tk: Tensor) -> Tensor:
    first, second = x_bhtk.chunk(2, dim=-1)
    return x_bhtk * cosines_b1tk + torch.cat((-second, first), dim=-1) * sines_b1tk


class CausalAttention(nn.Module):
    """What both attentions share: the heads' geometry, the interface to the kernels, the output projection."""

    is_causal = True  # read by transformers' attention interface
    num_key_value_groups = 1

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.config = config
        self.layer = layer
        self.heads = config.num_attention_heads
        self.head_width = config.head_dim
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def split_heads(self, x_btd: Tensor) -> Tensor:
        """(b, t, n·d) -> (b, n·h, t, k)."""
        return x_btd.unflatten(-1, (-1, self.head_width)).transpose(1, 2)

    def attend(self, q_bhtk: Tensor, k_bhsk: Tensor, v_bhsk: Tensor, mask: Tensor | None, **kwargs) -> Tensor:
        attention_function = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        y_bthk, _ = attention_function(
            self,
            q_bhtk,
            k_bhsk,
            v_bhsk,
            mask,
            dropout=self.config.dropout if self.training else 0.0,
            scaling=self.head_width**-0.5,
            **kwargs,
        )
        return self.o_proj(y_bthk.flatten(-2))


class StandardAttention(CausalAttention):
    """Multi-head attention (arXiv 1706.03762) with rotary positions and one fused projection for q, k and v."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__(config, layer)
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)

    def forward(self, x_btd: Tensor, query_rotation, key_rotation, mask, cache: Cache | None, **kwargs) -> Tensor:
        q_bhtk, k_bhtk, v_bhtk = self.split_heads(self.qkv_proj(x_btd)).chunk(3, dim=1)
        q_bhtk, k_bhtk = rotate(q_bhtk, *query_rotation), rotate(k_bhtk, *query_rotation)
        if cache is not None:
            k_bhtk, v_bhtk = cache.update(k_bhtk, v_bhtk, self.layer, kwargs=kwargs)
        return self.attend(q_bhtk, k_bhtk, v_bhtk, mask, **kwargs)


class MetricAttention(CausalAttention):
    """Attention whose scores are a learned symmetric metric of one projection, which is also the value.

    p = x P;  scores_bhts = (p_bhtk M_hkk) · p_bhsk / sqrt(k);  values = p.

    Rotary positions go after the metric, q = R_t(M p_t) and k = R_s p_s: before it, the scores would depend on the
    absolute positions. The cache holds p alone, unrotated, and keys are rotated when read: half of a standard cache.
    A layer has 2d² + h k(k+1)/2 parameters where a standard one has 4d².
    """

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__(config, layer)
        self.p_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        width = self.head_width
        self.metric_hp = nn.Parameter(torch.empty(self.heads, width * (width + 1) // 2))
        self.register_buffer("entry_kk", self.compute_entries(), persistent=False)

    def compute_entries(self) -> Tensor:
        """(k, k): which packed entry stands at each place of a symmetric matrix."""
        rows, columns = torch.tril_indices(self.head_width, self.head_width)
        entry_kk = torch.empty(self.head_width, self.head_width, dtype=torch.long)
        entry_kk[rows, columns] = entry_kk[columns, rows] = torch.arange(len(rows))
        return entry_kk

    def metric_hkk(self) -> Tensor:
        """M, one symmetric matrix a head: symmetric by construction, because both triangles read the same entry."""
        return self.metric_hp[:, self.entry_kk]

    def forward(self, x_btd: Tensor, query_rotation, key_rotation, mask, cache: Cache | None, **kwargs) -> Tensor:
        p_bhtk = self.split_heads(self.p_proj(x_btd))
        q_bhtk = rotate(p_bhtk @ self.metric_hkk(), *query_rotation)
        p_bhsk = p_bhtk
        if cache is not None:
            # An empty second tensor: transformers' caches want two, and this one has nothing else to remember.
            p_bhsk, _ = cache.update(p_bhtk, p_bhtk[..., :0], self.layer, kwargs=kwargs)
        return self.attend(q_bhtk, rotate(p_bhsk, *key_rotation), p_bhsk, mask, **kwargs)


ATTENTION_CLASSES: dict[str, type[StandardAttention] | type[MetricAttention]] = {
    "standard": StandardAttention,
    "metric": MetricAttention,
}
