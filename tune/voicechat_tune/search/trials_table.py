"""A table of a sweep's trials, for the live display and for later commands; it does not need Ray."""

from collections.abc import Set
from typing import Any

from rich.table import Table

from voicechat_tune.search.ranking import winners
from voicechat_tune.search.sweep_file import SweepFile
from voicechat_tune.search.trials import Run, RunKey, Trial


def trials_table(title: str, trials: list[Trial], sweep: SweepFile, active: Set[RunKey] = frozenset()) -> Table:
    """Return a row for each trial: its point, state, step and loss (≈ for a loss from the middle of a run).

    The table marks the best trial; with several objectives it marks all trials that no other trial beats.
    """
    fields = [field for field in dict.fromkeys(f for trial in trials for f in trial.point) if varies(field, trials)]
    table = Table(title=title)
    table.add_column("trial", justify="right")
    for field in fields:
        table.add_column(field.rpartition(".")[2].replace("_", " "), justify="right", overflow="fold")
    table.add_column("state")
    for column in ("step", "validation loss", *(["time left"] if active else [])):
        table.add_column(column, justify="right")
    best = {trial.number for trial in winners(trials, sweep)}
    for trial in trials:
        runs = [run for run in trial.runs if run.key in active]
        state: str = trial.state
        if any(key.trial == trial.number for key in active):
            state = "training" if sweep.seeds == 1 else f"training seed {max(1, len(trial.runs))} of {sweep.seeds}"
        elif state == "unfinished":
            state = "waiting"
        left = seconds_left(runs[-1], sweep.recipe.training.steps) if runs else None
        table.add_row(
            str(trial.number),
            *(shown(trial.point.get(field, "")) for field in fields),
            {"stopped": "stopped early"}.get(state, state),
            str(trial.runs[-1].step) if trial.runs else "0",
            "" if trial.loss is None else f"{'≈ ' if is_estimated(sweep, trial) else ''}{trial.loss:.4f}",
            *([minutes(left)] if active else []),
            style="bold green" if trial.number in best else None,
        )
    if any(is_estimated(sweep, trial) for trial in trials):
        table.caption = "≈ is over some of the validation windows (evaluations during a run); the others are over all"
    return table


def is_estimated(sweep: SweepFile, trial: Trial) -> bool:
    """Return whether the trial's loss is from evaluations during its runs.

    Such a loss cannot be compared with a loss over the whole validation part. This applies to all runs that have not
    finished, and to all intervals of a population except the last.
    """
    training, ends_at = sweep.recipe.training, sweep.ends_at(trial.lineage)
    if trial.point.get("training.evaluation_windows", training.evaluation_windows) is None:
        return False
    is_interval = ends_at is not None and ends_at < training.steps
    return any(is_interval or run.ending != "finished" for run in trial.runs if run.loss is not None)


def varies(field: str, trials: list[Trial]) -> bool:
    return len({str(trial.point.get(field)) for trial in trials}) > 1 or len(trials) == 1


def seconds_left(run: Run, steps: int) -> float | None:
    """Estimate from the run's average speed so far; None before its first evaluation."""
    if not run.step:
        return None
    return max(0.0, (steps - run.step) * run.evaluations[-1]["spent"] / run.step)


def shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def minutes(seconds: float | None) -> str:
    return "" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02}"
