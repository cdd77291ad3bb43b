"""A run of four steps over a few lines of a play: a checkpoint like any other, made within seconds."""

from pathlib import Path

from voicechat_platform.training.loop import Training
from voicechat_platform.training.recipe import Recipe
from voicechat_platform.training.starting_point import load_data


def small_recipe(folder: Path) -> Recipe:
    """Its text, a play, is written into the folder."""
    play = folder / "play.txt"
    play.write_text("ROMEO:\nAy me!\n\nJULIET:\nO Romeo, wherefore art thou?\n\n" * 200)
    return Recipe.model_validate(
        {
            "name": "romeo",
            "corpus": {"source": str(play)},
            "model": {"layers": 2, "heads": 2, "width": 32, "context": 256, "attention": "metric"},
            "training": {"steps": 4, "evaluate_every": 2, "warmup_steps": 1},
        }
    )


def train_small(folder: Path) -> Path:
    """Trains in a folder, where the play lies too; returns the checkpoint."""
    recipe = small_recipe(folder)
    training = Training(recipe, load_data(recipe))
    list(training.evaluations())
    training.save(folder / "last")
    return folder / "last"
