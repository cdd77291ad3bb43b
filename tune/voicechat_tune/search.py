"""What comes next: the points of a grid or a list, what Optuna's sampler draws, the next interval of a population."""

import warnings
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from voicechat_tune.population import next_member
from voicechat_tune.space import draw_point, drawn_part, known_in
from voicechat_tune.study import Study, Trial
from voicechat_tune.sweep_file import SweepFile


def next_trial(sweep: SweepFile, study: Study, wanted: int) -> Trial | None:
    """Begin the next trial; None where there are enough, or where a population waits for its slowest member.

    Args:
        wanted: how many trials there are to be in all (`trials_of`, or more where a sweep is extended).
    """
    trials = study.trials()
    if len(trials) >= wanted:
        return None
    if sweep.scheduler and sweep.scheduler.population and len(trials) >= sweep.scheduler.population:
        member = next_member(sweep, trials)
        return study.begin(None, *member) if member else None
    listed = listed_points(sweep)
    if listed is not None:
        return study.begin(None, listed[len(trials)])
    drawn, point = draw(sweep, study, len(trials))
    lineage = {"member": len(trials) + 1, "generation": 1} if sweep.scheduler and sweep.scheduler.population else {}
    return study.begin(drawn, point, lineage)


def trials_of(sweep: SweepFile) -> int:
    """How many trials the sweep file asks for; a population's intervals count one each."""
    listed = listed_points(sweep)
    if listed is not None:
        return min(len(listed), sweep.trials or len(listed))
    return (sweep.trials or 0) * sweep.generations()


def listed_points(sweep: SweepFile) -> list[dict[str, Any]] | None:
    """The points that are known from the start: those given, or a grid's."""
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


def draw(sweep: SweepFile, study: Study, number: int) -> tuple[FrozenTrial, dict[str, Any]]:
    """Let the sampler draw, from what the study knows and a seed of the trial's own: nothing else is remembered.

    It draws in a copy in memory, so that the journal gets the trial in one piece.
    """
    copy = optuna.create_study(directions=study.optuna.directions, sampler=make_sampler(sweep, number))
    copy.add_trials(known_in(sweep.search, study.frozen()))
    if number < len(sweep.first):
        copy.enqueue_trial(drawn_part(sweep.search, sweep.first[number]))
    trial = copy.ask()
    point = draw_point(sweep.search, trial)
    return copy.get_trials(deepcopy=False)[trial.number], point


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
                # Runs that are not finished yet count as bad ones, so that several at a time differ. The fields of each
                # branch are drawn together, with several objectives, too.
                return optuna.samplers.TPESampler(seed=seed, constant_liar=True, multivariate=True, group=True)
