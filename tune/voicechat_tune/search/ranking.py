"""Which trials of a sweep are better: one order for the tables, the report, the page and promotion."""

import math

from voicechat_tune.search.sweep_file import DIRECTIONS, SweepFile
from voicechat_tune.search.trials import Run, Trial, objective_value


def ranked(trials: list[Trial], sweep: SweepFile) -> list[Trial]:
    """The trials that can be compared, the best first; of equal ones the earlier first.

    A trial's loss is the mean over its seeds of the best checkpoint's loss, over the whole validation part. So only
    trials count whose seeds have all finished, and of a population only those of the last generation.
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
    """The best trial; of several objectives all that no other one beats (the Pareto front), by their losses."""
    ranking = ranked(trials, sweep)
    if len(sweep.objectives) == 1:
        return ranking[:1]
    costs = {trial.number: costs_of(trial, sweep) for trial in ranking}
    return [
        trial for trial in ranking if not any(dominates(costs[other.number], costs[trial.number]) for other in ranking)
    ]


def costs_of(trial: Trial, sweep: SweepFile) -> list[float]:
    """The trial's objectives, each the better the less it is."""
    signs = {"minimize": 1, "maximize": -1}
    return [signs[DIRECTIONS[objective]] * objective_value(trial, objective) for objective in sweep.objectives]


def dominates(costs: list[float], others: list[float]) -> bool:
    """Whether it is as good in all, and better in one."""
    return costs != others and all(cost <= other for cost, other in zip(costs, others, strict=True))


def best_first(trial: Trial) -> list[Run]:
    """The runs of a trial that have a loss; its heads, its sample and its promoted version are the first one's."""
    losses = {run.key: run.loss for run in trial.runs if run.loss is not None}
    runs = [run for run in trial.runs if run.key in losses]
    return sorted(runs, key=lambda run: (losses[run.key], run.key.seed_index))
