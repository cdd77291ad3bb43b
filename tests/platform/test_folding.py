"""A folded model is a stock Llama with the same logits, and runs in another engine with the same tokens."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2LMHeadModel, LlamaForCausalLM

from model_variants import FOLDABLE, name_of, random_model
from voicechat_platform.errors import InputError
from voicechat_platform.models.folding import fold


@pytest.mark.parametrize("variant", FOLDABLE, ids=name_of)
def test_a_folded_model_has_the_same_logits(variant, tmp_path):
    model = random_model(variant)
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
    model = random_model(variant)
    fold(model).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is GPT2LMHeadModel
    tokens_bt = torch.randint(0, 50, (2, 40))
    torch.testing.assert_close(loaded(tokens_bt).logits, model(tokens_bt).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("variant", "reason"),
    [({"positions": "learned"}, "learned positions"), ({"attention": "metric", "qk_norm": True}, "qk_norm")],
)
def test_what_cannot_be_folded_says_why(variant, reason):
    with pytest.raises(InputError, match=reason):
        fold(random_model(variant))
