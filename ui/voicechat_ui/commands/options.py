"""Options and arguments that several commands share, and the functions that read their values."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

LOCAL_API = "http://127.0.0.1:8000/v1"

Reference = Annotated[str, typer.Argument(help="a checkpoint's folder, NAME@NUMBER, or NAME for its champion")]
Port = Annotated[int | None, typer.Option(min=1, max=65535, show_default="8000", help="the port to listen on")]
Application = Annotated[
    Path | None,
    typer.Option(
        "--application", show_default="local.yaml", help="the models to serve: a file like those in serve/applications"
    ),
]
Host = Annotated[
    str | None,
    typer.Option(show_default="127.0.0.1", help="the address to listen on; other machines need a key"),
]
Whisper = Annotated[
    str | None,
    typer.Option(
        show_default="base",
        help="a size of Whisper (tiny.en is twice as fast, English only), a folder, or OWNER/NAME of the hub",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(show_default="starts a new Ray", help="the Ray cluster to join; auto on its head node"),
]
SweepName = Annotated[str, typer.Argument(help="a sweep's name, its folder, or its file")]
Salvage = Annotated[
    bool, typer.Option("--salvage", help="continue with the intact part of a damaged journal; keep a copy of the rest")
]
Url = Annotated[str, typer.Option(help="base URL of a running API")]
Key = Annotated[
    str,
    typer.Option(envvar=["VOICECHAT_API_KEY", "OPENAI_API_KEY"], show_default=False, help="the API key for the URL"),
]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]

ToolsFile = Annotated[
    str | None,
    typer.Option(show_default="none", help="conversations with tools, one a line: count its calls; docs/models.md"),
]
Turns = Annotated[
    int | None, typer.Option(min=1, show_default="all", help="with --tools: the most turns, spread evenly")
]
Constrained = Annotated[
    bool, typer.Option("--constrained", help="with --tools: answer as the service does, with a grammar")
]


def chosen_settings(port: int | None, whisper: str | None, host: str | None) -> Any:
    """Return the environment's settings, overridden by the command's options."""
    from voicechat_platform.settings import settings

    given = {"port": port, "whisper": whisper, "host": host}
    return settings().model_copy(update={key: value for key, value in given.items() if value is not None})


def check_sources(recipe: Any) -> None:
    """Check that a recipe's text, and the model to start from, exist.

    Raises:
        InputError: one of them does not exist.
    """
    from voicechat_platform.corpora.texts import check_is_there

    check_is_there(recipe.corpus.source)
    if recipe.init_from is not None:
        found_checkpoint(recipe.init_from)


def found_checkpoint(reference: str) -> Path:
    """Return the folder of a checkpoint, like `find_checkpoint`, and check it before the import of torch.

    Raises:
        InputError: there is no such checkpoint, or the folder is not a checkpoint.
    """
    from voicechat_platform.checkpoint_files import check_is_checkpoint
    from voicechat_platform.model_store import find_checkpoint

    folder = find_checkpoint(reference)
    check_is_checkpoint(folder)
    return folder


def join(address: str | None) -> None:
    """Set the Ray cluster to join in the settings of this process and its children."""
    from voicechat_platform.settings import settings

    if address is not None:
        os.environ["VOICECHAT_RAY_ADDRESS"] = address
        settings.cache_clear()  # an earlier call may have read the settings
