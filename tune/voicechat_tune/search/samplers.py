"""The next trial: its point is from a grid, a list, Optuna's sampler, or the scheduler."""

import warnings
from typing import Any

import numpy as np
import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial

from voicechat_tune.search.optuna_private import id_of_trial
from voicechat_tune.search.schedulers.interface import Scheduler
from voicechat_tune.search.space import draw_point, drawn_part, known_in
from voicechat_tune.search.study import Study
from voicechat_tune.search.sweep_file import SweepFile
from voicechat_tune.search.trials import Trial


class Search:
    """Creates a sweep's trials, one after the other.

    Optuna's sampler draws in a copy of the study in memory, so that the journal gets each trial in one record. The
    constructor makes the copy once. Before each draw, the copy gets the new reports of its unfinished trials.
    """

    def __init__(self, sweep: SweepFile, study: Study, scheduler: Scheduler):
        self.sweep, self.study, self.scheduler = sweep, study, scheduler
        self.listed = listed_points(sweep)
        self.memory = InMemoryStorage()
        self.copy = optuna.create_study(storage=self.memory, directions=study.optuna.directions)
        known = known_in(sweep.search, study.frozen()) if self.listed is None else []
        self.copy.add_trials(known)
        self.unfinished = {
            trial.user_attrs["number"]: place
            for place, trial in enumerate(known)
            if trial.user_attrs.get("number") in study.unfinished
        }
        """The ids in the copy; the key is a trial's number."""

    def next_trial(self, wanted: int) -> Trial | None:
        """Create the next trial; return None if there are enough, or if the scheduler waits for a run.

        Args:
            wanted: the total number of trials (`trials_of`, or more after `--extend`).
        """
        number = len(self.study.known)
        upcoming = self.scheduler.next_trial(self.study.known) if number < wanted else None
        if upcoming is None:
            return None
        point = upcoming.point if self.listed is None else self.listed[number]
        if point is not None:
            return self.study.begin_trial(None, point, upcoming.lineage)
        drawn, point = self.draw(number)
        new = self.study.begin_trial(drawn, point, upcoming.lineage)
        self.unfinished[new.number] = drawn.number  # in memory a trial's id is its number
        return new

    def draw(self, number: int) -> tuple[FrozenTrial, dict[str, Any]]:
        """Draw a point. The result depends only on the study and on a seed of this trial."""
        self.catch_up()
        self.copy.sampler = make_sampler(self.sweep, number)
        if number < len(self.sweep.first):
            self.copy.enqueue_trial(drawn_part(self.sweep.search, self.sweep.first[number]))
        trial = self.copy.ask()
        point = draw_point(self.sweep.search, trial)
        return self.memory.get_trial(id_of_trial(trial)), point

    def catch_up(self) -> None:
        """Copy the reports since the last draw."""
        for number, place in self.unfinished.items():
            found, there = self.study.find(number), self.memory.get_trial(place)
            for step, loss in found.intermediate_values.items():
                if step not in there.intermediate_values:
                    self.memory.set_trial_intermediate_value(place, step, loss)
            if found.state.is_finished():
                self.memory.set_trial_state_values(place, found.state, found.values)
        self.unfinished = {n: place for n, place in self.unfinished.items() if n in self.study.unfinished}


def trials_of(sweep: SweepFile) -> int:
    """Return the number of trials in the sweep file; each interval of a population counts as a trial."""
    listed = listed_points(sweep)
    if listed is not None:
        return min(len(listed), sweep.trials or len(listed))
    return (sweep.trials or 0) * sweep.generations()


def listed_points(sweep: SweepFile) -> list[dict[str, Any]] | None:
    """Return the points that are known in advance: the file's `points`, or a grid's points; else None."""
    if sweep.points:
        return sweep.points
    if sweep.sampler != "grid":
        return None
    points: list[dict[str, Any]] = [{}]
    for field, parameter in sweep.search.items():
        values = range(parameter.integer[0], parameter.integer[1] + 1) if parameter.integer else parameter.examples()
        points = [
            extended
            for point in points
            for extended in ([{**point, field: value} for value in values] if parameter.exists_in(point) else [point])
        ]
    return points


def make_sampler(sweep: SweepFile, number: int) -> optuna.samplers.BaseSampler:
    seed = int(np.random.SeedSequence([sweep.seed, number]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match sweep.sampler:
            case "gp":
                return optuna.samplers.GPSampler(seed=seed)
            case "cma_es":
                return optuna.samplers.CmaEsSampler(
                    seed=seed, warn_independent_sampling=False, consider_pruned_trials=True
                )
            case "random":
                return optuna.samplers.RandomSampler(seed=seed)
            case _:
                # constant_liar: unfinished trials count as bad, so that concurrent trials differ. group: the sampler
                # draws the fields of each branch together, also with several objectives.
                return optuna.samplers.TPESampler(seed=seed, constant_liar=True, multivariate=True, group=True)
