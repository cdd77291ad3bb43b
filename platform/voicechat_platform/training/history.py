"""What is known of a run while it trains. Plain numbers: whoever reads them needs no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Evaluation:
    """What is known of a run after a number of steps."""

    step: int
    train_loss: float
    """Mean over the steps since the last evaluation, nats per token."""
    validation_loss: float
    """Nats per token."""
    selection_loss: float
    """The validation loss over the same sequences at every evaluation: what the best checkpoint is chosen by."""
    nats_per_character: float
    """The validation loss per character: comparable between tokenizers."""
    learning_rate: float
    """Of the last step."""
    tokens_per_second: float
    """Training throughput since the last evaluation, over all workers."""
    flops_utilization: float
    """Model FLOPs a second, as a share of what the device reaches in large products."""
    peak_memory_mib: float
    seconds: float
    """Spent in this process, evaluations included."""
    exact_match: float | None = None
    """Of the sorter: share of held-out lists put wholly in order."""
