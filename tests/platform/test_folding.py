"""A folded model is a stock Llama with the same logits, and runs in another engine with the same tokens."""

import ctranslate2
import pytest
import torch
from ctranslate2.converters import TransformersConverter
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, LlamaForCausalLM

from model_variants import FOLDABLE, name_of, random_model
from voicechat_platform.corpora.tokenizers import make_tokenizer
from voicechat_platform.errors import InputError
from voicechat_platform.models.end_token import rarest_token
from voicechat_platform.models.folding import fold, save_folded


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


TEXT = "It's the year 1234, naïve ÿ café. 你好世界 don't  go\n\n" * 50


@pytest.mark.parametrize("kind", ["characters", "byte_pairs", "gpt2"])
def test_a_folded_folder_has_special_tokens_and_encodes_as_before(kind, tmp_path):
    tokenizer = make_tokenizer(kind, 350, TEXT)
    tokenizer.chat_template = "{{ messages }}"
    save_folded(fold(random_model({}, len(tokenizer))), tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in (TEXT, "", " ÿĀĠ <|im_end|>\x00 \n 한국어"):
        ids = tokenizer.encode(text)
        assert loaded.encode(text) == ids
        assert loaded.decode(ids) == tokenizer.decode(ids)
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.bos_token == loaded.eos_token == loaded.unk_token
    assert len(loaded) == len(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == loaded.eos_token_id
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_the_end_token_of_characters_is_the_rarest():
    model = random_model({"tie_word_embeddings": False}, 50)
    with torch.no_grad():
        for block in model.blocks:  # then the last hidden state is the token's own embedding
            block.attention.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        for weight in (model.embedding.weight, model.norm.weight, model.lm_head.weight):
            weight.abs_()
        model.lm_head.weight[17] *= -1
    assert rarest_token(model, 50) == 17


@pytest.mark.parametrize(
    "variant", [{}, {"attention": "metric"}, {"attention": "metric", "projection": "shared"}], ids=str
)
@pytest.mark.parametrize("kind", ["characters", "byte_pairs"])
def test_a_folded_model_runs_in_ctranslate2_with_the_same_tokens(kind, variant, tmp_path):
    tokenizer = make_tokenizer(kind, 350, TEXT)
    model = random_model(variant, len(tokenizer))
    save_folded(fold(model), tokenizer, tmp_path / "llama")
    TransformersConverter(str(tmp_path / "llama")).convert(str(tmp_path / "ct2"))
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])]
    prompt = [[3, 1, 4, 1, 5], [9, 2, 6]]
    generator = ctranslate2.Generator(str(tmp_path / "ct2"), compute_type="float32")
    results = generator.generate_batch(
        [[tokens[token] for token in ids] for ids in prompt],
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
        fold(random_model(variant))
