"""One run on several workers: the training loop with Ray Train, gradients averaged over gloo or nccl."""

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
    """Train with the same result as one process. The workers share each batch; the first one writes checkpoints.

    Args:
        folder: the run's folder, absolute; on a cluster all machines must share it.
        workers: the number of processes, each with one CPU core, or with one GPU if there are enough.
        on_evaluation: called for each evaluation, from a thread.

    Raises:
        InputError: the workers cannot share a batch evenly, Ray has too few CPUs, or the loss became nan or infinite.
    """
    check_shares(recipe, workers)
    start = find_start(recipe)
    start_ray()
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        has = ray.cluster_resources()
        use_gpu = has.get("GPU", 0) >= workers
        if not use_gpu and settings().ray_address == "local" and has.get("CPU", 0) < workers:
            raise InputError(
                f"{workers} workers need {workers} CPUs, but Ray has {has.get('CPU', 0):g}: give fewer workers"
            )
        with followed(RunFolder(folder), resume_from, on_evaluation):
            fit(recipe, data, folder, resume_from, start, workers, {"GPU": 1} if use_gpu else {"CPU": 1})
    except SystemExit:  # Ray Train raises this after Ctrl-C
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, interrupt)  # Ray Train does not restore the handler
        stop_ray()


def train_in_trial(
    recipe: Recipe, data: TrainingData, folder: Path, resume_from: Path | None, start: Path | None, sweep: SweepFile
) -> Iterator[Evaluation]:
    """Train on workers inside a sweep's trial; yield each evaluation after its checkpoint is in the folder.

    The trial's own process only waits.

    Raises:
        InputError: as in `train_on_workers`.
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
        shutil.rmtree(folder / ".ray-train", ignore_errors=True)  # Ray Train's files, not needed any more


def train_worker(config: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    if not config["use_gpu"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # without a request for a GPU, Ray hides none
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
        raise Preempted("a worker's machine is about to be preempted")


@contextmanager
def followed(run: RunFolder, resume_from: Path | None, on_evaluation: Callable[[Evaluation], None]) -> Iterator[None]:
    """Call `on_evaluation` after each checkpoint in the folder, because Ray Train sends the driver no reports."""
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
    """Return the evaluations of the run's last checkpoint, without the first `seen`.

    Raises:
        InputError: the checkpoint is damaged, and the run is over. An active run may be about to replace it.
    """
    if not (run.last / "run.json").exists():
        return []
    try:
        return read_history(run.last)[seen:]
    except InputError:
        if is_over:
            raise
        log.debug("the run is replacing a checkpoint now", exc_info=True)
        return []
