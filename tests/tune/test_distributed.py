"""Several workers under Ray Train, with gloo, train what one worker trains."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from voicechat_platform.checkpoint_files import read_run
from voicechat_platform.checkpoints import load_checkpoint
from voicechat_platform.errors import InputError
from voicechat_platform.training.loop import Training
from voicechat_platform.training.recipe import Recipe
from voicechat_platform.training.run_folder import RunFolder
from voicechat_platform.training.starting_point import load_data
from voicechat_tune.running import distributed
from voicechat_tune.running.distributed import evaluations_after, train_on_workers


def recipe(**training) -> Recipe:
    return Recipe.model_validate(
        {
            "sorting": {"digits": 10},
            "model": {"attention": "metric", "layers": 2, "heads": 2, "width": 32, "context": 12},
            "training": {"steps": 20, "batch_size": 16, "evaluate_every": 10, "warmup_steps": 2, **training},
        }
    )


@pytest.fixture
def train_on_two(shared_ray, home, monkeypatch):
    stopped = []
    monkeypatch.setattr(distributed, "stop_ray", lambda: stopped.append(True))  # the other tests need it

    def train(settings: Recipe, folder: Path, resume_from: Path | None = None) -> list[dict]:
        """The run's history."""
        train_on_workers(settings, load_data(settings), folder, resume_from, 2, print)
        return read_run(folder / "last")["history"]

    yield train
    assert stopped == [True]


def test_two_workers_equal_one_with_the_doubled_batch(train_on_two, tmp_path, capfd):
    """Eight sequences for each of two workers, in two parts, and sixteen at once for one."""
    shared, whole = recipe(accumulate=2), recipe()
    history = train_on_two(shared, tmp_path / "run")
    told = capfd.readouterr().out
    assert told.index("Evaluation(step=10") < told.index("Evaluation(step=20")
    alone = Training(whole, load_data(whole))
    expected = list(alone.evaluations())
    for ours, theirs in zip(history, expected, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs.train_loss, rel=1e-5)
        assert ours["validation_loss"] == pytest.approx(theirs.validation_loss, rel=1e-5)
        assert ours["flops_utilization"] is None, "each worker's peak would be measured beside the other"
    model, _ = load_checkpoint(tmp_path / "run" / "last")
    for ours, theirs in zip(model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    assert read_run(tmp_path / "run" / "best")["recipe"] == shared.model_dump(mode="json")


def test_workers_go_on_with_the_adapters_of_a_model_in_a_relative_folder(train_on_two, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    base = recipe(steps=10)
    Training(base, load_data(base)).save(tmp_path / "base")
    (tmp_path / "digits.txt").write_text("0123456789" * 100)
    tuning = Recipe.model_validate(
        {
            "init_from": "./base",
            "lora": {"rank": 2},
            "corpus": {"source": "digits.txt"},
            "model": {"context": 12},
            "training": {"steps": 20, "batch_size": 4, "evaluate_every": 10, "warmup_steps": 2},
        }
    )
    run = RunFolder(tmp_path / "run")
    next(run.train(Training(tuning, load_data(tuning))))
    assert [point["step"] for point in train_on_two(tuning, tmp_path / "run", run.last)] == [10, 20]
    assert "Evaluation(step=10" not in capfd.readouterr().out  # told before


STOPPED_IN_ONE = """
import sys
from torch import distributed as dist
from voicechat_platform.training.loop import Training
from voicechat_platform.training.recipe import Recipe
from voicechat_platform.training.starting_point import load_data

rank, meeting_point, recipe = int(sys.argv[1]), sys.argv[2], Recipe.model_validate_json(sys.argv[3])
dist.init_process_group("gloo", f"file://{meeting_point}", rank=rank, world_size=2)
training = Training(recipe, load_data(recipe))
training.on_step = lambda: training.stop() if rank == 1 and training.step == 13 else None
list(training.evaluations())
print(training.step)
"""


def test_all_workers_stop_when_one_is_told_to(tmp_path):
    arguments = [str(tmp_path / "meeting-point"), recipe(steps=40).model_dump_json()]
    workers = [
        subprocess.Popen([sys.executable, "-c", STOPPED_IN_ONE, rank, *arguments], stdout=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    assert [worker.communicate(timeout=180)[0] for worker in workers] == ["20\n", "20\n"]


def test_workers_say_what_went_wrong(train_on_two, tmp_path):
    diverging = recipe(learning_rate=0.99, gradient_clip=1e30, optimizer="adamw", weight_decay=1e30)
    with pytest.raises(InputError, match=r"the loss became (nan|inf) at step \d+"):
        train_on_two(diverging, tmp_path / "diverging")


def test_a_batch_that_workers_cannot_share_is_refused_before_ray_starts(tmp_path):
    settings = recipe(batch_size=15)
    with pytest.raises(InputError, match=r"batch_size \(15\) must be a multiple of accumulate \(1\) times the workers"):
        train_on_workers(settings, load_data(settings), tmp_path / "run", None, 2, print)


def test_a_damaged_checkpoint_is_waited_for_only_while_it_may_be_replaced(tmp_path, caplog):
    run = RunFolder(tmp_path / "run")
    assert evaluations_after(run, 0, is_over=True) == []
    run.last.mkdir(parents=True)
    (run.last / "config.json").write_text("{}")
    (run.last / "run.json").write_text('{"history": [')
    with caplog.at_level("DEBUG", "voicechat_tune.running.distributed"):
        assert evaluations_after(run, 0, is_over=False) == []
    assert "is replacing a checkpoint" in caplog.text
    with pytest.raises(InputError, match=r"run\.json"):
        evaluations_after(run, 0, is_over=True)
