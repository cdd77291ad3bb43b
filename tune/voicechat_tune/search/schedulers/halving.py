"""Asynchronous successive halving (ASHA, arXiv 1810.05934), and Hyperband (arXiv 1603.06560), which combines several.

The study records which runs reached a rung, and in which order. So a sweep that continues after a kill has the same
rungs. Ray's own scheduler loses them (ray-project/ray#30838), and Optuna's pruner makes another decision when it gets
the same evaluation again (docs/experiments.md).
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
    """asha: asynchronous successive halving (arXiv 1810.05934): at a rung, a run stops if it is behind the others."""

    kind: Literal["asha"] = "asha"
    grace_steps: int = Field(ge=1, le=10**9)
    """The first rung: no run stops before this step."""
    reduction_factor: float = Field(default=3, gt=1, le=1000)
    """At a rung, one in this number of runs continues."""
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
        return f"{self.kind} stops runs at {where}: one in {self.reduction_factor:g} continues."

    def all_rungs(self, steps: int) -> list[int]:
        """Return the steps of the rungs, in order; the last one may be the run's last step."""
        count = int(math.log(steps / self.grace_steps) / math.log(self.reduction_factor) + 1e-9) + 1
        return [round(self.grace_steps * self.reduction_factor**power) for power in range(count)]

    def rungs(self, steps: int, number: int) -> list[int]:
        """Return the rungs of the trial with this number."""
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
    """hyperband: asha with several first rungs, for sweeps whose early losses are misleading (arXiv 1603.06560)."""

    kind: Literal["hyperband"] = "hyperband"  # type: ignore[assignment]

    def describe(self, sweep: "SweepFile") -> str:
        return f"{super().describe(sweep)} The first rung of a trial is each of these rungs in turn."

    def rungs(self, steps: int, number: int) -> list[int]:
        rungs = self.all_rungs(steps)
        return rungs[(number - 1) % len(rungs) :]


class Halving(Scheduler):
    """Compares the trials at each rung."""

    def __init__(self, config: Asha, steps: int):
        self.config, self.steps = config, steps
        self.arrivals: dict[tuple[int, int], dict[int, dict[str, Any]]] = defaultdict(dict)
        """Each trial's first evaluation at a rung; the key is the bracket's number of rungs, and the rung."""

    def should_stop(self, run: Run, step: int) -> str:
        """Stop a run at its first evaluation at a rung if its loss is above the quantile 1 / reduction_factor of the
        losses of all runs that reached the rung before it."""
        reached = self.reached(run, step)
        if not reached:
            return ""
        own = reached[-1][run.key.trial]
        there = [other["selection_loss"] for other in reached[-1].values() if other["order"] < own["order"]]
        if there and own["selection_loss"] > np.percentile(there, 100 / self.config.reduction_factor):
            return "fell behind at a rung"
        return ""

    def reached(self, run: Run, step: int) -> list[dict[int, dict[str, Any]]]:
        """Add the run's evaluation to each rung that it reaches at this step; return all evaluations of these rungs."""
        place = bisect_left(run.evaluations, step, key=step_of)
        earlier = run.evaluations[place - 1]["step"] if place else 0
        rungs = self.config.rungs(self.steps, run.key.trial)
        reached = [self.arrivals[len(rungs), rung] for rung in rungs if earlier < rung <= step]
        for arrivals in reached:
            arrivals[run.key.trial] = run.evaluations[place]
        return reached
