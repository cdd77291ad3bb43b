"""Write a BERT, which makes embeddings of texts, as a GGUF file for llama.cpp."""

from collections.abc import Sequence
from pathlib import Path

from gguf import GGUFWriter, PoolingType, TokenType
from transformers import BertModel

from voicechat_platform.models.gguf_export import write_file

TENSORS = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.LayerNorm": "token_embd_norm",
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
"""transformers' names of the tensors, those of a layer without its number, and llama.cpp's."""

MARKS = {"[PAD]": "pad", "[UNK]": "unk", "[CLS]": "bos", "[SEP]": "sep", "[MASK]": "mask"}
"""BERT's special tokens, and llama.cpp's names for them."""

BEGINS_WORD, WITHIN_WORD = "\u2581", "##"
"""llama.cpp marks the first piece of a word, and BERT marks all others."""


def write_bert(model: BertModel, vocabulary: Sequence[str], path: Path, pooling: PoolingType | None) -> None:
    """Write a GGUF file with float32 weights.

    Args:
        model: the model.
        vocabulary: the tokens in BERT's spelling, by number.
        path: the file to write.
        pooling: how the states of a text's tokens become one vector; None: the file does not say it.
    """
    config = model.config
    writer = GGUFWriter(path, "bert")
    writer.add_name(path.stem)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    writer.add_tokenizer_model("bert")
    writer.add_token_list([token if token in MARKS else spelled(token) for token in vocabulary])
    writer.add_token_types([TokenType.CONTROL if token in MARKS else TokenType.NORMAL for token in vocabulary])
    writer.add_token_type_count(config.type_vocab_size)
    for token, use in MARKS.items():
        getattr(writer, f"add_{use}_token_id")(vocabulary.index(token))
    for name, tensor in model.state_dict().items():
        module, _, kind = name.rpartition(".")
        layer, _, part = module.removeprefix("encoder.layer.").partition(".")
        if module in TENSORS:
            writer.add_tensor(f"{TENSORS[module]}.{kind}", tensor.numpy())
        elif part in TENSORS:
            writer.add_tensor(f"blk.{layer}.{TENSORS[part]}.{kind}", tensor.numpy())
    write_file(writer)


def spelled(token: str) -> str:
    return token.removeprefix(WITHIN_WORD) if token.startswith(WITHIN_WORD) else BEGINS_WORD + token
