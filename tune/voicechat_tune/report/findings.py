"""The facts of a report about its runs: plain values for JSON, without objects of Ray or Optuna."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Table = Literal["equal width", "equal parameters", "equal FLOPs", "tuning"]
"""The quantity that was equal between the variants; tuning runs select the learning rate and are never compared."""


@dataclass(frozen=True)
class RunSummary:
    """One training run."""

    number: int
    """The number of the trial, from 1."""
    variant: str
    """Such as "standard" or "symmetric, tied"."""
    table: Table
    seed: int
    choices: dict[str, Any]
    """Dotted recipe fields and their values, such as {"training.learning_rate": 0.004}."""
    status: Literal["finished", "stopped", "failed", "unfinished"]
    """stopped: by the scheduler, before its last step. unfinished: only in a report of a running sweep."""
    history: list[dict[str, Any]]
    """`Evaluation`s as dicts, in order of their steps; empty if it failed before the first."""
    facts: dict[str, float] = field(default_factory=dict)
    """For its model: parameters, non_embedding_parameters, flops_per_token (of training), cache_bytes_per_token. For
    the run: test_loss (nats per token of the test part), seconds, tokens_per_second, peak_memory_mib. A fact that was
    not measured is missing."""

    def final_loss(self) -> float | None:
        """Return the validation loss of the last step, in nats per token."""
        return self.history[-1]["validation_loss"] if self.history else None

    def best_loss(self) -> float | None:
        return min((evaluation["validation_loss"] for evaluation in self.history), default=None)


@dataclass(frozen=True)
class TrialSummary:
    """One point of a sweep's search space, over all its seeds."""

    number: int
    """From 1."""
    variant: str
    choices: dict[str, Any]
    status: Literal["finished", "stopped", "failed", "unfinished", "interval"]
    """interval: in a population, before its last generation."""
    losses: list[float]
    """For each seed's run that ended, in nats per token: for a finished run its best checkpoint's loss over the whole
    validation part, which ranks the trials; for other runs the last loss, over the selection windows."""
    facts: dict[str, float]
    """Means over its runs, for facts that each run has."""
    is_ranked: bool
    """Whether it can be compared with others (`ranking.ranked`)."""
    is_best: bool
    """Whether no other trial beats it; with several objectives there may be several such trials."""

    @property
    def loss(self) -> float | None:
        """The mean over its seeds."""
        return sum(self.losses) / len(self.losses) if self.losses else None


@dataclass(frozen=True)
class Heads:
    """The readouts of one variant's heads (`voicechat heads`)."""

    rows: list[dict[str, Any]]
    """A row for each head: layer, head, symmetry, self_weight, previous_token, induction, effective_rank, …"""
    figures: dict[str, str]
    """PNG images, base64, by their content: "spectra", "scores", "attention"."""


@dataclass(frozen=True)
class Findings:
    """All facts of a report."""

    title: str
    kind: Literal["sweep", "comparison"]
    description: str
    """The question and the method, a paragraph of plain text."""
    runs: list[RunSummary]
    baseline: str | None = None
    """For a comparison: the variant with which the others are compared."""
    margin: float = 0.01
    """For a comparison: two variants whose difference is within ± this, in nats per token, are equivalent."""
    heads: dict[str, Heads] = field(default_factory=dict)
    """By variant."""
    prompt: str = ""
    samples: dict[str, str] = field(default_factory=dict)
    """For each variant: the prompt and the text that a model generates after it."""
    environment: dict[str, str] = field(default_factory=dict)
    """The conditions of the runs: machine, versions, commit, seconds of training, cost, in the order of the report."""
    importances: dict[str, float] = field(default_factory=dict)
    """For a sweep: the importance of each searched field (the sum is 1)."""
    trials: list[TrialSummary] = field(default_factory=list)
    """For a sweep: the ranked trials, the best first, then the others by their numbers."""
    objectives: list[str] = field(default_factory=lambda: ["validation_loss"])
    """For a sweep: its objectives; the first is validation_loss."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def findings_from(values: dict[str, Any]) -> Findings:
    """Convert the result of `as_dict`, or its JSON, back."""
    runs = [RunSummary(**run) for run in values["runs"]]
    trials = [TrialSummary(**trial) for trial in values["trials"]]
    heads = {variant: Heads(**rows) for variant, rows in values["heads"].items()}
    return Findings(**{**values, "runs": runs, "trials": trials, "heads": heads})
