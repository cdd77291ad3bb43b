"""Every attention variant against explicit float64 references.

Letters: b batch, t query position, s key position, d model width, h head, g key-value head, k head width, v vocabulary.
"""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache

from model_variants import FIELDS, is_metrics, name_of, pairwise
from voicechat_platform.models import GPTConfig, GPTForCausalLM
from voicechat_platform.models.attention import MetricAttention, Rotary, StandardAttention, make_metric, rotate
from voicechat_platform.models.configuration import CHOICES

WIDTH, HEADS, K = 32, 2, 16

METRIC = {"attention": "metric"}
TIED_VALUES, SEPARATE_VALUES = {"values": "tied"}, {"values": "separate"}
SHARED_PROJECTION = {**METRIC, "projection": "shared"}

VARIANTS = pairwise()


def each(variants: list[dict[str, Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("variant", variants, ids=name_of)


every_variant = each(VARIANTS)


def config(variant: dict[str, Any], **fields: Any) -> GPTConfig:
    small = {"vocab_size": 50, "hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": 2}
    return GPTConfig(**{**small, "max_position_embeddings": 64, **variant, **fields})


def scrambled(model: nn.Module) -> Any:
    """With weights so large that every path matters to the outputs."""
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator, dtype=torch.double) * 0.3
    return model.double().eval()


def make_model(variant: dict[str, Any]) -> GPTForCausalLM:
    return scrambled(GPTForCausalLM(config(variant)))


def make_layer(variant: dict[str, Any]) -> tuple[StandardAttention | MetricAttention, Any]:
    """A layer, and the metric that it is given when the whole model shares one."""
    model = GPTForCausalLM(config(variant))
    scrambled(model)
    return model.blocks[0].attention, model.shared_metric


@pytest.fixture
def tokens_bt() -> Tensor:
    return torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(1))


def rotation_of(variant: dict[str, Any], t: int, start: int = 0) -> Any:
    if variant.get("positions") == "learned":
        return None
    return Rotary(config(variant)).double()(torch.arange(start, start + t)[None], torch.double)


def parts(layer: Any, shared_metric: Any, x_btd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unrotated q (b, h, t, k), k and v (b, h, t, k), computed with einsum from the weights."""
    settings = layer.config
    groups = settings.num_key_value_heads

    def project(weight: Tensor) -> Tensor:
        return torch.einsum("btd,gkd->bgtk", x_btd, weight.view(-1, K, WIDTH))

    if settings.attention == "standard":
        q_bhtk, k_bhtk, *v = map(project, layer.qkv_proj.weight.split(WIDTH))
        return q_bhtk, k_bhtk, v[0] if v else k_bhtk
    p_bgtk, *v = map(project, layer.pv_proj.weight.split(groups * K))
    if settings.qk_norm:
        size = p_bgtk.square().mean(-1, keepdim=True).add(settings.rms_norm_eps).sqrt()
        p_bgtk = p_bgtk / size * layer.norm.weight
    metric = layer.metric if shared_metric is None else shared_metric
    p_bhtk = p_bgtk.expand(-1, HEADS, -1, -1)
    q_bhtk = torch.einsum("bhtk,hkj->bhtj", p_bhtk, metric.matrix().double())
    return q_bhtk, p_bhtk, v[0].expand(-1, HEADS, -1, -1) if v else p_bhtk


def weights_bhts(q_bhtk: Tensor, k_bhsk: Tensor) -> Tensor:
    scores_bhts = torch.einsum("bhtk,bhsk->bhts", q_bhtk, k_bhsk) / math.sqrt(K)
    hidden_ts = torch.ones(scores_bhts.shape[-2:]).triu(1).bool()
    return scores_bhts.masked_fill(hidden_ts, -math.inf).softmax(-1)


@pytest.mark.parametrize(("one", "other"), itertools.combinations(FIELDS, 2))
def test_every_two_settings_meet_in_a_variant(one, other):
    for values in itertools.product(FIELDS[one], FIELDS[other]):
        pair = dict(zip((one, other), values, strict=True))
        if pair.get("attention") != "standard" or not any(map(is_metrics, pair)):
            assert [variant for variant in VARIANTS if pair.items() <= variant.items()], pair


@every_variant
def test_attention_equals_an_explicit_einsum(variant):
    layer, shared_metric = make_layer(variant)
    x_btd = torch.randn(2, 9, WIDTH, dtype=torch.double)
    rotation = rotation_of(variant, 9)
    q_bhtk, k_bhsk, v_bhsk = parts(layer, shared_metric, x_btd)
    attended_bhts = weights_bhts(rotate(q_bhtk, rotation), rotate(k_bhsk, rotation))
    torch.testing.assert_close(attended_bhts.sum(-1), torch.ones(2, HEADS, 9, dtype=torch.double))
    y_bthk = torch.einsum("bhts,bhsk->bthk", attended_bhts, v_bhsk)
    expected_btd = torch.einsum("bthk,dhk->btd", y_bthk, layer.o_proj.weight.view(WIDTH, HEADS, K))
    # Metrics are built in float32 and cast.
    torch.testing.assert_close(
        layer(x_btd, shared_metric, rotation, rotation, (None, None)), expected_btd, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("kind", [kind for kind in CHOICES["metric"] if kind != "general"])
def test_metrics_are_symmetric_and_so_are_scores_without_rotation(kind):
    metric = scrambled(make_metric(config({"attention": "metric", "metric": kind})))
    matrix_hkk = metric.matrix()
    torch.testing.assert_close(matrix_hkk, matrix_hkk.mT)
    p_bhtk = torch.randn(2, HEADS, 9, K, dtype=torch.double)
    scores_bhts = metric(p_bhtk) @ p_bhtk.mT
    torch.testing.assert_close(scores_bhts, scores_bhts.mT, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", CHOICES["metric"])
def test_applying_a_metric_is_multiplying_with_its_matrix(kind):
    metric = scrambled(make_metric(config({"attention": "metric", "metric": kind})))
    p_bhtk = torch.randn(2, HEADS, 9, K, dtype=torch.double)
    torch.testing.assert_close(metric(p_bhtk), p_bhtk @ metric.matrix().double(), rtol=1e-6, atol=1e-6)


def test_a_general_metric_is_symmetric_plus_antisymmetric_and_can_be_any_matrix():
    metric = make_metric(config({"attention": "metric", "metric": "general"}))
    wanted_hkk = torch.randn(HEADS, K, K)
    rows, columns = torch.tril_indices(K, K)
    metric.symmetric.initialise()
    metric.symmetric.triangle_hp.data = ((wanted_hkk + wanted_hkk.mT) / 2)[:, rows, columns]
    rows, columns = torch.tril_indices(K, K, -1)
    metric.antisymmetric_hp.data = ((wanted_hkk - wanted_hkk.mT) / 2)[:, rows, columns]
    torch.testing.assert_close(metric.matrix(), wanted_hkk)


def test_a_positive_definite_metric_stays_so_while_it_learns():
    torch.manual_seed(0)
    model = GPTForCausalLM(config({"attention": "metric", "metric": "positive_definite"}))
    assert torch.allclose(model.blocks[0].attention.metric.matrix(), torch.eye(K), atol=1e-5)  # it begins as I
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    tokens_bt = torch.randint(0, 50, (4, 32))
    for _ in range(20):
        model(tokens_bt, labels=tokens_bt.roll(1, 1)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for block in model.blocks:
            matrix_hkk = block.attention.metric.matrix()
            torch.testing.assert_close(matrix_hkk, matrix_hkk.mT)
            assert torch.linalg.eigvalsh(matrix_hkk.double()).min() > 0


@each(pairwise(attention="metric", qk_norm=False))  # a norm between P and M cannot be folded
def test_a_metric_layer_is_a_standard_layer_with_folded_projections(variant):
    """Q = P M, K = P, V = P or its own: outputs and gradients."""
    layer, shared_metric = make_layer(variant)
    standard, _ = make_layer({"positions": variant["positions"]})
    p_gkd, *v_gkd = (part.detach().view(-1, K, WIDTH) for part in layer.pv_proj.weight.split(layer.key_value_width))
    metric = layer.metric if shared_metric is None else shared_metric
    p_hkd = p_gkd.expand(HEADS, -1, -1)
    q_hkd = metric.matrix().detach().double().mT @ p_hkd
    v_hkd = v_gkd[0].expand(HEADS, -1, -1) if v_gkd else p_hkd
    standard.qkv_proj.weight.data = torch.cat([q_hkd, p_hkd, v_hkd]).reshape(3 * WIDTH, WIDTH)
    standard.o_proj.weight.data = layer.o_proj.weight.detach().clone()
    rotation = rotation_of(variant, 9)
    x_btd = torch.randn(2, 9, WIDTH, dtype=torch.double, requires_grad=True)
    ours = layer(x_btd, shared_metric, rotation, rotation, (None, None))
    theirs = standard(x_btd, None, rotation, rotation, (None, None))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    (gradient_ours,) = torch.autograd.grad(ours.square().sum(), x_btd)
    (gradient_theirs,) = torch.autograd.grad(theirs.square().sum(), x_btd)
    torch.testing.assert_close(gradient_ours, gradient_theirs, rtol=1e-5, atol=1e-5)


@each(pairwise(positions="rotary"))
def test_rotary_scores_see_only_distances(variant):
    layer, shared_metric = make_layer(variant)
    q_bhtk, k_bhtk, _ = parts(layer, shared_metric, torch.randn(1, 9, WIDTH, dtype=torch.double))

    def scores(start: int) -> Tensor:
        rotation = rotation_of(variant, 9, start)
        return rotate(q_bhtk, rotation) @ rotate(k_bhtk, rotation).mT

    torch.testing.assert_close(scores(0), scores(37), rtol=1e-4, atol=1e-4)  # angles are made in float32


@every_variant
@pytest.mark.parametrize("chunk", [1, 3, 20])
def test_cached_logits_equal_uncached_ones(variant, tokens_bt, chunk):
    model = make_model(variant)
    cache = DynamicCache()
    pieces = [model(piece, cache=cache).logits for piece in tokens_bt.split(chunk, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens_bt).logits, rtol=1e-6, atol=1e-6)


@every_variant
def test_the_cache_holds_what_the_variant_needs_and_no_byte_more(variant, tokens_bt):
    model = make_model(variant)
    cache = DynamicCache()
    model(tokens_bt, cache=cache)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    layers, bytes_each = 2, 8
    per_token = model.config.num_key_value_heads * K * (1 if model.config.values == "tied" else 2)
    assert held == layers * tokens_bt.numel() * per_token * bytes_each
    if variant.get("projection") == "shared" and variant["values"] == "tied":
        assert held * 2 * HEADS == layers * tokens_bt.numel() * 2 * WIDTH * bytes_each  # one vector for all heads


@every_variant
def test_left_padding_changes_nothing(variant, tokens_bt):
    model = make_model(variant)
    padded = torch.cat([torch.zeros(3, 5, dtype=torch.long), tokens_bt], dim=1)
    mask = torch.cat([torch.zeros(3, 5), torch.ones(3, 20)], dim=1).long()
    logits = model(padded, attention_mask=mask).logits[:, 5:]
    torch.testing.assert_close(logits, model(tokens_bt).logits, rtol=1e-6, atol=1e-6)


@every_variant
def test_generate_of_transformers_equals_a_greedy_loop(variant, tokens_bt):
    model = make_model(variant)
    prompt = tokens_bt[:, :6]
    generated = model.generate(prompt, max_new_tokens=12, do_sample=False)
    expected = prompt
    for _ in range(12):
        following = model(expected).logits[:, -1].argmax(-1, keepdim=True)
        expected = torch.cat([expected, following], dim=1)
    assert torch.equal(generated, expected)


@every_variant
def test_a_cache_of_fixed_size_gives_the_same_tokens(variant, tokens_bt):
    model = make_model(variant)
    padded = torch.cat([torch.zeros(3, 4, dtype=torch.long), tokens_bt[:, :6]], dim=1)
    mask = torch.cat([torch.zeros(3, 4), torch.ones(3, 6)], dim=1).long()
    settings = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    growing = model.generate(padded, **settings)
    fixed = model.generate(padded, **settings, cache_implementation="static", disable_compile=True)
    assert torch.equal(growing, fixed)


@every_variant
def test_a_later_token_never_changes_an_earlier_logit(variant, tokens_bt):
    model = make_model(variant)
    changed = tokens_bt.clone()
    changed[:, 12] = (changed[:, 12] + 1) % 50
    assert torch.equal(model(tokens_bt).logits[:, :12], model(changed).logits[:, :12])
    assert not torch.equal(model(tokens_bt).logits[:, 12:], model(changed).logits[:, 12:])


@pytest.mark.parametrize(
    ("variant", "expected"),  # of one layer's attention, d = 32, h = 2, k = 16
    [
        ({}, 4 * 32 * 32),
        (TIED_VALUES, 3 * 32 * 32),
        ({**METRIC, **SEPARATE_VALUES}, 3 * 32 * 32 + 2 * 16 * 17 // 2),
        ({**METRIC, **SEPARATE_VALUES, "metric": "signed_diagonal"}, 3 * 32 * 32 + 32),
        (METRIC, 2 * 32 * 32 + 2 * 16 * 17 // 2),
        ({**METRIC, "metric": "positive_definite"}, 2 * 32 * 32 + 2 * 16 * 17 // 2),
        ({**METRIC, "metric": "signed_diagonal"}, 2 * 32 * 32 + 32),
        ({**METRIC, "metric": "general"}, 2 * 32 * 32 + 2 * 16 * 16),
        ({**METRIC, "metric": "low_rank"}, 2 * 32 * 32 + 2 * (16 + 4 * 16 + 4)),
        ({**METRIC, "metric": "identity"}, 2 * 32 * 32),
        (SHARED_PROJECTION, 32 * 16 + 2 * 16 * 17 // 2 + 2 * 16 * 32),
    ],
    ids=str,
)
def test_parameters_follow_the_formula(variant, expected):
    layer, _ = make_layer(variant)
    assert sum(weight.numel() for weight in layer.parameters()) == expected


def test_parameters_at_384_are_the_published_ones():
    counts = []
    for variant in ({}, {**METRIC, **SEPARATE_VALUES}, METRIC, SHARED_PROJECTION):
        with torch.device("meta"):
            model = GPTForCausalLM(config(variant, hidden_size=384, num_attention_heads=6))
        counts.append(sum(weight.numel() for weight in model.blocks[0].attention.parameters()))
    assert counts == [589_824, 454_848, 307_392, 184_512]


@every_variant
def test_every_parameter_learns(variant):
    torch.manual_seed(0)
    model = GPTForCausalLM(config(variant))
    tokens_bt = torch.randint(0, 50, (2, 64))  # all learned positions
    model(tokens_bt, labels=tokens_bt).loss.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


@each([{}, SHARED_PROJECTION, {**METRIC, "metric": "low_rank"}, {**METRIC, "qk_norm": True}])
def test_gradients_are_those_of_finite_differences(variant):
    layer, shared_metric = make_layer(variant)
    rotation = rotation_of(variant, 4)
    x_btd = torch.randn(1, 4, WIDTH, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer(x, shared_metric, rotation, rotation, (None, None)), x_btd)


@every_variant
def test_initial_loss_is_that_of_a_uniform_guess(variant):
    torch.manual_seed(0)
    model = GPTForCausalLM(config(variant))
    tokens_bt = torch.randint(0, 50, (4, 64))
    assert model(tokens_bt, labels=tokens_bt.roll(-1, 1)).loss.item() == pytest.approx(math.log(50), abs=0.1)


@every_variant
def test_a_saved_model_loads_through_the_auto_classes(variant, tmp_path, tokens_bt):
    torch.manual_seed(0)
    model = GPTForCausalLM(config(variant)).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, GPTForCausalLM)
    assert torch.equal(loaded(tokens_bt).logits, model(tokens_bt).logits)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 30, "num_attention_heads": 4}, "not a multiple"),
        ({"hidden_size": 12, "num_attention_heads": 4}, "even number wide"),
        ({"attention": "euclidean"}, "must be one of standard, metric"),
        ({"attention": "metric", "metric": "round"}, "must be one of symmetric, signed_diagonal"),
        ({"attention": "standard", "projection": "shared"}, "projection belongs to metric attention"),
    ],
)
def test_an_impossible_shape_is_a_clear_error(fields, message):
    with pytest.raises(Exception, match=message):
        GPTConfig(**fields)
