"""Adapters (LoRA): llama.cpp gives them the effect that peft does, many in one batch; other forms are refused."""

import asyncio
import contextlib
import ctypes
import json
import shutil
import string
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from voicechat_platform.assets import locate_gguf
from voicechat_platform.corpora.tokenizers import make_tokenizer
from voicechat_platform.errors import InputError
from voicechat_platform.models.gguf_adapter import write_gguf_adapter
from voicechat_platform.models.gguf_export import write_gguf
from voicechat_platform.registry import NoSuchVersionError
from voicechat_serve.generation import language_model
from voicechat_serve.generation.engines.adapters import add_adapter
from voicechat_serve.generation.engines.batched_engine import BatchedEngine
from voicechat_serve.generation.engines.interface import GenerationRequest, Sampling, UnknownVersionError
from voicechat_serve.generation.engines.llama_cpp.decoder import LlamaCppDecoder
from voicechat_serve.generation.engines.llama_cpp.library import Batch, library
from voicechat_serve.generation.engines.torch_decoder import make_torch_decoder
from voicechat_serve.generation.language_model import LanguageModel
from voicechat_serve.generation.loaded_model import GenerationOptions
from voicechat_serve.generation.served_model import EngineOptions, ServedModel
from voicechat_serve.listed_models import adapter_at

HEADS, KV_HEADS = 4, 2

SMOLLM2 = "smollm2-135m-instruct"

LETTERS = string.ascii_letters + string.digits + " .,:\n"

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
    """The same weights in a file of llama.cpp's."""
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    write_gguf(base, make_tokenizer("characters", 0, LETTERS), path)
    return path


@contextlib.contextmanager
def adapted_by(base, folder, seed=1):
    """Yield the model with an adapter of random matrices, which is saved in the folder."""
    torch.manual_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=12, target_modules="all-linear")
    adapted = get_peft_model(base, config)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.peft_config["default"].base_model_name_or_path = "small"
    adapted.save_pretrained(folder, save_embedding_layers=False)
    yield adapted.eval()
    adapted.unload()


@pytest.fixture
def adapted(base, tmp_path):
    with adapted_by(base, tmp_path / "adapter") as model:
        yield model


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

    refused("q_proj has 64 outputs, which 5 heads of the base cannot share", heads=5)
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


def no_text(token_ids):
    return ""


@pytest.fixture
def engine(base_gguf):
    engine = BatchedEngine(LlamaCppDecoder(base_gguf, slots=8, context=128), no_text, ())
    yield engine
    engine.close()


async def answer(engine, prompt_ids, count=12):
    sampling = Sampling(max_tokens=count, temperature=0)
    request = GenerationRequest(prompt_ids=prompt_ids, sampling=sampling)
    return [token.id async for tokens in engine.generate(request) for token in tokens]


def require_greedy(model, prompt_ids, answer_ids):
    """Check that each token of the answer is the model's likeliest one, but for rounding."""
    with torch.no_grad():
        logits_tv = model(input_ids=torch.tensor([prompt_ids + answer_ids])).logits[0, len(prompt_ids) - 1 : -1]
    chosen_t = logits_tv.gather(1, torch.tensor(answer_ids)[:, None])[:, 0]
    assert (logits_tv.amax(1) - chosen_t).max() < 0.05


async def test_adapters_and_their_base_decode_in_one_batch_and_share_no_prompt(base, engine, tmp_path):
    """All have the same prompt, before and after it is in the cache."""
    prompts = [TOKENS * 3, TOKENS * 3, [*TOKENS, 7, 8]]
    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders, 1):
        with adapted_by(base, folder, seed):
            pass
    engines = [engine, *(add_adapter(engine, folder) for folder in folders)]
    for _ in range(2):
        answers = await asyncio.gather(*(answer(each, prompt) for each in engines for prompt in prompts))
        for place, prompt in enumerate(prompts):
            require_greedy(base, prompt, answers[place])
            for seed, folder in enumerate(folders, 1):
                with adapted_by(base, folder, seed) as model:
                    require_greedy(model, prompt, answers[place + seed * len(prompts)])
        assert len({tuple(ids) for ids in answers}) == 6


async def test_an_adapter_that_leaves_is_freed_and_a_later_one_is_not_taken_for_it(base, engine, tmp_path):
    for seed in range(1, 6):
        with adapted_by(base, tmp_path / str(seed), seed) as model:
            tuned = add_adapter(engine, tmp_path / str(seed))
            require_greedy(model, TOKENS, await answer(tuned, TOKENS))
        tuned.close()
        assert await answer(engine, TOKENS)
        assert not engine.decoder.adapters.pointers


def test_an_adapter_that_leaves_before_its_request_has_ended_ends_no_process(base_gguf, adapted, tmp_path):
    """The engine drops a cancelled request at its next step; until then, the adapter may be gone already."""
    decoder = LlamaCppDecoder(base_gguf, slots=2)
    number = decoder.add_adapter(tmp_path / "adapter")
    decoder.adapt(0, number)
    decoder.prefill(0, torch.tensor(TOKENS), 0)
    decoder.prefill(1, torch.tensor(TOKENS), 0)
    ids_b, positions_b = torch.tensor([1, 1]), torch.tensor([len(TOKENS)] * 2)
    expected_v = decoder.decode(ids_b, positions_b, 99)[1].clone()
    decoder.remove_adapter(number)
    logits_bv = decoder.decode(ids_b, positions_b + 1, 99)
    assert logits_bv.isfinite().all()
    decoder.keep(1, len(TOKENS))
    torch.testing.assert_close(decoder.decode(ids_b, positions_b + torch.tensor([2, 0]), 99)[1], expected_v)
    decoder.close()


def test_a_gguf_file_that_is_no_adapter_is_refused_before_the_start(base_gguf):
    with pytest.raises(InputError, match="of the type model, and not an adapter"):
        adapter_at(str(base_gguf))


def save_smollm2_adapter(folder, seed=1):
    """Save one as the recipe smollm2-shakespeare makes it, with random matrices."""
    sizes = {
        **{f"self_attn.{name}_proj": (576, 576 if name in "qo" else 192) for name in "qkvo"},
        **{"mlp.gate_proj": (576, 1536), "mlp.up_proj": (576, 1536), "mlp.down_proj": (1536, 576)},
    }
    weights, generator = {}, torch.Generator().manual_seed(seed)
    for block in range(30):
        for layer, (inputs, outputs) in sizes.items():
            name = f"base_model.model.model.layers.{block}.{layer}"
            weights[f"{name}.lora_A.weight"] = torch.randn(8, inputs, generator=generator) * 0.05
            weights[f"{name}.lora_B.weight"] = torch.randn(outputs, 8, generator=generator) * 0.05
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "base_model_name_or_path": SMOLLM2, "r": 8, "lora_alpha": 16}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_adapters_cost_their_own_weights_alone(tmp_path):
    folder, packaged = save_smollm2_adapter(tmp_path / "adapter"), locate_gguf(SMOLLM2)
    decoder = LlamaCppDecoder(packaged, slots=2, context=64)
    try:
        decoder.remove_adapter(decoder.add_adapter(folder))  # what the conversion itself takes
        decoder.prefill(0, torch.tensor([1]), 0)
        before = psutil.Process().memory_info().rss
        numbers = {decoder.add_adapter(folder) for _ in range(2)}
        assert len(numbers) == 2
        assert psutil.Process().memory_info().rss - before < packaged.stat().st_size / 1.5
    finally:
        decoder.close()


async def test_another_engine_refuses_adapters_by_name(base, adapted, tmp_path):
    engine = BatchedEngine(make_torch_decoder(base, slots=1), no_text, ())
    try:
        with pytest.raises(InputError, match=r"this model's engine cannot add the adapter .*: use llamacpp"):
            add_adapter(engine, tmp_path / "adapter")
    finally:
        engine.close()


def test_an_adapter_of_another_model_is_refused(base_gguf, adapted, tmp_path):
    decoder = LlamaCppDecoder(locate_gguf(SMOLLM2), slots=1, context=64)
    with pytest.raises(InputError, match=r"[qk]_proj has \d+ outputs, which \d heads of the base cannot"):
        decoder.add_adapter(tmp_path / "adapter")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(InputError, match=r"llama.cpp cannot add the adapter .*broken\.gguf to"):
        decoder.add_adapter(tmp_path / "broken.gguf")
    decoder.close()


class Promotions:
    """In place of the handle of a `Champions`: each model's next champion."""

    def __init__(self):
        self.next, self.news = self, {}

    def remote(self, name, known):
        return asyncio.ensure_future(self.news.setdefault(name, asyncio.Queue()).get())


@pytest.fixture
async def replica(base, base_gguf, tmp_path, tiny_model, monkeypatch):
    """The small model with an adapter of the registry, `bard`, and one from a folder, `clerk`. The bard's version 3 is
    a whole model."""
    folders = {number: tmp_path / str(number) for number in (1, 2, 4)}
    for number, folder in folders.items():
        with adapted_by(base, folder / "adapter", number):
            pass
    folders[3] = tiny_model

    class Registry:
        def version(self, name, number):
            if number not in folders:
                raise NoSuchVersionError(f"there is no model version {name}@{number}")
            return SimpleNamespace(checkpoint=lambda: folders[number])

    monkeypatch.setattr(language_model, "Registry", Registry)
    monkeypatch.setattr(language_model, "IDLE_POLL_S", 0.01)
    options = EngineOptions(context=128, threads=1)
    bard = ServedModel(id="bard", path=folders[1], version=1, base="small", options=options)
    clerk = ServedModel(id="clerk", path=folders[4] / "adapter", options=options)
    served = ServedModel(id="small", path=base_gguf, options=options, adapters=(bard, clerk))
    replica = LanguageModel(served, Promotions())
    yield replica
    replica.adapters["bard"].following.cancel()
    for model in replica.adapters["bard"].versions.values():
        model.engine.close()
    replica.current.engine.close()


async def say(replica, model, version=None):
    options = GenerationOptions(sampling={"max_tokens": 8, "temperature": 0}, model=model, version=version)
    said = [delta async for delta in replica.complete("What is a star?", options)]
    return "".join(delta.text for delta in said), said[-1].fingerprint


async def test_one_replica_serves_a_model_and_its_adapters_by_name_and_version(replica):
    names = [("small", None), ("bard", None), ("clerk", None), ("bard", 2)]
    alone = [await say(replica, *name) for name in names]
    assert [fingerprint for _, fingerprint in alone] == ["small", "bard@1", "clerk", "bard@2"]
    assert len({text for text, _ in alone}) == 4
    together = await asyncio.gather(*(say(replica, *name) for name in names * 2))
    assert together == alone * 2
    decoder = replica.current.engine.decoder
    assert len(decoder.adapters.pointers) == 3

    # A version that is no adapter of this model runs in an engine of its own.
    options = GenerationOptions(sampling={"max_tokens": 3}, model="bard", version=3)
    deltas = [delta async for delta in replica.complete("ROMEO:\n", options)]
    assert deltas[-1].fingerprint == "bard@3"
    assert len(decoder.adapters.pointers) == 3

    with pytest.raises(UnknownVersionError, match="no model version bard@9"):
        await replica.introduce(9, "bard")
    with pytest.raises(UnknownVersionError, match="clerk has no versions"):
        await say(replica, "clerk", 1)
    replica.check_health()


async def test_a_promoted_adapter_is_loaded_beside_the_running_one(replica):
    before = await say(replica, "bard")
    promoted = await say(replica, "bard", 2)
    bard = replica.adapters["bard"]
    while "bard" not in bard.champions.news:
        await asyncio.sleep(0.01)
    bard.champions.news["bard"].put_nowait(2)
    while bard.current.fingerprint != "bard@2":
        await asyncio.sleep(0.01)
    assert await say(replica, "bard") == promoted
    assert await say(replica, "bard", 1) == before
