"""The training loop: determinism, exact resume, evaluation, the optimizer, and what a checkpoint holds."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from voicechat_platform.checkpoints import (
    load_checkpoint,
    load_training_state,
    provenance,
    read_run,
    save_checkpoint,
)
from voicechat_platform.corpora.corpus import windows_of
from voicechat_platform.corpora.tokenizers import make_tokenizer
from voicechat_platform.errors import InputError
from voicechat_platform.models import GPTConfig, GPTForCausalLM
from voicechat_platform.training.evaluation import mean_loss
from voicechat_platform.training.loop import Training
from voicechat_platform.training.optimizers import learning_rate_at, orthogonalise
from voicechat_platform.training.recipe import Recipe, TrainingRecipe
from voicechat_platform.training.starting_point import load_data


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "play.txt"
    path.write_text("".join(f"SPEAKER {n % 7}:\nLine {n * n} of the play.\n\n" for n in range(2000)))
    return path


def recipe(play, **training) -> Recipe:
    return Recipe.model_validate(
        {
            "corpus": {"source": str(play)},
            "model": {"layers": 2, "heads": 2, "width": 32, "context": 32, "dropout": 0.1},
            "training": {"steps": 30, "batch_size": 4, "evaluate_every": 10, "warmup_steps": 5, **training},
        }
    )


def losses(training: Training) -> list[tuple[float, float]]:
    return [(evaluation.train_loss, evaluation.validation_loss) for evaluation in training.evaluations()]


def test_a_seed_decides_a_run(play):
    first, second = (losses(Training(recipe(play), load_data(recipe(play)))) for _ in range(2))
    assert first == second
    assert first[-1][1] < first[0][1]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_resumed_run_is_the_same_bit_for_bit(play, tmp_path, optimizer):
    settings = recipe(play, optimizer=optimizer)
    corpus = load_data(settings)
    whole = Training(settings, corpus)
    expected = losses(whole)
    interrupted = Training(settings, corpus)
    next(interrupted.evaluations())
    interrupted.save(tmp_path / "last")
    resumed = Training(settings, corpus, resume_from=tmp_path / "last")
    assert resumed.step == 10
    assert losses(resumed) == expected[1:]
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_checkpoint_tells_where_it_came_from(play, tmp_path):
    settings = recipe(play)
    training = Training(settings, load_data(settings), parent="sweep/trial")
    evaluation = next(training.evaluations())
    training.save(tmp_path / "last")
    run = read_run(tmp_path / "last")
    assert Recipe.model_validate(run["recipe"]) == settings
    assert run["metrics"]["validation_loss"] == evaluation.validation_loss
    assert run["parent"] == "sweep/trial"
    assert len(run["corpus"]["sha256"]) == len(run["tokenizer_sha256"]) == 64
    assert run["versions"]["torch"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "last")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "last")
    assert model.num_parameters() == run["parameters"]
    assert tokenizer.decode(tokenizer.encode("SPEAKER 1:")) == "SPEAKER 1:"


def test_a_loss_that_is_not_a_number_stops_the_run(play):
    settings = recipe(play)
    training = Training(settings, load_data(settings))
    training.model.embedding.weight.data.fill_(float("nan"))
    with pytest.raises(
        InputError, match=r"became nan at step 1, at a learning rate of 0\.0005; .*lower training\.learning_rate"
    ):
        next(training.evaluations())


def test_another_text_is_refused_on_resume(play, tmp_path):
    settings = recipe(play)
    training = Training(settings, load_data(settings))
    training.save(tmp_path / "last")
    text = play.read_text()
    try:
        play.write_text(text.replace("Line", "Verse"))
        with pytest.raises(InputError, match=r"is not the one that .* was trained on"):
            Training(settings, load_data(settings), resume_from=tmp_path / "last")
    finally:
        play.write_text(text)


def test_a_text_shorter_than_a_context_has_a_loss_too():
    model = GPTForCausalLM(GPTConfig(vocab_size=20, hidden_size=16, num_attention_heads=2, num_hidden_layers=1))
    assert 0 < mean_loss(model, windows_of(torch.tensor([1, 2, 3]), 10)) < 10


def test_mean_loss_is_that_of_an_explicit_loop():
    torch.manual_seed(0)
    model = GPTForCausalLM(
        GPTConfig(vocab_size=20, hidden_size=16, num_attention_heads=2, num_hidden_layers=1)
    ).double()
    tokens = torch.randint(0, 20, (107,))
    total = 0.0
    for start in range(0, 106, 10):
        window = tokens[start : start + 11]
        total += F.cross_entropy(model(window[None, :-1]).logits[0], window[1:], reduction="sum").item()
    assert mean_loss(model, windows_of(tokens, 10)) == pytest.approx(total / 106, rel=1e-6)
    some = list(windows_of(tokens, 10, windows=3))
    assert sum(len(inputs_bt) for inputs_bt, _ in some) == 3


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 8, 20), (2, 20, 8)])
def test_orthogonalised_matrices_keep_their_directions_and_lose_their_sizes(shape):
    torch.manual_seed(0)
    matrices_nij = torch.randn(shape)
    sizes = torch.linalg.svdvals(orthogonalise(matrices_nij))
    assert sizes.min() > 0.3
    assert sizes.max() < 1.3
    wanted_left, _, wanted_right = torch.linalg.svd(matrices_nij, full_matrices=False)
    exact = wanted_left @ wanted_right
    assert torch.nn.functional.cosine_similarity(orthogonalise(matrices_nij).flatten(), exact.flatten(), dim=0) > 0.95


def test_the_learning_rate_warms_up_by_steps_and_falls_to_zero():
    recipe = TrainingRecipe(learning_rate=0.5, warmup_steps=10, steps=100)
    rates = [learning_rate_at(step, recipe) for step in range(101)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10] == 0.5
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0)


@pytest.fixture
def checkpoint(play, tmp_path):
    settings = recipe(play)
    training = Training(settings, load_data(settings))
    training.save(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("is_ours", [True, False])
def test_a_damaged_checkpoint_is_a_clear_error(checkpoint, name, is_ours):
    (checkpoint / name).write_bytes(b"\x00garbage")
    if not is_ours:
        (checkpoint / "run.json").unlink()  # and with it the checksums
    with pytest.raises(InputError, match=rf"{name} is missing or damaged" if is_ours else "is damaged"):
        load_checkpoint(checkpoint)


def test_another_models_tokenizer_is_refused(checkpoint):
    make_tokenizer("gpt2", 0, "").save_pretrained(checkpoint)
    (checkpoint / "run.json").unlink()
    with pytest.raises(InputError, match="does not belong to its model: it has 50257 tokens, the model 32"):
        load_checkpoint(checkpoint)


def test_a_training_state_is_never_unpickled(checkpoint):
    class Payload:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"step": Payload()}, checkpoint / "training_state.pt")
    (checkpoint / "run.json").unlink()  # its checksums would tell before
    with pytest.raises(InputError, match=r"training_state\.pt is missing or damaged"):
        load_training_state(checkpoint)


def test_a_folder_without_a_model_is_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match="is not a checkpoint"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("moment", ["before the first rename", "between the renames", "before the old one is removed"])
def test_a_kill_while_saving_leaves_a_whole_checkpoint(checkpoint, moment):
    new, old = checkpoint.with_name(".checkpoint.replacing"), checkpoint.with_name(".checkpoint.replaced")
    shutil.copytree(checkpoint, new)
    if moment != "before the first rename":
        checkpoint.rename(old)
    if moment == "before the old one is removed":
        new.rename(checkpoint)
    load_checkpoint(checkpoint)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint"]


def test_a_checkpoint_is_written_where_there_is_no_git(checkpoint, monkeypatch):
    monkeypatch.setenv("PATH", "")
    provenance.cache_clear()
    try:
        assert provenance()["commit"] is None
    finally:
        provenance.cache_clear()


def test_a_failed_save_leaves_the_earlier_checkpoint(checkpoint, monkeypatch):
    model, tokenizer = load_checkpoint(checkpoint)
    before = json.loads((checkpoint / "run.json").read_text())
    with pytest.raises(TypeError):
        save_checkpoint(checkpoint, model, tokenizer, {}, {"unserialisable": object()})
    assert json.loads((checkpoint / "run.json").read_text()) == before
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint"]
