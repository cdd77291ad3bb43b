"""The start of a run: its data, and a fresh or a pretrained model, optionally with adapters (LoRA)."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from voicechat_platform.assets import sha256
from voicechat_platform.checkpoint_files import read_run
from voicechat_platform.checkpoints import load_checkpoint, load_tokenizer
from voicechat_platform.corpora.batches import TrainingData
from voicechat_platform.corpora.corpus import make_corpus
from voicechat_platform.corpora.dialogue import make_dialogue
from voicechat_platform.corpora.sorting import Sorting
from voicechat_platform.corpora.texts import read_text
from voicechat_platform.corpora.tokenizers import make_tokenizer, tokenizer_sha256
from voicechat_platform.errors import InputError
from voicechat_platform.model_store import find_checkpoint
from voicechat_platform.models import GPTConfig, GPTForCausalLM
from voicechat_platform.training.recipe import LoraRecipe, Recipe

if TYPE_CHECKING:
    from peft import PeftModel


def load_data(recipe: Recipe) -> TrainingData:
    """Return the recipe's text, dialogue or lists as tokens, with the pretrained model's tokenizer if there is one.

    Raises:
        InputError: the text cannot be read or is too short, or `init_from` names no model.
    """
    if recipe.sorting is not None:
        digits = "".join(str(digit) for digit in range(recipe.sorting.digits))
        tokenizer = make_tokenizer("characters", 0, digits)
        return Sorting(recipe.sorting.length, recipe.sorting.digits, recipe.sorting.form, tokenizer)
    part = recipe.corpus
    text = read_text(part.source)
    if recipe.init_from is not None:
        tokenizer = load_tokenizer(find_checkpoint(recipe.init_from))
    else:
        # The characters of the whole text become tokens, so that every character of the validation part has one. Byte
        # pairs can represent any text, so they are trained on the training part only.
        parts = text.split(part.validation_fraction, part.test_fraction)
        learned_from = text.characters if part.tokenizer == "characters" else parts[0]
        tokenizer = make_tokenizer(part.tokenizer, part.vocabulary_size, learned_from)
    if part.form == "dialogue":
        return make_dialogue(text, tokenizer, part.validation_fraction)
    return make_corpus(text, tokenizer, part.validation_fraction, part.test_fraction)


def make_model(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, reply_stops: list[str] | None, start: Path | None = None
) -> PreTrainedModel:
    """Return a fresh model that the recipe's seed initialises, or the pretrained one.

    Args:
        start: the folder of the pretrained model (`find_start`); None for a fresh one.

    Raises:
        InputError: the recipe's context is longer than the pretrained model's.
    """
    torch.manual_seed(recipe.seed)
    if start is not None:
        model, _ = load_checkpoint(start)
        longest = model.config.max_position_embeddings
        if recipe.model.context > longest:
            raise InputError(
                f"model.context is {recipe.model.context}, but {recipe.init_from} was made for {longest} tokens at "
                f"most: lower it"
            )
        if reply_stops is not None:
            model.config.reply_stops = reply_stops
        return model.float()
    model = GPTForCausalLM(GPTConfig(**recipe.model.shape(), vocab_size=len(tokenizer), reply_stops=reply_stops))
    # The service's defaults for sampling. Sorted lists need no sampling.
    if recipe.sorting is None:
        model.generation_config = GenerationConfig(do_sample=True, temperature=0.7, top_p=0.95)
    return model


def find_start(recipe: Recipe) -> Path | None:
    """Return the absolute folder of the recipe's pretrained model, or None.

    Raises:
        InputError: `init_from` names no model.
    """
    return None if recipe.init_from is None else find_checkpoint(recipe.init_from).absolute()


def weights_sha256(folder: Path | None) -> str | None:
    """Return the checksum of a pretrained model's weights if they are in one file."""
    path = folder and folder / "model.safetensors"
    return sha256(path) if path and path.exists() else None


def with_adapters(model: PreTrainedModel, recipe: LoraRecipe, base: str | None) -> "PeftModel":
    """Return the model with trainable low-rank adapters, everything else frozen.

    Args:
        base: the recipe's `init_from`: other machines know the model by this name, and not by its folder here.
    """
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=recipe.dropout,
            target_modules="all-linear",
        ),
    )
    adapted.peft_config["default"].base_model_name_or_path = base
    return adapted


def merged(model: torch.nn.Module) -> PreTrainedModel:
    """Return a copy with the adapters added into the weights: a normal model."""
    return copy.deepcopy(model).merge_and_unload()


def check_same_data(checkpoint: Path, data: TrainingData) -> None:
    """Check that a checkpoint belongs to the data.

    Raises:
        InputError: the data or its tokenizer differs from that of the checkpoint.
    """
    run = read_run(checkpoint)
    if run["corpus"]["sha256"] != data.sha256 or run["tokenizer_sha256"] != tokenizer_sha256(data.tokenizer):
        raise InputError(
            f"the text of {data.source} is not the one that {checkpoint} was trained on: restore that text, or "
            "start a new run"
        )
