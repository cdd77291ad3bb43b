"""What stays of a sweep's runs: the finished ones in the registry, their checkpoints on disk, and nothing more."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

from voicechat_platform.registry import Registry, Version
from voicechat_platform.training.loop import Evaluation
from voicechat_tune.notes import NOTES
from voicechat_tune.run_files import SweepFiles, object_store
from voicechat_tune.study import JOURNAL, Run, RunKey, Study, Trial
from voicechat_tune.sweep_file import SweepFile


class Keeper:
    """Puts each run that has ended into the registry, and deletes the files that nobody needs any more."""

    def __init__(self, sweep: SweepFile, study: Study, folder: Path):
        self.sweep, self.study, self.folder = sweep, study, folder
        self.files = SweepFiles(sweep, folder)
        self.store = object_store(sweep)
        self.kept: dict[RunKey, Version] = {}
        self.discarded: set[RunKey] = set()
        self.group = json.loads((folder / NOTES).read_text())["group"]
        self.worker = ThreadPoolExecutor(1)  # the registry takes its time; training need not wait for it

    def soon(self) -> None:
        self.worker.submit(self.keep_all)

    def finish(self) -> None:
        self.worker.shutdown()
        self.keep_all()

    def keep_all(self) -> None:
        """Register what has finished; recording it again changes nothing."""
        registry = Registry()
        for trial in self.study.trials():
            for run in trial.runs:
                over = run.ending is not None or trial.state != "unfinished"
                if over and run.key not in self.kept and run.key not in self.discarded:
                    self.keep(registry, trial, run)
        self.back_up()

    def keep(self, registry: Registry, trial: Trial, run: Run) -> None:
        if run.ending != "finished" or self.is_mere_interval(trial):
            if run.ending != "finished":
                self.discard(run.key)
            return
        columns = [field.name for field in fields(Evaluation)]
        self.kept[run.key] = registry.record(
            group=self.group,
            run_name=str(run.key),
            parameters=trial.point,
            history=[{name: evaluation[name] for name in columns} for evaluation in run.evaluations],
            checkpoint=self.files.best(run.key),
        )
        self.files.tidy(run.key)

    def is_mere_interval(self, trial: Trial) -> bool:
        """Of a population: not the last interval. What later ones no longer go on from is deleted."""
        generation, generations = trial.lineage.get("generation"), self.sweep.generations()
        if generation is None or generation == generations:
            return False
        newest = max(other.lineage["generation"] for other in self.study.trials())
        if newest > generation + 1:
            for run in trial.runs:
                self.discard(run.key)
        return True

    def discard(self, key: RunKey) -> None:
        self.files.discard(key)
        self.discarded.add(key)

    def back_up(self) -> None:
        """With an object store: the study goes there, so that another head can go on."""
        if self.store is not None:
            for name in (JOURNAL, NOTES):
                self.store.put_file(self.folder / name, f"{self.sweep.name}/{name}")
