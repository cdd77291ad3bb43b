"""A text ready for training: the tokens of each part, and the batches drawn from them.

Letters: b batch, t position.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from voicechat_platform.corpora.batches import Batch
from voicechat_platform.corpora.texts import Text
from voicechat_platform.corpora.tokenizers import PLAY_STOPS, PROSE_TEMPLATE, play_template
from voicechat_platform.errors import InputError


@dataclass(frozen=True)
class Corpus:
    """A tokenised text. The validation part is at the end of the text, before the test part."""

    source: str
    sha256: str
    tokenizer: PreTrainedTokenizerFast
    train_tokens: Tensor
    validation_tokens: Tensor
    test_tokens: Tensor
    """Empty unless the recipe has a test part."""
    characters_per_token: float
    """For the validation part: divides nats per token into nats per character."""
    reply_stops: list[str] | None
    """The texts that end a reply if the text is a play."""

    def batches(self, batch_size: int, context: int, seed: int) -> "Windows":
        return Windows(self.train_tokens, batch_size, context, seed)

    def validation(self, context: int, windows: int | None) -> Iterator[Batch]:
        return windows_of(self.validation_tokens, context, windows)

    def test(self, context: int) -> Iterator[Batch]:
        return windows_of(self.test_tokens, context)


def make_corpus(
    text: Text, tokenizer: PreTrainedTokenizerFast, validation_fraction: float, test_fraction: float = 0.0
) -> Corpus:
    """Split a text by characters, and tokenise it.

    Args:
        tokenizer: a model's own, or a new one; if it has no chat template, this function sets one for the text.

    Raises:
        InputError: a part of the text is empty.
    """
    train, validation, test = text.split(validation_fraction, test_fraction)
    reply_stops = None
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PROSE_TEMPLATE
        if text.is_play:
            tokenizer.chat_template = play_template(*text.speakers(), text.characters)
            reply_stops = PLAY_STOPS
    train_tokens, validation_tokens = encode(tokenizer, train), encode(tokenizer, validation)
    if min(len(train_tokens), len(validation_tokens)) < 2:
        raise InputError(
            f"corpus {text.source!r} is too short: {len(train)} characters to train on, {len(validation)} to "
            f"validate on"
        )
    return Corpus(
        source=text.source,
        sha256=text.sha256,
        tokenizer=tokenizer,
        train_tokens=train_tokens,
        validation_tokens=validation_tokens,
        test_tokens=encode(tokenizer, test) if test else torch.empty(0, dtype=torch.int32),
        characters_per_token=len(validation) / len(validation_tokens),
        reply_stops=reply_stops,
    )


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> Tensor:
    """Return the tokens, (tokens,) int32."""
    backend = tokenizer.backend_tokenizer
    # Our character tokenizer has no pre-tokenizer, and a whole text as one word is slow. Other tokenizers may merge
    # over line ends.
    is_ours = backend.pre_tokenizer is None and backend.normalizer is None
    pieces = text.splitlines(keepends=True) if is_ours else [text]
    encodings = backend.encode_batch(pieces, add_special_tokens=False)
    return torch.tensor([token for encoding in encodings for token in encoding.ids], dtype=torch.int32)


def windows_of(tokens: Tensor, context: int, windows: int | None = None, batch_size: int = 32) -> Iterator[Batch]:
    """Cut a text into windows of one context, each predicted separately; always the same windows.

    Args:
        tokens: (n,) the text.
        windows: the number of windows, spread evenly over the text; None for all, with the shorter rest.
    """
    targets = len(tokens) - 1
    starts = torch.arange(0, targets, context)
    if windows is not None and windows < len(starts):
        starts = starts[torch.linspace(0, len(starts) - 2, windows).long()]
    full = starts[starts + context <= targets]
    batches = [(starts_b, context) for starts_b in full.split(batch_size) if len(starts_b)]
    if len(full) < len(starts):
        batches.append((starts[-1:], targets - int(starts[-1])))
    for starts_b, length in batches:
        window_bt = tokens[starts_b[:, None] + torch.arange(length + 1)].long()
        yield window_bt[:, :-1], window_bt[:, 1:]


class Windows:
    """Windows of the tokens in random order from a separate generator, which can be saved and restored.

    Each pass over the text starts at another offset and takes every window once. With replacement, a run of one and a
    half passes would never see a fifth of the text.
    """

    def __init__(self, tokens: Tensor, batch_size: int, context: int, seed: int):
        if len(tokens) <= context:
            raise InputError(
                f"the corpus has {len(tokens)} training tokens, fewer than one context of {context} and its target: "
                f"give a longer text or a shorter model.context"
            )
        self.tokens = tokens
        self.batch_size = batch_size
        self.context = context
        self.generator = torch.Generator().manual_seed(seed)
        self.pass_began_at = self.generator.get_state()
        self.order = torch.empty(0, dtype=torch.long)
        self.drawn = 0

    def begin_pass(self) -> None:
        self.pass_began_at = self.generator.get_state()
        latest = min(self.context, len(self.tokens) - self.context)
        offset = int(torch.randint(latest, (), generator=self.generator))
        windows = (len(self.tokens) - 1 - offset) // self.context
        self.order = torch.randperm(windows, generator=self.generator) * self.context + offset
        self.drawn = 0

    def draw(self) -> Batch:
        """Return inputs and labels (the inputs shifted by one)."""
        starts: list[int] = []
        while len(starts) < self.batch_size:
            if self.drawn == len(self.order):
                self.begin_pass()
            taken = self.order[self.drawn : self.drawn + self.batch_size - len(starts)].tolist()
            starts += taken
            self.drawn += len(taken)
        windows = self.tokens[torch.tensor(starts)[:, None] + torch.arange(self.context + 1)].long()
        return windows[:, :-1], windows[:, 1:]

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.pass_began_at, "drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        if state["drawn"]:
            self.begin_pass()
        self.drawn = state["drawn"]
