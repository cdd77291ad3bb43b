"""The training loop: determinism, exact resume, evaluation, the optimizer, and what a checkpoint holds."""

import contextlib
import json
import math
import shutil
import threading

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from voicechat_platform.checkpoints import (
    load_checkpoint,
    load_training_state,
    read_run,
    recover,
    save_checkpoint,
)
from voicechat_platform.corpora.corpus import windows_of
from voicechat_platform.corpora.tokenizers import make_tokenizer
from voicechat_platform.errors import InputError
from voicechat_platform.models import GPTConfig, GPTForCausalLM
from voicechat_platform.provenance import provenance
from voicechat_platform.training import loop
from voicechat_platform.training.evaluation import mean_loss
from voicechat_platform.training.loop import Training
from voicechat_platform.training.optimizers import Muon, learning_rate_at, orthogonalise
from voicechat_platform.training.recipe import Recipe, TrainingRecipe
from voicechat_platform.training.starting_point import load_data


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


@pytest.mark.parametrize("optimizer", ["normuon", "muon", "adamw"])
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


def test_a_run_that_goes_on_with_other_choices_trains_with_them(play, tmp_path):
    """As a population does."""
    corpus = load_data(recipe(play))
    parent = Training(recipe(play, learning_rate=0.01, weight_decay=0.1), corpus)
    next(parent.evaluations())
    parent.save(tmp_path / "parent")
    changed = recipe(play, learning_rate=0.002, adamw_learning_rate=0.004, weight_decay=0.9)
    child = Training(changed, corpus, resume_from=tmp_path / "parent")
    child.take_step()
    groups = [group for optimizer in child.optimizers for group in optimizer.param_groups]
    assert {group["peak"] for group in groups} == {0.002, 0.004}
    assert {group["weight_decay"] for group in groups} == {0.9, 0.0}
    expected = learning_rate_at(10, changed.training)
    assert min(group["lr"] for group in groups) == pytest.approx(expected)
    assert child.optimizers[0].state, "the momentum is the parent's"


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


def trained_weights(settings: Recipe) -> list[torch.Tensor]:
    training = Training(settings, load_data(settings))
    list(training.evaluations())
    return list(training.model.parameters())


def test_a_step_in_parts_is_the_same_step(play):
    plain = {"model": {**recipe(play).model.model_dump(), "dropout": 0.0}}
    whole, parts = (
        trained_weights(Recipe.model_validate(recipe(play, accumulate=n, optimizer="adamw").model_dump() | plain))
        for n in (1, 4)
    )
    for ours, theirs in zip(whole, parts, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_bfloat16_under_a_norm_of_what_is_scored(play):
    settings = recipe(play, precision="bfloat16", steps=6)
    model = settings.model.model_copy(update={"attention": "metric", "qk_norm": True})
    settings = settings.model_copy(update={"model": model})
    assert 0 < list(Training(settings, load_data(settings)).evaluations())[-1].validation_loss < 4


def test_bfloat16_keeps_the_weights_in_float32_and_learns_as_well(play):
    training = Training(recipe(play, precision="bfloat16"), load_data(recipe(play)))
    half = list(training.evaluations())
    full = list(Training(recipe(play), load_data(recipe(play))).evaluations())
    assert all(weight.dtype == torch.float32 for weight in training.model.parameters())
    assert half[-1].train_loss != full[-1].train_loss
    assert half[-1].validation_loss == pytest.approx(full[-1].validation_loss, rel=0.02)


def test_a_compiled_model_trains_to_the_same_losses(play):
    settings = recipe(play, steps=10, compile=True)
    settings = settings.model_copy(update={"model": settings.model.model_copy(update={"dropout": 0.0})})
    plain = settings.model_copy(update={"training": settings.training.model_copy(update={"compile": False})})
    compiled_loss, plain_loss = (
        list(Training(each, load_data(each)).evaluations())[-1].validation_loss for each in (settings, plain)
    )
    assert compiled_loss == pytest.approx(plain_loss, rel=1e-4)


def test_a_run_tells_how_well_it_uses_its_device(play):
    training = Training(recipe(play), load_data(recipe(play)))
    evaluation = next(training.evaluations())
    matrices = sum(module.weight.numel() for module in training.model.modules() if isinstance(module, torch.nn.Linear))
    attention = 2 * 2 * 32 * 32  # two layers, scores and weighted values, over 32 positions, width 32
    assert training.flops_per_token == pytest.approx(3 * 2 * (matrices + attention), rel=1e-6)
    assert 0 < evaluation.flops_utilization < 1
    assert 50 < evaluation.peak_memory_mib < 24_000


def test_no_peak_is_measured_of_a_machine_that_others_load(play, monkeypatch):
    monkeypatch.setattr(loop, "peak_flops", lambda device, dtype: pytest.fail("measured"))
    training = Training(recipe(play), load_data(recipe(play)), shares_machine=True)
    assert next(training.evaluations()).flops_utilization is None


GOLDEN = {
    "standard": {},
    "metric, symmetric": {"attention": "metric"},
    "metric, positive definite": {"attention": "metric", "metric": "positive_definite", "values": "separate"},
    "metric, shared projection": {"attention": "metric", "metric": "general", "projection": "shared"},
}
GOLDEN_LOSSES = {
    "standard": [
        2.177110, 2.161443, 2.185669, 2.102684, 2.081388, 2.162306, 2.109826, 2.033889,
        1.949144, 2.054980, 2.066410, 1.971269, 1.968911, 1.719001, 1.840865, 1.783216,
        1.922354, 1.885948, 1.806642, 1.764372,
    ],
    "metric, symmetric": [
        2.196604, 2.150351, 2.201479, 2.150125, 2.084116, 2.187916, 2.137325, 2.019358,
        1.935659, 2.066256, 2.070920, 1.938458, 1.971355, 1.724060, 1.851867, 1.767916,
        1.938933, 1.859851, 1.799729, 1.761829,
    ],
    "metric, positive definite": [
        2.234869, 2.160467, 2.224883, 2.146055, 2.104637, 2.138102, 2.107585, 2.029940,
        1.952988, 2.044588, 2.064171, 1.948666, 1.985309, 1.726455, 1.840939, 1.781215,
        1.943428, 1.876055, 1.818003, 1.761145,
    ],
    "metric, shared projection": [
        2.230711, 2.180581, 2.227828, 2.152182, 2.102759, 2.168927, 2.127333, 2.041183,
        1.952459, 2.081204, 2.087386, 1.966011, 1.952959, 1.724487, 1.845206, 1.787147,
        1.917680, 1.882765, 1.817065, 1.776223,
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_twenty_steps_give_the_losses_they_always_gave(name):
    """A change that moves these changes what every run learns: it belongs in the changelog."""
    settings = Recipe.model_validate(
        {
            "sorting": {"digits": 10},
            "model": {"layers": 2, "heads": 2, "width": 32, "context": 12, **GOLDEN[name]},
            "training": {"steps": 20, "batch_size": 8, "evaluate_every": 20, "warmup_steps": 5, "learning_rate": 0.01},
        }
    )
    training = Training(settings, load_data(settings))
    training.model.double()  # so that six digits do not depend on the processor
    losses = [training.take_step().item() for _ in range(20)]
    assert losses == pytest.approx(GOLDEN_LOSSES[name], abs=5e-7)


@pytest.mark.parametrize("shape", [(24, 24), (24, 40), (40, 24)])
def test_muon_is_torchs_muon(shape):
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.randn(shape)) for _ in range(2))
    theirs.data.copy_(ours.data)
    mine = Muon([{"params": [ours], "rows": ()}], lr=0.02, weight_decay=0.1)
    torchs = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        gradient = torch.randn(shape)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step(), torchs.step()
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.01)  # torch iterates in bfloat16


def test_normuon_is_its_definition():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(6, 10, dtype=torch.double))
    expected, momentum, squares = weight.data.clone(), torch.zeros(6, 10), torch.zeros(6, 1)
    optimizer = Muon([{"params": [weight], "rows": ()}], lr=0.1, row_decay=0.95)
    for step in range(1, 4):
        weight.grad = torch.randn(6, 10, dtype=torch.double)
        momentum = 0.95 * momentum + 0.05 * weight.grad
        update = orthogonalise((0.05 * weight.grad + 0.95 * momentum)[None])[0]
        squares = 0.95 * squares + 0.05 * update.square().mean(1, keepdim=True)
        even = update / (squares / (1 - 0.95**step)).sqrt()  # the paper's bias correction has no effect
        expected -= 0.1 * 0.2 * math.sqrt(10) * even * update.norm() / even.norm()
        optimizer.step()
    torch.testing.assert_close(weight.data, expected)


@pytest.mark.parametrize("row_decay", [None, 0.9])
def test_muon_takes_each_matrix_of_a_fused_one_by_itself(row_decay):
    torch.manual_seed(0)
    fused = torch.nn.Parameter(torch.randn(24, 8))
    parts = [torch.nn.Parameter(part.clone()) for part in fused.data.split((8, 16))]
    gradient = torch.randn(24, 8)
    fused.grad = gradient
    for part, its_gradient in zip(parts, gradient.split((8, 16)), strict=True):
        part.grad = its_gradient.clone()
    Muon([{"params": [fused], "rows": (8, 16)}], lr=0.1, row_decay=row_decay).step()
    Muon([{"params": parts, "rows": ()}], lr=0.1, row_decay=row_decay).step()
    torch.testing.assert_close(fused.data, torch.cat([part.data for part in parts]))


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


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_learning_rate_warms_up_by_steps_and_falls_to_zero(schedule):
    recipe = TrainingRecipe(learning_rate=0.5, warmup_steps=10, steps=100, schedule=schedule)
    rates = [learning_rate_at(step, recipe) for step in range(101)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10] == 0.5
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.25)
    assert rates[100] == pytest.approx(0)


def test_the_learning_rate_stays_at_its_peak_until_it_decays():
    recipe = TrainingRecipe(
        learning_rate=0.5, warmup_steps=10, steps=100, schedule="warmup_stable_decay", decay_fraction=0.3
    )
    rates = [learning_rate_at(step, recipe) for step in range(101)]
    assert rates[10:71] == [0.5] * 61
    assert rates[85] == pytest.approx(0.25)
    assert rates[100] == 0


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
    recover(checkpoint)  # what the next writer does first
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint"]


def test_a_reader_never_disturbs_a_writer(checkpoint):
    """`voicechat evaluate` beside `voicechat train`."""
    model, tokenizer = load_checkpoint(checkpoint)
    reading = threading.Event()

    def read() -> None:
        while not reading.is_set():
            with contextlib.suppress(InputError):  # it may come between two renames
                read_run(checkpoint)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(100):
            save_checkpoint(checkpoint, model, tokenizer, {}, {"number": number})
    finally:
        reading.set()
        reader.join()
    assert read_run(checkpoint)["number"] == 99
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
