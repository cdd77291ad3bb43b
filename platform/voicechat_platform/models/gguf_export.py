"""Write a Llama as a GGUF file for llama.cpp: weights, tokenizer, chat template and sampling defaults.

The Llama is a folded model of ours (folding.py) or a fine-tune of one, such as SmolLM2. A folded model with a squared
ReLU becomes llama.cpp's architecture `arcee`, a Llama with that MLP.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from voicechat_platform.errors import InputError
from voicechat_platform.models.end_token import end_token_id

Precision = Literal["float32", "float16", "q8_0"]

TYPES = {
    "float32": (GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "float16": (GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}

LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""transformers' names of the tensors of a layer, and llama.cpp's."""

PRE_TOKENIZERS = {
    '{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}': "gpt-2",
    '{"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},'
    '{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}]}': "smollm",
}
"""Pre-tokenizers of byte pairs as tokenizer.json describes them, and llama.cpp's names."""

SAMPLING = {
    "temperature": GGUFWriter.add_sampling_temp,
    "top_p": GGUFWriter.add_sampling_top_p,
    "top_k": GGUFWriter.add_sampling_top_k,
    "min_p": GGUFWriter.add_sampling_min_p,
    "repetition_penalty": GGUFWriter.add_sampling_penalty_repeat,
}
"""Fields of generation_config.json, and the writer of llama.cpp's key."""

REPLY_STOPS = "voicechat.reply_stops"
"""Our key for the texts that end a reply in a conversation, as JSON: llama.cpp gives no array to its callers."""

NEVER = "ÿ ÿ"
"""A merge that no text contains, because UTF-8 has no byte 255. llama.cpp needs at least one merge."""


def write_gguf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    path: Path,
    *,
    name: str | None = None,
    precision: Precision = "float32",
) -> None:
    """Write a GGUF file. It replaces a file of that name only when it is complete.

    Args:
        model: a Llama; `folding.fold` makes one of our models.
        tokenizer: of characters or byte pairs.
        path: the file to write; its folder exists.
        name: the model's name in the file; None takes that of the file.
        precision: of the matrices; norms are always float32.

    Raises:
        InputError: llama.cpp has no equivalent of the model or the tokenizer, or the precision does not suit a width.
    """
    partial = path.with_name(f".{path.name}.partial")
    writer = GGUFWriter(partial, architecture(model))
    writer.add_name(name or path.stem)
    writer.add_license("unknown")
    add_settings(writer, model.config)
    add_sampling(writer, model.generation_config)
    add_tokenizer(writer, tokenizer, model.config.vocab_size)
    # Without them, llama.cpp takes token 11 for both.
    end = end_token_id(model, tokenizer)
    writer.add_bos_token_id(end if tokenizer.bos_token_id is None else tokenizer.bos_token_id)
    writer.add_eos_token_id(end)
    writer.add_bool("voicechat.has_end_token", tokenizer.eos_token_id is not None)
    kind, file_type = TYPES[precision]
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for label, weight in tensors(model):
        wanted = kind if weight.ndim > 1 else GGMLQuantizationType.F32
        if wanted == GGMLQuantizationType.Q8_0 and weight.shape[-1] % 32:
            raise InputError(
                f"q8_0 stores blocks of 32 numbers, and the rows of {label} have {weight.shape[-1]}: "
                f"choose float32 or float16"
            )
        writer.add_tensor(label, gguf.quantize(weight, wanted), raw_dtype=wanted)
    try:
        write_file(writer)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_file(writer: GGUFWriter) -> None:
    """Write all that the writer has been given, and close its file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def architecture(model: PreTrainedModel) -> str:
    """Return llama.cpp's name of the architecture.

    Raises:
        InputError: llama.cpp has none that computes the same.
    """
    config = model.config
    if not isinstance(model, LlamaForCausalLM):
        activation = getattr(config, "activation_function", None)
        detail = " with learned positions and a squared ReLU (its GPT-2 has GELU)" if activation == "relu2" else ""
        raise InputError(
            f"this model is a {type(model).__name__}, and llama.cpp has no such architecture{detail}; "
            f"only Llamas are written as GGUF: a model with positions: rotary and norm: rms folds to one"
        )
    if config.attention_bias or config.mlp_bias:
        raise InputError("this Llama has biases (attention_bias or mlp_bias); only one without is written as GGUF")
    if config.rope_parameters["rope_type"] != "default":
        raise InputError(f"rope_type {config.rope_parameters['rope_type']!r} is not written as GGUF: only the default")
    if config.hidden_act == "silu":
        return "llama"
    if config.hidden_act == "relu" and all(
        torch.equal(layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight) for layer in model.model.layers
    ):
        return "arcee"  # a gate that is its own up projection is a squared ReLU
    raise InputError(f"llama.cpp has no Llama with hidden_act {config.hidden_act!r} and a gate")


def add_settings(writer: GGUFWriter, config: Any) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    stops = getattr(config, "reply_stops", None)
    if stops:
        writer.add_string(REPLY_STOPS, json.dumps(stops))


def add_sampling(writer: GGUFWriter, generation: Any) -> None:
    for field, add in SAMPLING.items():
        value = getattr(generation, field, None)
        if value is not None:
            add(writer, value)


def tensors(model: LlamaForCausalLM) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors in float32 under llama.cpp's names."""
    config = model.config

    def array(weight: torch.Tensor) -> np.ndarray:
        return weight.detach().float().cpu().numpy()

    yield "token_embd.weight", array(model.model.embed_tokens.weight)
    for index, layer in enumerate(model.model.layers):
        for ours, theirs in LAYER_TENSORS.items():
            if ours == "mlp.gate_proj" and config.hidden_act == "relu":
                continue  # arcee has no gate
            weight = array(layer.get_submodule(ours).weight)
            if theirs in ("attn_q", "attn_k"):
                weight = interleaved(weight, config.head_dim)
            yield f"blk.{index}.{theirs}.weight", weight
    yield "output_norm.weight", array(model.model.norm.weight)
    if not config.tie_word_embeddings:
        yield "output.weight", array(model.lm_head.weight)


def interleaved(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Return a projection for rotary positions that turn neighbours; transformers turns the halves of a head."""
    halves = weight.reshape(-1, 2, head_dim // 2, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def add_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast, size: int) -> None:
    """Write the vocabulary as GPT-2's byte pairs, llama.cpp's kind without a normalizer.

    Raises:
        InputError: llama.cpp has no such pre-tokenizer, or the tokenizer is of another kind.
    """
    backend = tokenizer.backend_tokenizer
    described = json.loads(backend.to_str())
    if described["model"]["type"] != "BPE" or described["normalizer"] is not None:
        raise InputError("only a tokenizer of characters or byte pairs without a normalizer is written as GGUF")
    added = backend.get_added_tokens_decoder()
    vocabulary = {index: token for token, index in backend.get_vocab().items() if index not in added}
    if described["pre_tokenizer"] is None and not described["model"]["merges"]:
        pieces = {index: spelled(character) for index, character in vocabulary.items()}
        merges = sorted({merge for piece in pieces.values() for merge in merges_of(piece)}) or [NEVER]
        # Every pre-tokenizer keeps a character whole. This one lets llama.cpp remove no spaces.
        pre = "smollm"
    else:
        pieces, pre = vocabulary, known_pre_tokenizer(described["pre_tokenizer"])
        merges = [" ".join(merge) for merge in described["model"]["merges"]]
    tokens, types = [], []
    for index in range(size):
        if index in added:
            tokens.append(added[index].content)
            types.append(TokenType.CONTROL if added[index].special else TokenType.USER_DEFINED)
        else:
            tokens.append(pieces.get(index, f"[UNUSED {index}]"))
            types.append(TokenType.NORMAL if index in pieces else TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)


def known_pre_tokenizer(described: dict | None) -> str:
    for ours, name in PRE_TOKENIZERS.items():
        if json.loads(ours) == described:
            return name
    raise InputError(f"llama.cpp has no pre-tokenizer that is equal to the model's: {json.dumps(described)}")


SPELLING = bytes_to_unicode()


def spelled(character: str) -> str:
    """Return a character's UTF-8 bytes in GPT-2's printable alphabet."""
    return "".join(SPELLING[byte] for byte in character.encode())


def merges_of(piece: str) -> list[str]:
    """Return the merges that build a character from its bytes, from left to right. None of them joins two characters,
    because no character begins with another's later byte."""
    return [f"{piece[:end]} {piece[end]}" for end in range(1, len(piece))]
