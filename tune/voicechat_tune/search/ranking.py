"""The ranking of a sweep's trials: one order for the tables, the report, the page and promotion."""

import math

from voicechat_tune.search.sweep_file import DIRECTIONS, SweepFile
from voicechat_tune.search.trials import Run, Trial, objective_value


def ranked(trials: list[Trial], sweep: SweepFile) -> list[Trial]:
    """Return the trials that can be compared, the best first; of equal trials the earlier one first.

    A trial's loss is the mean over its seeds of the best checkpoint's loss over the whole validation part. So a trial
    is ranked only if the runs of all its seeds have finished; in a population, only if it is in the last generation.
    """
    last = (None, sweep.generations())
    losses = {
        trial.number: trial.loss
        for trial in trials
        if trial.state == "finished" and trial.lineage.get("generation") in last and trial.loss is not None
    }
    compared = [trial for trial in trials if math.isfinite(losses.get(trial.number, math.nan))]
    return sorted(compared, key=lambda trial: (losses[trial.number], trial.number))


def winners(trials: list[Trial], sweep: SweepFile) -> list[Trial]:
    """Return the best trial; with several objectives, the Pareto front: all trials that no other one dominates.

    They are in the order of their losses.
    """
    ranking = ranked(trials, sweep)
    if len(sweep.objectives) == 1:
        return ranking[:1]
    costs = {trial.number: costs_of(trial, sweep) for trial in ranking}
    return [
        trial for trial in ranking if not any(dominates(costs[other.number], costs[trial.number]) for other in ranking)
    ]


def costs_of(trial: Trial, sweep: SweepFile) -> list[float]:
    """Return the trial's objectives as costs: less is better."""
    signs = {"minimize": 1, "maximize": -1}
    return [signs[DIRECTIONS[objective]] * objective_value(trial, objective) for objective in sweep.objectives]


def dominates(costs: list[float], others: list[float]) -> bool:
    """Return whether the first costs are nowhere worse and in one place better."""
    return costs != others and all(cost <= other for cost, other in zip(costs, others, strict=True))


def best_first(trial: Trial) -> list[Run]:
    """Return the runs of a trial that have a loss, the best first.

    The first run gives the trial's heads, its sample and its promoted version.
    """
    losses = {run.key: run.loss for run in trial.runs if run.loss is not None}
    runs = [run for run in trial.runs if run.key in losses]
    return sorted(runs, key=lambda run: (losses[run.key], run.key.seed_index))
