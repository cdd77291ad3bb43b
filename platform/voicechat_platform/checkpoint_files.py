"""A checkpoint's folder as files: what run.json says, whether all is there, what a killed writer left.

Without torch, for the many who only look: checkpoints.py writes and loads the model itself.
"""

import contextlib
import glob
import shutil
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from voicechat_platform.assets import sha256
from voicechat_platform.errors import InputError
from voicechat_platform.json_file import read_object


class Measured(BaseModel):
    """What every evaluation has, whatever else it measures."""

    step: int
    validation_loss: float
    nats_per_character: float
    tokens_per_second: float
    peak_memory_mib: float


class Corpus(BaseModel):
    source: str
    sha256: str


class Run(BaseModel):
    """What `read_run` promises."""

    recipe: dict[str, Any]
    corpus: Corpus
    tokenizer_sha256: str
    parameters: int
    metrics: Annotated[dict[str, Any], Field(max_length=0)] | Measured
    """Empty before the first evaluation."""
    history: list[Measured]
    commit: str | None
    versions: dict[str, str]
    files: dict[str, str]


def read_run(folder: Path) -> dict[str, Any]:
    """run.json: recipe, corpus, tokenizer, metrics, commit and versions of the run that wrote the checkpoint.

    Raises:
        InputError: there is no checkpoint, or its run.json is missing, damaged, or not what training writes.
    """
    check_is_checkpoint(folder)
    path = folder / "run.json"
    run = read_object(path)
    try:
        Run.model_validate(run)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise InputError(f"{path} is damaged: it is not what training wrote: {where}: {fault['msg']}") from None
    return run


def check_is_whole(folder: Path) -> None:
    """
    Raises:
        InputError: there is no checkpoint, or a file of one that we wrote is missing or not as it was written.
    """
    check_is_checkpoint(folder)
    if not (folder / "run.json").exists():
        return  # somebody else's model: it has no checksums
    files = read_object(folder / "run.json").get("files", {})
    if not isinstance(files, dict):
        raise InputError(f"{folder / 'run.json'} is damaged: it is not what training wrote")
    for name, expected in files.items():
        path = folder / name
        if not path.is_file() or sha256(path) != expected:
            raise InputError(f"{path} is missing or damaged: it is not the file that training wrote")


def check_is_checkpoint(folder: Path) -> None:
    settle(folder)
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} is not a checkpoint: it has no config.json; `voicechat models` lists the checkpoints that exist"
        )


def recover(folder: Path) -> None:
    """Finish what a killed `save_checkpoint` left; for the one process that writes there."""
    settle(folder)
    new, old = replacement_names(folder)
    unfinished = folder.absolute().parent.glob(f".{glob.escape(new.name)}[.-]*")
    for rest in (new, old, *unfinished):
        shutil.rmtree(rest, ignore_errors=True)


def remove(folder: Path) -> None:
    """Delete a checkpoint with all that a killed `save_checkpoint` left of it."""
    shutil.rmtree(folder, ignore_errors=True)
    recover(folder)
    shutil.rmtree(folder, ignore_errors=True)


def settle(folder: Path) -> None:
    """Where there is no checkpoint, but one that waits to become it, or one that it was to replace: put it there.

    Readers may do so while the writer is just about to: whoever comes first renames, and the other finds it done.
    """
    for waiting in replacement_names(folder):
        if folder.exists():
            return
        with contextlib.suppress(FileNotFoundError):
            waiting.rename(folder)  # both are whole


def replacement_names(folder: Path) -> tuple[Path, Path]:
    """Where the new checkpoint waits, and where the old one goes, while one replaces the other."""
    folder = folder.absolute()
    return folder.with_name(f".{folder.name}.replacing"), folder.with_name(f".{folder.name}.replaced")
