"""The evaluations of a run, as plain numbers: a reader needs no torch."""

from dataclasses import dataclass
from pathlib import Path

from voicechat_platform.checkpoint_files import read_run
from voicechat_platform.errors import InputError


@dataclass(frozen=True)
class Evaluation:
    """The measurements of a run after a number of steps."""

    step: int
    train_loss: float
    """The mean over the steps since the last evaluation, in nats per token."""
    validation_loss: float
    """In nats per token: of the run's last evaluation over the whole validation part, of earlier ones over the
    sequences of `selection_loss`."""
    selection_loss: float
    """The validation loss over the same sequences at every evaluation; it selects the best checkpoint."""
    nats_per_character: float
    """The validation loss per character, which is comparable between tokenizers."""
    learning_rate: float
    """The rate of the last step."""
    tokens_per_second: float
    """The training throughput since the last evaluation, over all workers."""
    flops_utilization: float | None
    """Model FLOPs per second as a share of the device's rate in large products; None if other runs load the device."""
    peak_memory_mib: float
    seconds: float
    """The time in this process, including evaluations."""
    exact_match: float | None = None
    """For the sorter: the share of held-out lists that the model sorts completely."""


def read_history(checkpoint: Path) -> list[Evaluation]:
    """Return the evaluations of the run that wrote a checkpoint, the first one first.

    Raises:
        InputError: its run.json is missing or damaged, or another version wrote unknown fields there.
    """
    history = read_run(checkpoint)["history"]
    try:
        return [Evaluation(**evaluation) for evaluation in history]
    except TypeError as error:
        reason = str(error).removeprefix("Evaluation.__init__() ")
        raise InputError(f"{checkpoint / 'run.json'} is of another version or damaged: its history {reason}") from None
