"""The folder of a run: the last checkpoint, the one before it, and the best one.

If the last checkpoint is damaged, the run continues from the one before it.
"""

import json
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from voicechat_platform.checkpoint_files import check_is_whole, read_run, recover
from voicechat_platform.checkpoints import load_checkpoint
from voicechat_platform.corpora.batches import TrainingData
from voicechat_platform.corpora.sorting import Sorting
from voicechat_platform.errors import InputError
from voicechat_platform.training.evaluation import mean_loss
from voicechat_platform.training.history import Evaluation, read_history
from voicechat_platform.training.loop import Training
from voicechat_platform.training.recipe import Recipe, read_recipe

log = logging.getLogger(__name__)


class RunFolder:
    def __init__(self, folder: Path):
        self.folder = folder
        self.last, self.previous, self.best = (folder / name for name in ("last", "previous", "best"))

    def holds_a_run(self) -> bool:
        for checkpoint in (self.last, self.previous, self.best):
            recover(checkpoint)
        return self.last.exists() or self.previous.exists()

    def resume_from(self, recipe: Recipe) -> Path:
        """Return the newest complete checkpoint.

        Raises:
            InputError: there is none, or it has another recipe.
        """
        checkpoint = self.newest_whole()
        if checkpoint is None:
            raise InputError(f"{self.folder} holds no complete checkpoint to resume from; leave --resume away")
        if read_recipe(checkpoint) != recipe:
            raise InputError(f"the recipe differs from that of the run in {self.folder}: choose another --out")
        return checkpoint

    def newest_whole(self) -> Path | None:
        """Return the newest complete checkpoint, and set damaged ones aside."""
        for checkpoint in (self.last, self.previous):
            recover(checkpoint)
            if not checkpoint.exists():
                continue
            try:
                check_is_whole(checkpoint)
                read_history(checkpoint)
            except InputError as error:
                log.warning("%s; it is set aside, and the run continues from the checkpoint before it", error)
                self.set_aside(checkpoint)
                continue
            return checkpoint
        return None

    def of_recipe(self, recipe: Recipe) -> Path | None:
        """Return the newest complete checkpoint for a sweep that resumes, or None for a new run.

        If the folder holds a run of another recipe, set it aside: after a loss of the sweep's journal, the sweep may
        draw another trial with this number.
        """
        checkpoint = self.newest_whole() if self.holds_a_run() else None
        try:
            if checkpoint is None or read_recipe(checkpoint) == recipe:
                return checkpoint
            log.warning("%s is of another recipe; it is set aside, and the run starts again", checkpoint)
        except InputError as error:
            log.warning("%s; it is set aside, and the run starts again", error)
        for other in (self.last, self.previous, self.best):
            if other.exists():
                self.set_aside(other)
        return None

    def set_aside(self, checkpoint: Path) -> None:
        checkpoint.rename(self.folder / f"damaged-{time.time_ns()}")

    def train(self, training: Training) -> Iterator[Evaluation]:
        """Train to the end, or to `training.stop()`, and save checkpoints; one worker writes them."""
        for evaluation in training.evaluations():
            if training.rank == 0:
                # Write the best one first: after a kill between the two, the run could not reconstruct it.
                if training.is_best():
                    training.save(self.best)
                self.save_checkpoints(training)
            yield evaluation
        if training.stopping and training.rank == 0:
            self.save_checkpoints(training)

    def save_checkpoints(self, training: Training) -> None:
        recover(self.last)
        if self.last.exists():
            shutil.rmtree(self.previous, ignore_errors=True)
            self.last.rename(self.previous)
        training.save(self.last)

    def finish(self, data: TrainingData) -> Path:
        """Return the best checkpoint with its loss over the whole validation part."""
        run = read_run(self.best)
        metrics, recipe = run["metrics"], read_recipe(self.best)
        if metrics["step"] < recipe.training.steps:  # only the last evaluation reads the whole part
            model, _ = load_checkpoint(self.best)
            loss = mean_loss(model, data.validation(recipe.model.context, None))
            metrics |= {"validation_loss": loss, "nats_per_character": loss / data.characters_per_token}
            if isinstance(data, Sorting):
                metrics["exact_match"] = data.exact_match(model)
            whole = self.best / ".run.json"
            whole.write_text(json.dumps(run, indent=2) + "\n")
            whole.replace(self.best / "run.json")
        return self.best
