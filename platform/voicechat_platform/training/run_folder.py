"""A run's folder: the last checkpoint, the one before it, and the best one.

The one before is what a run goes on from when the last is found damaged.
"""

import json
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from voicechat_platform.checkpoints import check_is_whole, load_checkpoint, read_run, recover
from voicechat_platform.corpora.batches import TrainingData
from voicechat_platform.corpora.sorting import Sorting
from voicechat_platform.errors import InputError
from voicechat_platform.training.evaluation import mean_loss
from voicechat_platform.training.loop import Evaluation, Training
from voicechat_platform.training.recipe import Recipe

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
        """The newest checkpoint that is whole.

        Raises:
            InputError: there is none, or it is of another recipe.
        """
        for checkpoint in (self.last, self.previous):
            recover(checkpoint)
            if not checkpoint.exists():
                continue
            try:
                check_is_whole(checkpoint)
                run = read_run(checkpoint)
            except InputError as error:
                log.warning("%s; it is set aside, and the run goes on from the checkpoint before it", error)
                checkpoint.rename(self.folder / f"damaged-{time.time_ns()}")
                continue
            if Recipe.model_validate(run["recipe"]) != recipe:
                raise InputError(f"the recipe differs from that of the run in {self.folder}: choose another --out")
            return checkpoint
        raise InputError(f"{self.folder} holds no checkpoint to resume from that is whole; leave --resume away")

    def train(self, training: Training) -> Iterator[Evaluation]:
        """Train to the end, or to `training.stop()`, keeping checkpoints; one worker writes them."""
        for evaluation in training.evaluations():
            if training.rank == 0:
                # The best first: were the run killed between the two, it would not find that out again.
                if training.is_best():
                    training.save(self.best)
                self.keep(training)
            yield evaluation
        if training.stopping and training.rank == 0:
            self.keep(training)

    def keep(self, training: Training) -> None:
        recover(self.last)
        if self.last.exists():
            shutil.rmtree(self.previous, ignore_errors=True)
            self.last.rename(self.previous)
        training.save(self.last)

    def finish(self, data: TrainingData) -> Path:
        """The best checkpoint, its loss measured over the whole validation part."""
        run = read_run(self.best)
        metrics, context = run["metrics"], run["recipe"]["model"]["context"]
        if metrics["step"] < run["recipe"]["training"]["steps"]:  # only the last evaluation is over all of it
            model, _ = load_checkpoint(self.best)
            loss = mean_loss(model, data.validation(context, None))
            metrics |= {"validation_loss": loss, "nats_per_character": loss / data.characters_per_token}
            if isinstance(data, Sorting):
                metrics["exact_match"] = data.exact_match(model)
            whole = self.best / ".run.json"
            whole.write_text(json.dumps(run, indent=2) + "\n")
            whole.replace(self.best / "run.json")
        return self.best
