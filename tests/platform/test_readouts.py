"""Read-outs of heads: right on constructed heads, and the same however the weights are written."""

import math

import pytest
import torch

from voicechat_platform.models import GPTConfig, GPTForCausalLM
from voicechat_platform.models.readouts import attention_weights, read_heads, token_distances


def make_model(**variant) -> GPTForCausalLM:
    torch.manual_seed(0)
    model = GPTForCausalLM(
        GPTConfig(vocab_size=50, hidden_size=32, num_attention_heads=2, num_hidden_layers=2,
                  max_position_embeddings=32, **variant)
    )  # fmt: skip
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


TOKENS_BT = torch.randint(0, 50, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "variant",
    [{}, {"values": "tied"}, {"attention": "metric"}, {"attention": "metric", "projection": "shared"}],
    ids=str,
)
def test_recorded_weights_give_the_models_own_attention(variant):
    model = make_model(**variant)
    before = model(TOKENS_BT).logits
    weights = attention_weights(model, TOKENS_BT)
    assert len(weights) == 2
    for weights_bhts in weights:
        torch.testing.assert_close(weights_bhts.sum(-1), torch.ones(2, 2, 24))
        assert weights_bhts.triu(1).abs().max() == 0
    assert torch.equal(model(TOKENS_BT).logits, before)  # the usual kernel is back


def test_a_change_of_gauge_changes_no_readout():
    model = make_model(attention="metric", values="separate", metric="general")
    before = read_heads(model, TOKENS_BT)
    attention = model.blocks[0].attention
    gauge_kk = torch.randn(16, 16) / 4 + torch.eye(16)
    inverse_kk = torch.linalg.inv(gauge_kk)
    matrix_kk = (inverse_kk.mT @ attention.metric.matrix()[0] @ inverse_kk).detach()
    attention.pv_proj.weight.data[:16] = gauge_kk @ attention.pv_proj.weight.data[:16]
    rows, columns = torch.tril_indices(16, 16)
    attention.metric.symmetric.triangle_hp.data[0] = ((matrix_kk + matrix_kk.mT) / 2)[rows, columns]
    rows, columns = torch.tril_indices(16, 16, -1)
    attention.metric.antisymmetric_hp.data[0] = ((matrix_kk - matrix_kk.mT) / 2)[rows, columns]
    after = read_heads(model, TOKENS_BT)
    torch.testing.assert_close(after[0].eigenvalues_k, before[0].eigenvalues_k, rtol=1e-3, atol=1e-5)
    for name in ("positive", "negative", "effective_rank", "symmetry"):
        assert getattr(after[0], name) == pytest.approx(getattr(before[0], name), rel=1e-3)
    tokens_n = torch.arange(10)
    torch.testing.assert_close(
        token_distances(model, after[0], tokens_n), token_distances(model, before[0], tokens_n), rtol=1e-3, atol=1e-4
    )


def test_a_known_spectrum_is_read_back():
    model = make_model(attention="metric", metric="signed_diagonal")
    attention = model.blocks[1].attention
    attention.pv_proj.weight.data = torch.linalg.qr(torch.randn(32, 32))[0]
    attention.metric.diagonal_hk.data[1] = torch.tensor([2.0] * 4 + [-2.0] * 4 + [0.0] * 8)
    readout = read_heads(model, TOKENS_BT)[3]
    assert (readout.layer, readout.head) == (1, 1)
    assert (readout.positive, readout.negative) == (4, 4)
    assert readout.effective_rank == pytest.approx(8, rel=1e-4)
    assert readout.symmetry == pytest.approx(1)


def test_symmetry_of_metric_and_standard_heads():
    assert all(head.symmetry == pytest.approx(1) for head in read_heads(make_model(attention="metric"), TOKENS_BT))
    for head in read_heads(make_model(), TOKENS_BT):
        assert 0.3 < head.symmetry < 0.7  # random Q and K: half and half


def test_a_positive_definite_head_has_no_negative_direction():
    for head in read_heads(make_model(attention="metric", metric="positive_definite"), TOKENS_BT):
        assert head.negative == 0
        assert token_distances(make_model(), head, torch.arange(5)).min() > -1e-9


def test_weights_are_read_where_they_should_be():
    model = make_model(positions="learned")
    for block in model.blocks:  # no scores: attention is even over what is seen
        block.attention.qkv_proj.weight.data.zero_()
    head = read_heads(model, TOKENS_BT)[0]
    even = [1 / (t + 1) for t in range(32)]
    assert head.self_weight == pytest.approx(sum(even[:24]) / 24, rel=1e-5)
    assert head.previous_token == pytest.approx(sum(even[1:24]) / 23, rel=1e-5)
    assert head.induction == pytest.approx(sum(even[16:]) / 16, rel=1e-5)
    assert math.isfinite(head.effective_rank) or head.eigenvalues_k.abs().max() == 0
