"""Trials and runs of a sweep, as plain Python objects."""

from bisect import insort
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from voicechat_platform.training.history import Evaluation
from voicechat_tune.search.journal_lines import Ending

State = Literal["finished", "stopped", "failed", "unfinished"]


@dataclass(frozen=True)
class RunKey:
    """The key of a run: the trial's number, from 1, and the index of the seed, from 0."""

    trial: int
    seed_index: int = 0

    def __str__(self) -> str:
        return f"{self.trial:04}" + (f"-{self.seed_index + 1}" if self.seed_index else "")


@dataclass
class Run:
    """One training of a trial's point, with one seed."""

    key: RunKey
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """In order of their steps. Each has an `Evaluation`'s fields and three more: "spent", the run's seconds so far;
    "order", which counts the evaluations of all runs; "clock", the sweep's seconds so far, over all its starts."""
    ending: Ending | None = None
    """None while the run is unfinished."""
    message: str = ""
    """The reason why the run failed or was stopped."""
    facts: dict[str, Any] = field(default_factory=dict)
    """For a finished run: the best checkpoint's losses, the model's size, and the cost of the training."""

    def end(self, ending: Ending, message: str, facts: dict[str, Any]) -> None:
        self.message, self.facts = message, facts
        self.ending = ending  # last: for other threads, a run with an ending is complete

    @property
    def step(self) -> int:
        return self.evaluations[-1]["step"] if self.evaluations else 0

    @property
    def seconds(self) -> float:
        """The duration up to the last evaluation, over all attempts."""
        return self.evaluations[-1]["spent"] if self.evaluations else 0.0

    @property
    def loss(self) -> float | None:
        """The loss of a finished run's best checkpoint; for other runs the last loss. In nats per token."""
        if "validation_loss" in self.facts:
            return self.facts["validation_loss"]
        return self.evaluations[-1]["validation_loss"] if self.evaluations else None


@dataclass
class Trial:
    """One point of the search space."""

    number: int
    """From 1, in the order of creation."""
    point: dict[str, Any]
    state: State
    runs: list[Run]
    lineage: dict[str, int]
    """For population based training: "member", "generation", and the "parent" trial whose checkpoint it starts from."""

    @property
    def loss(self) -> float | None:
        """The mean over the runs so far, in nats per token."""
        losses = [run.loss for run in self.runs if run.loss is not None]
        return sum(losses) / len(losses) if losses else None


def evaluation_in(record: dict[str, Any]) -> dict[str, Any]:
    """Return only an `Evaluation`'s fields of a record. A record from an older version may have fewer of them."""
    return {field.name: record[field.name] for field in fields(Evaluation) if field.name in record}


def run_of(trial: Trial, key: RunKey) -> Run:
    """Return a trial's run; add it if it is not there yet."""
    for run in trial.runs:
        if run.key == key:
            return run
    run = Run(key)
    insort(trial.runs, run, key=lambda run: run.key.seed_index)
    return run


def step_of(evaluation: dict[str, Any]) -> int:
    return evaluation["step"]


def objective_value(trial: Trial, objective: str) -> float:
    """Return the mean over the trial's finished runs."""
    values = [run.facts[objective] for run in trial.runs if run.ending == "finished"]
    return sum(values) / len(values)
