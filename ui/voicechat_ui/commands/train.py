"""`voicechat train`: one model from a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from voicechat_ui.commands.options import check_sources


def train(
    recipe: Annotated[Path, typer.Argument(help="a recipe file, such as tune/recipes/shakespeare.yaml")],
    out: Annotated[Path | None, typer.Option(show_default="HOME/runs/NAME", help="the run's folder")] = None,
    resume: Annotated[bool, typer.Option(help="continue from the run's last checkpoint")] = False,
    workers: Annotated[int, typer.Option(min=1, help="processes that share each batch, through Ray Train")] = 1,
) -> None:
    """Train a new or pretrained model with a recipe, and register the best checkpoint.

    After Ctrl-C, --resume continues from the same step; with several workers, from the last evaluation.

    Example: voicechat train tune/recipes/shakespeare.yaml
    """
    from voicechat_platform.paths import writable_folder
    from voicechat_platform.settings import settings
    from voicechat_platform.strict_yaml import read_yaml
    from voicechat_platform.training.recipe import Recipe

    wanted = read_yaml(recipe, Recipe)
    check_sources(wanted)
    folder = writable_folder(out or settings().folder("runs") / wanted.name)
    from voicechat_ui.model_tasks import train_recipe

    train_recipe(wanted, recipe, folder, resume, workers)
