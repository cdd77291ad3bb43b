"""What a report is written from: plain facts about runs, which JSON can hold, with nothing of Ray or Optuna in them."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Table = Literal["equal width", "equal parameters", "equal FLOPs", "tuning"]
"""What was held equal between the variants; tuning runs chose the learning rate and are never compared."""


@dataclass(frozen=True)
class Run:
    """One training run."""

    number: int
    """Of the trial, from 1."""
    variant: str
    """Such as "standard" or "symmetric, tied"."""
    table: Table
    seed: int
    choices: dict[str, Any]
    """Dotted recipe fields and their values, such as {"training.learning_rate": 0.004}."""
    status: Literal["finished", "stopped", "failed", "unfinished"]
    """stopped: by the scheduler, before its last step. unfinished: only where a sweep is looked at while it runs."""
    history: list[dict[str, Any]]
    """`Evaluation`s as dicts, in order of their steps; empty if it failed before the first."""
    facts: dict[str, float] = field(default_factory=dict)
    """What is known of its model: parameters, non_embedding_parameters, flops_per_token (of training),
    cache_bytes_per_token; and of the run: test_loss (nats per token of the held-out slice), seconds, tokens_per_second,
    peak_memory_mib. A fact that was not measured is missing."""

    def final_loss(self) -> float | None:
        """Validation loss of the last step, nats per token."""
        return self.history[-1]["validation_loss"] if self.history else None

    def best_loss(self) -> float | None:
        return min((evaluation["validation_loss"] for evaluation in self.history), default=None)


@dataclass(frozen=True)
class Trial:
    """One point of a sweep's search space, over all its seeds."""

    number: int
    """From 1."""
    variant: str
    choices: dict[str, Any]
    status: Literal["finished", "stopped", "failed", "unfinished", "interval"]
    """interval: of a population, before its last generation."""
    losses: list[float]
    """Of each seed's run that ended, nats per token: of a finished one its best checkpoint's over the whole validation
    part, by which trials are ranked; of others the last one seen, over the selection windows."""
    facts: dict[str, float]
    """Means over its runs, of what each of them has."""
    is_ranked: bool
    """Whether it can be compared with others (`ranking.ranked`)."""
    is_best: bool
    """Whether no other one beats it; of several objectives there may be several."""

    @property
    def loss(self) -> float | None:
        """The mean over its seeds."""
        return sum(self.losses) / len(self.losses) if self.losses else None


@dataclass(frozen=True)
class Heads:
    """The read-outs of one variant's heads (`voicechat heads`)."""

    rows: list[dict[str, Any]]
    """A row for each head: layer, head, symmetry, self_weight, previous_token, induction, effective_rank, …"""
    figures: dict[str, str]
    """PNG images, base64, by what they show: "spectra", "scores", "attention"."""


@dataclass(frozen=True)
class Findings:
    """Everything that a report says."""

    title: str
    kind: Literal["sweep", "comparison"]
    description: str
    """What was asked and how it was gone about, a paragraph of plain text."""
    runs: list[Run]
    baseline: str | None = None
    """Of a comparison: the variant that the others are compared with."""
    margin: float = 0.01
    """Of a comparison: two variants whose difference is within ± this, in nats per token, are equivalent."""
    heads: dict[str, Heads] = field(default_factory=dict)
    """By variant."""
    prompt: str = ""
    samples: dict[str, str] = field(default_factory=dict)
    """By variant: what a model writes after the prompt, the prompt included."""
    environment: dict[str, str] = field(default_factory=dict)
    """What was run and on what: machine, versions, commit, seconds of training, cost, in the order to be shown."""
    importances: dict[str, float] = field(default_factory=dict)
    """Of a sweep: how much each searched field mattered (sums to 1)."""
    trials: list[Trial] = field(default_factory=list)
    """Of a sweep: the ranked ones, the best first, then the others by their numbers."""
    objectives: list[str] = field(default_factory=lambda: ["validation_loss"])
    """Of a sweep: what it sought; the first is validation_loss."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def findings_from(values: dict[str, Any]) -> Findings:
    """Back from `as_dict`, or from the JSON of it."""
    runs = [Run(**run) for run in values["runs"]]
    trials = [Trial(**trial) for trial in values["trials"]]
    heads = {variant: Heads(**rows) for variant, rows in values["heads"].items()}
    return Findings(**{**values, "runs": runs, "trials": trials, "heads": heads})
