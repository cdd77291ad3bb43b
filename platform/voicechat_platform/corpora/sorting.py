"""The sorter's data: lists of digits to sort.

Letters: b batch, t position, n length of a list.

In the form "sequence" the sorted list follows the list, and only the sorted half has labels, as in minGPT. In the form
"positionwise" the label of each position is the digit at that position of the sorted list. A causal model cannot know
it. No model can have a loss below the Bayes loss (0.3144 nats for 11 digits of 3) unless it sees the future.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from voicechat_platform.corpora.batches import IGNORED, Batch

Form = Literal["sequence", "positionwise"]
HELD_OUT_LISTS = 5000


@dataclass(frozen=True)
class Sorting:
    """Lists of `length` digits below `digits`. A hash holds a quarter of all lists out of training."""

    length: int
    digits: int
    form: Form
    tokenizer: PreTrainedTokenizerFast
    source: str = "sorting"
    characters_per_token: float = 1.0
    reply_stops: None = None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(f"{self.length} {self.digits} {self.form}".encode()).hexdigest()

    def batches(self, batch_size: int, context: int, seed: int) -> "Lists":
        return Lists(self, batch_size, seed)

    def validation(self, context: int, windows: int | None) -> Iterator[Batch]:
        lists_bn = self.held_out_lists()
        yield self.batch_of(lists_bn[:windows])

    def held_out_lists(self) -> Tensor:
        """Return (5000, n) lists, always the same."""
        return self.draw(HELD_OUT_LISTS, torch.Generator().manual_seed(0), held_out=True)

    def draw(self, count: int, generator: torch.Generator, held_out: bool) -> Tensor:
        """Return (count, n) lists, uniform over the held-out lists or the other ones."""
        found = torch.empty(0, self.length, dtype=torch.long)
        while len(found) < count:
            lists_bn = torch.randint(self.digits, (4 * count, self.length), generator=generator)
            found = torch.cat([found, lists_bn[self.is_held_out(lists_bn) == held_out]])
        return found[:count]

    def is_held_out(self, lists_bn: Tensor) -> Tensor:
        number_b = (lists_bn * self.digits ** torch.arange(self.length)).sum(-1)
        return (number_b * 2654435761 % 2**32) < 2**30  # Knuth's multiplicative hash

    def batch_of(self, lists_bn: Tensor) -> Batch:
        sorted_bn = lists_bn.sort(dim=-1).values
        if self.form == "positionwise":
            return lists_bn, sorted_bn
        sequence_bt = torch.cat([lists_bn, sorted_bn], dim=-1)
        labels_bt = sequence_bt[:, 1:].clone()
        labels_bt[:, : self.length - 1] = IGNORED
        return sequence_bt[:, :-1], labels_bt

    @torch.no_grad()
    def exact_match(self, model: nn.Module, lists: int | None = None) -> float | None:
        """Return the share of held-out lists that the model sorts completely with its likeliest digit at each step."""
        if self.form == "positionwise":
            return None
        lists_bn = self.held_out_lists()[:lists].to(next(model.parameters()).device)
        was_training = model.training
        model.eval()
        sequence_bt = lists_bn
        for _ in range(self.length):
            following_b = model(input_ids=sequence_bt, use_cache=False).logits[:, -1].argmax(-1)
            sequence_bt = torch.cat([sequence_bt, following_b[:, None]], dim=-1)
        model.train(was_training)
        right_b = (sequence_bt[:, self.length :] == lists_bn.sort(dim=-1).values).all(-1)
        return right_b.float().mean().item()


class Lists:
    """Random lists for training from a separate generator, which can be saved and restored."""

    def __init__(self, sorting: Sorting, batch_size: int, seed: int):
        self.sorting, self.batch_size = sorting, batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self) -> Batch:
        return self.sorting.batch_of(self.sorting.draw(self.batch_size, self.generator, held_out=False))

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
