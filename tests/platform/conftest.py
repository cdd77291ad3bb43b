"""A small text written as a play, and a checkpoint of a model that has seen little."""

from pathlib import Path

import pytest

from voicechat_platform.training.loop import Training
from voicechat_platform.training.recipe import Recipe
from voicechat_platform.training.starting_point import load_data


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory) -> Path:
    """Of a run of four steps."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "play.txt").write_text("ROMEO:\nAy me!\n\n" * 200)
    recipe = Recipe.model_validate(
        {
            "name": "romeo",
            "corpus": {"source": str(folder / "play.txt")},
            "model": {"layers": 1, "heads": 2, "width": 16, "context": 16, "attention": "metric"},
            "training": {"steps": 4, "evaluate_every": 2, "warmup_steps": 1},
        }
    )
    training = Training(recipe, load_data(recipe))
    list(training.evaluations())
    training.save(folder / "last")
    return folder / "last"


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "play.txt"
    path.write_text("".join(f"SPEAKER {n % 7}:\nLine {n * n} of the play.\n\n" for n in range(2000)))
    return path
