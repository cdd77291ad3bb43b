"""Successive halving without waiting (ASHA, arXiv 1810.05934), and Hyperband (arXiv 1603.06560) as several of them.

Nothing is kept here: which runs reached a rung, and in which order, stands in the study, so that a sweep that goes on
after a kill has the same rungs. Ray's own scheduler loses them (ray-project/ray#30838), and Optuna's pruner decides
otherwise when it is asked again (docs/experiments.md).
"""

import math
from bisect import bisect_left
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from voicechat_tune.search.schedulers.interface import Scheduler, SchedulerConfig
from voicechat_tune.search.trials import Run, step_of

if TYPE_CHECKING:
    from voicechat_tune.search.study import Study
    from voicechat_tune.search.sweep_file import SweepFile


class Asha(SchedulerConfig):
    """asha: successive halving without waiting (arXiv 1810.05934): a run that is behind at a rung is stopped."""

    kind: Literal["asha"] = "asha"
    grace_steps: int = Field(ge=1, le=10**9)
    """No run is stopped before this many steps, the first rung."""
    reduction_factor: float = Field(default=3, gt=1, le=1000)
    """Of the runs that reach a rung, one in so many goes on."""
    stops_runs = True

    def check(self, sweep: "SweepFile") -> None:
        if self.grace_steps > (steps := sweep.recipe.training.steps):
            raise ValueError(
                f"scheduler.grace_steps ({self.grace_steps}) must not exceed recipe.training.steps ({steps})"
            )

    def describe(self, sweep: "SweepFile") -> str:
        steps = sweep.recipe.training.steps
        rungs = [str(rung) for rung in self.all_rungs(steps) if rung < steps]
        where = f"steps {', '.join(rungs)}" if rungs else "no step"
        return f"{self.kind} stops runs at {where}: one in {self.reduction_factor:g} goes on."

    def all_rungs(self, steps: int) -> list[int]:
        """Steps at which runs are compared, the first rung first; the last one may be the run's last step."""
        count = int(math.log(steps / self.grace_steps) / math.log(self.reduction_factor) + 1e-9) + 1
        return [round(self.grace_steps * self.reduction_factor**power) for power in range(count)]

    def rungs(self, steps: int, number: int) -> list[int]:
        """Those of the trial with a number."""
        return self.all_rungs(steps)

    def start(self, study: "Study") -> Scheduler:
        scheduler = Halving(self, study.sweep.recipe.training.steps)
        for trial in study.known:
            for run in trial.runs:
                if not run.key.seed_index:
                    for evaluation in run.evaluations:
                        scheduler.reached(run, evaluation["step"])
        return scheduler


class Hyperband(Asha):
    """hyperband: asha from several first rungs at once, for sweeps whose early losses mislead (arXiv 1603.06560)."""

    kind: Literal["hyperband"] = "hyperband"  # type: ignore[assignment]

    def describe(self, sweep: "SweepFile") -> str:
        return f"{super().describe(sweep)} Its trials take turns at which of these rungs is their first."

    def rungs(self, steps: int, number: int) -> list[int]:
        rungs = self.all_rungs(steps)
        return rungs[(number - 1) % len(rungs) :]


class Halving(Scheduler):
    """Which trial came to which rung, and which stop there."""

    def __init__(self, config: Asha, steps: int):
        self.config, self.steps = config, steps
        self.arrivals: dict[tuple[int, int], dict[int, dict[str, Any]]] = defaultdict(dict)
        """By how many rungs the bracket has, and the rung: with which evaluation each trial came there."""

    def should_stop(self, run: Run, step: int) -> str:
        """A run stops if this evaluation is its first at a rung, and its loss there is beyond the quantile
        1 / reduction_factor of those that were there before it."""
        reached = self.reached(run, step)
        if not reached:
            return ""
        own = reached[-1][run.key.trial]
        there = [other["selection_loss"] for other in reached[-1].values() if other["order"] < own["order"]]
        if there and own["selection_loss"] > np.percentile(there, 100 / self.config.reduction_factor):
            return "fell behind at a rung"
        return ""

    def reached(self, run: Run, step: int) -> list[dict[int, dict[str, Any]]]:
        """The arrivals at each rung that the run comes to with its evaluation at a step, its own now among them."""
        place = bisect_left(run.evaluations, step, key=step_of)
        earlier = run.evaluations[place - 1]["step"] if place else 0
        rungs = self.config.rungs(self.steps, run.key.trial)
        reached = [self.arrivals[len(rungs), rung] for rung in rungs if earlier < rung <= step]
        for arrivals in reached:
            arrivals[run.key.trial] = run.evaluations[place]
        return reached
