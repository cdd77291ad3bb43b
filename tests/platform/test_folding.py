"""A folded model is a stock Llama with the same logits, and runs in another engine with the same tokens."""

import ctranslate2
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2LMHeadModel, LlamaForCausalLM

from model_variants import name_of, pairwise
from voicechat_platform.corpora.tokenizers import make_tokenizer
from voicechat_platform.errors import InputError
from voicechat_platform.models import GPTConfig, GPTForCausalLM
from voicechat_platform.models.ctranslate2_conversion import convert_to_ctranslate2
from voicechat_platform.models.folding import fold

LLAMA = {"positions": "rotary", "norm": "rms"}
FOLDABLE = [*pairwise(attention="standard", **LLAMA), *pairwise(attention="metric", qk_norm=False, **LLAMA)]


def make_model(variant, vocab_size=50) -> GPTForCausalLM:
    torch.manual_seed(0)
    model = GPTForCausalLM(
        GPTConfig(vocab_size=vocab_size, hidden_size=32, num_attention_heads=2, num_hidden_layers=2, **variant)
    )
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


@pytest.mark.parametrize("variant", FOLDABLE, ids=name_of)
def test_a_folded_model_has_the_same_logits(variant, tmp_path):
    model = make_model(variant)
    folded = fold(model)
    folded.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is LlamaForCausalLM
    assert loaded.config.num_key_value_heads == (1 if variant.get("projection") == "shared" else 2)
    tokens_bt = torch.randint(0, 50, (2, 40))
    torch.testing.assert_close(loaded(tokens_bt).logits, model(tokens_bt).logits, rtol=1e-4, atol=1e-4)


GPT2 = {"positions": "learned", "norm": "layer", "mlp": "relu_squared"}


@pytest.mark.parametrize(
    "variant",
    [
        GPT2,
        {**GPT2, "values": "tied"},
        {**GPT2, "attention": "metric", "metric": "general"},
        {**GPT2, "attention": "metric", "projection": "shared", "values": "separate"},
    ],
    ids=str,
)
def test_a_model_with_learned_positions_folds_to_gpt2(variant, tmp_path):
    model = make_model(variant)
    fold(model).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is GPT2LMHeadModel
    tokens_bt = torch.randint(0, 50, (2, 40))
    torch.testing.assert_close(loaded(tokens_bt).logits, model(tokens_bt).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "variant", [{}, {"attention": "metric"}, {"attention": "metric", "projection": "shared"}], ids=str
)
def test_a_folded_model_runs_in_ctranslate2_with_the_same_tokens(variant, tmp_path):
    tokenizer = make_tokenizer("characters", 0, "".join(map(chr, range(32, 82))))
    model = make_model(variant, len(tokenizer))
    fold(model).save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    convert_to_ctranslate2(tmp_path / "llama", tmp_path / "ct2")
    prompt = [[3, 1, 4, 1, 5], [9, 2, 6]]
    generator = ctranslate2.Generator(str(tmp_path / "ct2"), compute_type="float32")
    results = generator.generate_batch(
        [tokenizer.convert_ids_to_tokens(ids) for ids in prompt],
        end_token=[],
        max_length=20,
        sampling_topk=1,
        include_prompt_in_result=False,
    )
    for ids, result in zip(prompt, results, strict=True):
        expected = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, len(ids) :]
        assert result.sequences_ids[0] == expected.tolist()


@pytest.mark.parametrize(
    ("variant", "reason"),
    [({"positions": "learned"}, "learned positions"), ({"attention": "metric", "qk_norm": True}, "qk_norm")],
)
def test_what_cannot_be_folded_says_why(variant, reason):
    with pytest.raises(InputError, match=reason):
        fold(make_model(variant))
