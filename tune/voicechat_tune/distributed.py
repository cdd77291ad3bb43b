"""One run on several workers: the training loop under Ray Train, gradients averaged over gloo or nccl."""

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import torch
from ray import train
from ray.train.torch import TorchConfig, TorchTrainer

from voicechat_platform.checkpoints import read_run
from voicechat_platform.cluster import start_ray, stop_ray
from voicechat_platform.corpora.batches import TrainingData
from voicechat_platform.errors import InputError
from voicechat_platform.settings import settings
from voicechat_platform.training.loop import Evaluation, Training, check_shares
from voicechat_platform.training.recipe import Recipe
from voicechat_platform.training.run_folder import RunFolder
from voicechat_platform.training.starting_point import find_start


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
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={
                "recipe": recipe.model_dump(mode="json"),
                "data": ray.put(data),
                "folder": str(folder),
                "resume_from": str(resume_from) if resume_from else None,
                "start": str(start) if start else None,
                "use_gpu": use_gpu,
            },
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=train.ScalingConfig(
                num_workers=workers, use_gpu=use_gpu, resources_per_worker={"GPU": 1} if use_gpu else {"CPU": 1}
            ),
            run_config=train.RunConfig(name=".ray-train", storage_path=str(folder)),
        )
        with followed(RunFolder(folder), resume_from, on_evaluation):
            trainer.fit()
    except SystemExit:  # what Ray Train makes of Ctrl-C
        raise KeyboardInterrupt from None
    except train.v2.api.exceptions.WorkerGroupError as error:
        for failure in error.worker_failures.values():
            cause = getattr(failure, "cause", failure)
            if isinstance(cause, InputError):
                raise cause from None
        raise
    finally:
        signal.signal(signal.SIGINT, interrupt)  # Ray Train leaves one of its own behind
        stop_ray()
        shutil.rmtree(folder / ".ray-train", ignore_errors=True)  # its notes on a run that is over


def train_worker(config: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    if not config["use_gpu"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray hides no GPU from who asked for none
    recipe = Recipe.model_validate(config["recipe"])
    resume_from = Path(config["resume_from"]) if config["resume_from"] else None
    start = Path(config["start"]) if config["start"] else None
    training = Training(recipe, ray.get(config["data"]), resume_from, start=start)
    for evaluation in RunFolder(Path(config["folder"])).train(training):
        train.report(asdict(evaluation))


@contextmanager
def followed(run: RunFolder, resume_from: Path | None, on_evaluation: Callable[[Evaluation], None]) -> Iterator[None]:
    """Tells of each evaluation once its checkpoint lies in the folder: Ray Train gives the driver no reports."""
    ended = threading.Event()
    seen = len(read_run(resume_from)["history"]) if resume_from else 0

    def tell() -> None:
        nonlocal seen
        if (run.last / "run.json").exists():
            history = read_run(run.last)["history"]
            for evaluation in history[seen:]:
                on_evaluation(Evaluation(**evaluation))
            seen = len(history)

    def follow() -> None:
        while not ended.wait(1):
            try:
                tell()
            except InputError:
                continue  # it is just being replaced

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    tell()
