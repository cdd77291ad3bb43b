"""Write and load a checkpoint.

A checkpoint is a Hugging Face model directory (config.json, model.safetensors, the tokenizer) with `training_state.pt`
(optimizers, step, generators, data position) and `run.json` (its origin). After a fine-tuning with low-rank adapters
(LoRA), the model's weights have the adapter added, and the folder `adapter` holds it alone, in peft's own format. The
code unpickles nothing but tensors.
"""

import copy
import json
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

import voicechat_platform.models  # noqa: F401 (registers the family with the Auto classes)
from voicechat_platform.assets import sha256
from voicechat_platform.checkpoint_files import (
    ADAPTER,
    check_is_checkpoint,
    check_is_whole,
    recover,
    replacement_names,
    settle,
)
from voicechat_platform.errors import InputError
from voicechat_platform.folders import appearing_whole
from voicechat_platform.provenance import provenance

if TYPE_CHECKING:
    from peft import PeftConfig

transformers_logging.disable_progress_bar()

LOADING = threading.Lock()
"""transformers patches torch while it loads. Two concurrent loads may leave the tied weights of one untied."""

TRAINING_STATE = {"step", "losses", "optimizers", "batches", "generator", "cuda_generator"}

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def save_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    training_state: dict[str, Any],
    run: dict[str, Any],
    adapter: "PeftConfig | None" = None,
) -> None:
    """Write a complete checkpoint. It replaces a folder of that name only when it is complete.

    A kill at any moment leaves the old or the new checkpoint complete: under the folder's name, or between two renames
    under the name that `recover` looks for.

    Args:
        adapter: the configuration of the adapters in `training_state`, for a model that was fine-tuned with them.
    """
    new, old = replacement_names(folder)
    recover(folder)
    with appearing_whole(new) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        torch.save(training_state, partial / "training_state.pt")
        if adapter is not None:
            save_adapter(partial / ADAPTER, adapter, training_state["adapters"])
        paths = sorted(path for path in partial.rglob("*") if path.is_file())
        files = {path.relative_to(partial).as_posix(): sha256(path) for path in paths}
        (partial / "run.json").write_text(json.dumps({**run, **provenance(), "files": files}, indent=2) + "\n")
    if folder.exists():
        folder.rename(old)
    settle(folder)
    shutil.rmtree(old, ignore_errors=True)


def save_adapter(folder: Path, config: "PeftConfig", weights: dict[str, torch.Tensor]) -> None:
    """Write an adapter as peft does, without the card that it adds for the hub."""
    config = copy.copy(config)
    config.inference_mode = True
    config.save_pretrained(str(folder))
    tensors = {name: weight.cpu().contiguous() for name, weight in weights.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def load_checkpoint(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Return the model in evaluation mode, and its tokenizer.

    Raises:
        InputError: there is no checkpoint, a file of it is missing or damaged, or its tokenizer belongs to another
            model.
    """
    model = load_model(folder)
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) > model.config.vocab_size:
        raise InputError(
            f"the tokenizer in {folder} does not belong to its model: it has {len(tokenizer)} tokens, the model "
            f"{model.config.vocab_size}; put the files of the tokenizer there with which the model was trained"
        )
    return model, tokenizer


def load_model(folder: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Return the model in evaluation mode.

    Args:
        folder: a Hugging Face model directory.
        dtype: the type of the weights; None keeps the type of the files.

    Raises:
        InputError: there is no checkpoint, a file of it is missing or damaged, or a weight is not in its files.
    """
    check_is_whole(folder)
    load_config(folder)
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        what = f"only {', '.join(pickles)}: pickles can run code when they are read" if pickles else "none at all"
        raise InputError(
            f"the checkpoint {folder} has no weights in *.safetensors, {what}; save the model there again with "
            f"save_pretrained(), which writes safetensors"
        )
    try:
        with LOADING:
            model, found = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype or "auto",
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as error:  # safetensors, json and transformers have different errors
        raise damaged(folder, "its model cannot be read", error) from error
    if missing := sorted(found["missing_keys"]):
        others = f" and {len(missing) - 1} others" if missing[1:] else ""
        raise InputError(
            f"the checkpoint {folder} is damaged: its *.safetensors do not hold {missing[0]}{others}, which its "
            "config.json requires; restore the whole folder"
        )
    return model.eval()


def load_config(folder: Path) -> PreTrainedConfig:
    """Return the model's configuration.

    Raises:
        InputError: there is no checkpoint, its config.json is damaged, or its type of model is unknown.
    """
    check_is_checkpoint(folder)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise damaged(folder, "its config.json cannot be read", error) from error


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer.

    Raises:
        InputError: there is no checkpoint, or its tokenizer is missing or damaged.
    """
    check_is_checkpoint(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise damaged(folder, "its tokenizer cannot be read", error) from error


def damaged(folder: Path, what: str, error: Exception) -> InputError:
    """Return an error with the library's message in one line."""
    reason = " ".join(str(error).split())
    return InputError(f"the checkpoint {folder} is damaged: {what}: {reason[:300]}")


def load_training_state(folder: Path) -> dict[str, Any]:
    check_is_whole(folder)
    path = folder / "training_state.pt"
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch, zipfile and pickle have different errors
        raise InputError(f"{path} is missing or damaged, so the run cannot continue from there: {error}") from error
    if not isinstance(state, dict) or not state.keys() >= TRAINING_STATE:
        raise InputError(f"{path} is damaged, so the run cannot continue from there: it is not what training wrote")
    return state
