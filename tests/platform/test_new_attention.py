"""What docs/extending.md promises: a class of attention and a metric, each put into the tables and nowhere else, train,
decode over a cache, and are read out and priced as any other."""

import pytest
import torch
from torch import nn

from small_run import small_recipe
from voicechat_platform.checkpoints import load_checkpoint
from voicechat_platform.errors import InputError
from voicechat_platform.models import GPTConfig, GPTForCausalLM
from voicechat_platform.models.attention import ATTENTION_CLASSES, StandardAttention
from voicechat_platform.models.configuration import CHOICES, OWN_FIELDS
from voicechat_platform.models.decoding import DECODING, DecodingStandardAttention, SlotDecoder
from voicechat_platform.models.folding import fold
from voicechat_platform.models.metrics import METRICS, Metric
from voicechat_platform.models.readouts import attention_weights, read_heads
from voicechat_platform.training import recipe as recipes
from voicechat_platform.training.loop import Training
from voicechat_platform.training.starting_point import load_data
from voicechat_platform.training.throughput import cache_bytes_per_token, training_flops

WINDOW = 5


class WindowAttention(StandardAttention):
    """Standard attention to the last tokens only."""

    cannot_fold = "a Llama attends to every earlier token"

    def forward(self, x_btd, shared_metric, rotation, key_rotation, mask_cache, **kwargs):
        _, cache = mask_cache  # of texts without padding
        past = 0 if cache is None else cache.get_seq_length(self.layer)
        keys_s = torch.arange(past + x_btd.shape[1])
        distances_ts = keys_s[past:, None] - keys_s
        mask_ts = torch.zeros(distances_ts.shape).masked_fill((distances_ts < 0) | (distances_ts >= WINDOW), -torch.inf)
        return super().forward(x_btd, shared_metric, rotation, key_rotation, (mask_ts[None, None], cache), **kwargs)


class DecodingWindowAttention(DecodingStandardAttention):
    def attend(self, x_btd, positions, caches, store):
        keys_s = torch.arange(positions.mask_b1ts.shape[-1])
        far_b1ts = positions.queries_bt[:, None, :, None] - keys_s >= WINDOW
        mask_b1ts = positions.mask_b1ts.masked_fill(far_b1ts, -torch.inf)
        return super().attend(x_btd, positions._replace(mask_b1ts=mask_b1ts), caches, store)


class ScaledMetric(Metric):
    """M = m I, one number a head."""

    def __init__(self, heads: int, width: int):
        super().__init__(heads, width)
        self.scale_h = nn.Parameter(torch.empty(heads))

    def matrix(self) -> torch.Tensor:
        return torch.eye(self.width) * self.scale_h[:, None, None]

    def initialise(self) -> None:
        nn.init.ones_(self.scale_h)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(ATTENTION_CLASSES, "window", WindowAttention)
    monkeypatch.setitem(DECODING, WindowAttention, DecodingWindowAttention)
    monkeypatch.setitem(METRICS, "scaled", ScaledMetric)
    for field, name in {"attention": "window", "metric": "scaled"}.items():
        monkeypatch.setitem(CHOICES, field, (*CHOICES[field], name))


def trained(folder, **fields) -> GPTForCausalLM:
    """By a run of four steps, and loaded from its checkpoint."""
    recipe = small_recipe(folder)
    # A recipe's names are a Literal, to which nothing can be added at run time.
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"context": 64, **fields})})
    training = Training(recipe, load_data(recipe))
    before = [weight.detach().clone() for weight in training.model.parameters()]
    list(training.evaluations())
    assert all(not torch.equal(old, new) for old, new in zip(before, training.model.parameters(), strict=True))
    training.save(folder / "last")
    model, _ = load_checkpoint(folder / "last")
    return model


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("fields", [{"attention": "window"}, {"attention": "metric", "metric": "scaled"}], ids=str)
def test_it_trains_and_decodes_with_a_cache(registered, tmp_path, fields):
    model = trained(tmp_path, **fields)
    ids = torch.randint(model.config.vocab_size, (40,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected_tv = model(ids[None]).logits[0]
        cache = model(ids[None, :20], use_cache=True).cache
        cached_tv = torch.cat([model(ids[None, place : place + 1], cache=cache).logits[0] for place in range(20, 40)])
    decoder = SlotDecoder(model, slots=2, context=64)
    first_tv = decoder.prefill(0, ids[:20], 0, every=True)
    steps_tv = [decoder.decode(ids[t : t + 1], torch.tensor([t]), t + 1) for t in range(20, 40)]
    torch.testing.assert_close(cached_tv, expected_tv[20:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cat([first_tv, *steps_tv]), expected_tv, rtol=1e-4, atol=1e-4)
    assert decoder.bytes_per_slot == 64 * cache_bytes_per_token(model.config)
    assert training_flops(model, 64) > 0
    assert len(read_heads(model, ids[None])) == 4


def test_what_a_class_says_about_itself_is_heard(registered):
    model = GPTForCausalLM(GPTConfig(attention="window", vocab_size=50, hidden_size=32, num_hidden_layers=1))
    weights_bhts = attention_weights(model, torch.zeros(1, 30, dtype=torch.long))[0]
    assert not weights_bhts.tril(-WINDOW).any()  # seen in the picture of the heads
    with pytest.raises(InputError, match="a Llama attends to every earlier token"):
        fold(model)


def test_recipes_know_the_models_names():
    """Recipes are read where torch is not loaded, so the names stand there a second time."""
    fields = recipes.ModelRecipe.model_fields
    assert {field: options for field, options in CHOICES.items() if field in fields} == CHOICES
    schema = recipes.ModelRecipe.model_json_schema()["properties"]
    for field, options in CHOICES.items():
        allowed = [each for branch in schema[field].get("anyOf", [schema[field]]) for each in branch.get("enum", [])]
        assert allowed == list(options), field
    assert recipes.OWN_FIELDS == OWN_FIELDS
    assert tuple(ATTENTION_CLASSES) == CHOICES["attention"]
    assert set(DECODING) == set(ATTENTION_CLASSES.values())
    assert set(METRICS) == set(CHOICES["metric"])
