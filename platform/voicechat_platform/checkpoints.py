"""What a checkpoint directory holds, and how it is written and read back.

A checkpoint is a Hugging Face model directory (config.json, model.safetensors, the tokenizer) with
`training_state.pt` (optimizers, step, generators, data position) and `run.json` (where it came from). Reading one
never unpickles anything but tensors.
"""

import contextlib
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

import voicechat_platform.models  # noqa: F401 (registers the family with the Auto classes)
from voicechat_platform.assets import appearing_whole, sha256
from voicechat_platform.errors import InputError
from voicechat_platform.provenance import provenance

transformers_logging.disable_progress_bar()


def save_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    training_state: dict[str, Any],
    run: dict[str, Any],
) -> None:
    """Write a whole checkpoint; a folder of that name is replaced only when the new one is complete.

    A kill at any moment leaves the old or the new one whole: under the folder's name, or between two renames under the
    name that `recover` looks for.
    """
    new, old = replacement_names(folder)
    recover(folder)
    with appearing_whole(new) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        torch.save(training_state, partial / "training_state.pt")
        files = {path.name: sha256(path) for path in sorted(partial.iterdir())}
        (partial / "run.json").write_text(json.dumps({**run, **provenance(), "files": files}, indent=2) + "\n")
    if folder.exists():
        folder.rename(old)
    settle(folder)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Finish what a killed `save_checkpoint` left; for the one process that writes there."""
    settle(folder)
    for rest in replacement_names(folder):
        shutil.rmtree(rest, ignore_errors=True)


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


def load_checkpoint(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model, ready to predict, and its tokenizer.

    Raises:
        InputError: there is no checkpoint, a file of it is damaged, or its tokenizer is another model's.
    """
    check_is_whole(folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # safetensors, json and transformers each raise their own
        raise InputError(f"the checkpoint {folder} is damaged: its model cannot be read: {error}") from error
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) > model.config.vocab_size:
        raise InputError(
            f"the tokenizer in {folder} does not belong to its model: it has {len(tokenizer)} tokens, the model "
            f"{model.config.vocab_size}; put the tokenizer's files that it was trained with there"
        )
    return model.eval(), tokenizer


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """
    Raises:
        InputError: there is no checkpoint, or its tokenizer is missing or damaged.
    """
    check_is_checkpoint(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise InputError(f"the checkpoint {folder} is damaged: its tokenizer cannot be read: {error}") from error


def load_training_state(folder: Path) -> dict[str, Any]:
    check_is_whole(folder)
    path = folder / "training_state.pt"
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} is missing or damaged, so the run cannot go on from there: {error}") from error


def read_run(folder: Path) -> dict[str, Any]:
    """run.json: recipe, corpus, tokenizer, metrics, commit and versions of the run that wrote the checkpoint."""
    check_is_checkpoint(folder)
    try:
        return json.loads((folder / "run.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'run.json'} is missing or damaged: {error}") from error


def check_is_whole(folder: Path) -> None:
    """
    Raises:
        InputError: there is no checkpoint, or a file of one that we wrote is missing or not as it was written.
    """
    check_is_checkpoint(folder)
    if not (folder / "run.json").exists():
        return  # somebody else's model: it has no checksums
    for name, expected in read_run(folder).get("files", {}).items():
        path = folder / name
        if not path.exists() or sha256(path) != expected:
            raise InputError(f"{path} is missing or damaged: it is not the file that training wrote")


def check_is_checkpoint(folder: Path) -> None:
    settle(folder)
    if not (folder / "config.json").exists():
        raise InputError(
            f"{folder} is not a checkpoint: it has no config.json; `voicechat models` lists the checkpoints that exist"
        )
