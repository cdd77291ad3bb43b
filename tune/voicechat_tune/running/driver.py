"""The driver starts and stops runs. Ray Tune calls it through a searcher and a scheduler."""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from voicechat_platform.training.history import Evaluation
from voicechat_tune.running.messages import REPORT, DiskFull, Report, RunEnded
from voicechat_tune.search.samplers import Search
from voicechat_tune.search.schedulers.interface import Scheduler
from voicechat_tune.search.study import Study
from voicechat_tune.search.sweep_file import SweepFile
from voicechat_tune.search.trials import RunKey, Trial

log = logging.getLogger(__name__)

MOST_ATTEMPTS = 3
"""A run fails after this number of consecutive errors without a new evaluation."""


class Driver:
    """Selects the next run, stores reports in the study, and decides which runs stop.

    Args:
        wanted: the total number of trials.
        room: returns how many runs may be active at a time; called before each new run, because a cluster may grow.
    """

    def __init__(self, sweep: SweepFile, study: Study, wanted: int, room: Callable[[], int]):
        self.sweep, self.study, self.wanted, self.room = sweep, study, wanted, room
        self.scheduler = sweep.scheduler.start(study) if sweep.scheduler else Scheduler()
        self.search = Search(sweep, study, self.scheduler)
        self.active: dict[str, RunKey] = {}
        """The key is Ray's id of the run."""
        self.attempts: dict[RunKey, int] = {}
        self.stopping = ""
        """The reason why no new run starts and the active runs stop at their next report; empty if there is none."""
        self.began = time.monotonic()
        runs = [run for trial in study.trials() for run in trial.runs]
        self.earlier_seconds = max((e["clock"] for run in runs for e in run.evaluations), default=0.0)
        self.seen: dict[RunKey, float] = {}
        """The time of each run's last report or start."""

    def next_run(self) -> tuple[RunKey, Trial] | None:
        """Return the next run: first one of an unfinished trial, else the first run of a new trial.

        None if no run can start now.
        """
        self.stopping = self.stopping or reached_limit(self.sweep, self.study.seconds, self.clock())
        if self.stopping or len(self.active) >= self.room():
            return None
        active = set(self.active.values())
        for trial in self.study.unfinished.values():
            if key := self.waiting(trial, active):
                return key, trial
        new = self.search.next_trial(self.wanted)
        return (RunKey(new.number), new) if new else None

    def waiting(self, trial: Trial, active: set[RunKey]) -> RunKey | None:
        """Return the first unfinished run of the trial that is not active. The other seeds wait for the first seed."""
        endings = {run.key.seed_index: run.ending for run in trial.runs}
        for index in range(self.sweep.seeds):
            key = RunKey(trial.number, index)
            if endings.get(index) is None and key not in active:
                return key
            if index == 0 and endings.get(0) is None:
                return None
        return None

    def is_over(self) -> bool:
        if self.stopping:
            return not self.active
        return self.study.is_over(self.wanted)

    def start_run(self, ray_id: str, key: RunKey) -> None:
        self.active[ray_id] = key
        self.seen[key] = time.monotonic()

    def on_report(self, ray_id: str, report: Report) -> bool:
        """Process a run's report; return whether the run must stop."""
        key = self.active.get(ray_id)
        if key is None:
            return True
        match report:
            case Evaluation():
                return self.on_evaluation(ray_id, key, report)
            case RunEnded():
                self.study.end_run(key, report.ending, report.message, {**report.facts, "seconds": self.spent(key)})
            case DiskFull():
                self.stopping = report.message
        self.deactivate(ray_id)
        return True

    def on_evaluation(self, ray_id: str, key: RunKey, evaluation: Evaluation) -> bool:
        """Store an evaluation; return whether the run must stop. The study may already have the evaluation."""
        spent = self.spent(key)
        self.seen[key] = time.monotonic()
        clock = self.clock()
        if self.study.record(key, {**asdict(evaluation), "spent": spent}, clock):
            self.attempts[key] = 0
        if self.study.trial(key.trial).state != "unfinished":  # another of its seeds has failed
            self.deactivate(ray_id)
            return True
        if reason := self.should_stop(key, evaluation.step):
            self.study.end_run(key, "stopped", reason, {"seconds": spent})
            self.deactivate(ray_id)
            return True
        if reason := reached_limit(self.sweep, self.study.seconds, clock):
            self.stopping = reason
        if self.stopping:
            self.deactivate(ray_id)
        return bool(self.stopping)

    def should_stop(self, key: RunKey, step: int) -> str:
        """Return the scheduler's reason to stop a run, or an empty text. It decides only about a trial's first seed."""
        if key.seed_index:
            return ""
        reason = self.scheduler.should_stop(self.study.run(key), step)  # it may note even the last step
        return reason if step < self.sweep.recipe.training.steps else ""

    def clock(self) -> float:
        """Return the sweep's seconds so far, over all its starts."""
        return self.earlier_seconds + time.monotonic() - self.began

    def spent(self, key: RunKey) -> float:
        """Return the run's seconds so far, over all its attempts."""
        return self.study.run(key).seconds + time.monotonic() - self.seen[key]

    def deactivate(self, ray_id: str) -> None:
        self.active.pop(ray_id, None)

    def on_error(self, ray_id: str, reason: str, is_fault: bool) -> None:
        """Process the error of a run whose process died or raised. At MOST_ATTEMPTS the run fails, else it runs again.

        Args:
            is_fault: False after a preemption, which is no attempt.
        """
        key = self.active.pop(ray_id, None)
        if key is None:
            return
        self.attempts[key] = self.attempts.get(key, 0) + is_fault
        if self.attempts[key] >= MOST_ATTEMPTS:
            self.study.end_run(key, "failed", reason)


def hours_of(trials: list[Trial]) -> float:
    """Return the sum of all runs' hours."""
    return sum(run.seconds for trial in trials for run in trial.runs) / 3600


def cost_of(sweep: SweepFile, trials: list[Trial]) -> float:
    return hours_of(trials) * sweep.hourly_cost()


def reached_limit(sweep: SweepFile, seconds: float, clock: float) -> str:
    """Return the limit of the sweep that is reached, as a text; empty if there is none.

    Args:
        seconds: the sum over all runs.
        clock: the sweep's seconds, over all its starts.
    """
    limits, hours = sweep.limits, seconds / 3600
    if limits.hours is not None and clock >= limits.hours * 3600:
        return f"limits.hours ({limits.hours:g}) is reached"
    gpu_hours = hours * sweep.gpus_per_trial * sweep.workers_per_trial
    if limits.gpu_hours is not None and gpu_hours >= limits.gpu_hours:
        return f"limits.gpu_hours ({limits.gpu_hours:g}) is reached"
    if limits.cost is not None and hours * sweep.hourly_cost() >= limits.cost:
        return f"limits.cost ({limits.cost:g}) is reached"
    return ""


class DrivenSearch(Searcher):
    """The adapter through which Ray Tune gets the next run from the driver."""

    def __init__(self, driver: Driver | None):
        super().__init__()
        self.driver = driver

    def __reduce__(self):
        return DrivenSearch, (None,)  # Tune pickles it for its own restore, which we never use

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        assert self.driver is not None
        if self.driver.is_over():
            return Searcher.FINISHED
        found = self.driver.next_run()
        if found is None:
            return Searcher.FINISHED if self.driver.is_over() else None
        key, trial = found
        self.driver.start_run(trial_id, key)
        parent = trial.lineage.get("parent")
        return {
            "trial": key.trial,
            "seed_index": key.seed_index,
            "point": trial.point,
            "parent": str(RunKey(parent)) if parent else None,
            "until": self.driver.sweep.ends_at(trial.lineage),
        }

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Do nothing: the driver gets the same information from the reports."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the study has the whole state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, as in `save`."""


class DrivenScheduler(FIFOScheduler):
    """The adapter through which Ray Tune sends reports to the driver and stops runs."""

    def __init__(self, driver: Driver | None):
        super().__init__()
        self.driver = driver

    def __reduce__(self):
        return DrivenScheduler, (None,)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        assert self.driver is not None
        stop = self.driver.on_report(trial.trial_id, result[REPORT])
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE
