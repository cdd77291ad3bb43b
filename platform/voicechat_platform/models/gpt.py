"""The decoder: pre-norm blocks of causal attention and an MLP, no biases, tied embeddings.

Letters: b batch, t query position, s key position, d model width, f feed-forward width, v vocabulary.

By default it has Llama's architecture (RMSNorm, rotary positions, SwiGLU) with the attention of the config. It is a
transformers model: `save_pretrained`, `from_pretrained`, `generate` and the Auto classes all work.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast

from voicechat_platform.models.attention import ATTENTION_CLASSES, CausalAttention, FusedLinear, Rotary, make_metric
from voicechat_platform.models.configuration import GPTConfig
from voicechat_platform.models.fused import RootMeanSquareNorm, squared_relu, swiglu
from voicechat_platform.models.metrics import Metric


class GatedMLP(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate x) * up x), with gate and up in one matrix."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.gate_up_proj = FusedLinear(config.hidden_size, config.intermediate_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_btd: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_up_proj(x_btd)))


class SquaredReluMLP(nn.Module):
    """down(relu(up x)²) (Primer, arXiv 2109.08668)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_btd: Tensor) -> Tensor:
        return self.down_proj(squared_relu(self.up_proj(x_btd)))


def make_norm(config: GPTConfig) -> nn.Module:
    norm = RootMeanSquareNorm if config.norm == "rms" else nn.LayerNorm
    return norm(config.hidden_size, eps=config.rms_norm_eps)


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = ATTENTION_CLASSES[config.attention](config, layer)
        self.mlp_norm = make_norm(config)
        self.mlp = GatedMLP(config) if config.mlp == "swiglu" else SquaredReluMLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_btd: Tensor, *attention_arguments, **kwargs) -> Tensor:
        x_btd = x_btd + self.dropout(self.attention(self.attention_norm(x_btd), *attention_arguments, **kwargs))
        return x_btd + self.dropout(self.mlp(self.mlp_norm(x_btd)))


class GPTForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = GPTConfig
    base_model_prefix = ""
    _no_split_modules = ("Block",)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _tied_weights_keys = {"lm_head.weight": "embedding.weight"}  # noqa: RUF012 (read by transformers)

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.positions == "rotary":
            self.rotary = Rotary(config)
        else:
            self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.shared_metric = make_metric(config) if config.metric_sharing == "model" else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = make_norm(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise as GPT-2: normal(0.02), divided by sqrt(2l) for projections into the residual stream.

        `init` does not change weights from a checkpoint. `from_pretrained` relies on this method to fill the buffers
        that no checkpoint holds.
        """
        std = self.config.initializer_range
        if isinstance(module, nn.Embedding | nn.Linear):
            init.normal_(module.weight, std=std)
        elif isinstance(module, nn.RMSNorm | nn.LayerNorm):
            init.ones_(module.weight)
            if isinstance(module, nn.LayerNorm):
                init.zeros_(module.bias)
        elif isinstance(module, Rotary):
            init.copy_(module.frequencies, module.compute_frequencies())
        elif isinstance(module, Metric | CausalAttention):
            module.initialise()
        elif isinstance(module, Block):
            residual_std = std / math.sqrt(2 * self.config.num_hidden_layers)
            init.normal_(module.attention.o_proj.weight, std=residual_std)
            init.normal_(module.mlp.down_proj.weight, std=residual_std)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Return the logits of the next token.

        Args:
            input_ids: (b, t) tokens.
            attention_mask: (b, s) with 0 where a token is padding, or a complete (b, 1, t, s) mask.
            position_ids: (b, t); by default counted from the mask or the cache.
            cache: the state of earlier positions; extended in place.
            labels: (b, t) the token that should follow each position (already shifted), -100 to ignore one.
            use_cache: make a cache if the caller gives none.
            logits_to_keep: return the logits of only this number of last positions (0: all), or of these positions (k).

        Returns:
            logits (b, t, v), the mean loss in nats per token if `labels` are given, and the cache.
        """
        x_btd = self.embedding(input_ids)
        length = x_btd.shape[1]
        if use_cache and cache is None and not self.training:
            cache = DynamicCache()
        past = cache.get_seq_length() if cache is not None else 0

        if attention_mask is None and past == 0 and (cache is None or not cache.is_compileable):
            mask = None  # the kernels have their own causal mask
        else:
            mask = create_causal_mask(self.config, x_btd, attention_mask, cache, position_ids)

        key_positions_bs = key_positions(mask, past + length, x_btd.device)
        if position_ids is None:
            position_ids = key_positions_bs[:, past : past + length]
        query_rotation = key_rotation = None
        if self.config.positions == "rotary":
            query_rotation = key_rotation = self.rotary(position_ids, x_btd.dtype)
            if cache is not None and self.config.values == "tied":  # it holds unrotated keys
                key_rotation = self.rotary(key_positions_bs, x_btd.dtype)
        else:
            x_btd = x_btd + self.position_embedding(position_ids)

        for block in self.blocks:
            x_btd = block(x_btd, self.shared_metric, query_rotation, key_rotation, (mask, cache), **kwargs)
        x_btd = self.norm(x_btd)
        kept = logits_to_keep if isinstance(logits_to_keep, Tensor) else slice(-logits_to_keep or None, None)
        logits_btv = self.lm_head(x_btd[:, kept])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits_btv.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)
        return CausalLMOutputWithPast(loss=loss, logits=logits_btv, cache=cache)


def key_positions(mask: Tensor | None, length: int, device: torch.device) -> Tensor:
    """Return the position (b or 1, s) of every key that the last query sees; padding on the left does not count.

    Args:
        mask: (b, 1, t, s), boolean or added to the scores, or (b, s); None if there is no padding.
        length: s, if there is no mask.
    """
    if mask is None:
        return torch.arange(length, device=device)[None]
    seen_bs = mask if mask.dim() == 2 else mask[:, 0, -1]
    if seen_bs.is_floating_point():
        seen_bs = seen_bs == 0
    return (seen_bs.long().cumsum(-1) - 1).clamp(min=0)
