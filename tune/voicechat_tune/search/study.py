"""The history of a sweep: an Optuna study in a journal that stays valid after a kill at any moment.

A *trial* is one point of the search space. It has one *run*, a training, for each of its seeds. A sweep computes all
its decisions (the next point, the runs to stop, the end at a limit) only from this history and the sweep file. So a
sweep that continues after a kill makes the same decisions as without the kill. `optuna-dashboard` can also read the
journal.
"""

import logging
import math
from bisect import insort
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from voicechat_platform.errors import InputError
from voicechat_tune.search.journal import JOURNAL, SALVAGE, StudyHeader, open_journal
from voicechat_tune.search.journal_lines import Ending
from voicechat_tune.search.optuna_private import id_of_study, id_of_trial
from voicechat_tune.search.space import known_in
from voicechat_tune.search.sweep_file import DIRECTIONS, SweepFile
from voicechat_tune.search.trials import Run, RunKey, State, Trial, objective_value, run_of, step_of

logging.getLogger("optuna").setLevel(logging.ERROR)

STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
    TrialState.WAITING: "unfinished",
}


class Study:
    """The history of one sweep; the constructor opens it, or creates it.

    The constructor reads the trials once. Later, each report changes only its own trial. So the driver needs the same
    time for a report after ten trials and after thousands.

    Args:
        folder: the sweep's folder.
        writable: only for the driver; there is one per sweep (`run.locked`). Readers may open the study at any time.
            They see its state at that moment.

    Raises:
        InputError: the journal is damaged (`journal.open_journal`), or a reader opens a sweep that has not started.
    """

    def __init__(self, folder: Path, sweep: SweepFile, writable: bool = True):
        self.sweep, self.folder = sweep, folder
        if writable:
            folder.mkdir(parents=True, exist_ok=True)
        self.storage = open_journal(folder / JOURNAL, header_of(sweep), writable)
        directions = [DIRECTIONS[objective] for objective in sweep.objectives]
        if not writable:
            try:
                self.optuna = optuna.load_study(storage=self.storage, study_name=sweep.name)
            except KeyError:
                raise InputError(f"{folder / JOURNAL} is empty: the sweep has not started; {SALVAGE}") from None
        else:
            self.optuna = optuna.create_study(
                storage=self.storage, study_name=sweep.name, directions=directions, load_if_exists=True
            )
        self.known: list[Trial] = []
        self.ids: list[int] = []
        """Optuna's ids of the trials."""
        self.unfinished: dict[int, Trial] = {}
        """By number, in order."""
        self.next_order = 0
        """The "order" of the next evaluation."""
        self.seconds = 0.0
        """The sum over all runs."""
        for found in self.frozen():
            if "number" in found.user_attrs:
                self.add(as_trial(found), id_of_trial(found))
        if writable:
            for trial in list(self.unfinished.values()):
                self.close(trial)  # the driver was killed after it ended a run and before it ended the trial

    def add(self, trial: Trial, optuna_id: int) -> None:
        self.known.append(trial)
        self.ids.append(optuna_id)
        if trial.state == "unfinished":
            self.unfinished[trial.number] = trial
        self.next_order = max([self.next_order, *(e["order"] + 1 for run in trial.runs for e in run.evaluations)])
        self.seconds += sum(run.seconds for run in trial.runs)

    def trials(self) -> list[Trial]:
        """Return all trials of this sweep, in the order of their numbers. Reports change the driver's trials."""
        return list(self.known)

    def trial(self, number: int) -> Trial:
        return self.known[number - 1]

    def run(self, key: RunKey) -> Run:
        """Return a run; without evaluations if it has reported none."""
        return next((run for run in self.trial(key.trial).runs if run.key == key), Run(key))

    def is_over(self, wanted: int) -> bool:
        """Return whether there are `wanted` trials, and all have ended."""
        return len(self.known) >= wanted and not self.unfinished

    def frozen(self) -> list[FrozenTrial]:
        """Return Optuna's objects for the trials: first those of the earlier sweep (`warm_start`), then our own."""
        return self.optuna.get_trials(deepcopy=False)

    def begin_trial(
        self, drawn: FrozenTrial | None, point: dict[str, Any], lineage: dict[str, int] | None = None
    ) -> Trial:
        """Add a trial, in one record: after a kill the journal has the complete trial or nothing of it.

        Args:
            drawn: the trial from Optuna's sampler; None for a point that no sampler drew.
        """
        trial = Trial(len(self.known) + 1, point, "unfinished", [], lineage or {})
        added = create_trial(
            state=TrialState.RUNNING,
            params=drawn.params if drawn else {},
            distributions=drawn.distributions if drawn else {},
            system_attrs=drawn.system_attrs if drawn else {},
            user_attrs={"number": trial.number, "point": trial.point, "lineage": trial.lineage},
        )
        self.add(trial, self.storage.create_new_trial(id_of_study(self.optuna), added))
        return trial

    def record(self, key: RunKey, evaluation: dict[str, Any], clock: float) -> bool:
        """Store an evaluation; return False if it is already stored (a run that continues sends its history again)."""
        trial = self.trial(key.trial)
        if trial.state != "unfinished":
            return False
        found = self.find(key.trial)
        step, name = evaluation["step"], f"run {key.seed_index} step {evaluation['step']}"
        is_new = name not in found.user_attrs
        if is_new:
            evaluation = {**evaluation, "order": self.next_order, "clock": clock}
            self.set(found, name, evaluation)
            self.next_order += 1
            run = run_of(trial, key)
            self.seconds -= run.seconds
            insort(run.evaluations, evaluation, key=step_of)
            self.seconds += run.seconds
        if key.seed_index == 0 and len(self.sweep.objectives) == 1 and step not in found.intermediate_values:
            # The samplers also learn from stopped trials.
            optuna.Trial(self.optuna, id_of_trial(found)).report(evaluation["selection_loss"], step)
        return is_new

    def end_run(self, key: RunKey, ending: Ending, message: str = "", facts: dict[str, Any] | None = None) -> None:
        """Store the end of a run. A trial ends with its last run, or with the first run that is stopped or fails."""
        trial = self.trial(key.trial)
        if trial.state != "unfinished":
            return
        if ending == "finished" and not math.isfinite(facts["validation_loss"] if facts else 0.0):
            ending, message = "failed", "the loss of its best checkpoint over the whole validation part is not a number"
        # A path may have half a surrogate pair, which other programs reject in JSON.
        message = message.encode(errors="replace").decode()
        end: dict[str, Any] = {"ending": ending, "message": message, "facts": facts or {}}
        self.set(self.find(key.trial), f"run {key.seed_index} ending", end)
        run_of(trial, key).end(**end)
        self.close(trial)

    def close(self, trial: Trial) -> None:
        """If a trial has ended, set its state in Optuna. Samplers use the losses at the rungs of a pruned trial."""
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
        trial.state = STATES[self.find(trial.number).state]
        del self.unfinished[trial.number]

    def warm_start(self, earlier: "Study") -> int:
        """Add the finished trials of an earlier sweep for the sampler; return how many of them fit this space."""
        known = {found.user_attrs.get("warm") for found in self.frozen()}
        finished = [
            found for found in earlier.frozen() if found.state == TrialState.COMPLETE and "number" in found.user_attrs
        ]
        same = earlier.sweep.objectives == self.sweep.objectives
        fitting = known_in(self.sweep.search, finished) if same else []
        for found in fitting:
            number = str(found.user_attrs["number"])
            if number in known:
                continue
            self.optuna.add_trial(
                create_trial(
                    params=found.params,
                    distributions=found.distributions,
                    values=found.values,
                    user_attrs={"warm": number},
                )
            )
        return len(fitting)

    def find(self, number: int) -> FrozenTrial:
        """Return Optuna's object for a trial."""
        return self.storage.get_trial(self.ids[number - 1])

    def set(self, found: FrozenTrial, name: str, value: Any) -> None:
        optuna.Trial(self.optuna, id_of_trial(found)).set_user_attr(name, value)


def header_of(sweep: SweepFile) -> StudyHeader:
    objectives = {objective: DIRECTIONS[objective] for objective in sweep.objectives}
    return StudyHeader(sweep.name, objectives, sweep.warm_start is not None)


def as_trial(found: FrozenTrial) -> Trial:
    attributes = found.user_attrs
    trial = Trial(attributes["number"], attributes["point"], STATES[found.state], [], attributes["lineage"])
    for name, value in attributes.items():
        if not name.startswith("run "):
            continue
        _, index, *what = name.split()
        run = run_of(trial, RunKey(trial.number, int(index)))
        if what[0] == "step":
            insort(run.evaluations, value, key=step_of)
        else:
            run.end(**value)
    return trial
