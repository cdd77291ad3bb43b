"""Following a sweep: a live table in a terminal, plain lines elsewhere."""

import time
from typing import Any

from ray import tune
from rich.console import Console
from rich.live import Live
from rich.table import Table

from voicechat_tune.sweep_file import SweepFile

STATES = {"PENDING": "waiting", "RUNNING": "training", "TERMINATED": "finished", "ERROR": "failed", "PAUSED": "paused"}


class Follower(tune.Callback):
    """Shows each trial's variant, learning rate, step, validation loss and time left.

    Ray pickles its callbacks with the experiment, and a restored one starts to follow anew.
    """

    def __init__(self, sweep: SweepFile):
        self.sweep = sweep
        self.steps = sweep.recipe.training.steps
        self.trials: list[Any] = []
        self.reports: dict[str, dict[str, Any]] = {}
        self.started = time.monotonic()
        self.console = Console(stderr=True)
        self.live: Live | None = None

    def __reduce__(self):
        return Follower, (self.sweep,)

    def setup(self, **info: Any) -> None:
        self.started = time.monotonic()
        if self.console.is_terminal:
            self.live = Live(get_renderable=self.table, console=self.console, refresh_per_second=2)
            self.live.start()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.trials = trials
        if self.live is None:
            self.console.print(f"trial {self.number(trial)}: {describe(trial)} begins", highlight=False, soft_wrap=True)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict, **info: Any) -> None:
        self.trials = trials
        self.reports[trial.trial_id] = {**result, "at": time.monotonic()}
        if self.live is None and "validation_loss" in result:
            self.console.print(
                f"trial {self.number(trial)}: {describe(trial)}, step {result['step']}/{self.steps}, "
                f"validation loss {result['validation_loss']:.4f}, {minutes(self.seconds_left(trial))} left",
                highlight=False,
                soft_wrap=True,
            )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.trials = trials
        if self.live is None:
            ended = "stopped early" if self.is_short(trial) else "finished"
            self.console.print(f"trial {self.number(trial)}: {ended}", highlight=False, soft_wrap=True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.trials = trials
        self.console.print(
            f"trial {self.number(trial)} failed; its error is in {trial.local_path}/error.txt", style="red"
        )

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self.close()

    def close(self) -> None:
        """Leave the last table standing."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def table(self) -> Table:
        done = sum(has_ended(trial) for trial in self.trials)
        elapsed = minutes(time.monotonic() - self.started)
        table = Table(title=f"sweep {self.sweep.name}: {done} of {self.sweep.trials} trials done, {elapsed} passed")
        table.add_column("trial", justify="right")
        for column in ("variant", "state"):
            table.add_column(column)
        for column in ("learning rate", "step", "validation loss", "time left"):
            table.add_column(column, justify="right")
        best = min((self.report(trial).get("validation_loss", 1e9) for trial in self.trials), default=None)
        for trial in self.trials:
            report = self.report(trial)
            loss = report.get("validation_loss")
            table.add_row(
                self.number(trial),
                variant(trial, self.sweep),
                self.state(trial),
                f"{learning_rate(trial, self.sweep):.2e}",
                f"{report.get('step', 0)}/{self.steps}",
                "" if loss is None else f"{loss:.4f}",
                minutes(self.seconds_left(trial)) if trial.status == "RUNNING" else "",
                style="bold green" if loss is not None and loss == best else None,
            )
        return table

    def number(self, trial: Any) -> str:
        """Trials are called by the order in which they were drawn; Tune's own ids are random."""
        return str(self.trials.index(trial) + 1)

    def state(self, trial: Any) -> str:
        if trial.status == "TERMINATED" and not has_ended(trial):
            return "interrupted"
        if trial.status == "TERMINATED" and self.is_short(trial):
            return "stopped early"
        return STATES.get(trial.status, trial.status.lower())

    def is_short(self, trial: Any) -> bool:
        return self.report(trial).get("step", 0) < self.steps

    def report(self, trial: Any) -> dict[str, Any]:
        """The trial's last report: what this process has seen, or what a restored sweep remembers."""
        return self.reports.get(trial.trial_id) or trial.last_result or {}

    def seconds_left(self, trial: Any) -> float | None:
        """At the trial's own pace so far; None before its first report."""
        report = self.reports.get(trial.trial_id)
        if not report or not report.get("step"):
            return None
        pace = report["time_total_s"] / report["step"]
        since = time.monotonic() - report["at"]
        return max(0.0, (self.steps - report["step"]) * pace - since)


def has_ended(trial: Any) -> bool:
    """Whether it came to its end, by itself, by the scheduler or by an error; Ctrl-C only breaks it off."""
    return trial.status == "ERROR" or bool(trial.status == "TERMINATED" and (trial.last_result or {}).get("done"))


def variant(trial: Any, sweep: SweepFile) -> str:
    attention = trial.config.get("model.attention", sweep.recipe.model.attention)
    metric = trial.config.get("model.metric", sweep.recipe.model.metric)
    return f"{attention} ({metric})" if metric else attention


def learning_rate(trial: Any, sweep: SweepFile) -> float:
    return float(trial.config.get("training.learning_rate", sweep.recipe.training.learning_rate))


def describe(trial: Any) -> str:
    """The trial's point, fields without their groups: "attention metric, learning_rate 0.0031"."""
    parts = []
    for field, value in trial.config.items():
        shown = f"{value:.2e}" if isinstance(value, float) else value
        parts.append(f"{field.rpartition('.')[2]} {shown}")
    return ", ".join(parts)


def minutes(seconds: float | None) -> str:
    return "" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02}"
