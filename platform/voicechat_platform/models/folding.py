"""Folding: write a model of the family as a stock Llama or GPT-2 with the same logits, for every inference engine.

Letters: h head, g key-value head, k head width, d model width, f feed-forward width.

Llama rotates after the projections, and we rotate after the metric. So a metric layer is a Llama layer with q_proj = Mᵀ
P, k_proj = P and v_proj = P or a separate one. A projection that all heads share becomes grouped-query attention with
one key-value head. With learned positions and LayerNorm, the same projections make a GPT-2. The folded model loses the
smaller cache: a stock engine stores keys and values separately.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from voicechat_platform.errors import InputError
from voicechat_platform.models.configuration import GPTConfig
from voicechat_platform.models.end_token import with_special_tokens
from voicechat_platform.models.gpt import GPTForCausalLM, SquaredReluMLP


@torch.no_grad()
def fold(model: GPTForCausalLM) -> LlamaForCausalLM | GPT2LMHeadModel:
    """Return a Llama (rotary positions) or a GPT-2 (learned positions) with the model's logits.

    Raises:
        InputError: the model can be written as neither; the message has the reason.
    """
    config = model.config
    reason = model.blocks[0].attention.cannot_fold
    if reason is not None:
        raise InputError(f"this model cannot be folded: {reason}")
    folded = fold_to_llama(model) if config.positions == "rotary" else fold_to_gpt2(model)
    folded.generation_config = model.generation_config
    return folded.eval()


def save_folded(folded: LlamaForCausalLM | GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a folded model and its tokenizer, with the special tokens that stock engines require.

    Args:
        folded: the result of `fold`; the function sets its special tokens.
        folder: a new or an empty folder.
    """
    tokenizer = with_special_tokens(folded, tokenizer)
    folded.generation_config = copy.deepcopy(folded.generation_config)  # it is still the model's own
    for config in (folded.config, folded.generation_config):
        for role in ("bos_token_id", "eos_token_id"):
            if getattr(config, role) is None:
                setattr(config, role, getattr(tokenizer, role))
    folded.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):  # safetensors makes its files private
        weights.chmod((folder / "config.json").stat().st_mode)


def fold_to_llama(model: GPTForCausalLM) -> LlamaForCausalLM:
    config = model.config
    if config.norm != "rms":
        raise InputError("a model with rotary positions and LayerNorm cannot be folded: Llama has RMSNorm only")
    folded = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            # relu(z)² = relu(z) z: a gated MLP whose gate is its up projection.
            hidden_act="silu" if config.mlp == "swiglu" else "relu",
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            **shared_settings(config),
        )
    ).to(model.dtype)
    weights = {"model.embed_tokens.weight": model.embedding.weight, "model.norm.weight": model.norm.weight}
    weights["lm_head.weight"] = model.lm_head.weight
    for layer, block in enumerate(model.blocks):
        q, k, v = block.attention.projections(model.shared_metric)
        if isinstance(block.mlp, SquaredReluMLP):
            gate = up = block.mlp.up_proj.weight
        else:
            gate, up = block.mlp.gate_up_proj.weight.split(block.mlp.gate_up_proj.sizes)
        weights |= {
            f"model.layers.{layer}.{name}.weight": weight
            for name, weight in {
                "input_layernorm": block.attention_norm.weight,
                "self_attn.q_proj": q,
                "self_attn.k_proj": k,
                "self_attn.v_proj": v,
                "self_attn.o_proj": block.attention.o_proj.weight,
                "post_attention_layernorm": block.mlp_norm.weight,
                "mlp.gate_proj": gate,
                "mlp.up_proj": up,
                "mlp.down_proj": block.mlp.down_proj.weight,
            }.items()
        }
    folded.load_state_dict(weights)
    return folded


def fold_to_gpt2(model: GPTForCausalLM) -> GPT2LMHeadModel:
    config = model.config
    if config.norm != "layer" or config.mlp != "relu_squared":
        raise InputError(
            "a model with learned positions can be folded only with norm: layer and mlp: relu_squared, to a GPT-2, "
            "which has LayerNorm and no gate; a Llama has rotary positions"
        )
    folded = GPT2LMHeadModel(
        GPT2Config(
            n_positions=config.max_position_embeddings,
            n_embd=config.hidden_size,
            n_layer=config.num_hidden_layers,
            n_head=config.num_attention_heads,
            n_inner=config.intermediate_size,
            activation_function="relu2",
            layer_norm_epsilon=config.rms_norm_eps,
            **shared_settings(config),
        )
    ).to(model.dtype)
    weights = {
        "transformer.wte.weight": model.embedding.weight,
        "transformer.wpe.weight": model.position_embedding.weight,
        "transformer.ln_f.weight": model.norm.weight,
        "transformer.ln_f.bias": model.norm.bias,
        "lm_head.weight": model.lm_head.weight,
    }
    for layer, block in enumerate(model.blocks):
        q_hd, *kv_gd = block.attention.projections(model.shared_metric)
        # GPT-2 has no key-value heads that several query heads share: each query head gets a copy.
        kv_hd = [
            part.unflatten(0, (-1, config.head_dim)).expand(config.num_attention_heads, -1, -1).flatten(0, 1)
            for part in kv_gd
        ]
        products = {
            "attn.c_attn": torch.cat([q_hd, *kv_hd]),
            "attn.c_proj": block.attention.o_proj.weight,
            "mlp.c_fc": block.mlp.up_proj.weight,
            "mlp.c_proj": block.mlp.down_proj.weight,
        }
        prefix = f"transformer.h.{layer}."
        for name, norm in {"ln_1": block.attention_norm, "ln_2": block.mlp_norm}.items():
            weights |= {f"{prefix}{name}.weight": norm.weight, f"{prefix}{name}.bias": norm.bias}
        for name, weight in products.items():  # GPT-2 stores them transposed, and has biases
            weights |= {f"{prefix}{name}.weight": weight.mT, f"{prefix}{name}.bias": weight.new_zeros(weight.shape[0])}
    folded.load_state_dict(weights)
    return folded


def shared_settings(config: GPTConfig) -> dict[str, Any]:
    """Return the settings that have the same name in every architecture."""
    names = ("vocab_size", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "reply_stops")
    return {name: getattr(config, name) for name in names}
