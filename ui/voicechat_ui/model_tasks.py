"""The work of the commands on one model: train it, evaluate it, generate text, fold it."""

import hashlib
import logging
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from voicechat_platform.checkpoint_files import read_run
from voicechat_platform.checkpoints import load_checkpoint, load_tokenizer
from voicechat_platform.corpora.batches import IGNORED, TrainingData
from voicechat_platform.corpora.conversations import Conversation
from voicechat_platform.corpora.corpus import encode, windows_of
from voicechat_platform.corpora.dialogue import check_marks
from voicechat_platform.corpora.sorting import Sorting
from voicechat_platform.corpora.texts import Text
from voicechat_platform.errors import InputError
from voicechat_platform.models import GPTForCausalLM
from voicechat_platform.models.folding import fold, save_folded
from voicechat_platform.models.gguf_export import Precision, write_gguf
from voicechat_platform.registry import Registry
from voicechat_platform.training.calls_evaluation import count_calls, evaluate_calls, spread, turns_of
from voicechat_platform.training.evaluation import mean_loss
from voicechat_platform.training.history import Evaluation
from voicechat_platform.training.loop import Training
from voicechat_platform.training.recipe import Recipe, read_recipe
from voicechat_platform.training.run_folder import RunFolder
from voicechat_platform.training.starting_point import check_same_data, load_data

log = logging.getLogger(__name__)
console = Console(stderr=True, highlight=False)


def train_recipe(recipe: Recipe, path: Path, folder: Path, resume: bool, workers: int = 1) -> None:
    """Train with a checkpoint at every evaluation and on Ctrl-C, and register the best checkpoint.

    Args:
        path: the recipe's file; this function copies it into the run's folder.
        folder: the run's folder, absolute.

    Raises:
        InputError: the run's folder has a run and `resume` is false, or it has no checkpoint and `resume` is true.
        RegistryError: the registry does not answer.
    """
    run = RunFolder(folder)
    if run.holds_a_run() and not resume:
        raise InputError(f"{folder} already contains a run: continue it with --resume, or choose another --out")
    if resume and not run.holds_a_run():
        raise InputError(f"{folder} contains no checkpoint to resume from: omit --resume")
    registry = Registry()
    registry.champions()  # fails before the training if the registry does not answer
    resume_from = run.resume_from(recipe) if resume else None
    data = load_data(recipe)
    if workers == 1:
        train_here(recipe, data, run, resume_from)
    else:
        from voicechat_tune.running.distributed import train_on_workers

        train_on_workers(recipe, data, folder, resume_from, workers, log_evaluation)
    best = run.finish(data)
    facts = read_run(best)
    choices = flat(recipe.model_dump(mode="json"))
    # The name includes the weights: the same recipe gives other weights after a change of the code or of `init_from`.
    run_name = hashlib.sha256(f"{choices} {data.sha256} {facts['files']}".encode()).hexdigest()[:12]
    version = registry.record("train", run_name, choices, read_run(run.last)["history"], best)
    shutil.copy(path, folder / "recipe.yaml")
    evaluation = Evaluation(**facts["metrics"])
    print(
        f"{version}: step {evaluation.step}, {describe(evaluation)}\n"
        f"checkpoint: {best}\nserve it: voicechat promote {version}"
    )


def train_here(recipe: Recipe, data: TrainingData, run: RunFolder, resume_from: Path | None) -> None:
    training = Training(recipe, data, resume_from)
    weights = list(training.model.parameters())
    learning = sum(weight.numel() for weight in weights if weight.requires_grad)
    of_all = "" if learning == (total := sum(weight.numel() for weight in weights)) else f" of {total:,}"
    columns = (TextColumn("{task.fields[status]}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, disable=not console.is_terminal)
    with stopping_at_interrupt(training), progress:
        log.info("%s: %s%s parameters to train", recipe.name, f"{learning:,}", of_all)
        if resume_from is not None:
            log.info("continuing from step %d", training.step)
        task = progress.add_task("", total=recipe.training.steps, completed=training.step, status="training")
        training.on_step = lambda: progress.update(task, completed=training.step)
        for evaluation in run.train(training):
            progress.update(task, completed=evaluation.step, status=describe(evaluation))
            if not console.is_terminal:
                log_evaluation(evaluation)
    if training.stopping:
        log.info("stopped at step %d, with a checkpoint: continue with --resume", training.step)
        raise KeyboardInterrupt


@contextmanager
def stopping_at_interrupt(training: Training) -> Iterator[None]:
    """Stop after the current step at the first Ctrl-C, so that its state can be saved; immediately at the second."""

    def stop(number: int, frame: Any) -> None:
        if training.stopping:
            raise KeyboardInterrupt
        training.stop()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def flat(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe with dotted field names, as in sweep files."""
    fields: dict[str, Any] = {}
    for name, value in recipe.items():
        inner = value.items() if isinstance(value, dict) else ()
        fields |= {f"{name}.{field}": choice for field, choice in inner} or {name: value}
    return fields


def log_evaluation(evaluation: Evaluation) -> None:
    log.info("step %d: %s", evaluation.step, describe(evaluation))


def describe(evaluation: Evaluation) -> str:
    exact = "" if evaluation.exact_match is None else f"{evaluation.exact_match:.2%} sorted, "
    of_peak = "" if evaluation.flops_utilization is None else f" ({evaluation.flops_utilization:.0%} of peak)"
    return (
        f"validation {evaluation.validation_loss:.4f} nats/token, {evaluation.nats_per_character:.4f} nats/character, "
        f"{exact}training {evaluation.train_loss:.4f}, {evaluation.tokens_per_second:,.0f} tokens/s{of_peak}, "
        f"{evaluation.peak_memory_mib:,.0f} MiB"
    )


def evaluate_checkpoint(folder: Path, other: Text | None) -> dict[str, Any]:
    """Return the loss over the validation part of the checkpoint's own data, or over the whole of another text.

    Raises:
        InputError: the tokenizer knows fewer than two characters of the text, or the checkpoint has no data of its own.
    """
    model, tokenizer = load_checkpoint(folder)
    if other is None:
        return evaluate_on_own_data(folder, model)
    text = other.characters
    tokens = encode(tokenizer, text)
    characters = len(tokenizer.decode(tokens.tolist()))
    if characters < len(text):
        log.info("skipped %d characters that the tokenizer does not know", len(text) - characters)
    if len(tokens) < 2:
        raise InputError(f"the checkpoint's tokenizer knows fewer than two characters of {other.source}")
    context = min(model.config.max_position_embeddings, LONGEST_WINDOW)
    loss = mean_loss(model, windows_of(tokens, context))
    return {
        "checkpoint": str(folder),
        "corpus": other.source,
        "tokens": len(tokens),
        "nats_per_token": round(loss, 5),
        "nats_per_character": round(loss * len(tokens) / characters, 5),
    }


def evaluate_tools(
    folder: Path, conversations: list[Conversation], source: str, most_turns: int | None, is_constrained: bool
) -> dict[str, Any]:
    """Return how well a checkpoint calls tools.

    Args:
        conversations: of `source`.
        most_turns: the most of the assistant's turns, spread evenly; None for all.
        is_constrained: whether it answers as the service does, with a grammar; otherwise it writes freely.

    Raises:
        InputError: as `evaluate_calls` or `served_calls`, and `check_marks`.
    """
    check_marks(conversations, load_tokenizer(folder), source)
    turns = turns_of(conversations)
    turns = turns if most_turns is None else spread(turns, most_turns)
    if is_constrained:
        from voicechat_ui.served_calls import served_calls

        shares = count_calls(served_calls(folder, turns))
    else:
        shares = evaluate_calls(*load_checkpoint(folder), turns)
    return {"checkpoint": str(folder), "tools": source, "constrained": is_constrained, **shares}


LONGEST_WINDOW = 1024
"""In tokens, per window. Some pretrained models have a hundred thousand positions."""


def evaluate_on_own_data(folder: Path, model: Any) -> dict[str, Any]:
    if not (folder / "run.json").exists():
        raise InputError(f"{folder} was not trained here, so it has no text of its own: give one with --corpus")
    recipe = read_recipe(folder)
    data = load_data(recipe)
    check_same_data(folder, data)
    batches = list(data.validation(recipe.model.context, None))
    loss = mean_loss(model, batches)
    exact = {"exact_match": data.exact_match(model)} if isinstance(data, Sorting) else {}
    return {
        "checkpoint": str(folder),
        "corpus": f"the validation part of {data.source}",
        "tokens": sum(int((labels_bt != IGNORED).sum()) for _, labels_bt in batches),
        "nats_per_token": round(loss, 5),
        "nats_per_character": round(loss / data.characters_per_token, 5),
        **exact,
    }


def sample(folder: Path, prompt: str, tokens: int, temperature: float, seed: int | None) -> str:
    """Return the prompt and the text that the model adds, within one context.

    Raises:
        InputError: the tokenizer knows no character of the prompt, or the prompt fills the context.
    """
    model, tokenizer = load_checkpoint(folder)
    prompt_ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    if not prompt_ids.shape[1]:
        raise InputError(f"the model's tokenizer knows no character of the prompt {prompt!r}")
    context = model.config.max_position_embeddings
    room = context - prompt_ids.shape[1]
    if room < 1:
        raise InputError(f"the prompt has {prompt_ids.shape[1]} tokens; the model's context is {context}")
    if tokens > room:
        log.info("the context of %d tokens leaves room for %d more tokens", context, room)
    if seed is not None:
        torch.manual_seed(seed)
    how = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature
        else {"do_sample": False}
    )
    return tokenizer.decode(model.generate(prompt_ids, max_new_tokens=min(tokens, room), **how)[0])


def fold_checkpoint(folder: Path, out: Path) -> str:
    """Write the folded model and the tokenizer into a new folder. Return a sentence about it.

    Raises:
        InputError: the model cannot be folded.
    """
    model, tokenizer = load_checkpoint(folder)
    if not isinstance(model, GPTForCausalLM):
        raise InputError(
            f"{folder} is a {type(model).__name__}: there is nothing to fold; --format gguf writes it for llama.cpp"
        )
    folded = fold(model)
    save_folded(folded, tokenizer, out)
    name = type(folded).__name__
    if model.config.mlp == "relu_squared":
        return f"a {name} with the same logits; not for CTranslate2, which would take its squared ReLU for SiLU"
    return f"a {name} with the same logits"


def export_gguf(folder: Path, out: Path, precision: Precision) -> str:
    """Write a checkpoint, folded if it is of our family, as a GGUF file. Return a sentence about it.

    Raises:
        InputError: llama.cpp has no equivalent of the model.
    """
    model, tokenizer = load_checkpoint(folder)
    write_gguf(fold(model) if isinstance(model, GPTForCausalLM) else model, tokenizer, out, precision=precision)
    return f"a GGUF for llama.cpp, with weights in {precision}"
