"""The commands about one model: train it, evaluate it, let it write."""

import hashlib
import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from voicechat_platform.checkpoints import load_checkpoint, read_run, recover
from voicechat_platform.corpora.corpus import encode
from voicechat_platform.corpora.texts import read_text
from voicechat_platform.errors import InputError
from voicechat_platform.models import GPTForCausalLM
from voicechat_platform.models.folding import fold
from voicechat_platform.registry import Registry, find_checkpoint
from voicechat_platform.settings import settings
from voicechat_platform.strict_yaml import read_yaml
from voicechat_platform.training.evaluation import mean_loss
from voicechat_platform.training.loop import Evaluation, Training, check_same_text, recipe_corpus
from voicechat_platform.training.recipe import Recipe

log = logging.getLogger(__name__)
console = Console(stderr=True, highlight=False)


def train_recipe(path: Path, out: Path | None, resume: bool) -> None:
    """Train, checkpointing at every evaluation, and register the result.

    Raises:
        InputError: the recipe is wrong, or the run's folder holds a run already and is not to be resumed.
    """
    recipe = read_yaml(path, Recipe)
    folder = out or settings().folder("runs") / recipe.name
    last = folder / "last"
    recover(last)
    if last.exists() and not resume:
        raise InputError(f"{folder} holds a run already: go on with it with --resume, or choose another --out")
    if resume and not last.exists():
        raise InputError(f"{folder} holds no checkpoint to resume from; leave --resume away")
    if resume and read_run(last)["recipe"] != recipe.model_dump(mode="json"):
        raise InputError(f"{path} differs from the recipe of the run in {folder}: choose another --out")
    training = Training(recipe, recipe_corpus(recipe), last if resume else None, parent=None)
    log.info("%s: %s parameters", recipe.name, f"{training.model.num_parameters():,}")
    columns = (TextColumn("{task.fields[status]}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=recipe.training.steps, completed=training.step, status="training")
        for evaluation in interruptible(training):
            training.save(last)
            progress.update(task, completed=evaluation.step, status=describe(evaluation))
            if not console.is_terminal:
                log.info("step %d: %s", evaluation.step, describe(evaluation))
    choices = flat(recipe.model_dump(mode="json"))
    run_name = hashlib.sha256(f"{choices} {training.corpus.sha256}".encode()).hexdigest()[:12]
    version = Registry().record("train", run_name, choices, [asdict(point) for point in training.history], last)
    shutil.copy(path, folder / "recipe.yaml")
    print(f"{version}: {describe(training.history[-1])}\ncheckpoint: {last}\nserve it: voicechat promote {version}")


def flat(recipe: dict[str, Any]) -> dict[str, Any]:
    """Dotted fields, as sweep files write them."""
    fields: dict[str, Any] = {}
    for name, value in recipe.items():
        inner = value.items() if isinstance(value, dict) else ()
        fields |= {f"{name}.{field}": choice for field, choice in inner} or {name: value}
    return fields


def interruptible(training: Training) -> Iterator[Evaluation]:
    try:
        yield from training.evaluations()
    except KeyboardInterrupt:
        step = training.history[-1].step if training.history else 0
        log.info("stopped at step %d; the last checkpoint is of step %d: go on with --resume", training.step, step)
        raise


def describe(evaluation: Evaluation) -> str:
    return (
        f"validation {evaluation.validation_loss:.4f} nats/token, {evaluation.nats_per_character:.4f} nats/character, "
        f"training {evaluation.train_loss:.4f}, {evaluation.tokens_per_second:,.0f} tokens/s"
    )


def evaluate_checkpoint(reference: str, source: str | None) -> dict[str, Any]:
    """Loss over the validation part of the checkpoint's own corpus, or over the whole of another text."""
    folder = find_checkpoint(reference)
    model, tokenizer = load_checkpoint(folder)
    if source is None:
        recipe = Recipe.model_validate(read_run(folder)["recipe"])
        corpus = recipe_corpus(recipe)
        check_same_text(folder, corpus)
        tokens, characters = corpus.validation_tokens, len(corpus.validation_tokens) * corpus.characters_per_token
        source = f"the validation part of {corpus.source}"
    else:
        text = read_text(source).characters
        tokens = encode(tokenizer, text)
        characters = len(tokenizer.decode(tokens.tolist()))
        if characters < len(text):
            log.info("%d characters that the tokenizer does not know are left out", len(text) - characters)
        if len(tokens) < 2:
            raise InputError(f"{source} has no two characters that the checkpoint's tokenizer knows")
    loss = mean_loss(model, tokens, model.config.max_position_embeddings)
    return {
        "checkpoint": str(folder),
        "corpus": source,
        "tokens": len(tokens),
        "nats_per_token": round(loss, 5),
        "nats_per_character": round(loss * len(tokens) / characters, 5),
    }


def sample(reference: str, prompt: str, tokens: int, temperature: float, seed: int | None) -> str:
    """The prompt and what the model adds to it, within one context."""
    model, tokenizer = load_checkpoint(find_checkpoint(reference))
    prompt_ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    if not prompt_ids.shape[1]:
        raise InputError(f"none of the prompt's characters is known to the model's tokenizer: {prompt!r}")
    context = model.config.max_position_embeddings
    room = context - prompt_ids.shape[1]
    if room < 1:
        raise InputError(f"the prompt has {prompt_ids.shape[1]} tokens; the model's context is {context}")
    if tokens > room:
        log.info("the context of %d tokens leaves room for %d", context, room)
    if seed is not None:
        torch.manual_seed(seed)
    how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    return tokenizer.decode(model.generate(prompt_ids, max_new_tokens=min(tokens, room), **how)[0])


def fold_checkpoint(reference: str, out: Path) -> Path:
    """Write the folded model and the tokenizer into a new folder.

    Raises:
        InputError: the folder is not empty, or the model cannot be folded.
    """
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty: name a new folder")
    model, tokenizer = load_checkpoint(find_checkpoint(reference))
    if not isinstance(model, GPTForCausalLM):
        raise InputError(f"{reference} is a {type(model).__name__}: there is nothing to fold")
    fold(model).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out
