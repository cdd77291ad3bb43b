"""What several commands are given: options and arguments of one name and meaning, and how their values are read."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

LOCAL_API = "http://127.0.0.1:8000/v1"

Reference = Annotated[str, typer.Argument(help="a checkpoint's folder, NAME@NUMBER, or NAME for its champion")]
Port = Annotated[int | None, typer.Option(min=1, max=65535, show_default="8000", help="where to listen")]
Application = Annotated[
    Path | None,
    typer.Option("--application", show_default="local.yaml", help="what to serve: a file as in serve/applications"),
]
Host = Annotated[
    str | None,
    typer.Option(show_default="127.0.0.1", help="the address to listen on; beyond this machine only with a key"),
]
Whisper = Annotated[
    Literal["base", "tiny.en"] | None,
    typer.Option(show_default="base", help="tiny.en is twice as fast, English only"),
]
Address = Annotated[
    str | None,
    typer.Option(show_default="one of its own", help="the Ray to join, auto on a cluster's head"),
]
SweepName = Annotated[str, typer.Argument(help="a sweep's name, its folder, or its file")]
Salvage = Annotated[
    bool, typer.Option("--salvage", help="go on with what is sound of a damaged journal; the rest stays beside it")
]
Url = Annotated[str, typer.Option(help="base URL of a running API")]
Key = Annotated[
    str, typer.Option(envvar=["VOICECHAT_API_KEY", "OPENAI_API_KEY"], show_default=False, help="sent to the URL")
]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]


def chosen_settings(port: int | None, whisper: str | None, host: str | None) -> Any:
    """The environment's settings with the command's options over them."""
    from voicechat_platform.settings import settings

    given = {"port": port, "whisper": whisper, "host": host}
    return settings().model_copy(update={key: value for key, value in given.items() if value is not None})


def check_sources(recipe: Any) -> None:
    """
    Raises:
        InputError: the text that a recipe trains on, or the model that it begins with, is not there.
    """
    from voicechat_platform.corpora.texts import check_is_there

    check_is_there(recipe.corpus.source)
    if recipe.init_from is not None:
        found_checkpoint(recipe.init_from)


def found_checkpoint(reference: str) -> Path:
    """The folder of a checkpoint, as `find_checkpoint` finds it, looked at before torch is imported."""
    from voicechat_platform.checkpoint_files import check_is_checkpoint
    from voicechat_platform.registry import find_checkpoint

    folder = find_checkpoint(reference)
    check_is_checkpoint(folder)
    return folder


def join(address: str | None) -> None:
    """Let the settings name the Ray to join, for this process and its children."""
    from voicechat_platform.settings import settings

    if address is not None:
        os.environ["VOICECHAT_RAY_ADDRESS"] = address
        settings.cache_clear()  # they may have been read before
