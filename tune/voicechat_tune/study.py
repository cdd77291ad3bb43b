"""The memory of a sweep: an Optuna study in a journal that a kill at any moment leaves whole.

A *trial* is one point of the search space; it has a *run*, a training, for each of its seeds. Everything that a sweep
decides (the next point, who is stopped at a rung, when a limit is reached) is computed from what stands here and from
the sweep file alone, so a sweep that goes on after a kill decides as it would have done. `optuna-dashboard` reads the
journal too.
"""

import json
import logging
import math
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from voicechat_platform.errors import InputError
from voicechat_platform.training.history import Evaluation
from voicechat_tune.sweep_file import DIRECTIONS, SweepFile

logging.getLogger("optuna").setLevel(logging.ERROR)

JOURNAL = "study.journal"
Ending = Literal["finished", "stopped", "failed"]
State = Literal["finished", "stopped", "failed", "unfinished"]
STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
    TrialState.WAITING: "unfinished",
}


@dataclass(frozen=True)
class RunKey:
    """Names a run: the trial's number, from 1, and which of its seeds, from 0."""

    trial: int
    seed_index: int = 0

    def __str__(self) -> str:
        return f"{self.trial:04}" + (f"-{self.seed_index + 1}" if self.seed_index else "")


@dataclass
class Run:
    """One training."""

    key: RunKey
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """In order of their steps; beside an `Evaluation`'s fields "order", which counts all that came in, and "clock",
    the sweep's seconds so far over all sittings."""
    ending: Ending | None = None
    """None while it is unfinished."""
    message: str = ""
    """Why it failed."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Of a finished run: the best checkpoint's losses, the model's size, and what it cost."""

    @property
    def step(self) -> int:
        return self.evaluations[-1]["step"] if self.evaluations else 0

    @property
    def loss(self) -> float | None:
        """Of its best checkpoint where it is finished, else the last one seen; nats per token."""
        if "validation_loss" in self.facts:
            return self.facts["validation_loss"]
        return self.evaluations[-1]["validation_loss"] if self.evaluations else None


@dataclass
class Trial:
    """One point of the search space."""

    number: int
    """From 1, in the order in which they were drawn."""
    point: dict[str, Any]
    state: State
    runs: list[Run]
    lineage: dict[str, int]
    """Of population based training: "member", "generation", and the "parent" trial that it goes on from."""

    @property
    def loss(self) -> float | None:
        """The mean over its runs so far."""
        losses = [run.loss for run in self.runs if run.loss is not None]
        return sum(losses) / len(losses) if losses else None


class Study:
    """Opens a sweep's memory, or begins one.

    Args:
        folder: the sweep's.
        writable: for the driver alone, of which there is one (`run.locked`); readers may come at any time.
    """

    def __init__(self, folder: Path, sweep: SweepFile, writable: bool = True):
        self.sweep, self.folder = sweep, folder
        path = folder / JOURNAL
        if writable:
            folder.mkdir(parents=True, exist_ok=True)
            mend(path)
        storage = JournalStorage(JournalFileBackend(str(path)))
        directions = [DIRECTIONS[objective] for objective in sweep.objectives]
        if not writable:
            self.optuna = optuna.load_study(storage=storage, study_name=sweep.name)
            return
        self.optuna = optuna.create_study(
            storage=storage, study_name=sweep.name, directions=directions, load_if_exists=True
        )
        for trial in self.trials():
            if trial.state == "unfinished":
                self.close(trial)  # the driver was killed between a run's ending and its trial's

    def trials(self) -> list[Trial]:
        """All of this sweep's, in the order of their numbers."""
        return [as_trial(found) for found in self.frozen() if "number" in found.user_attrs]

    def run(self, key: RunKey) -> Run:
        """A run as it stands; without evaluations where it has not told of any."""
        runs = self.trials()[key.trial - 1].runs
        return next((run for run in runs if run.key == key), Run(key))

    def is_over(self, wanted: int) -> bool:
        """Whether so many trials have been drawn, and all have ended."""
        trials = self.trials()
        return len(trials) >= wanted and all(trial.state != "unfinished" for trial in trials)

    def frozen(self) -> list[FrozenTrial]:
        """Optuna's view of them, after those of an earlier sweep that this one was warmed with."""
        return self.optuna.get_trials(deepcopy=False)

    def begin(self, drawn: FrozenTrial | None, point: dict[str, Any], lineage: dict[str, int] | None = None) -> Trial:
        """Add a trial, whole in one record: a kill leaves all of it or nothing.

        Args:
            drawn: what Optuna's sampler drew; None for a point that nobody drew.
        """
        number = len(self.trials()) + 1
        attributes = {"number": number, "point": point, "lineage": lineage or {}}
        self.optuna.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=drawn.params if drawn else {},
                distributions=drawn.distributions if drawn else {},
                system_attrs=drawn.system_attrs if drawn else {},
                user_attrs=attributes,
            )
        )
        return Trial(number, point, "unfinished", [], lineage or {})

    def record(self, key: RunKey, evaluation: dict[str, Any], clock: float) -> bool:
        """Remember what a run reported; False if it was known (a run that goes on tells its history again)."""
        found = self.find(key.trial)
        if found.state.is_finished():
            return False
        step, name = evaluation["step"], f"run {key.seed_index} step {evaluation['step']}"
        is_new = name not in found.user_attrs
        if is_new:
            order = sum(len(run.evaluations) for trial in self.trials() for run in trial.runs)
            self.set(found, name, {**evaluation, "order": order, "clock": clock})
        if key.seed_index == 0 and len(self.sweep.objectives) == 1 and step not in found.intermediate_values:
            # The samplers learn from stopped trials, too.
            optuna.Trial(self.optuna, found._trial_id).report(evaluation["selection_loss"], step)
        return is_new

    def end_run(self, key: RunKey, ending: Ending, message: str = "", facts: dict[str, Any] | None = None) -> None:
        """Note how a run ended; the trial ends with its last one, or with the first that did not finish."""
        found = self.find(key.trial)
        if found.state.is_finished():
            return
        if ending == "finished" and not math.isfinite(facts["validation_loss"] if facts else 0.0):
            ending, message = "failed", "the loss of its best checkpoint over the whole validation part is not a number"
        self.set(found, f"run {key.seed_index} ending", {"ending": ending, "message": message, "facts": facts or {}})
        trial = as_trial(self.find(key.trial))
        self.close(trial)

    def close(self, trial: Trial) -> None:
        """Tell Optuna how a trial ended, if it has. Pruned is pruned: samplers then take the losses at its rungs."""
        endings = [run.ending for run in trial.runs]
        if "failed" not in endings and "stopped" not in endings and endings.count("finished") < self.sweep.seeds:
            return
        number = self.find(trial.number).number
        if "failed" in endings:
            self.optuna.tell(number, state=TrialState.FAIL)
        elif "stopped" in endings:
            self.optuna.tell(number, state=TrialState.PRUNED)
        else:
            self.optuna.tell(number, [objective_value(trial, objective) for objective in self.sweep.objectives])

    def warm(self, earlier: "Study") -> int:
        """Let the sampler know the finished trials of an earlier sweep; how many of them fit this space."""
        known = {found.user_attrs.get("warm") for found in self.frozen()}
        fitting = 0
        for trial in earlier.trials():
            found = earlier.find(trial.number)
            space = self.sweep.search
            fits = all(name in space and space[name].allows(value) for name, value in found.params.items())
            same = earlier.sweep.objectives == self.sweep.objectives
            if trial.state != "finished" or not found.params or not fits or not same:
                continue
            fitting += 1
            if str(trial.number) in known:
                continue
            self.optuna.add_trial(
                create_trial(
                    params=found.params,
                    distributions=found.distributions,
                    values=found.values,
                    user_attrs={"warm": str(trial.number)},
                )
            )
        return fitting

    def find(self, number: int) -> FrozenTrial:
        return next(found for found in self.frozen() if found.user_attrs.get("number") == number)

    def set(self, found: FrozenTrial, name: str, value: Any) -> None:
        optuna.Trial(self.optuna, found._trial_id).set_user_attr(name, value)


def evaluation_in(record: dict[str, Any]) -> dict[str, Any]:
    """An `Evaluation`'s fields alone, of a record or a report that holds more."""
    return {field.name: record[field.name] for field in fields(Evaluation)}


def as_trial(found: FrozenTrial) -> Trial:
    runs: dict[int, Run] = {}
    number = found.user_attrs["number"]
    for name, value in found.user_attrs.items():
        if not name.startswith("run "):
            continue
        _, index, *what = name.split()
        run = runs.setdefault(int(index), Run(RunKey(number, int(index))))
        if what[0] == "step":
            run.evaluations.append(value)
        else:
            run.ending, run.message, run.facts = value["ending"], value["message"], value["facts"]
    for run in runs.values():
        run.evaluations.sort(key=lambda evaluation: evaluation["step"])
    ordered = [runs[index] for index in sorted(runs)]
    return Trial(number, found.user_attrs["point"], STATES[found.state], ordered, found.user_attrs["lineage"])


def objective_value(trial: Trial, objective: str) -> float:
    """The mean over the trial's runs."""
    values = [run.facts[objective] for run in trial.runs if run.ending == "finished"]
    return sum(values) / len(values)


def mend(path: Path) -> None:
    """Cut a half-written last line off, and remove the lock of a writer that was killed.

    A disk that filled up, or a machine that lost its power, leaves such a line; what it was to say is done again.
    """
    lock = Path(f"{path}.lock")
    if lock.is_symlink() or lock.exists():
        lock.unlink()
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
            os.fsync(file.fileno())
    for line, text in enumerate(content[:whole].splitlines(), 1):
        try:
            json.loads(text)
        except ValueError:
            raise InputError(
                f"{path}:{line} is damaged, so the sweep cannot go on: bring a copy back, or begin anew with --fresh"
            ) from None
