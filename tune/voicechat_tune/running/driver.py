"""Who runs and who stops: the study's decisions, brought to Ray Tune as its searcher and its scheduler."""

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
"""A run that broke off so often in a row without getting further has failed."""


class Driver:
    """Hands out runs, takes their reports, and says which are to stop.

    Args:
        wanted: trials in all.
        room: how many runs may go on at a time, asked whenever one might begin: a cluster may grow.
    """

    def __init__(self, sweep: SweepFile, study: Study, wanted: int, room: Callable[[], int]):
        self.sweep, self.study, self.wanted, self.room = sweep, study, wanted, room
        self.scheduler = sweep.scheduler.start(study) if sweep.scheduler else Scheduler()
        self.search = Search(sweep, study, self.scheduler)
        self.active: dict[str, RunKey] = {}
        """Under Ray's id of each."""
        self.attempts: dict[RunKey, int] = {}
        self.stopping = ""
        """Why no more runs begin and those that go on stop at their next report."""
        self.began = time.monotonic()
        runs = [run for trial in study.trials() for run in trial.runs]
        self.earlier_seconds = max((e["clock"] for run in runs for e in run.evaluations), default=0.0)
        self.seen: dict[RunKey, float] = {}
        """When each active run was heard of last."""

    def next_run(self) -> tuple[RunKey, Trial] | None:
        """The next run to train: an unfinished one first, then one more seed, then a new trial; None for now."""
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
        """The first run of the trial that should go on and does not. Later seeds wait for the first to finish."""
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
        """Take a run's report; whether it is to stop."""
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
        """Whether the run is to stop after this evaluation, which may be one that was heard of before a kill."""
        spent = self.spent(key)
        self.seen[key] = time.monotonic()
        clock = self.clock()
        if self.study.record(key, {**asdict(evaluation), "spent": spent}, clock):
            self.attempts[key] = 0
        if self.study.trial(key.trial).state != "unfinished":  # another seed of it has failed
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
        """Why the scheduler stops a run; empty where it goes on. It looks at a trial's first seed alone."""
        if key.seed_index or step >= self.sweep.recipe.training.steps:
            return ""
        return self.scheduler.should_stop(self.study.run(key), step)

    def clock(self) -> float:
        """The sweep's seconds so far, over all sittings."""
        return self.earlier_seconds + time.monotonic() - self.began

    def spent(self, key: RunKey) -> float:
        """Seconds that the run has taken, over all its attempts."""
        return self.study.run(key).seconds + time.monotonic() - self.seen[key]

    def deactivate(self, ray_id: str) -> None:
        self.active.pop(ray_id, None)

    def on_error(self, ray_id: str, reason: str, is_fault: bool) -> None:
        """Note that a run's process died or raised; it is handed out again unless that keeps happening."""
        key = self.active.pop(ray_id, None)
        if key is None:
            return
        self.attempts[key] = self.attempts.get(key, 0) + is_fault
        if self.attempts[key] >= MOST_ATTEMPTS:
            self.study.end_run(key, "failed", reason)


def hours_of(trials: list[Trial]) -> float:
    """Hours that all runs took together."""
    return sum(run.seconds for trial in trials for run in trial.runs) / 3600


def cost_of(sweep: SweepFile, trials: list[Trial]) -> float:
    return hours_of(trials) * sweep.hourly_cost()


def reached_limit(sweep: SweepFile, seconds: float, clock: float) -> str:
    """Which limit of the sweep is reached; empty for none.

    Args:
        seconds: that all runs took together.
        clock: the sweep's own.
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
    """Ray Tune's side of handing out runs."""

    def __init__(self, driver: Driver | None):
        super().__init__()
        self.driver = driver

    def __reduce__(self):
        return DrivenSearch, (None,)  # Tune pickles it for a restore of its own, which is never asked for

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
        """Nothing to do: the driver knows it from the reports."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to do: all that counts stands in the study."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to do, as for save."""


class DrivenScheduler(FIFOScheduler):
    """Ray Tune's side of stopping runs."""

    def __init__(self, driver: Driver | None):
        super().__init__()
        self.driver = driver

    def __reduce__(self):
        return DrivenScheduler, (None,)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        assert self.driver is not None
        stop = self.driver.on_report(trial.trial_id, result[REPORT])
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE
