"""JSON schemas of the files that people write, for editors with a YAML language server."""

import json
from pathlib import Path

from pydantic import BaseModel

from voicechat_platform.paths import writable_folder
from voicechat_platform.training.recipe import Recipe
from voicechat_tune.comparison.comparison_file import ComparisonFile
from voicechat_tune.search.sweep_file import SweepFile

FILES: dict[str, type[BaseModel]] = {"recipe": Recipe, "sweep": SweepFile, "comparison": ComparisonFile}


def write_schemas(folder: Path) -> list[Path]:
    """Write recipe.json, sweep.json and comparison.json into the folder, and return their paths.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = writable_folder(folder, *(f"{name}.json" for name in FILES))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, model in FILES.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(model.model_json_schema(), indent=1) + "\n")
        paths.append(path)
    return paths
