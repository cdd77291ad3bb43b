"""One trial: the training loop inside a Ray Tune process, reporting and checkpointing at every evaluation."""

import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from ray import tune

from voicechat_platform.corpora.batches import TrainingData
from voicechat_platform.training.loop import Training
from voicechat_tune.sweep_file import SweepFile


def run_trial(point: dict[str, Any], sweep: SweepFile, data: TrainingData, start: Path | None = None) -> None:
    """Train at a point of the search space; goes on from the trial's own last checkpoint if it has one.

    Args:
        point: dotted recipe fields and their values.
        sweep: the sweep it belongs to.
        start: the folder of the pretrained model, if the sweep fine-tunes one.
        data: shared by all trials through Ray's object store.
    """
    torch.set_num_threads(max(1, int(sweep.cpus_per_trial)))
    parent = f"{sweep.name}/{tune.get_context().get_trial_id()}"
    with ExitStack() as stack:
        earlier = tune.get_checkpoint()
        resume_from = Path(stack.enter_context(earlier.as_directory())) if earlier else None
        training = Training(sweep.recipe_for(point), data, resume_from, parent, start)
    for evaluation in training.evaluations():
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "checkpoint"
            training.save(checkpoint)
            tune.report(asdict(evaluation), checkpoint=tune.Checkpoint.from_directory(str(checkpoint)))
