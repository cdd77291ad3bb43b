"""Successive halving without waiting (ASHA, arXiv 1810.05934), and Hyperband (arXiv 1603.06560) as several of them.

Nothing is kept here: which runs reached a rung, and in which order, stands in the study, so that a sweep that goes on
after a kill has the same rungs. Ray's own scheduler loses them (ray-project/ray#30838).
"""

import math
from bisect import bisect_left
from collections import defaultdict
from typing import Any

import numpy as np

from voicechat_tune.search.study import Run, Trial, step_of
from voicechat_tune.search.sweep_file import SweepFile


class Rungs:
    """Who came to which rung, and who is to stop there. Only the first seed of a trial is judged.

    Args:
        trials: those of earlier sittings.
    """

    def __init__(self, sweep: SweepFile, trials: list[Trial]):
        self.sweep = sweep
        self.arrivals: dict[tuple[int, int], dict[int, dict[str, Any]]] = defaultdict(dict)
        """By how many rungs the bracket has, and the rung: with which evaluation each trial came there."""
        for trial in trials:
            for run in trial.runs:
                for evaluation in run.evaluations:
                    self.reached(run, evaluation["step"])

    def falls_behind(self, run: Run, step: int) -> bool:
        """Whether a run is to be stopped at its evaluation at a step.

        It is when this evaluation is its first at a rung, and its loss there is beyond the quantile
        1 / reduction_factor of those that were there before it.
        """
        reached, scheduler = self.reached(run, step), self.sweep.scheduler
        if not reached or step >= self.sweep.recipe.training.steps or scheduler is None:
            return False
        own = reached[-1][run.key.trial]
        there = [other["selection_loss"] for other in reached[-1].values() if other["order"] < own["order"]]
        return bool(there and own["selection_loss"] > np.percentile(there, 100 / scheduler.reduction_factor))

    def reached(self, run: Run, step: int) -> list[dict[int, dict[str, Any]]]:
        """The arrivals at each rung that the run comes to with its evaluation at a step, its own now among them."""
        if run.key.seed_index:
            return []
        place = bisect_left(run.evaluations, step, key=step_of)
        earlier = run.evaluations[place - 1]["step"] if place else 0
        rungs = rungs_of(self.sweep, run.key.trial)
        reached = [self.arrivals[len(rungs), rung] for rung in rungs if earlier < rung <= step]
        for arrivals in reached:
            arrivals[run.key.trial] = run.evaluations[place]
        return reached


def rungs_of(sweep: SweepFile, number: int) -> list[int]:
    """Steps at which a trial is judged, the first rung first. Hyperband's trials take turns at where they begin."""
    scheduler, steps = sweep.scheduler, sweep.recipe.training.steps
    if scheduler is None or scheduler.grace_steps is None:
        return []
    factor = scheduler.reduction_factor
    count = int(math.log(steps / scheduler.grace_steps) / math.log(factor) + 1e-9) + 1
    rungs = [round(scheduler.grace_steps * factor**power) for power in range(count)]
    return rungs[(number - 1) % count :] if scheduler.kind == "hyperband" else rungs
