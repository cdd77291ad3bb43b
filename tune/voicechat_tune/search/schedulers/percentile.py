"""The median stopping rule (Golovin et al., Google Vizier, 2017), and other percentiles than the median."""

from typing import TYPE_CHECKING, Literal

from optuna.pruners import PercentilePruner
from pydantic import Field

from voicechat_tune.search.schedulers.interface import Scheduler, SchedulerConfig
from voicechat_tune.search.trials import Run

if TYPE_CHECKING:
    from voicechat_tune.search.study import Study
    from voicechat_tune.search.sweep_file import SweepFile


class Percentile(SchedulerConfig):
    """percentile: a run stops at an evaluation if its best loss so far is worse than the median (or another percentile)
    of the finished trials' losses at the same step."""

    kind: Literal["percentile"] = "percentile"
    grace_steps: int = Field(ge=1, le=10**9)
    """No run stops before this step."""
    percentile: float = Field(default=50, gt=0, lt=100)
    """The best runs, in percent, continue; 50 is the median."""
    finished_trials: int = Field(default=5, ge=1, le=10**9)
    """No run stops before this number of finished trials have an evaluation at the same step."""
    stops_runs = True

    def check(self, sweep: "SweepFile") -> None:
        if self.grace_steps >= (steps := sweep.recipe.training.steps):
            raise ValueError(
                f"scheduler.grace_steps ({self.grace_steps}) must be less than recipe.training.steps ({steps})"
            )

    def describe(self, sweep: "SweepFile") -> str:
        return (
            f"From step {self.grace_steps} on, percentile stops runs that are not among the best {self.percentile:g}% "
            f"of the finished trials at the same step, if there are at least {self.finished_trials} of them."
        )

    def start(self, study: "Study") -> Scheduler:
        return Percentiles(self, study)


class Percentiles(Scheduler):
    """Uses Optuna's pruner, which has no state: it reads the losses per step from the study.

    It reads all finished trials at each evaluation, in about 2 ms for 5,000 trials.
    """

    def __init__(self, config: Percentile, study: "Study"):
        self.study = study
        self.pruner = PercentilePruner(
            config.percentile,
            n_startup_trials=0,  # it would count the trials of a warm start, which have no losses per step
            n_warmup_steps=config.grace_steps,
            n_min_trials=config.finished_trials,
        )

    def should_stop(self, run: Run, step: int) -> str:
        is_behind = self.pruner.prune(self.study.optuna, self.study.find(run.key.trial))
        return f"fell behind the finished trials by step {run.step}" if is_behind else ""
