"""What is known of a run while it trains. Plain numbers: whoever reads them needs no torch."""

from dataclasses import dataclass
from pathlib import Path

from voicechat_platform.checkpoint_files import read_run
from voicechat_platform.errors import InputError


@dataclass(frozen=True)
class Evaluation:
    """What is known of a run after a number of steps."""

    step: int
    train_loss: float
    """Mean over the steps since the last evaluation, nats per token."""
    validation_loss: float
    """Nats per token: of the run's last evaluation over the whole validation part, of those before over the sequences
    of `selection_loss`."""
    selection_loss: float
    """The validation loss over the same sequences at every evaluation: what the best checkpoint is chosen by."""
    nats_per_character: float
    """The validation loss per character: comparable between tokenizers."""
    learning_rate: float
    """Of the last step."""
    tokens_per_second: float
    """Training throughput since the last evaluation, over all workers."""
    flops_utilization: float | None
    """Model FLOPs a second, as a share of what the device reaches in large products; None where others load it."""
    peak_memory_mib: float
    seconds: float
    """Spent in this process, evaluations included."""
    exact_match: float | None = None
    """Of the sorter: share of held-out lists put wholly in order."""


def read_history(checkpoint: Path) -> list[Evaluation]:
    """The evaluations of the run that wrote a checkpoint, the first one first.

    Raises:
        InputError: its run.json is missing or damaged, or another version wrote there what this one does not know.
    """
    history = read_run(checkpoint)["history"]
    try:
        return [Evaluation(**evaluation) for evaluation in history]
    except TypeError as error:
        reason = str(error).removeprefix("Evaluation.__init__() ")
        raise InputError(f"{checkpoint / 'run.json'} is of another version or damaged: its history {reason}") from None
