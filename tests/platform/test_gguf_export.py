"""A GGUF of ours in the real llama.cpp: equal logits, equal tokens, and the model's own settings."""

import os

import pytest
import torch
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llama_cpp_file import opened
from model_variants import FOLDABLE, name_of, random_model
from voicechat_platform.corpora.tokenizers import make_tokenizer
from voicechat_platform.errors import InputError
from voicechat_platform.models.end_token import end_token_id
from voicechat_platform.models.folding import fold
from voicechat_platform.models.gguf_export import write_gguf
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer

CHARACTERS = "".join(map(chr, range(32, 75))) + "\n\tÃéπ€你🙂"


def characters():
    return make_tokenizer("characters", 0, CHARACTERS)


@pytest.mark.parametrize("variant", FOLDABLE, ids=name_of)
def test_llama_cpp_computes_the_same_logits(variant, tmp_path):
    tokenizer = characters()
    folded = fold(random_model(variant, len(tokenizer)))
    write_gguf(folded, tokenizer, tmp_path / "model.gguf")
    ids = torch.randint(0, len(tokenizer), (1, 40))
    with torch.no_grad():
        expected = folded(ids).logits[0]
    with opened(tmp_path / "model.gguf") as model:
        found = model.logits(ids[0].tolist())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.std().item())


ASSIGNED = st.characters(exclude_categories=("Cs", "Cn"))
"""Characters without Unicode's newest letters, which tokenizers knows and llama.cpp does not yet."""

HOSTILE = [
    "",
    " ",
    "   \n\n\t  two   spaces \r\n",
    "It's 1234567 o'clock, 3.14 -- don't you'LL WE'RE",
    "naïve café, Ã©, πολύ, 你好世界, 한국어, русский",
    "🙂🙃👩‍👩‍👧 e\u0301 \u200b\u00a0\u2028\ufeff",
    "\x00\x01\x7f ÿĀġĊ ▁ <|endoftext|> [UNUSED 3]",
    "١٢٣ Ⅷ ½ ²",
]


@pytest.fixture(scope="module")
def byte_pairs(tmp_path_factory):
    text = "It's the year 1234, naïve café. 你好世界 don't  go\n\n" * 50
    yield from both(make_tokenizer("byte_pairs", 400, text), tmp_path_factory)


@pytest.fixture(scope="module")
def by_character(tmp_path_factory):
    yield from both(characters(), tmp_path_factory)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    yield from both(make_tokenizer("gpt2", 0, ""), tmp_path_factory)


def both(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(fold(random_model({}, len(tokenizer))), tokenizer, path)
    with opened(path) as model:
        yield tokenizer, model


@pytest.mark.parametrize("kind", ["byte_pairs", "by_character", "gpt2"])
@settings(deadline=None)
@given(st.one_of(st.sampled_from(HOSTILE), st.text(ASSIGNED), st.text(st.sampled_from(CHARACTERS))))
def test_llama_cpp_gives_the_same_tokens(kind, request, text):
    tokenizer, model = request.getfixturevalue(kind)
    ids = tokenizer.encode(text)
    assert model.encode(text) == ids
    assert model.decode(ids) == tokenizer.decode(ids)


def chat_llama(tokenizer, **settings) -> LlamaForCausalLM:
    """A Llama like SmolLM2: fewer key-value heads than heads, another width of heads, its own output matrix."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        **{**shape, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": len(tokenizer) + 3, **settings},
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Byte pairs with separate digits and ChatML, as SmolLM2 has them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["Hello there, it's the year 1234. How are you?\n"] * 50, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        chat_template="{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    )


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("float16", 3e-3), ("q8_0", 0.1)])
def test_a_fine_tuned_llama_is_written_as_it_is(precision, tolerance, tmp_path):
    tokenizer = chat_tokenizer()
    llama = chat_llama(tokenizer)
    write_gguf(llama, tokenizer, tmp_path / "chat.gguf", precision=precision)
    text = "<|im_start|>user\nHello  there, it's 12345!<|im_end|>\n<|endoftext|>"
    ids = tokenizer.encode(text)
    with torch.no_grad():
        expected = llama(torch.tensor([ids])).logits[0]
    with opened(tmp_path / "chat.gguf") as model:
        assert model.encode(text) == ids
        assert model.chat_template() == tokenizer.chat_template
        assert model.ends_reply(tokenizer.convert_tokens_to_ids("<|im_end|>"))
        found = model.logits(ids)
    assert (found - expected).abs().max() < tolerance * expected.std()


def test_the_file_has_the_models_own_settings(tmp_path):
    tokenizer = characters()
    tokenizer.chat_template = "{{ messages }}"
    model = random_model({"reply_stops": ["\n\n", "A:"]}, len(tokenizer))
    model.generation_config.update(temperature=0.7, top_p=0.9, top_k=12, min_p=0.05, repetition_penalty=1.15)
    folded = fold(model)
    path = tmp_path / "parrot.gguf"
    write_gguf(folded, tokenizer, path)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    assert list(tmp_path.iterdir()) == [path]
    fields = GGUFReader(path).fields
    assert ChatTokenizer(path).chat_stop == ("\n\n", "A:")
    expected = {"temp": 0.7, "top_p": 0.9, "top_k": 12, "min_p": 0.05, "penalty_repeat": 1.15}
    for key, value in expected.items():
        assert fields[f"general.sampling.{key}"].contents() == pytest.approx(value)
    with opened(path) as loaded:
        assert loaded.metadata("general.name") == "parrot"
        assert loaded.metadata("llama.context_length") == str(model.config.max_position_embeddings)
        assert loaded.chat_template() == "{{ messages }}"
        assert [token for token in range(len(tokenizer)) if loaded.ends_reply(token)] == [
            end_token_id(folded, tokenizer)
        ]


def umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def learned_positions():
    return fold(random_model({"positions": "learned", "norm": "layer", "mlp": "relu_squared"}, len(characters())))


def other_pre_tokenizer():
    tokenizer = chat_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.mark.parametrize(
    ("model", "tokenizer", "precision", "reason"),
    [
        (learned_positions, characters, "float32", "learned positions and a squared ReLU"),
        (lambda: chat_llama(characters(), hidden_act="gelu"), characters, "float32", "hidden_act 'gelu'"),
        (lambda: chat_llama(characters(), hidden_act="relu"), characters, "float32", "hidden_act 'relu' and a gate"),
        (lambda: chat_llama(characters(), attention_bias=True), characters, "float32", "attention_bias"),
        (lambda: chat_llama(characters(), intermediate_size=72), characters, "q8_0", "rows of blk.0.ffn_down.weight"),
        (lambda: chat_llama(chat_tokenizer()), other_pre_tokenizer, "float32", "Whitespace"),
    ],
)
def test_what_llama_cpp_cannot_run_says_why(model, tokenizer, precision, reason, tmp_path):
    with pytest.raises(InputError, match=reason):
        write_gguf(model(), tokenizer(), tmp_path / "model.gguf", precision=precision)
    assert not list(tmp_path.iterdir())
