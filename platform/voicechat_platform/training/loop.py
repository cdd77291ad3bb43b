"""The training loop: deterministic for a seed, resumable from any of its checkpoints.

Letters: b batch, t position.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_
from transformers import GenerationConfig

from voicechat_platform.checkpoints import load_checkpoint, load_training_state, read_run, save_checkpoint
from voicechat_platform.corpora.corpus import Batches, Corpus, load_corpus
from voicechat_platform.corpora.tokenizers import tokenizer_sha256
from voicechat_platform.errors import InputError
from voicechat_platform.models import GPTConfig, GPTForCausalLM
from voicechat_platform.training.evaluation import mean_loss
from voicechat_platform.training.optimizers import learning_rate_at, make_optimizers
from voicechat_platform.training.recipe import Recipe


@dataclass(frozen=True)
class Evaluation:
    """What is known of a run after a number of steps."""

    step: int
    train_loss: float
    """Mean over the steps since the last evaluation, nats per token."""
    validation_loss: float
    """Nats per token."""
    nats_per_character: float
    """The validation loss per character: comparable between tokenizers."""
    tokens_per_second: float
    """Training throughput since the last evaluation."""
    seconds: float
    """Spent in this process, evaluations included."""


def recipe_corpus(recipe: Recipe) -> Corpus:
    part = recipe.corpus
    return load_corpus(part.source, part.tokenizer, part.vocabulary_size, part.validation_fraction)


def make_model(recipe: Recipe, corpus: Corpus) -> GPTForCausalLM:
    """A fresh model, initialised by the recipe's seed."""
    torch.manual_seed(recipe.seed)
    model = GPTForCausalLM(
        GPTConfig(
            **recipe.model.shape(),
            vocab_size=len(corpus.tokenizer),
            reply_stops=corpus.reply_stops,
        )
    )
    # What the service samples with when a client does not say.
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.8)
    return model


def check_same_text(checkpoint: Path, corpus: Corpus) -> None:
    """
    Raises:
        InputError: the corpus or its tokenizer is not what the checkpoint was trained on.
    """
    run = read_run(checkpoint)
    if run["corpus"]["sha256"] != corpus.sha256 or run["tokenizer_sha256"] != tokenizer_sha256(corpus.tokenizer):
        raise InputError(
            f"the text of {corpus.source} is not the one that {checkpoint} was trained on: bring that text back, "
            f"or start a new run"
        )


class Training:
    """A run in progress. Iterate `evaluations()`, and `save()` at any of them.

    Args:
        recipe: what to train and how.
        corpus: the recipe's corpus, loaded.
        resume_from: a checkpoint of the same run to go on from, bit for bit on a CPU.
        parent: what the run belongs to (a sweep and a trial), for the checkpoint's run.json.
    """

    def __init__(self, recipe: Recipe, corpus: Corpus, resume_from: Path | None = None, parent: str | None = None):
        self.recipe, self.corpus, self.parent = recipe, corpus, parent
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        settings = recipe.training
        self.batches = Batches(corpus.train_tokens, settings.batch_size, recipe.model.context, recipe.seed)
        self.step = 0
        self.history: list[Evaluation] = []
        if resume_from is not None:
            check_same_text(resume_from, corpus)
        if resume_from is None:
            self.model = make_model(recipe, corpus).to(self.device)
        else:
            self.model = load_checkpoint(resume_from)[0].to(self.device)
        self.optimizers = make_optimizers(self.model, settings.optimizer, settings.learning_rate, settings.weight_decay)
        if resume_from is not None:
            self.restore(resume_from)

    def evaluations(self) -> Iterator[Evaluation]:
        """Train to the last step, yielding at each evaluation.

        Raises:
            InputError: the loss is not a number any more; earlier checkpoints are untouched.
        """
        settings = self.recipe.training
        started = mark = time.perf_counter()
        losses: list[torch.Tensor] = []
        self.model.train()
        while self.step < settings.steps:
            losses.append(self.take_step())
            if self.step % settings.evaluate_every and self.step < settings.steps:
                continue
            train_loss = torch.stack(losses).mean().item()
            if not math.isfinite(train_loss):
                raise InputError(
                    f"the loss is {train_loss} before step {self.step} at a peak learning rate of "
                    f"{settings.learning_rate:g}: lower training.learning_rate or lengthen training.warmup_steps"
                )
            seconds = time.perf_counter() - mark
            tokens = len(losses) * settings.batch_size * self.recipe.model.context
            windows = None if self.step == settings.steps else settings.evaluation_windows
            loss = mean_loss(self.model, self.corpus.validation_tokens, self.recipe.model.context, windows)
            evaluation = Evaluation(
                step=self.step,
                train_loss=train_loss,
                validation_loss=loss,
                nats_per_character=loss / self.corpus.characters_per_token,
                tokens_per_second=tokens / seconds,
                seconds=time.perf_counter() - started,
            )
            self.history.append(evaluation)
            yield evaluation
            losses, mark = [], time.perf_counter()

    def take_step(self) -> torch.Tensor:
        """One step; its loss in nats per token, still on the device."""
        settings = self.recipe.training
        rate = learning_rate_at(self.step, settings.learning_rate, settings.warmup_steps, settings.steps)
        inputs_bt, labels_bt = (batch.to(self.device) for batch in self.batches.draw())
        loss = self.model(inputs_bt, labels=labels_bt, use_cache=False).loss
        loss.backward()
        clip_grad_norm_(self.model.parameters(), settings.gradient_clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return loss.detach()

    def save(self, folder: Path) -> None:
        """Write a checkpoint that `resume_from` accepts and `AutoModelForCausalLM` reads."""
        state = {
            "step": self.step,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "batches": self.batches.state_dict(),
            "generator": torch.get_rng_state(),
            "cuda_generators": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }
        run = {
            "recipe": self.recipe.model_dump(mode="json"),
            "corpus": {"source": self.corpus.source, "sha256": self.corpus.sha256},
            "tokenizer_sha256": tokenizer_sha256(self.corpus.tokenizer),
            "parameters": self.model.num_parameters(),
            "metrics": asdict(self.history[-1]) if self.history else {},
            "history": [asdict(evaluation) for evaluation in self.history],
            "parent": self.parent,
        }
        save_checkpoint(folder, self.model, self.corpus.tokenizer, state, run)

    def restore(self, folder: Path) -> None:
        state = load_training_state(folder)
        self.step = state["step"]
        self.history = [Evaluation(**evaluation) for evaluation in read_run(folder)["history"]]
        self.batches.load_state_dict(state["batches"])
        for optimizer, optimizer_state in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        torch.set_rng_state(state["generator"])
        if state["cuda_generators"]:
            torch.cuda.set_rng_state_all(state["cuda_generators"])
