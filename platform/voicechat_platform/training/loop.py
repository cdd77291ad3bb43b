"""The training loop: deterministic for a seed, resumable from each checkpoint, equal on one worker and on many.

Letters: b batch, t position.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel

from voicechat_platform.checkpoint_files import read_run
from voicechat_platform.checkpoints import load_checkpoint, load_training_state, save_checkpoint
from voicechat_platform.corpora.batches import IGNORED, TrainingData
from voicechat_platform.corpora.sorting import Sorting
from voicechat_platform.corpora.tokenizers import tokenizer_sha256
from voicechat_platform.errors import InputError
from voicechat_platform.training.evaluation import loss_sum, mean_loss
from voicechat_platform.training.history import Evaluation, read_history
from voicechat_platform.training.optimizers import learning_rate_at, make_optimizers, set_rates
from voicechat_platform.training.recipe import Recipe
from voicechat_platform.training.starting_point import (
    check_same_data,
    find_start,
    make_model,
    merged,
    weights_sha256,
    with_adapters,
)
from voicechat_platform.training.throughput import peak_flops, peak_memory, training_flops

STEPS_BETWEEN_STOP_CHECKS = 10
"""The number of steps after which the workers exchange whether one of them must stop."""


def check_shares(recipe: Recipe, workers: int) -> None:
    """Check that the workers can share a batch.

    Raises:
        InputError: the batch size is not a multiple of the workers and parts.
    """
    settings = recipe.training
    if settings.batch_size % (settings.accumulate * workers):
        raise InputError(
            f"training.batch_size ({settings.batch_size}) must be a multiple of accumulate ({settings.accumulate}) "
            f"times the workers ({workers})"
        )


class Training:
    """A run in progress. Iterate `evaluations()`, and call `save()` at any of them.

    Under torch.distributed each worker makes one instance and takes its share of every batch. All workers end with the
    weights that one worker alone would have.

    Args:
        recipe: what to train, and how.
        data: the loaded data of the recipe.
        resume_from: a checkpoint of the same run to continue from, bit for bit on a CPU.
        start: the folder of the recipe's `init_from`, if the caller has found it already.
        parent: the sweep and trial of the run, for the checkpoint's run.json.
        device: by default a GPU if there is one.
        shares_machine: other runs load the device at the same time, so its peak cannot be measured.

    Raises:
        InputError: the checkpoint is damaged or has another text, or the workers cannot share the batch evenly.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: TrainingData,
        resume_from: Path | None = None,
        parent: str | None = None,
        start: Path | None = None,
        device: torch.device | None = None,
        shares_machine: bool = False,
    ):
        self.recipe, self.data, self.parent, self.shares_machine = recipe, data, parent, shares_machine
        self.rank: int = dist.get_rank() if dist.is_initialized() else 0
        self.workers: int = dist.get_world_size() if dist.is_initialized() else 1
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        settings = recipe.training
        check_shares(recipe, self.workers)
        self.batches = data.batches(settings.batch_size, recipe.model.context, recipe.seed)
        self.step = 0
        self.stopping = False
        self.on_step: Callable[[], None] = lambda: None
        """Called after every step, for a progress bar."""
        self.history: list[Evaluation] = []
        self.losses: list[Tensor] = []
        """Losses of the steps since the last evaluation."""
        self.tokens = 0
        """Training tokens of all workers since the last evaluation."""
        self.flops_per_token = 0.0
        self.start = start or find_start(recipe)
        self.start_sha256 = weights_sha256(self.start)
        state = None
        if resume_from is not None:
            check_same_data(resume_from, data)
            state = load_training_state(resume_from)
        self.model = self.make_model(resume_from, state).to(self.device)
        self.optimizers = make_optimizers(self.model, settings)
        self.runner = self.make_runner()
        torch.manual_seed(recipe.seed + self.rank)  # for dropout: each worker has its own rows
        if resume_from is not None and state is not None:
            self.history = read_history(resume_from)
            self.restore(state)

    def make_model(self, resume_from: Path | None, state: dict[str, Any] | None) -> Any:
        """Return a PreTrainedModel, or a PeftModel around one."""
        if self.recipe.lora is not None:
            if resume_from is not None and read_run(resume_from).get("start_sha256") != self.start_sha256:
                raise InputError(
                    f"{self.recipe.init_from} is not the model any more that the adapters in {resume_from} were "
                    "trained on: restore that model, or start a new run"
                )
            model = make_model(self.recipe, self.data.tokenizer, self.data.reply_stops, self.start)
            adapted = with_adapters(model, self.recipe.lora, self.recipe.init_from)
            if state is not None:
                from peft import set_peft_model_state_dict

                set_peft_model_state_dict(adapted, state["adapters"])
            return adapted
        if resume_from is not None:
            return load_checkpoint(resume_from)[0]
        return make_model(self.recipe, self.data.tokenizer, self.data.reply_stops, self.start)

    def make_runner(self) -> torch.nn.Module:
        """Return the model for a training step: compiled, with gradients averaged over the workers."""
        runner: Any = self.model
        if self.recipe.training.compile:
            runner = torch.compile(runner)
        if self.workers > 1:
            runner = DistributedDataParallel(runner)
        return runner

    def evaluations(self) -> Iterator[Evaluation]:
        """Train to the last step and yield each evaluation. After `stop()` the iterator ends early, between two steps.

        Raises:
            InputError: the loss became infinite or NaN; earlier checkpoints stay unchanged.
        """
        settings = self.recipe.training
        started = mark = time.perf_counter()
        self.model.train()
        while self.step < settings.steps and not self.must_stop_early():
            if self.is_to_stop():
                return
            self.losses.append(self.take_step())
            self.on_step()
            if self.step % settings.evaluate_every and self.step < settings.steps:
                continue
            train_loss = self.mean_train_loss()
            seconds = time.perf_counter() - mark
            yield self.evaluate(train_loss, seconds, started)
            self.tokens, mark = 0, time.perf_counter()

    def stop(self) -> None:
        self.stopping = True

    def is_to_stop(self) -> bool:
        """Return whether any worker called `stop()`: all workers must end after the same step."""
        if self.workers == 1:
            return self.stopping
        if self.step % STEPS_BETWEEN_STOP_CHECKS:
            return False
        stopping = torch.tensor(float(self.stopping), device=self.device)
        dist.all_reduce(stopping, dist.ReduceOp.MAX)
        self.stopping = bool(stopping)
        return self.stopping

    def must_stop_early(self) -> bool:
        return must_stop_early(self.selection_losses(), self.recipe.training.patience)

    def selection_losses(self) -> list[float]:
        return [evaluation.selection_loss for evaluation in self.history]

    def best_index(self) -> int:
        """Return the index of the best evaluation, the first of equals."""
        return index_of_least(self.selection_losses())

    def is_best(self) -> bool:
        """Return whether the last evaluation is better than all before."""
        return self.best_index() == len(self.history) - 1

    def take_step(self) -> Tensor:
        """Take one step; return this worker's share of its loss in nats per token, still on the device."""
        settings = self.recipe.training
        inputs_bt, labels_bt = self.batches.draw()
        count = max(1, int((labels_bt != IGNORED).sum()))
        self.tokens += inputs_bt.numel()
        if not self.flops_per_token:
            self.flops_per_token = training_flops(self.model, inputs_bt.shape[1])
        mine = slice(self.rank, None, self.workers)
        parts = list(
            zip(inputs_bt[mine].chunk(settings.accumulate), labels_bt[mine].chunk(settings.accumulate), strict=True)
        )
        total = torch.zeros((), device=self.device)
        for number, (part_bt, part_labels_bt) in enumerate(parts, 1):
            with self.precision(), self.gradients_shared(number == len(parts)):
                loss = loss_sum(self.runner, part_bt.to(self.device), part_labels_bt.to(self.device)) / count
                (loss * self.workers).backward()  # DistributedDataParallel takes the mean over workers
            total += loss.detach()
        clip_grad_norm_(self.model.parameters(), settings.gradient_clip)
        set_rates(self.optimizers, self.step, settings)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return total

    def precision(self) -> Any:
        if self.recipe.training.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def gradients_shared(self, is_last_part: bool) -> Any:
        """Exchange the gradients between workers once per step, with its last part."""
        if isinstance(self.runner, DistributedDataParallel) and not is_last_part:
            return self.runner.no_sync()
        return nullcontext()

    def mean_train_loss(self) -> float:
        losses = torch.stack(self.losses)
        if self.workers > 1:
            dist.all_reduce(losses)
        self.losses = []
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            self.raise_diverged(losses[bad[0]].item(), self.step - len(losses) + int(bad[0]) + 1)
        return losses.mean().item()

    def raise_diverged(self, loss: float, step: int) -> None:
        settings = self.recipe.training
        raise InputError(
            f"the loss became {loss} at step {step}, at a learning rate of "
            f"{learning_rate_at(step - 1, settings):g}; the last checkpoint is untouched: lower "
            f"training.learning_rate ({settings.learning_rate:g}) or lengthen training.warmup_steps "
            f"({settings.warmup_steps})"
        )

    def evaluate(self, train_loss: float, seconds: float, started: float) -> Evaluation:
        settings, context = self.recipe.training, self.recipe.model.context
        windows = settings.evaluation_windows
        selection_loss = loss = self.of_first_worker(mean_loss(self.model, self.data.validation(context, windows)))
        losses = [*self.selection_losses(), selection_loss]
        is_last = self.step == settings.steps or must_stop_early(losses, settings.patience)
        if is_last and windows is not None:
            loss = self.of_first_worker(mean_loss(self.model, self.data.validation(context, None)))
        if not math.isfinite(loss):
            self.raise_diverged(loss, self.step)
        exact_match = None
        if isinstance(self.data, Sorting):
            exact_match = self.data.exact_match(self.model, None if is_last else windows)
        tokens_per_second = self.tokens / seconds
        evaluation = Evaluation(
            step=self.step,
            train_loss=train_loss,
            validation_loss=loss,
            selection_loss=selection_loss,
            nats_per_character=loss / self.data.characters_per_token,
            learning_rate=learning_rate_at(self.step - 1, settings),
            tokens_per_second=tokens_per_second,
            flops_utilization=self.flops_utilization(tokens_per_second),
            peak_memory_mib=peak_memory(self.device),
            seconds=time.perf_counter() - started,
            exact_match=exact_match,
        )
        self.history.append(evaluation)
        return evaluation

    def flops_utilization(self, tokens_per_second: float) -> float | None:
        if self.shares_machine:
            return None
        dtype = torch.bfloat16 if self.recipe.training.precision == "bfloat16" else torch.float32
        return tokens_per_second * self.flops_per_token / self.workers / peak_flops(self.device, dtype)

    def of_first_worker(self, loss: float) -> float:
        """Return the first worker's loss: with different rounding, one worker might stop while the others wait."""
        if self.workers == 1:
            return loss
        shared = torch.tensor(loss, dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return shared.item()

    def save(self, folder: Path) -> None:
        """Write a checkpoint that `resume_from` accepts and `AutoModelForCausalLM` reads, with the adapters merged and
        the adapters alone."""
        state = {
            "step": self.step,
            "losses": self.losses,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "batches": self.batches.state_dict(),
            "generator": torch.get_rng_state(),
            "cuda_generator": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
        }
        whole: PreTrainedModel = self.model
        adapter = None
        if self.recipe.lora is not None:
            from peft import get_peft_model_state_dict

            state["adapters"] = get_peft_model_state_dict(self.model, save_embedding_layers=False)
            adapter = self.model.peft_config["default"]
            whole = merged(self.model)
        run = {
            "recipe": self.recipe.model_dump(mode="json"),
            "corpus": {"source": self.data.source, "sha256": self.data.sha256},
            "tokenizer_sha256": tokenizer_sha256(self.data.tokenizer),
            "parameters": whole.num_parameters(),
            "metrics": asdict(self.history[-1]) if self.history else {},
            "history": [asdict(evaluation) for evaluation in self.history],
            "parent": self.parent,
            "start_sha256": self.start_sha256,
        }
        save_checkpoint(folder, whole, self.data.tokenizer, state, run, adapter)

    def restore(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.batches.load_state_dict(state["batches"])
        for optimizer, optimizer_state in zip(self.optimizers, state["optimizers"], strict=True):
            chosen = [{name: group[name] for name in ("peak", "weight_decay")} for group in optimizer.param_groups]
            optimizer.load_state_dict(optimizer_state)
            for group, choices in zip(optimizer.param_groups, chosen, strict=True):
                group.update(choices)  # a population continues with other values than the checkpoint's
        if self.rank:  # the checkpoint has the first worker's state
            self.losses = [torch.zeros_like(loss, device=self.device) for loss in state["losses"]]
            torch.manual_seed(self.recipe.seed + self.rank + self.workers * self.step)
            return
        self.losses = [loss.to(self.device) for loss in state["losses"]]
        torch.set_rng_state(state["generator"])
        if self.device.type == "cuda" and state["cuda_generator"] is not None:
            torch.cuda.set_rng_state(state["cuda_generator"])


def must_stop_early(losses: list[float], patience: int | None) -> bool:
    """Return whether the last `patience` evaluations are all no better than an earlier one."""
    return bool(patience and losses and len(losses) - 1 - index_of_least(losses) >= patience)


def index_of_least(losses: list[float]) -> int:
    """Return the index of the least loss, the first of equals."""
    return losses.index(min(losses))
