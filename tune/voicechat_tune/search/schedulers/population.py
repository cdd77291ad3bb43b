"""Population based training (arXiv 1711.09846), one generation after the other.

Each member trains for an interval. Then each member of the worst quarter continues from the checkpoint of a member of
the best quarter, with slightly different values. Each interval of a member is a trial, whose lineage names its parent.
The next trial depends only on the study and a seed. So a sweep that continues after a kill draws the same values.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from voicechat_tune.search.schedulers.interface import NextTrial, Scheduler, SchedulerConfig
from voicechat_tune.search.space import Parameter
from voicechat_tune.search.trials import Trial

if TYPE_CHECKING:
    from voicechat_tune.search.study import Study
    from voicechat_tune.search.sweep_file import SweepFile

FACTORS = (0.8, 1.25)
RESAMPLE = 0.25
"""The probability that a value is drawn again, and not only changed slightly."""


class Population(SchedulerConfig):
    """pbt: population based training (arXiv 1711.09846): after each interval, the worst members continue from the best
    members' checkpoints, with slightly different values."""

    kind: Literal["pbt"] = "pbt"
    population: int = Field(ge=2, le=10**9)
    """The number of members."""
    interval_steps: int = Field(ge=1, le=10**9)
    """Steps between two comparisons of the members."""
    takes_more_trials = False

    def check(self, sweep: "SweepFile") -> None:
        training = sweep.recipe.training
        if sweep.points or sweep.seeds > 1 or sweep.warm_start or sweep.sampler == "grid":
            raise ValueError("pbt chooses the points itself: leave out points, seeds, warm_start and grid")
        if sweep.sampler in ("gp", "cma_es"):
            raise ValueError(
                f"pbt draws its first members before any trial has finished: leave out sampler ({sweep.sampler})"
            )
        if sweep.workers_per_trial > 1 or "training.optimizer" in sweep.search:
            raise ValueError(
                "pbt continues from other members' checkpoints: all must have one optimizer, and one worker per run"
            )
        if training.patience is not None or "training.patience" in sweep.search:
            raise ValueError("pbt trains all its members to the last step: leave out recipe.training.patience")
        shapes = [field for field in sweep.search if not field.startswith("training.")]
        if shapes:
            raise ValueError(
                f"pbt changes values during training, so it cannot search fields of the model: {', '.join(shapes)}"
            )
        if any(parameter.when for parameter in sweep.search.values()):
            raise ValueError("pbt changes values during training, so its search cannot have branches (when)")
        if self.interval_steps % training.evaluate_every:
            raise ValueError(
                f"scheduler.interval_steps ({self.interval_steps}) must be a multiple of "
                f"recipe.training.evaluate_every ({training.evaluate_every})"
            )
        if sweep.trials != self.population:
            raise ValueError(f"pbt starts with one point for each member: trials must be {self.population}")

    def describe(self, sweep: "SweepFile") -> str:
        return (
            f"pbt trains {self.population} members for {self.generations(sweep)} generations of {self.interval_steps} "
            f"steps; after each, the worst quarter continues from the best quarter's checkpoints."
        )

    def generations(self, sweep: "SweepFile") -> int:
        return math.ceil(sweep.recipe.training.steps / self.interval_steps)

    def ends_at(self, lineage: dict[str, int]) -> int:
        return lineage["generation"] * self.interval_steps

    def start(self, study: "Study") -> Scheduler:
        return Generations(self.population, study.sweep.search, study.sweep.seed)


class Generations(Scheduler):
    """Starts the members' intervals, one generation after the other; it has no state."""

    def __init__(self, size: int, space: dict[str, Parameter], seed: int):
        self.size, self.space, self.seed = size, space, seed

    def next_trial(self, trials: Sequence[Trial]) -> NextTrial | None:
        """Return the next interval to train; None until the generation before has ended.

        A member whose interval failed is replaced like the worst members.
        """
        generation, member = divmod(len(trials), self.size)
        lineage = {"member": member + 1, "generation": generation + 1}
        if generation == 0:
            return NextTrial(None, lineage)
        before = trials[(generation - 1) * self.size : generation * self.size]
        if any(trial.state == "unfinished" for trial in before):
            return None
        ranked = sorted(
            before, key=lambda trial: np.inf if trial.loss is None or trial.state == "failed" else trial.loss
        )
        group = max(1, self.size // 4)
        own = before[member]
        random = np.random.default_rng([self.seed, generation, member])
        parent, point = own, own.point
        if own in ranked[-group:] or own.state == "failed":
            parent = ranked[int(random.integers(group))]
            point = explored(self.space, parent.point, random)
        return NextTrial(point, {**lineage, "parent": parent.number})


def explored(space: dict[str, Parameter], point: dict[str, Any], random: np.random.Generator) -> dict[str, Any]:
    """Return a point near another one: each number times 0.8 or 1.25 within its bounds; some values drawn again."""
    changed: dict[str, Any] = {}
    for field, value in point.items():
        parameter = space[field]
        anew = random.random() < RESAMPLE
        bounds = parameter.integer or parameter.uniform or parameter.loguniform
        if parameter.choice is not None:
            changed[field] = parameter.choice[int(random.integers(len(parameter.choice)))] if anew else value
        elif bounds is None:
            changed[field] = value
        else:
            low, high = bounds
            if parameter.loguniform and anew:
                moved = float(np.exp(random.uniform(np.log(low), np.log(high))))
            else:
                moved = float(random.uniform(low, high)) if anew else value * FACTORS[int(random.integers(2))]
            if parameter.integer and not anew and round(moved) == value:
                moved = value + (1 if moved > value else -1)
            moved = min(max(moved, low), high)
            changed[field] = round(moved) if parameter.integer else moved
    return changed
