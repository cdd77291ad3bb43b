"""One run of a sweep: the training loop in a Ray Tune process, or with Ray Train if the run has several workers.

Each run has a folder for its checkpoints. So after an interruption it can continue on any machine. It then sends all
its evaluations again, because the driver may not have received the last ones.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from voicechat_platform.checkpoint_files import read_run
from voicechat_platform.checkpoints import load_checkpoint
from voicechat_platform.corpora.batches import TrainingData
from voicechat_platform.corpora.corpus import Corpus
from voicechat_platform.corpora.dialogue import Dialogue
from voicechat_platform.errors import InputError
from voicechat_platform.training.calls_evaluation import evaluate_calls, spread, turns_of
from voicechat_platform.training.evaluation import mean_loss
from voicechat_platform.training.history import Evaluation, read_history
from voicechat_platform.training.loop import Training
from voicechat_platform.training.recipe import Recipe
from voicechat_platform.training.run_folder import RunFolder
from voicechat_platform.training.throughput import cache_bytes_per_token, non_embedding_parameters, training_flops
from voicechat_tune.running.disk import is_disk_full
from voicechat_tune.running.messages import DiskFull, RunEnded, send
from voicechat_tune.running.preemption import Preempted, stopping_on_notice
from voicechat_tune.running.run_files import RunFiles
from voicechat_tune.search.sweep_file import SweepFile
from voicechat_tune.search.trials import RunKey

log = logging.getLogger(__name__)

MOST_TURNS = 200
"""The turns with calls over which a trial's calls are counted."""


def run_trial(config: dict[str, Any], sweep: SweepFile, folder: Path, data: TrainingData, start: Path | None) -> None:
    """Train one run to its end, or to the end of its interval, and report each evaluation.

    Args:
        config: the result of `DrivenSearch.suggest`.
        folder: the sweep's folder.
        data: shared by all runs through Ray's object store.
        start: the folder of the pretrained model, if the sweep fine-tunes one.
    """
    key = RunKey(config["trial"], config["seed_index"])
    try:
        with RunFiles(sweep, folder, key) as files, logged(files.folder / "log.txt"):
            facts = train(config, sweep, files, data, start)
        send(RunEnded("finished", facts=facts))
    except InputError as error:  # another attempt would have the same error
        send(RunEnded("failed", str(error)))
    except Exception as error:
        if not is_disk_full(error, folder):
            raise
        send(DiskFull(f"the disk is full at {folder}: free some space"))


def train(
    config: dict[str, Any], sweep: SweepFile, files: "RunFiles", data: TrainingData, start: Path | None
) -> dict[str, float]:
    """Train, and return the facts about the best checkpoint and its model."""
    recipe = sweep.recipe_for(config["point"], config["seed_index"])
    run, until = RunFolder(files.folder), config["until"]
    resume_from = run.of_recipe(recipe)
    known = read_history(resume_from) if resume_from else []
    begins_at = 0
    if config["parent"]:
        parent = files.fetch_parent(config["parent"])
        begins_at = read_run(parent)["metrics"]["step"]
        resume_from = resume_from or parent
    for evaluation in known:
        if evaluation.step > begins_at:
            send_evaluation(evaluation)
    if sweep.workers_per_trial == 1:
        torch.set_num_threads(sweep.threads())
        if not sweep.gpus_per_trial:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # without a request for a GPU, Ray hides none
        reset_peak_memory()
        belongs_to = f"{sweep.name}/{files.key}"
        training = Training(recipe, data, resume_from, belongs_to, start, shares_machine=sweep.runs_share_machine())
        if training.step:
            log.info("the run continues from step %d", training.step)
        if until is not None and training.step >= until:
            training.stop()
        with stopping_on_notice(training):
            for evaluation in run.train(training):
                files.put()
                if until is not None and evaluation.step >= until:
                    training.stop()
                send_evaluation(evaluation)
        if training.stopping and (until is None or training.step < until):
            files.put()
            raise Preempted("its machine is about to be preempted")
    else:
        from voicechat_tune.running.distributed import train_in_trial

        try:
            for evaluation in train_in_trial(recipe, data, run.folder, resume_from, start, sweep):
                files.put()
                send_evaluation(evaluation)
        except Preempted:
            files.put()
            raise
    is_whole = until is None or until >= recipe.training.steps
    facts = facts_of(recipe, run, data, is_whole)
    if is_whole and sweep.wants_calls() and isinstance(data, Dialogue):
        facts |= calls_of(run.best, data)
    files.put()
    return facts


def facts_of(recipe: Recipe, run: RunFolder, data: TrainingData, is_whole: bool) -> dict[str, float]:
    """Return the losses of the best checkpoint (for an interval: of the last one), and its model's size and cost."""
    checkpoint = run.finish(data) if is_whole and run.best.exists() else run.last
    model, _ = load_checkpoint(checkpoint)
    metrics = read_run(checkpoint)["metrics"]
    speeds = [evaluation.tokens_per_second for evaluation in read_history(run.last)]
    facts = {
        "validation_loss": metrics["validation_loss"],
        "nats_per_character": metrics["nats_per_character"],
        "best_step": metrics["step"],
        "parameters": model.num_parameters(),
        "non_embedding_parameters": non_embedding_parameters(model),
        "flops_per_token": training_flops(model, recipe.model.context),
        "cache_bytes_per_token": cache_bytes_per_token(model.config),
        "tokens_per_second": sorted(speeds)[len(speeds) // 2],
        "peak_memory_mib": metrics["peak_memory_mib"],
    }
    if is_whole and isinstance(data, Corpus) and len(data.test_tokens):
        facts["test_loss"] = mean_loss(model, data.test(recipe.model.context))
    return facts


def calls_of(checkpoint: Path, data: Dialogue) -> dict[str, float]:
    """Return the shares of valid and right calls over the validation part, or over many turns of it.

    Raises:
        InputError: the validation part has no call.
    """
    model, tokenizer = load_checkpoint(checkpoint)
    turns = [turn for turn in turns_of(data.held_out) if turn.expected]
    if not turns:
        raise InputError(f"the validation part of {data.source} has no call: take valid_calls and right_calls out")
    shares = evaluate_calls(model, tokenizer, spread(turns, MOST_TURNS))
    return {name: shares[name] for name in ("valid_calls", "right_calls")}


def send_evaluation(evaluation: Evaluation) -> None:
    log.info(
        "step %d: validation %.4f, training %.4f nats/token, %.0f tokens/s",
        evaluation.step, evaluation.validation_loss, evaluation.train_loss, evaluation.tokens_per_second,
    )  # fmt: skip
    send(evaluation)


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Also write our packages' log lines, and an error that ends the run, into the run's log file."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    ours = [logging.getLogger(name) for name in ("voicechat_platform", "voicechat_tune")]
    for logger in ours:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        log.info("the run begins")
        yield
    except Exception:
        log.exception("the run was interrupted by an error")
        raise
    finally:
        for logger in ours:
            logger.removeHandler(handler)
        handler.close()


def reset_peak_memory() -> None:
    """Reset the memory peak of a process that may have trained another run before."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        log.debug("the peak includes earlier runs of this process: /proc/self/clear_refs cannot be written")
