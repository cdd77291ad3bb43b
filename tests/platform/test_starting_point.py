"""Fine-tuning: from a folder, a registry version or a packaged model; all weights or adapters."""

import shutil

import pytest
import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from voicechat_platform.assets import LANGUAGE_MODELS
from voicechat_platform.checkpoints import load_checkpoint
from voicechat_platform.corpora.tokenizers import make_tokenizer
from voicechat_platform.errors import InputError
from voicechat_platform.model_store import find_checkpoint
from voicechat_platform.registry import Registry
from voicechat_platform.settings import settings
from voicechat_platform.training.loop import Training
from voicechat_platform.training.recipe import Recipe
from voicechat_platform.training.run_folder import RunFolder
from voicechat_platform.training.starting_point import load_data

TRAINING = {
    "steps": 12, "batch_size": 4, "evaluate_every": 6, "evaluation_windows": 20, "warmup_steps": 2,
    "optimizer": "adamw", "learning_rate": 0.01,
}  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """One of its own, with the packaged models that all tests share: to convert them takes half a minute."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "models").symlink_to(settings().folder("models"))
    monkeypatch.setenv("VOICECHAT_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "play.txt"
    path.write_text("".join(f"SPEAKER {chr(65 + n % 7)}:\nLine {n * n} of the play.\n\n" for n in range(900)))
    return path


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A small random GPT-2 with the real tokenizer."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64)).save_pretrained(folder)
    make_tokenizer("gpt2", 0, "").save_pretrained(folder)
    return folder


def recipe(play, start, **fields) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "tuned",
            "init_from": str(start),
            "corpus": {"source": str(play)},
            "model": {"context": 32},
            "training": TRAINING,
            **fields,
        }
    )


def test_gpt2_learns_from_a_users_folder(play, gpt2, tmp_path):
    tuning = recipe(play, gpt2)
    data = load_data(tuning)
    assert len(data.tokenizer) == 50257
    run = RunFolder(tmp_path / "run")
    first, last = run.train(Training(tuning, data))
    assert last.validation_loss < first.validation_loss
    tuned = AutoModelForCausalLM.from_pretrained(run.best)
    assert type(tuned) is GPT2LMHeadModel
    assert tuned.config.reply_stops == ["\n\n"]  # it speaks as a play now
    version = Registry().record("train", "tuned", {}, [], run.best)
    assert version.base == ""
    assert version.adapter() is None
    again = recipe(play, version)  # NAME@NUMBER
    before = Training(again, load_data(again)).model
    assert all(torch.equal(*pair) for pair in zip(before.parameters(), tuned.parameters(), strict=True))


@pytest.mark.parametrize("lora", [None, {"rank": 4, "dropout": 0.1}], ids=["all weights", "lora"])
def test_fine_tuning_goes_on_bit_for_bit(play, gpt2, tmp_path, lora):
    tuning = recipe(play, gpt2, lora=lora)
    data = load_data(tuning)
    whole = Training(tuning, data)
    expected = [point.train_loss for point in whole.evaluations()]
    interrupted = Training(tuning, data)
    interrupted.on_step = lambda: interrupted.stop() if interrupted.step == 7 else None
    run = RunFolder(tmp_path / "run")
    list(run.train(interrupted))
    resumed = Training(tuning, data, run.resume_from(tuning))
    list(resumed.evaluations())
    assert [point.train_loss for point in resumed.history] == expected


def test_adapters_learn_alone_and_are_saved_alone_and_merged(play, gpt2, tmp_path):
    tuning = recipe(play, gpt2, lora={"rank": 4})
    training = Training(tuning, load_data(tuning))
    frozen = {name: weight.clone() for name, weight in training.model.named_parameters() if not weight.requires_grad}
    list(training.evaluations())
    assert frozen
    for name, weight in training.model.named_parameters():
        assert weight.requires_grad == ("lora_" in name)
        assert "lora_" in name or torch.equal(weight, frozen[name])
    checkpoint = tmp_path / "checkpoint"
    training.save(checkpoint)
    merged = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert type(merged) is GPT2LMHeadModel
    tokens_bt = torch.randint(0, 50257, (2, 16))
    training.model.eval()
    torch.testing.assert_close(merged(tokens_bt).logits, training.model(input_ids=tokens_bt).logits)
    original = AutoModelForCausalLM.from_pretrained(gpt2)
    assert not torch.allclose(merged(tokens_bt).logits, original(tokens_bt).logits, atol=1e-4)

    # The adapter lies beside the merged model, too, as peft saves it.
    version = Registry().record("train", "tuned", {}, [], checkpoint)
    assert version.base == str(gpt2)
    adapter = version.adapter()
    assert PeftConfig.from_pretrained(adapter).base_model_name_or_path == str(gpt2)
    adapted = PeftModel.from_pretrained(original, adapter)
    torch.testing.assert_close(adapted(input_ids=tokens_bt).logits, merged(tokens_bt).logits)
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"adapter_model\.safetensors is missing or damaged"):
        load_checkpoint(version.checkpoint())


def test_adapters_are_not_put_on_another_model(play, gpt2, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(gpt2, start)
    tuning = recipe(play, start, lora={})
    Training(tuning, load_data(tuning)).save(tmp_path / "checkpoint")
    torch.manual_seed(1)
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64)).save_pretrained(start)
    with pytest.raises(InputError, match="is not the model any more that the adapters"):
        Training(tuning, load_data(tuning), tmp_path / "checkpoint")


@pytest.mark.parametrize("optimizer", ["normuon", "muon", "adamw"])
def test_our_own_models_take_adapters_too(play, tmp_path, optimizer):
    """The first gradients of half of the adapters are zeros, with which each optimizer must be able to begin."""
    fresh = Recipe.model_validate(
        {
            "corpus": {"source": str(play)},
            "model": {"attention": "metric", "layers": 1, "heads": 2, "width": 16, "context": 32},
            "training": {**TRAINING, "steps": 3},
        }
    )
    Training(fresh, load_data(fresh)).save(tmp_path / "base")
    tuning = recipe(play, tmp_path / "base", lora={}, training={**TRAINING, "optimizer": optimizer})
    training = Training(tuning, load_data(tuning))
    first, last = training.evaluations()
    assert last.validation_loss < first.validation_loss
    assert {name.split(".")[-4] for name, weight in training.model.named_parameters() if weight.requires_grad} == {
        "pv_proj", "o_proj", "gate_up_proj", "down_proj"
    }  # fmt: skip


def test_smollm2_learns_a_dialogue_in_its_own_template(play, tmp_path):
    tuning = recipe(
        play,
        LANGUAGE_MODELS[0],
        lora={"rank": 2},
        corpus={"source": str(play), "form": "dialogue"},
        model={"context": 96},
        training={**TRAINING, "steps": 3, "batch_size": 2, "evaluate_every": 3, "evaluation_windows": 2},
    )
    training = Training(tuning, load_data(tuning))
    losses = [training.take_step().item() for _ in range(3)]
    assert 0 < losses[2] < losses[0] < 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": {"context": 65}}, "model.context is 65, but .* was made for 64 tokens at most"),
        ({"init_from": "none@1"}, "there is no model version none@1"),
        (
            {"init_from": "nobody/nothing"},
            "'nobody/nothing': there is no such folder, and hf:nobody/nothing is not on this machine",
        ),
        ({"corpus": {"form": "dialogue"}}, "has no chat template"),
    ],
)
def test_what_cannot_be_tuned_says_why(play, gpt2, monkeypatch, fields, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    tuning = recipe(play, gpt2, **fields)
    if "corpus" in fields:
        tuning = recipe(play, gpt2, corpus={"source": str(play), "form": "dialogue"})
    with pytest.raises(InputError, match=message):
        Training(tuning, load_data(tuning))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora": {}}, "lora adapts a pretrained model"),
        ({"corpus": {"form": "dialogue"}}, "needs a pretrained chat model"),
        ({"init_from": "x", "model": {"width": 64}}, "model.width: the shape comes from init_from"),
        ({"init_from": "x", "corpus": {"tokenizer": "gpt2"}}, "corpus.tokenizer: the tokenizer comes from init_from"),
        ({"init_from": "x", "sorting": {}}, "sorting trains a fresh model"),
        ({"sorting": {}, "corpus": {"source": "x"}}, "corpus.source: sorting stands in place of a corpus"),
        ({"sorting": {"length": 20}, "model": {"context": 30}}, r"model.context \(30\) must be at least 40"),
        ({"training": {"batch_size": 10, "accumulate": 4}}, "must be a multiple of accumulate"),
        ({"model": {"width": 100, "heads": 3}}, "width must be a multiple of heads"),
        ({"model": {"width": 12, "heads": 4}}, "a head an even number wide"),
    ],
)
def test_recipes_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate(fields)


def test_a_folder_without_a_model_is_no_starting_point(tmp_path):
    with pytest.raises(InputError, match="is not a checkpoint"):
        load_data(Recipe.model_validate({"init_from": str(tmp_path)}))
    assert find_checkpoint(str(tmp_path)) == tmp_path
