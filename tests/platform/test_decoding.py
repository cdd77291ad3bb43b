"""The slot decoder gives the model's own logits, whatever the variant, the prompt's pieces, the rows around it."""

import pytest
import torch

from voicechat_platform.models import GPTConfig, GPTForCausalLM
from voicechat_platform.models.decoding import SlotDecoder
from voicechat_platform.models.metrics import METRICS

CONTEXT = 64

VARIANTS = {
    "standard": {},
    "standard, K=V": {"values": "tied"},
    "metric": {"attention": "metric"},
    "metric, separate values": {"attention": "metric", "values": "separate"},
    "shared projection": {"attention": "metric", "projection": "shared"},
    "shared projection, separate values": {"attention": "metric", "projection": "shared", "values": "separate"},
    "one metric for all layers, normalised": {"attention": "metric", "metric_sharing": "model", "qk_norm": True},
    **{f"{metric} metric": {"attention": "metric", "metric": metric} for metric in METRICS if metric != "symmetric"},
    "learned positions": {"attention": "metric", "positions": "learned"},
    "LayerNorm and squared ReLU": {"positions": "learned", "norm": "layer", "mlp": "relu_squared"},
}


def model_of(variant: str) -> GPTForCausalLM:
    torch.manual_seed(0)
    config = GPTConfig(**VARIANTS[variant], vocab_size=64, hidden_size=64, num_hidden_layers=2)
    config.max_position_embeddings = CONTEXT
    model = GPTForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():  # livelier than fresh, and no norm's weight is 1
            parameter.mul_(3).add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, atol=5e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_pieces_and_steps_give_the_models_logits(variant):
    model = model_of(variant)
    decoder = SlotDecoder(model, slots=4, context=CONTEXT)
    ids = torch.randint(64, (50,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected_tv = model(ids[None]).logits[0]
    assert close(decoder.prefill(2, ids[:20], 0, every=True), expected_tv[:20])
    assert close(decoder.prefill(2, ids[20:37], 20), expected_tv[36:37])
    decoder.swap(2, 0, 37)
    decoder.copy(0, 1, 11)  # another request that begins alike
    for place in range(37, 50):
        ids_b, positions_b = torch.stack([ids[place], ids[place - 26]]), torch.tensor([place, place - 26])
        logits_bv = decoder.decode(ids_b, positions_b, place + 1)
        assert close(logits_bv, expected_tv[positions_b])


def test_tied_values_are_cached_once():
    tied, standard = (SlotDecoder(model_of(variant), 2, CONTEXT) for variant in ("metric", "standard"))
    assert standard.bytes_per_slot == 2 * (2 * 64) * CONTEXT * 4
    assert tied.bytes_per_slot * 2 == standard.bytes_per_slot


def test_bfloat16():
    """As near to the logits in float32 as the model itself is in bfloat16."""
    model = model_of("metric")
    ids = torch.arange(20)
    with torch.no_grad():
        expected_tv = model(ids[None]).logits[0]
        rounded_tv = model.bfloat16()(ids[None]).logits[0]
    decoder = SlotDecoder(model_of("metric"), 1, CONTEXT, torch.bfloat16)
    found_tv = decoder.prefill(0, ids, 0, every=True)
    assert found_tv.dtype == torch.bfloat16
    assert (found_tv - expected_tv).norm() < 1.2 * (rounded_tv - expected_tv).norm()
