"""Population based training (arXiv 1711.09846), a generation at a time.

Every member trains for an interval; then those among the worst quarter go on from the checkpoint of one of the best
quarter, with that one's choices changed a little. A member's interval is a trial of its own that names its parent. What
comes next is computed from the study and a seed, so that a sweep that goes on after a kill draws the same.
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
"""How often a choice is drawn anew in place of being changed a little."""


class Population(SchedulerConfig):
    """pbt: population based training (arXiv 1711.09846): every so many steps the worse members go on from the better
    ones' checkpoints, with their choices changed a little."""

    kind: Literal["pbt"] = "pbt"
    population: int = Field(ge=2, le=10**9)
    """How many members."""
    interval_steps: int = Field(ge=1, le=10**9)
    """Steps between two comparisons of the members."""
    takes_more_trials = False

    def check(self, sweep: "SweepFile") -> None:
        training = sweep.recipe.training
        if sweep.points or sweep.seeds > 1 or sweep.warm_start or sweep.sampler == "grid":
            raise ValueError("pbt draws its own members: it goes without points, seeds, warm_start and grid")
        if sweep.sampler in ("gp", "cma_es"):
            raise ValueError(
                f"pbt draws its first members before any has finished: leave sampler ({sweep.sampler}) out"
            )
        if sweep.workers_per_trial > 1 or "training.optimizer" in sweep.search:
            raise ValueError("pbt goes on from others' checkpoints: it keeps one optimizer, and one worker a run")
        if training.patience is not None or "training.patience" in sweep.search:
            raise ValueError("pbt's members all go on to the last step: leave recipe.training.patience out")
        shapes = [field for field in sweep.search if not field.startswith("training.")]
        if shapes:
            raise ValueError(f"pbt changes choices in mid-run, which fields of the model cannot: {', '.join(shapes)}")
        if any(parameter.when for parameter in sweep.search.values()):
            raise ValueError("pbt changes choices in mid-run, so its search has no branches (when)")
        if self.interval_steps % training.evaluate_every:
            raise ValueError(
                f"scheduler.interval_steps ({self.interval_steps}) must be a multiple of "
                f"recipe.training.evaluate_every ({training.evaluate_every})"
            )
        if sweep.trials != self.population:
            raise ValueError(f"pbt tries one point for each member: trials must be {self.population}")

    def describe(self, sweep: "SweepFile") -> str:
        return (
            f"pbt trains {self.population} members for {self.generations(sweep)} generations of {self.interval_steps} "
            f"steps; after each, the worst quarter goes on from the best quarter's checkpoints."
        )

    def generations(self, sweep: "SweepFile") -> int:
        return math.ceil(sweep.recipe.training.steps / self.interval_steps)

    def ends_at(self, lineage: dict[str, int]) -> int:
        return lineage["generation"] * self.interval_steps

    def start(self, study: "Study") -> Scheduler:
        return Generations(self.population, study.sweep.search, study.sweep.seed)


class Generations(Scheduler):
    """Begins the members' intervals, one generation after the other; it remembers nothing."""

    def __init__(self, size: int, space: dict[str, Parameter], seed: int):
        self.size, self.space, self.seed = size, space, seed

    def next_trial(self, trials: Sequence[Trial]) -> NextTrial | None:
        """The next interval to train; None until the generation before has ended.

        A member whose interval failed is replaced as the worst are.
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
    """A point near another: each number times 0.8 or 1.25, within its bounds, each choice moved or drawn anew."""
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
