"""Successive halving without waiting (ASHA, arXiv 1810.05934), and Hyperband (arXiv 1603.06560) as several of them.

Nothing is kept here: which runs reached a rung, and in which order, stands in the study, so that a sweep that goes on
after a kill has the same rungs. Ray's own scheduler loses them (ray-project/ray#30838).
"""

import math

import numpy as np

from voicechat_tune.study import Run, Trial
from voicechat_tune.sweep_file import SweepFile


def falls_behind(sweep: SweepFile, trials: list[Trial], run: Run) -> bool:
    """Whether a run is to be stopped at its last evaluation.

    It is when this evaluation is its first at a rung, and its loss there is beyond the quantile 1 / reduction_factor of
    those that were there before it. Only the first seed of a trial is judged.
    """
    if run.key.seed_index or not run.evaluations:
        return False
    rungs = rungs_of(sweep, run.key.trial)
    latest = run.evaluations[-1]
    earlier_step = run.evaluations[-2]["step"] if len(run.evaluations) > 1 else 0
    reached = [rung for rung in rungs if earlier_step < rung <= latest["step"]]
    if not reached or latest["step"] >= sweep.recipe.training.steps:
        return False
    bracket = [trial for trial in trials if rungs_of(sweep, trial.number) == rungs]
    there = losses_at(reached[-1], bracket, latest["order"])
    if not there or sweep.scheduler is None:
        return False
    return bool(latest["selection_loss"] > np.percentile(there, 100 / sweep.scheduler.reduction_factor))


def losses_at(rung: int, trials: list[Trial], before: int) -> list[float]:
    """What the first seeds' runs had when they reached a rung, of those that came there before a report."""
    losses = []
    for trial in trials:
        for run in trial.runs[:1]:
            arrival = next((evaluation for evaluation in run.evaluations if evaluation["step"] >= rung), None)
            if run.key.seed_index == 0 and arrival and arrival["order"] < before:
                losses.append(arrival["selection_loss"])
    return losses


def rungs_of(sweep: SweepFile, number: int) -> list[int]:
    """Steps at which a trial is judged, the first rung first. Hyperband's trials take turns at where they begin."""
    scheduler, steps = sweep.scheduler, sweep.recipe.training.steps
    if scheduler is None or scheduler.grace_steps is None:
        return []
    factor = scheduler.reduction_factor
    count = int(math.log(steps / scheduler.grace_steps) / math.log(factor) + 1e-9) + 1
    rungs = [round(scheduler.grace_steps * factor**power) for power in range(count)]
    return rungs[(number - 1) % count :] if scheduler.kind == "hyperband" else rungs
