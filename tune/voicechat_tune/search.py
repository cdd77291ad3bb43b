"""The sweep's search: Optuna's sampler over the sweep file's space, and the scheduler that stops trials."""

import logging
from functools import partial

import optuna
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from voicechat_tune.sweep_file import SweepFile

METRIC, MODE = "validation_loss", "min"


def make_searcher(sweep: SweepFile) -> OptunaSearch:
    """TPE over the space; a trial's config is a flat point, {"training.learning_rate": 0.002, …}."""
    logging.getLogger("optuna").setLevel(logging.ERROR)

    return OptunaSearch(
        space=partial(suggest, sweep),
        metric=METRIC,
        mode=MODE,
        sampler=optuna.samplers.TPESampler(seed=sweep.seed),
        points_to_evaluate=sweep.first,
    )


def suggest(sweep: SweepFile, trial: optuna.Trial) -> None:
    """Draw one point (a function of the module, so that Tune can save the searcher)."""
    for field, distribution in sweep.search.items():
        if distribution.choice is not None:
            trial.suggest_categorical(field, distribution.choice)
        elif distribution.integer is not None:
            trial.suggest_int(field, *distribution.integer)
        else:
            low, high = distribution.uniform or distribution.loguniform or (0.0, 0.0)
            trial.suggest_float(field, low, high, log=distribution.loguniform is not None)


def make_scheduler(sweep: SweepFile) -> TrialScheduler:
    """ASHA over optimizer steps, counted by the training loop: Ray's own iteration restarts when a trial does."""
    if sweep.scheduler is None:
        return FIFOScheduler()
    return AsyncHyperBandScheduler(
        time_attr="step",
        max_t=sweep.recipe.training.steps,
        grace_period=sweep.scheduler.grace_steps,
        reduction_factor=sweep.scheduler.reduction_factor,
    )
