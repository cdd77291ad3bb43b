"""A sweep's trials as a table, for the one who follows it and for those who look at it later, without Ray."""

from collections.abc import Set
from typing import Any

from rich.table import Table

from voicechat_tune.search.ranking import winners
from voicechat_tune.search.sweep_file import SweepFile
from voicechat_tune.search.trials import Run, RunKey, Trial


def trials_table(title: str, trials: list[Trial], sweep: SweepFile, active: Set[RunKey] = frozenset()) -> Table:
    """A row for each trial: what was chosen, how far it is, its loss (≈ of mid-run); the best is marked, of several
    objectives all that no other one beats."""
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
        table.caption = "≈ over a part of the validation windows, as evaluations in mid-run are; the others over all"
    return table


def is_estimated(sweep: SweepFile, trial: Trial) -> bool:
    """Whether the trial's loss is of evaluations in mid-run: not to be compared with those over the whole part.

    It is of every run that has not finished, and of a population's intervals but the last.
    """
    training, ends_at = sweep.recipe.training, sweep.ends_at(trial.lineage)
    if trial.point.get("training.evaluation_windows", training.evaluation_windows) is None:
        return False
    is_interval = ends_at is not None and ends_at < training.steps
    return any(is_interval or run.ending != "finished" for run in trial.runs if run.loss is not None)


def varies(field: str, trials: list[Trial]) -> bool:
    return len({str(trial.point.get(field)) for trial in trials}) > 1 or len(trials) == 1


def seconds_left(run: Run, steps: int) -> float | None:
    """At the run's own pace so far; None before its first report."""
    if not run.step:
        return None
    return max(0.0, (steps - run.step) * run.evaluations[-1]["spent"] / run.step)


def shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def minutes(seconds: float | None) -> str:
    return "" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02}"
