"""The files of a checkpoint: read run.json, verify that all files exist, recover from a killed writer.

This module does not import torch, for the many callers that only read. checkpoints.py writes and loads the model.
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

ADAPTER = "adapter"
"""The folder in a checkpoint that holds its adapter (LoRA) alone."""


class Measured(BaseModel):
    """The metrics that every evaluation has."""

    step: int
    validation_loss: float
    nats_per_character: float
    tokens_per_second: float
    peak_memory_mib: float


class CorpusFields(BaseModel):
    source: str
    sha256: str


class RunFields(BaseModel):
    """The fields that `read_run` guarantees."""

    recipe: dict[str, Any]
    corpus: CorpusFields
    tokenizer_sha256: str
    parameters: int
    metrics: Annotated[dict[str, Any], Field(max_length=0)] | Measured
    """Empty before the first evaluation."""
    history: list[Measured]
    commit: str | None
    versions: dict[str, str]
    files: dict[str, str]


def read_run(folder: Path) -> dict[str, Any]:
    """Return run.json: recipe, corpus, tokenizer, metrics, commit and versions of the run that wrote the checkpoint.

    Raises:
        InputError: there is no checkpoint, or its run.json is missing, damaged, or has unexpected fields.
    """
    check_is_checkpoint(folder)
    path = folder / "run.json"
    run = read_object(path)
    try:
        RunFields.model_validate(run)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise InputError(f"{path} is damaged: it is not what training wrote: {where}: {fault['msg']}") from None
    return run


def check_is_whole(folder: Path) -> None:
    """Verify the checksums of a checkpoint that we wrote.

    Raises:
        InputError: there is no checkpoint, or one of its files is missing or changed.
    """
    check_is_checkpoint(folder)
    if not (folder / "run.json").exists():
        return  # another project's model has no checksums
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
    """Finish the work of a killed `save_checkpoint`. Only the one process that writes there may call it."""
    settle(folder)
    new, old = replacement_names(folder)
    unfinished = folder.absolute().parent.glob(f".{glob.escape(new.name)}[.-]*")
    for rest in (new, old, *unfinished):
        shutil.rmtree(rest, ignore_errors=True)


def adapter_folder(checkpoint: Path) -> Path | None:
    """Return the folder of a checkpoint's adapter; None if all its weights were trained, or if it was written
    before adapters were kept."""
    folder = checkpoint / ADAPTER
    return folder if folder.is_dir() else None


def find_adapter(path: Path, base: str = "") -> Path | None:
    """Return the adapter in a checkpoint, in a folder of peft's, or in a GGUF file; None if there is none.

    Args:
        base: the name of the model that it must be made for; empty for any.
    """
    if path.suffix == ".gguf":
        return path
    folder = path if (path / "adapter_config.json").is_file() else adapter_folder(path)
    if folder is None or not base:
        return folder
    return folder if read_object(folder / "adapter_config.json").get("base_model_name_or_path") == base else None


def remove(folder: Path) -> None:
    """Delete a checkpoint with everything that a killed `save_checkpoint` left of it."""
    shutil.rmtree(folder, ignore_errors=True)
    recover(folder)
    shutil.rmtree(folder, ignore_errors=True)


def settle(folder: Path) -> None:
    """If there is no checkpoint, rename the waiting new one, or else the old one that it was to replace.

    A reader may call this at the same time as the writer: the first one renames, and the other one finds the result.
    """
    for waiting in replacement_names(folder):
        if folder.exists():
            return
        with contextlib.suppress(FileNotFoundError):
            waiting.rename(folder)  # both are complete


def replacement_names(folder: Path) -> tuple[Path, Path]:
    """Return where the new checkpoint waits, and where the old one goes, during a replacement."""
    folder = folder.absolute()
    return folder.with_name(f".{folder.name}.replacing"), folder.with_name(f".{folder.name}.replaced")
