"""A run's folder: what is kept, what a run goes on from after a kill or a damaged file, and early stopping."""

import shutil

import pytest

from voicechat_platform.checkpoint_files import read_run
from voicechat_platform.errors import InputError
from voicechat_platform.training.evaluation import mean_loss
from voicechat_platform.training.loop import Training
from voicechat_platform.training.recipe import Recipe
from voicechat_platform.training.run_folder import RunFolder
from voicechat_platform.training.starting_point import load_data


def recipe(play, **training) -> Recipe:
    return Recipe.model_validate(
        {
            "corpus": {"source": str(play)},
            "model": {"layers": 1, "heads": 2, "width": 16, "context": 16, "dropout": 0.1},
            "training": {"steps": 30, "batch_size": 4, "evaluate_every": 10, "warmup_steps": 5, **training},
        }
    )


def facts(training: Training) -> list[tuple[int, float, float]]:
    return [(point.step, point.train_loss, point.validation_loss) for point in training.history]


@pytest.fixture(scope="module")
def uninterrupted(play) -> list[tuple[int, float, float]]:
    training = Training(recipe(play), load_data(recipe(play)))
    list(training.evaluations())
    return facts(training)


@pytest.mark.parametrize("step", [1, 9, 10, 11, 27])
def test_a_run_stopped_at_any_step_goes_on_bit_for_bit(play, tmp_path, uninterrupted, step):
    settings = recipe(play)
    data = load_data(settings)
    run = RunFolder(tmp_path / "run")
    training = Training(settings, data)
    training.on_step = lambda: training.stop() if training.step == step else None
    list(run.train(training))
    assert training.step == step
    resumed = Training(settings, data, run.resume_from(settings))
    assert resumed.step == step
    list(run.train(resumed))
    assert facts(resumed) == uninterrupted


@pytest.mark.parametrize(
    "damage", ["truncated weights", "truncated state", "missing run.json", "damaged run.json", "killed between renames"]
)
def test_a_damaged_last_checkpoint_is_named_and_the_one_before_taken(play, tmp_path, uninterrupted, caplog, damage):
    settings = recipe(play)
    data = load_data(settings)
    run = RunFolder(tmp_path / "run")
    evaluations = run.train(Training(settings, data))
    next(evaluations), next(evaluations)
    if damage == "killed between renames":
        shutil.rmtree(run.last)
    elif damage == "damaged run.json":
        (run.last / "run.json").write_text("{")
    elif damage == "missing run.json":
        (run.last / "run.json").unlink()
    else:
        path = run.last / ("model.safetensors" if damage == "truncated weights" else "training_state.pt")
        path.write_bytes(path.read_bytes()[:-100])
    resumed = Training(settings, data, run.resume_from(settings))
    assert resumed.step == 10
    if damage.startswith("truncated"):
        assert f"{path} is missing or damaged" in caplog.text
        assert "continues from the checkpoint before it" in caplog.text
        assert len(list(run.folder.glob("damaged-*"))) == 1
        assert not run.last.exists()  # it must not take the place of the good one before it
    list(run.train(resumed))
    assert facts(resumed) == uninterrupted


def test_a_run_of_another_recipe_is_not_gone_on_with(play, tmp_path):
    run = RunFolder(tmp_path / "run")
    next(run.train(Training(recipe(play), load_data(recipe(play)))))
    with pytest.raises(InputError, match="the recipe differs"):
        run.resume_from(recipe(play, learning_rate=0.001))
    with pytest.raises(InputError, match="holds no complete checkpoint"):
        RunFolder(tmp_path / "none").resume_from(recipe(play))


def test_a_run_without_progress_ends_early_and_its_best_checkpoint_is_kept(play, tmp_path):
    # At such a rate it must get worse.
    settings = recipe(play, steps=400, learning_rate=0.9, optimizer="adamw", patience=2, evaluation_windows=3)
    data = load_data(settings)
    run = RunFolder(tmp_path / "run")
    training = Training(settings, data)
    list(run.train(training))
    assert training.step < 400
    losses = [point.selection_loss for point in training.history]
    assert losses.index(min(losses)) == len(losses) - 3
    # The last evaluation is over the whole validation part, as at a last step; what patience goes by is not.
    last, whole = training.history[-1], mean_loss(training.model, data.validation(16, None))
    assert last.validation_loss == whole
    assert last.nats_per_character == whole / data.characters_per_token
    assert last.selection_loss == mean_loss(training.model, data.validation(16, 3)) != whole
    assert all(point.validation_loss == point.selection_loss for point in training.history[:-1])
    best = read_run(run.finish(data))
    assert best["metrics"]["step"] == training.history[-3].step
    # Measured over the whole validation part, not over some windows as in mid-run.
    model = Training(settings, data, run.best).model
    assert best["metrics"]["validation_loss"] == mean_loss(model, data.validation(16, None))


def test_a_kill_between_two_checkpoints_does_not_lose_the_best(play, tmp_path, monkeypatch):
    settings = recipe(play)
    data = load_data(settings)
    run = RunFolder(tmp_path / "run")
    training = Training(settings, data)
    saved = []

    def save_once_at_a_step(folder):
        if training.step in saved and training.step == 30:
            raise KeyboardInterrupt
        Training.save(training, folder)
        saved.append(training.step)

    monkeypatch.setattr(training, "save", save_once_at_a_step)
    with pytest.raises(KeyboardInterrupt):
        list(run.train(training))
    assert training.is_best()
    resumed = Training(settings, data, run.resume_from(settings))
    list(run.train(resumed))
    assert read_run(run.best)["metrics"]["step"] == resumed.history[resumed.best_index()].step


def test_weights_that_are_no_numbers_at_an_evaluation_are_not_kept(play, tmp_path):
    settings = recipe(play)
    run = RunFolder(tmp_path / "run")
    training = Training(settings, load_data(settings))
    training.on_step = lambda: training.step == 20 and training.model.embedding.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="became nan at step 20"):
        list(run.train(training))
    assert read_run(run.last)["metrics"]["step"] == 10


def test_a_loss_that_is_not_a_number_leaves_the_last_good_checkpoint(play, tmp_path):
    settings = recipe(play)
    run = RunFolder(tmp_path / "run")
    training = Training(settings, load_data(settings))
    evaluations = run.train(training)
    next(evaluations)
    training.on_step = lambda: training.step == 13 and training.model.embedding.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match=r"became nan at step 14, at a learning rate of 0\.00\d+; the last checkpoint"):
        next(evaluations)
    assert Training(settings, load_data(settings), run.resume_from(settings)).step == 10
