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
    objectives: list[str] = field(default_factory=lambda: ["validation_loss"])
    """Of a sweep: what it sought; the first is validation_loss."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def findings_from(values: dict[str, Any]) -> Findings:
    """Back from `as_dict`, or from the JSON of it."""
    runs = [Run(**run) for run in values["runs"]]
    heads = {variant: Heads(**rows) for variant, rows in values["heads"].items()}
    return Findings(**{**values, "runs": runs, "heads": heads})
