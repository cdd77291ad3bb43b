"""Trials and runs: what is known of each, in plain Python."""

from bisect import insort
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from voicechat_platform.training.history import Evaluation
from voicechat_tune.search.journal_lines import Ending

State = Literal["finished", "stopped", "failed", "unfinished"]


@dataclass(frozen=True)
class RunKey:
    """Names a run: the trial's number, from 1, and which of its seeds, from 0."""

    trial: int
    seed_index: int = 0

    def __str__(self) -> str:
        return f"{self.trial:04}" + (f"-{self.seed_index + 1}" if self.seed_index else "")


@dataclass
class Run:
    """One training."""

    key: RunKey
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """In order of their steps; beside an `Evaluation`'s fields "order", which counts all that came in, and "clock",
    the sweep's seconds so far over all sittings."""
    ending: Ending | None = None
    """None while it is unfinished."""
    message: str = ""
    """Why it failed or was stopped."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Of a finished run: the best checkpoint's losses, the model's size, and what it cost."""

    def end(self, ending: Ending, message: str, facts: dict[str, Any]) -> None:
        self.message, self.facts = message, facts
        self.ending = ending  # at the end: other threads take a run with an ending as whole

    @property
    def step(self) -> int:
        return self.evaluations[-1]["step"] if self.evaluations else 0

    @property
    def seconds(self) -> float:
        """That it had taken at its last evaluation, over all its attempts."""
        return self.evaluations[-1]["spent"] if self.evaluations else 0.0

    @property
    def loss(self) -> float | None:
        """Of its best checkpoint where it is finished, else the last one seen; nats per token."""
        if "validation_loss" in self.facts:
            return self.facts["validation_loss"]
        return self.evaluations[-1]["validation_loss"] if self.evaluations else None


@dataclass
class Trial:
    """One point of the search space."""

    number: int
    """From 1, in the order in which they were drawn."""
    point: dict[str, Any]
    state: State
    runs: list[Run]
    lineage: dict[str, int]
    """Of population based training: "member", "generation", and the "parent" trial that it goes on from."""

    @property
    def loss(self) -> float | None:
        """The mean over its runs so far."""
        losses = [run.loss for run in self.runs if run.loss is not None]
        return sum(losses) / len(losses) if losses else None


def evaluation_in(record: dict[str, Any]) -> dict[str, Any]:
    """An `Evaluation`'s fields alone, of a record that holds more; of an older version's, those it has."""
    return {field.name: record[field.name] for field in fields(Evaluation) if field.name in record}


def run_of(trial: Trial, key: RunKey) -> Run:
    """A trial's run, which it has from its first report on."""
    for run in trial.runs:
        if run.key == key:
            return run
    run = Run(key)
    insort(trial.runs, run, key=lambda run: run.key.seed_index)
    return run


def step_of(evaluation: dict[str, Any]) -> int:
    return evaluation["step"]


def objective_value(trial: Trial, objective: str) -> float:
    """The mean over the trial's runs."""
    values = [run.facts[objective] for run in trial.runs if run.ending == "finished"]
    return sum(values) / len(values)
