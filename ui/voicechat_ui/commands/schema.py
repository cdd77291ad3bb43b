"""`voicechat schema`: the JSON schemas of the YAML files."""

from pathlib import Path
from typing import Annotated

import typer


def schema(
    out: Annotated[Path, typer.Option(help="folder for the files")] = Path("."),
) -> None:
    """Write the JSON schemas of recipes, sweep files and comparison files, for editors that check YAML.

    Example: voicechat schema --out tune/schemas
    """
    from voicechat_tune.schemas import write_schemas

    for path in write_schemas(out):
        print(path)
