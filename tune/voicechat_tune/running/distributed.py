"""One run on several workers: the training loop under Ray Train, gradients averaged over gloo or nccl."""

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import torch
from ray import train
from ray.train.torch import TorchConfig, TorchTrainer

from voicechat_platform.cluster import start_ray, stop_ray
from voicechat_platform.corpora.batches import TrainingData
from voicechat_platform.errors import InputError
from voicechat_platform.settings import settings
from voicechat_platform.training.history import Evaluation, read_history
from voicechat_platform.training.loop import Training, check_shares
from voicechat_platform.training.recipe import Recipe
from voicechat_platform.training.run_folder import RunFolder
from voicechat_platform.training.starting_point import find_start
from voicechat_tune.running.preemption import Preempted, stopping_on_notice
from voicechat_tune.search.sweep_file import SweepFile

log = logging.getLogger(__name__)


def train_on_workers(
    recipe: Recipe,
    data: TrainingData,
    folder: Path,
    resume_from: Path | None,
    workers: int,
    on_evaluation: Callable[[Evaluation], None],
) -> None:
    """Train as one process would, the batch shared by the workers; the first of them keeps checkpoints in the folder.

    Args:
        folder: the run's, absolute; on a cluster one that every machine shares.
        workers: processes, each with one CPU core, or one GPU where there are enough.
        on_evaluation: called at each, from a thread.

    Raises:
        InputError: the batch cannot be shared evenly, Ray has too few CPUs, or the loss became no number.
    """
    check_shares(recipe, workers)
    start = find_start(recipe)
    start_ray()
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        has = ray.cluster_resources()
        use_gpu = has.get("GPU", 0) >= workers
        if not use_gpu and settings().ray_address == "local" and has.get("CPU", 0) < workers:
            raise InputError(f"{workers} workers need as many CPUs; Ray has {has.get('CPU', 0):g}: ask for fewer")
        with followed(RunFolder(folder), resume_from, on_evaluation):
            fit(recipe, data, folder, resume_from, start, workers, {"GPU": 1} if use_gpu else {"CPU": 1})
    except SystemExit:  # what Ray Train makes of Ctrl-C
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, interrupt)  # Ray Train leaves one of its own behind
        stop_ray()


def train_in_trial(
    recipe: Recipe, data: TrainingData, folder: Path, resume_from: Path | None, start: Path | None, sweep: SweepFile
) -> Iterator[Evaluation]:
    """The same inside a sweep's trial, whose process only waits: yields each evaluation once it is in the folder.

    Raises:
        InputError: as `train_on_workers`.
    """
    run, seen = RunFolder(folder), len(read_history(resume_from)) if resume_from else 0
    resources = {"CPU": sweep.cpus_per_trial, "GPU": sweep.gpus_per_trial}
    problems: list[BaseException] = []

    def work() -> None:
        try:
            fit(recipe, data, folder, resume_from, start, sweep.workers_per_trial, resources)
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while True:
        is_over = not thread.is_alive()
        fresh = evaluations_after(run, seen, is_over and not problems)
        seen += len(fresh)
        yield from fresh
        if is_over:
            break
        time.sleep(0.5)
    if problems:
        raise problems[0]


def fit(
    recipe: Recipe,
    data: TrainingData,
    folder: Path,
    resume_from: Path | None,
    start: Path | None,
    workers: int,
    resources: dict[str, float],
) -> None:
    use_gpu = bool(resources.get("GPU"))
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "recipe": recipe.model_dump(mode="json"),
            "data": ray.put(data),
            "folder": str(folder),
            "resume_from": str(resume_from) if resume_from else None,
            "start": str(start) if start else None,
            "use_gpu": use_gpu,
            "shares_machine": resources.get("GPU", 0) < 1,
        },
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=train.ScalingConfig(num_workers=workers, use_gpu=use_gpu, resources_per_worker=resources),
        run_config=train.RunConfig(name=".ray-train", storage_path=str(folder)),
    )
    try:
        trainer.fit()
    except train.v2.api.exceptions.WorkerGroupError as error:
        for failure in error.worker_failures.values():
            cause = getattr(failure, "cause", failure)
            if isinstance(cause, InputError | Preempted):
                raise cause from None
        raise
    finally:
        shutil.rmtree(folder / ".ray-train", ignore_errors=True)  # its notes on a run that is over


def train_worker(config: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    if not config["use_gpu"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray hides no GPU from who asked for none
    recipe = Recipe.model_validate(config["recipe"])
    resume_from = Path(config["resume_from"]) if config["resume_from"] else None
    start = Path(config["start"]) if config["start"] else None
    training = Training(
        recipe, ray.get(config["data"]), resume_from, start=start, shares_machine=config["shares_machine"]
    )
    with stopping_on_notice(training):
        for evaluation in RunFolder(Path(config["folder"])).train(training):
            train.report(asdict(evaluation))
    if training.stopping and training.step < recipe.training.steps:
        raise Preempted("a worker's machine is about to be taken away")


@contextmanager
def followed(run: RunFolder, resume_from: Path | None, on_evaluation: Callable[[Evaluation], None]) -> Iterator[None]:
    """Tells of each evaluation once its checkpoint lies in the folder: Ray Train gives the driver no reports."""
    ended = threading.Event()
    seen = len(read_history(resume_from)) if resume_from else 0

    def forward(is_over: bool) -> None:
        nonlocal seen
        fresh = evaluations_after(run, seen, is_over)
        seen += len(fresh)
        for evaluation in fresh:
            on_evaluation(evaluation)

    def follow() -> None:
        while not ended.wait(1):
            forward(is_over=False)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    forward(is_over=True)


def evaluations_after(run: RunFolder, seen: int, is_over: bool) -> list[Evaluation]:
    """Those in the run's last checkpoint that come after so many.

    Raises:
        InputError: the checkpoint is damaged, and the run, which might be just replacing it, is over.
    """
    if not (run.last / "run.json").exists():
        return []
    try:
        return read_history(run.last)[seen:]
    except InputError:
        if is_over:
            raise
        log.debug("a checkpoint is just being replaced", exc_info=True)
        return []
