"""Adapters as GGUF: llama.cpp gives them the effect that peft does; what it cannot add is refused by name."""

import ctypes
import json
import shutil

import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH, GGUFWriter, get_tensor_name_map
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from voicechat_platform.errors import InputError
from voicechat_platform.models.gguf_adapter import interleave_halves, write_gguf_adapter
from voicechat_serve.generation.engines.llama_cpp.library import Batch, library

HEADS, KV_HEADS = 4, 2

TOKENS = list(range(3, 51, 4))


@pytest.fixture(scope="module")
def base():
    """A small random Llama with groups of heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, vocab_size=100, max_position_embeddings=256,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.2)  # so that attention looks at some tokens more than at others
    return model


@pytest.fixture(scope="module")
def plain_logits_tv(base):
    with torch.no_grad():
        return base(torch.tensor([TOKENS])).logits[0].numpy()


@pytest.fixture(scope="module")
def base_gguf(base, tmp_path_factory):
    """The same weights in a file of llama.cpp's, without a vocabulary."""
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    names, config = get_tensor_name_map(MODEL_ARCH.LLAMA, 2), base.config
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for name, tensor in base.state_dict().items():
        weight = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:
            weight = interleave_halves(weight, HEADS if "q_proj" in name else KV_HEADS, name)
        writer.add_tensor(names.get_name(name, (".weight",)), np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def adapted(base, tmp_path):
    """The model with an adapter of random matrices, which is saved in tmp_path / "adapter"."""
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=12, target_modules="all-linear")
    adapted = get_peft_model(base, config)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    yield adapted.eval()
    adapted.unload()


def llama_cpp_logits(model, adapter=None):
    """Return llama.cpp's logits (t, v) after each of TOKENS."""
    llama, count = library(), len(TOKENS)
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = 256, 1, 1
    context = llama.llama_init_from_model(model, params)
    try:
        if adapter is not None:
            assert not llama.llama_set_adapters_lora(
                context, (ctypes.c_void_p * 1)(adapter), 1, (ctypes.c_float * 1)(1.0)
            )
        sequence = (ctypes.c_int32 * 1)(0)
        columns = (
            (ctypes.c_int32 * count)(*TOKENS),
            (ctypes.c_int32 * count)(*range(count)),
            (ctypes.c_int32 * count)(*[1] * count),
            (ctypes.c_void_p * count)(*[ctypes.addressof(sequence)] * count),
            (ctypes.c_int8 * count)(*[1] * count),
        )
        token, pos, counts, sequences, wanted = map(ctypes.addressof, columns)
        assert not llama.llama_decode(context, Batch(count, token, None, pos, counts, sequences, wanted))
        return np.ctypeslib.as_array(llama.llama_get_logits(context), (count, 100)).copy()
    finally:
        llama.llama_free(context)


def test_llama_cpp_gives_an_adapter_the_effect_that_peft_does(base_gguf, plain_logits_tv, adapted, tmp_path):
    with torch.no_grad():
        expected_tv = adapted(input_ids=torch.tensor([TOKENS])).logits[0].numpy()
    assert np.abs(expected_tv - plain_logits_tv).mean() > 0.5
    write_gguf_adapter(tmp_path / "adapter", HEADS, KV_HEADS, tmp_path / "lora.gguf")
    llama = library()
    model = llama.llama_model_load_from_file(bytes(base_gguf), llama.llama_model_default_params())
    try:
        adapter = llama.llama_adapter_lora_init(model, bytes(tmp_path / "lora.gguf"))
        np.testing.assert_allclose(llama_cpp_logits(model), plain_logits_tv, atol=0.02)
        np.testing.assert_allclose(llama_cpp_logits(model, adapter), expected_tv, atol=0.02)
    finally:
        llama.llama_model_free(model)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, "an adapter with use_dora: True cannot be added to a running model; merge it"),
        ({"use_rslora": True}, "with use_rslora"),
        ({"bias": "lora_only"}, "with bias: 'lora_only'"),
        ({"modules_to_save": ["lm_head"]}, "with modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "with rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "with alpha_pattern"),
        ({"init_lora_weights": "pissa"}, "with init_lora_weights: 'pissa'"),
        ({"a_field_of_the_future": 3}, "with a_field_of_the_future: 3"),
        ({"peft_type": "IA3"}, "only adapters of peft_type LORA can be served, not 'IA3'"),
        ({"lora_alpha": 0}, "lora_alpha must be a number above 0"),
    ],
)
def test_other_forms_of_adapters_are_refused_by_name(adapted, tmp_path, fields, message):
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(InputError, match=message):
        write_gguf_adapter(tmp_path / "adapter", HEADS, KV_HEADS, tmp_path / "lora.gguf")
    assert not (tmp_path / "lora.gguf").exists()


def test_damaged_adapters_are_refused(adapted, tmp_path):
    folder, q_proj = tmp_path / "adapter", "base_model.model.model.layers.0.self_attn.q_proj"
    path = folder / "adapter_model.safetensors"
    whole = load_file(path)

    def refused(message, heads=HEADS):
        with pytest.raises(InputError, match=message):
            write_gguf_adapter(folder, heads, KV_HEADS, tmp_path / "lora.gguf")

    refused("has 64 outputs, which 5 heads of the base cannot share", heads=5)
    save_file({name: weight for name, weight in whole.items() if name != f"{q_proj}.lora_B.weight"}, path)
    refused("the matrices A and B of .*q_proj do not fit together")
    save_file({**whole, f"{q_proj}.lora_magnitude_vector.weight": torch.ones(64)}, path)
    refused("lora_magnitude_vector.weight is no matrix of a linear layer's adapter")
    save_file({name.replace("q_proj", "c_attn_of_another"): weight for name, weight in whole.items()}, path)
    refused("c_attn_of_another is no part of a Llama")
    save_file({}, path)
    refused("holds no weights")
    path.write_bytes(path.read_bytes()[:5])
    refused("adapter_model.safetensors is missing or damaged")
    shutil.rmtree(folder)
    refused("holds no adapter: it has no adapter_config.json")
