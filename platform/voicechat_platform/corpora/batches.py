"""What every kind of data gives to the training loop.

Letters: b batch, t position.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerFast

Batch = tuple[Tensor, Tensor]
"""Inputs and labels, each (b, t) int64: the label is the token that should follow, IGNORED where it does not count."""

IGNORED = -100
"""cross_entropy's ignore_index."""


class Batches(Protocol):
    """Random batches from a generator of their own, whose position can be saved and restored."""

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
        """Of what is evaluated: divides nats per token into nats per character."""

    @property
    def reply_stops(self) -> list[str] | None:
        """What ends a reply in a conversation."""

    def batches(self, batch_size: int, context: int, seed: int) -> Batches:
        """To train on."""

    def validation(self, context: int, windows: int | None) -> Iterator[Batch]:
        """To evaluate on, always the same: all of it, or about `windows` sequences spread over it."""
