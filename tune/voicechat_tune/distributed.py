"""One run on several workers: the training loop under Ray Train, gradients averaged over gloo or nccl."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")

import ray
import torch
from ray import train
from ray.train.torch import TorchConfig, TorchTrainer

from voicechat_platform.cluster import start_ray, stop_ray
from voicechat_platform.corpora.batches import TrainingData
from voicechat_platform.errors import InputError
from voicechat_platform.settings import settings
from voicechat_platform.training.loop import Training
from voicechat_platform.training.recipe import Recipe
from voicechat_platform.training.run_folder import RunFolder


def train_on_workers(recipe: Recipe, data: TrainingData, folder: Path, resume_from: Path | None, workers: int) -> None:
    """Train as one process would, the batch shared by the workers; checkpoints go to the run's folder.

    Args:
        folder: the run's; on a cluster one that every machine shares.
        workers: processes, each with one CPU core, or one GPU where the cluster has GPUs.

    Raises:
        InputError: the batch cannot be shared evenly, Ray has too few CPUs or GPUs, or the loss became no number.
    """
    parts = recipe.training.accumulate * workers
    if recipe.training.batch_size % parts:
        raise InputError(
            f"training.batch_size ({recipe.training.batch_size}) must be a multiple of accumulate "
            f"({recipe.training.accumulate}) times the workers ({workers})"
        )
    start_ray()
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
                "threads": max(1, int(has.get("CPU", 1)) // workers) if not use_gpu else 1,
            },
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=train.ScalingConfig(
                num_workers=workers,
                use_gpu=use_gpu,
                # A driver without a resource of its own would take a CPU from the workers.
                resources_per_worker={"GPU": 1} if use_gpu else {"CPU": 1},
            ),
            run_config=train.RunConfig(name=f"{folder.name}-workers", storage_path=str(folder.parent.absolute())),
        )
        trainer.fit()
    except train.v2.api.exceptions.WorkerGroupError as error:
        for failure in error.worker_failures.values():
            cause = getattr(failure, "cause", failure)
            if isinstance(cause, InputError):
                raise cause from None
        raise
    finally:
        stop_ray()


def train_worker(config: dict[str, Any]) -> None:
    torch.set_num_threads(config["threads"])
    recipe = Recipe.model_validate(config["recipe"])
    resume_from = Path(config["resume_from"]) if config["resume_from"] else None
    training = Training(recipe, ray.get(config["data"]), resume_from)
    for evaluation in RunFolder(Path(config["folder"])).train(training):
        if training.rank == 0:
            print(f"step {evaluation.step}/{recipe.training.steps}: {evaluation}", flush=True)
        train.report(asdict(evaluation))
