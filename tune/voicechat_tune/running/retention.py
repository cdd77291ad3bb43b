"""Retention: finished runs are registered and keep their checkpoints; all other checkpoints are deleted."""

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray import tune

from voicechat_platform.registry import Registry, Version
from voicechat_tune.running.run_files import SweepFiles
from voicechat_tune.running.sweep_index import INDEX
from voicechat_tune.search.journal import JOURNAL
from voicechat_tune.search.study import Study
from voicechat_tune.search.sweep_file import SweepFile
from voicechat_tune.search.trials import Run, RunKey, Trial, evaluation_in

log = logging.getLogger(__name__)


class Retention:
    """Registers the runs that have finished, and deletes the files that are not needed any more.

    Args:
        group: the sweep's experiment in the registry.
    """

    def __init__(self, sweep: SweepFile, study: Study, folder: Path, group: str):
        self.sweep, self.study, self.folder, self.group = sweep, study, folder, group
        self.files = SweepFiles(sweep, folder)
        self.kept: dict[RunKey, Version] = {}
        self.discarded: set[RunKey] = set()
        self.looked_at = 0
        self.open: list[Trial] = []
        """The trials that may still have a run to keep or to discard."""
        self.next: Future[None] | None = None
        self.worker = ThreadPoolExecutor(1)  # the registry is slow, and the driver must not wait for it

    def schedule(self) -> None:
        """Call `keep_all` in the background, unless a call already waits."""
        if self.next is None or self.next.running() or self.next.done():
            self.next = self.worker.submit(self.keep_all)
            self.next.add_done_callback(log_failure)

    def finish(self) -> None:
        """Keep all finished runs that are not kept yet; here a failure raises."""
        self.worker.shutdown()
        self.keep_all()

    def keep_all(self) -> None:
        """Register all finished runs, and discard the others. It has no effect on a run that is already registered."""
        registry = Registry()
        new = self.study.known[self.looked_at :]
        self.open += new
        self.looked_at += len(new)
        for trial in self.open:
            for run in trial.runs:
                over = run.ending is not None or trial.state != "unfinished"
                if over and not self.is_done_with(run):
                    self.keep(registry, trial, run)
        self.open = [
            trial for trial in self.open if trial.state == "unfinished" or not all(map(self.is_done_with, trial.runs))
        ]
        self.back_up()

    def is_done_with(self, run: Run) -> bool:
        return run.key in self.kept or run.key in self.discarded

    def keep(self, registry: Registry, trial: Trial, run: Run) -> None:
        if run.ending != "finished":
            self.discard(run.key)
        elif trial.lineage.get("generation") in (None, self.sweep.generations()):
            self.register(registry, trial, run)
        elif self.is_left_behind(trial):
            self.discard(run.key)

    def register(self, registry: Registry, trial: Trial, run: Run) -> None:
        self.kept[run.key] = registry.record(
            group=self.group,
            run_name=str(run.key),
            parameters=trial.point,
            history=[evaluation_in(evaluation) for evaluation in run.evaluations],
            checkpoint=self.files.best(run.key),
        )
        self.files.tidy(run.key)

    def is_left_behind(self, trial: Trial) -> bool:
        """Return whether no later interval of a population can start from this one."""
        newest = self.study.known[-1]  # generations start one after the other
        return newest.lineage["generation"] > trial.lineage["generation"] + 1

    def discard(self, key: RunKey) -> None:
        self.files.discard(key)
        self.discarded.add(key)

    def back_up(self) -> None:
        """Copy the study into the object store, if there is one, so that another head node can continue the sweep."""
        if self.files.store is not None:
            for name in (INDEX, JOURNAL):
                self.files.store.put_file(self.folder / name, f"{self.sweep.name}/{name}")


class RetentionCallback(tune.Callback):
    """Starts the retention whenever a run begins or ends; Ray Tune calls it."""

    def __init__(self, retention: Retention):
        self.retention = retention

    def __reduce__(self):
        return tune.Callback, ()  # Tune pickles it for its own restore, which we never use

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.retention.schedule()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.retention.schedule()


def log_failure(keeping: Future[None]) -> None:
    """Log an error. The next call tries again; only an error of the last call is raised."""
    if error := keeping.exception():
        log.warning(
            "the finished runs could not be registered or backed up yet; the next attempt follows later: %s", error
        )
        log.debug("the whole error", exc_info=error)
