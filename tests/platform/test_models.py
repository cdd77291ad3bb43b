"""Both attentions against explicit float64 references.

Letters: b batch, t query position, s key position, d model width, h head, k head width, v vocabulary.
"""

import math

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache

from voicechat_platform.models import GPTConfig, GPTForCausalLM
from voicechat_platform.models.attention import MetricAttention, Rotary, StandardAttention, rotate

ATTENTIONS = ("standard", "metric")


@pytest.fixture(params=ATTENTIONS)
def model(request) -> GPTForCausalLM:
    torch.manual_seed(0)
    config = GPTConfig(attention=request.param, vocab_size=50, hidden_size=32, num_attention_heads=2,
                       num_hidden_layers=2, max_position_embeddings=64)  # fmt: skip
    model = GPTForCausalLM(config).double().eval()
    for weight in model.parameters():  # so that every path matters to the logits
        nn.init.normal_(weight, std=0.3)
    return model


@pytest.fixture
def tokens_bt() -> torch.Tensor:
    return torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(1))


def attention_layer(kind: str) -> StandardAttention | MetricAttention:
    torch.manual_seed(0)
    config = GPTConfig(attention=kind, hidden_size=32, num_attention_heads=2)
    config._attn_implementation = "sdpa"
    layer = (StandardAttention if kind == "standard" else MetricAttention)(config, 0).double()
    for weight in layer.parameters():
        nn.init.normal_(weight, std=0.3)
    return layer


def no_rotation(t: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(1, 1, t, 16, dtype=torch.double), torch.zeros(1, 1, t, 16, dtype=torch.double)


def positions(t: int, start: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return Rotary(GPTConfig(hidden_size=32, num_attention_heads=2)).double()(
        torch.arange(start, start + t)[None], torch.double
    )


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_attention_equals_an_explicit_einsum(kind):
    layer = attention_layer(kind)
    x_btd = torch.randn(2, 9, 32, dtype=torch.double)
    rotation = positions(9)
    if kind == "metric":
        p_bhtk = torch.einsum("btd,hkd->bhtk", x_btd, layer.p_proj.weight.view(2, 16, 32))
        q_bhtk = torch.einsum("bhtk,hkj->bhtj", p_bhtk, layer.metric_hkk())
        k_bhsk, v_bhsk = p_bhtk, p_bhtk
    else:
        q_bhtk, k_bhsk, v_bhsk = torch.einsum("btd,nhkd->nbhtk", x_btd, layer.qkv_proj.weight.view(3, 2, 16, 32))
    q_bhtk, k_bhsk = rotate(q_bhtk, *rotation), rotate(k_bhsk, *rotation)
    scores_bhts = torch.einsum("bhtk,bhsk->bhts", q_bhtk, k_bhsk) / math.sqrt(16)
    scores_bhts = scores_bhts.masked_fill(torch.ones(9, 9).triu(1).bool(), -math.inf)
    y_bthk = torch.einsum("bhts,bhsk->bthk", scores_bhts.softmax(-1), v_bhsk)
    expected_btd = torch.einsum("bthk,dhk->btd", y_bthk, layer.o_proj.weight.view(32, 2, 16))
    torch.testing.assert_close(layer(x_btd, rotation, rotation, None, None), expected_btd)


def test_metric_is_symmetric_and_so_are_scores_without_rotation():
    layer = attention_layer("metric")
    metric_hkk = layer.metric_hkk()
    assert torch.equal(metric_hkk, metric_hkk.mT)
    p_bhtk = layer.split_heads(layer.p_proj(torch.randn(2, 9, 32, dtype=torch.double)))
    scores_bhts = p_bhtk @ metric_hkk @ p_bhtk.mT
    torch.testing.assert_close(scores_bhts, scores_bhts.mT)


def test_metric_layer_is_a_standard_layer_with_folded_projections():
    metric, standard = attention_layer("metric"), attention_layer("standard")
    p_hkd = metric.p_proj.weight.detach().view(2, 16, 32)
    q_hkd = metric.metric_hkk().detach() @ p_hkd
    standard.qkv_proj.weight.data = torch.cat([q_hkd, p_hkd, p_hkd]).reshape(96, 32)
    standard.o_proj.weight.data = metric.o_proj.weight.detach().clone()
    rotation = positions(9)
    x_btd = torch.randn(2, 9, 32, dtype=torch.double, requires_grad=True)
    ours = metric(x_btd, rotation, rotation, None, None)
    theirs = standard(x_btd, rotation, rotation, None, None)
    torch.testing.assert_close(ours, theirs)
    (gradient_ours,) = torch.autograd.grad(ours.square().sum(), x_btd)
    (gradient_theirs,) = torch.autograd.grad(theirs.square().sum(), x_btd)
    torch.testing.assert_close(gradient_ours, gradient_theirs)


def test_rotary_after_the_metric_sees_only_distances():
    layer = attention_layer("metric")
    p_bhtk = layer.split_heads(layer.p_proj(torch.randn(1, 9, 32, dtype=torch.double)))
    q_bhtk = p_bhtk @ layer.metric_hkk()

    def scores(start: int) -> torch.Tensor:
        rotation = positions(9, start)
        return rotate(q_bhtk, *rotation) @ rotate(p_bhtk, *rotation).mT

    torch.testing.assert_close(scores(0), scores(37), rtol=1e-5, atol=1e-5)  # angles are made in float32


@pytest.mark.parametrize("chunk", [1, 3, 20])
def test_cached_logits_equal_uncached_ones(model, tokens_bt, chunk):
    cache = DynamicCache()
    pieces = [model(piece, cache=cache).logits for piece in tokens_bt.split(chunk, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens_bt).logits, rtol=1e-6, atol=1e-6)


def test_metric_cache_is_half_of_the_standard_one(model, tokens_bt):
    cache = DynamicCache()
    model(tokens_bt, cache=cache)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    standard = 2 * 2 * tokens_bt.numel() * 32 * 8  # layers, keys and values, tokens, width, bytes
    assert held == (standard // 2 if model.config.attention == "metric" else standard)


def test_left_padding_changes_nothing(model, tokens_bt):
    padded = torch.cat([torch.zeros(3, 5, dtype=torch.long), tokens_bt], dim=1)
    mask = torch.cat([torch.zeros(3, 5), torch.ones(3, 20)], dim=1).long()
    logits = model(padded, attention_mask=mask).logits[:, 5:]
    torch.testing.assert_close(logits, model(tokens_bt).logits, rtol=1e-6, atol=1e-6)


def test_generate_of_transformers_equals_a_greedy_loop(model, tokens_bt):
    prompt = tokens_bt[:, :6]
    generated = model.generate(prompt, max_new_tokens=12, do_sample=False)
    expected = prompt
    for _ in range(12):
        following = model(expected).logits[:, -1].argmax(-1, keepdim=True)
        expected = torch.cat([expected, following], dim=1)
    assert torch.equal(generated, expected)


def test_a_later_token_never_changes_an_earlier_logit(model, tokens_bt):
    changed = tokens_bt.clone()
    changed[:, 12] = (changed[:, 12] + 1) % 50
    assert torch.equal(model(tokens_bt).logits[:, :12], model(changed).logits[:, :12])
    assert not torch.equal(model(tokens_bt).logits[:, 12:], model(changed).logits[:, 12:])


@pytest.mark.parametrize(
    ("kind", "layer_parameters"), [("standard", 4 * 128**2), ("metric", 2 * 128**2 + 4 * 32 * 33 // 2)]
)
def test_parameters_follow_the_formula_and_all_of_them_learn(kind, layer_parameters):
    model = GPTForCausalLM(GPTConfig(attention=kind, vocab_size=65))
    per_layer = layer_parameters + 3 * 128 * 344 + 2 * 128
    assert model.num_parameters() == 65 * 128 + 4 * per_layer + 128
    tokens_bt = torch.randint(0, 65, (2, 32))
    model(tokens_bt, labels=tokens_bt).loss.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_initial_loss_is_that_of_a_uniform_guess(kind):
    torch.manual_seed(0)
    model = GPTForCausalLM(GPTConfig(attention=kind, vocab_size=65))
    tokens_bt = torch.randint(0, 65, (4, 64))
    assert model(tokens_bt, labels=tokens_bt.roll(-1, 1)).loss.item() == pytest.approx(math.log(65), abs=0.1)


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_a_saved_model_loads_through_the_auto_classes(kind, tmp_path):
    torch.manual_seed(0)
    model = GPTForCausalLM(GPTConfig(attention=kind, vocab_size=65, hidden_size=32)).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens_bt = torch.randint(0, 65, (2, 30))
    assert isinstance(loaded, GPTForCausalLM)
    assert torch.equal(loaded(tokens_bt).logits, model(tokens_bt).logits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 30, "num_attention_heads": 4}, "not a multiple"),
        ({"hidden_size": 12, "num_attention_heads": 4}, "even number wide"),
        ({"attention": "euclidean"}, "must be one of standard, metric"),
    ],
)
def test_an_impossible_shape_is_a_clear_error(settings, message):
    with pytest.raises(Exception, match=message):
        GPTConfig(**settings)
