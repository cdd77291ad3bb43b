"""A corpus ready for training: tokens split in two, and the batches drawn from them.

Letters: b batch, t position.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from voicechat_platform.corpora.texts import read_text
from voicechat_platform.corpora.tokenizers import (
    PLAY_STOPS,
    PLAY_TEMPLATE,
    PROSE_TEMPLATE,
    TokenizerKind,
    make_tokenizer,
)
from voicechat_platform.errors import InputError


@dataclass(frozen=True)
class Corpus:
    """A tokenised text. The validation part is the text's end."""

    source: str
    sha256: str
    tokenizer: PreTrainedTokenizerFast
    train_tokens: Tensor
    validation_tokens: Tensor
    characters_per_token: float
    """Of the validation part: divides nats per token into nats per character."""
    reply_stops: list[str] | None
    """What ends a reply when the text is a play."""


def load_corpus(
    source: str, tokenizer: TokenizerKind = "characters", vocabulary_size: int = 512, validation_fraction: float = 0.1
) -> Corpus:
    """Read, split by characters, tokenise.

    Raises:
        InputError: the source cannot be read, or a part of it is empty.
    """
    text = read_text(source)
    split = int(len(text.characters) * (1 - validation_fraction))
    train, validation = text.characters[:split], text.characters[split:]
    # Characters are collected from all of the text, so that none in the validation part lacks a token;
    # byte pairs can spell anything and learn from the training part alone.
    encoder = make_tokenizer(tokenizer, vocabulary_size, text.characters if tokenizer == "characters" else train)
    encoder.chat_template = PLAY_TEMPLATE if text.is_play else PROSE_TEMPLATE
    train_tokens, validation_tokens = encode(encoder, train), encode(encoder, validation)
    if min(len(train_tokens), len(validation_tokens)) < 2:
        raise InputError(
            f"corpus {source!r} is too short: {len(train)} characters to train on, {len(validation)} to validate on"
        )
    return Corpus(
        source=source,
        sha256=text.sha256,
        tokenizer=encoder,
        train_tokens=train_tokens,
        validation_tokens=validation_tokens,
        characters_per_token=len(validation) / len(validation_tokens),
        reply_stops=PLAY_STOPS if text.is_play else None,
    )


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> Tensor:
    """(tokens,) int32."""
    backend = tokenizer.backend_tokenizer
    # Characters have no pre-tokenizer, and a whole text as one word is slow; byte pairs may join over lines' ends.
    pieces = text.splitlines(keepends=True) if backend.pre_tokenizer is None else [text]
    encodings = backend.encode_batch(pieces, add_special_tokens=False)
    return torch.tensor([token for encoding in encodings for token in encoding.ids], dtype=torch.int32)


class Batches:
    """Random windows of the tokens, drawn by a generator of its own whose position can be saved and restored."""

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

    def draw(self) -> tuple[Tensor, Tensor]:
        """Inputs and labels (the inputs moved by one), each (b, t) int64."""
        starts_b = torch.randint(len(self.tokens) - self.context, (self.batch_size,), generator=self.generator)
        windows = self.tokens[starts_b[:, None] + torch.arange(self.context + 1)].long()
        return windows[:, :-1], windows[:, 1:]

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
