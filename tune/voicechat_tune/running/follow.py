"""The progress of a sweep: a live table in a terminal, plain lines elsewhere."""

from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console
from rich.live import Live
from rich.table import Table

from voicechat_platform.training.history import Evaluation
from voicechat_tune.running.driver import Driver
from voicechat_tune.running.messages import REPORT
from voicechat_tune.running.preemption import Preempted
from voicechat_tune.search.ranking import ranked
from voicechat_tune.search.sweep_file import SweepFile
from voicechat_tune.search.trials import RunKey, Trial
from voicechat_tune.search.trials_table import minutes, seconds_left, shown, trials_table

MOST_ROWS = 20


class Follower(tune.Callback):
    """Shows each trial's point, step, validation loss and remaining time; it also reports errors to the driver."""

    def __init__(self, sweep: SweepFile, driver: Driver, tensorboard: Path | None = None):
        self.sweep, self.driver = sweep, driver
        self.console = Console(stderr=True)
        self.live: Live | None = None
        self.writers: dict[RunKey, Any] = {}
        self.tensorboard = tensorboard
        self.keys: dict[str, RunKey] = {}
        """All runs so far by Ray's id; the driver has only the active ones."""

    def __reduce__(self):
        return tune.Callback, ()  # Tune pickles it for its own restore, which we never use

    def setup(self, **info: Any) -> None:
        if self.console.is_terminal:
            self.live = Live(get_renderable=self.table, console=self.console, refresh_per_second=1)
            self.live.start()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        key = RunKey(trial.config["trial"], trial.config["seed_index"])
        self.keys[trial.trial_id] = key
        self.say(f"{name_of(key)}: {describe(trial.config['point'])} begins")

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict, **info: Any) -> None:
        evaluation = result[REPORT]
        if not isinstance(evaluation, Evaluation):
            return
        key = self.keys[trial.trial_id]
        if self.live is None:
            left = minutes(seconds_left(self.driver.study.run(key), self.steps_of(key)))
            self.say(
                f"{name_of(key)}: {describe(trial.config['point'])}, step {evaluation.step}/{self.steps_of(key)}, "
                f"validation loss {evaluation.validation_loss:.4f}, {left} left"
            )
        if self.tensorboard is not None:
            self.write(self.tensorboard, key, evaluation)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        run = self.driver.study.run(self.keys[trial.trial_id])
        if run.ending == "failed":
            self.show_failure(run.key, run.message)
        elif run.ending is not None:
            self.say(f"{name_of(run.key)}: {'stopped early' if run.ending == 'stopped' else 'finished'}")
        self.close_writer(run.key)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = trial.get_pickled_error()
        cause = getattr(error, "cause", None) or error
        # Ray has no error for a process that ended with its machine.
        reason = f"{type(cause).__name__}: {cause}".strip() if cause else "its process or its machine is gone"
        key = self.keys.get(trial.trial_id)
        self.driver.on_error(trial.trial_id, reason, is_fault=not isinstance(cause, Preempted))
        if key is None:
            return
        self.close_writer(key)
        if self.driver.study.run(key).ending == "failed":
            self.show_failure(key, reason)
        else:
            line = f"{name_of(key)} was interrupted and will continue: {reason.splitlines()[0]}"
            self.console.print(line, highlight=False)

    def show_failure(self, key: RunKey, reason: str) -> None:
        self.console.print(
            f"{name_of(key)} failed: {reason.splitlines()[0]}; see `voicechat trial {self.sweep.name} {key.trial}`",
            style="red",
            highlight=False,
        )

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Stop the live display; the last table stays on the screen."""
        if self.live is not None:
            self.live.stop()
            self.live = None
        for key in list(self.writers):
            self.close_writer(key)

    def say(self, line: str) -> None:
        if self.live is None:
            self.console.print(line, highlight=False, soft_wrap=True)

    def write(self, folder: Path, key: RunKey, evaluation: Evaluation) -> None:
        from tensorboardX import SummaryWriter

        if key not in self.writers:
            self.writers[key] = SummaryWriter(str(folder / str(key)))
        for name in ("train_loss", "validation_loss", "learning_rate", "tokens_per_second"):
            self.writers[key].add_scalar(name, getattr(evaluation, name), evaluation.step)
        self.writers[key].flush()

    def close_writer(self, key: RunKey) -> None:
        """Close a run's writer. Each writer needs a file and a thread: too many for thousands of runs."""
        if key in self.writers:
            self.writers.pop(key).close()

    def steps_of(self, key: RunKey) -> int:
        steps, lineage = self.sweep.recipe.training.steps, self.driver.study.trial(key.trial).lineage
        return min(steps, self.sweep.ends_at(lineage) or steps)

    def table(self) -> Table:
        study = self.driver.study
        done = len(study.known) - len(study.unfinished)
        clock = minutes(self.driver.clock())
        cost = study.seconds / 3600 * self.sweep.hourly_cost()
        spent = f", {cost:.2f} spent" if cost else ""
        title = f"sweep {self.sweep.name}: {done} of {self.driver.wanted} trials done, {clock} passed{spent}"
        active = set(list(self.driver.active.values()))  # list() is atomic, and this is another thread
        return trials_table(title, worth_showing(study.trials(), self.sweep, active), self.sweep, active)


def worth_showing(trials: list[Trial], sweep: SweepFile, active: set[RunKey]) -> list[Trial]:
    """Return all trials; if there are too many, the active ones, then the best, then the latest."""
    running = {key.trial for key in active}
    first = [trial for trial in trials if trial.number in running]
    wanted = {trial.number: trial for trial in [*first, *ranked(trials, sweep), *reversed(trials)]}
    return sorted(list(wanted.values())[:MOST_ROWS], key=lambda trial: trial.number)


def name_of(key: RunKey) -> str:
    return f"trial {key.trial}" + (f", seed {key.seed_index + 1}" if key.seed_index else "")


def describe(point: dict[str, Any]) -> str:
    """Return the fields without their groups: "attention metric, learning_rate 0.0031"."""
    return ", ".join(f"{field.rpartition('.')[2]} {shown(value)}" for field, value in point.items())
