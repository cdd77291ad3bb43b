"""The interface of all kinds of data for the training loop.

Letters: b batch, t position.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerFast

Batch = tuple[Tensor, Tensor]
"""Inputs and labels, each (b, t) int64: the label is the token that should follow, or IGNORED."""

IGNORED = -100
"""cross_entropy's ignore_index."""


class Batches(Protocol):
    """Random batches from a separate generator, whose position can be saved and restored."""

    def draw(self) -> Batch: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class TrainingData(Protocol):
    """A text, a dialogue or lists to sort."""

    @property
    def source(self) -> str: ...

    @property
    def sha256(self) -> str: ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast: ...

    @property
    def characters_per_token(self) -> float:
        """For the evaluated text: divides nats per token into nats per character."""

    @property
    def reply_stops(self) -> list[str] | None:
        """The texts that end a reply in a conversation."""

    def batches(self, batch_size: int, context: int, seed: int) -> Batches:
        """Return the batches for training."""

    def validation(self, context: int, windows: int | None) -> Iterator[Batch]:
        """Return the batches for evaluation, always the same: all, or about `windows` sequences spread evenly."""
