"""A play as conversations for a chat model: each speech answers the one before, in the model's own chat template.

Letters: b batch, t position.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from voicechat_platform.corpora.batches import IGNORED, Batch
from voicechat_platform.corpora.texts import SPEAKER, Text
from voicechat_platform.errors import InputError

TURNS = 4
"""Speeches per conversation: two of the user, two of the assistant."""

Example = tuple[list[int], list[int]]
"""Token ids of a conversation, and its labels: the next token in the assistant's speeches, IGNORED elsewhere."""


@dataclass(frozen=True)
class Dialogue:
    """The conversations of a play. The validation part is at its end."""

    source: str
    sha256: str
    tokenizer: PreTrainedTokenizerFast
    train_examples: list[Example]
    validation_examples: list[Example]
    characters_per_token: float
    """For the assistant's speeches in the validation part."""
    reply_stops: None = None

    def batches(self, batch_size: int, context: int, seed: int) -> "Conversations":
        return Conversations(self.train_examples, batch_size, context, seed)

    def validation(self, context: int, windows: int | None) -> Iterator[Batch]:
        """Return batches of 8; with `windows`, only this number of conversations, spread evenly."""
        examples = self.validation_examples
        count = len(examples) if windows is None else min(windows, len(examples))
        chosen = [examples[index] for index in torch.linspace(0, len(examples) - 1, count).long().tolist()]
        for start in range(0, len(chosen), 8):
            yield stack(chosen[start : start + 8], context)


def make_dialogue(text: Text, tokenizer: PreTrainedTokenizerFast, validation_fraction: float) -> Dialogue:
    """Make conversations from a play.

    Raises:
        InputError: the text is not a play, the tokenizer has no chat template, or the template cannot be cut into
            turns.
    """
    if not text.is_play:
        raise InputError(
            f"corpus {text.source!r} is not a play: dialogue needs speeches under lines with the speaker's name and "
            f"a colon; use form: text"
        )
    if tokenizer.chat_template is None:
        raise InputError("the model has no chat template, so it cannot learn a dialogue; use form: text")
    train, validation, _ = (conversations(part) for part in text.split(validation_fraction))
    validation_examples = [example(tokenizer, speeches) for speeches in validation]
    if not train or not validation:
        raise InputError(f"corpus {text.source!r} has too few speeches for a training and a validation part")
    spoken = sum(len(speech) for speeches in validation for speech in speeches[1::2])
    tokens = sum(label != IGNORED for _, labels in validation_examples for label in labels)
    return Dialogue(
        source=text.source,
        sha256=text.sha256,
        tokenizer=tokenizer,
        train_examples=[example(tokenizer, speeches) for speeches in train],
        validation_examples=validation_examples,
        characters_per_token=spoken / tokens,
    )


def conversations(play: str) -> list[list[str]]:
    """Return conversations of a few speeches, each speech an answer to the one before."""
    speeches = [re.sub(r"\s+", " ", speech).strip() for speech in re.split(SPEAKER, play)[1:]]
    speeches = [speech for speech in speeches if speech]
    return [speeches[start : start + TURNS] for start in range(0, len(speeches) - TURNS + 1, TURNS)]


def example(tokenizer: PreTrainedTokenizerFast, speeches: list[str]) -> Example:
    """Tokenise turn by turn, as the service does: first the prompt, then the model's reply."""
    messages = [
        {"role": "assistant" if number % 2 else "user", "content": speech} for number, speech in enumerate(speeches)
    ]
    ids: list[int] = []
    counts: list[bool] = []
    done = ""
    for number in range(1, len(messages), 2):
        prompt = tokenizer.apply_chat_template(messages[:number], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(messages[: number + 1], tokenize=False)
        if not (prompt.startswith(done) and whole.startswith(prompt)):
            raise InputError("the model's chat template rewrites earlier turns, so a dialogue cannot be cut into turns")
        for piece, is_reply in ((prompt[len(done) :], False), (whole[len(prompt) :], True)):
            piece_ids = tokenizer.encode(piece, add_special_tokens=False)
            ids += piece_ids
            counts += [is_reply] * len(piece_ids)
        done = whole
    labels = [following if counted else IGNORED for following, counted in zip(ids[1:], counts[1:], strict=True)]
    return ids[:-1], labels


def stack(examples: list[Example], context: int) -> Batch:
    """Cut to one context and pad on the right. Attention is causal, and the labels of padding are IGNORED."""
    length = min(context, max(len(ids) for ids, _ in examples))
    inputs_bt = torch.zeros(len(examples), length, dtype=torch.long)
    labels_bt = torch.full((len(examples), length), IGNORED)
    for row, (ids, labels) in enumerate(examples):
        width = min(length, len(ids))
        inputs_bt[row, :width], labels_bt[row, :width] = torch.tensor(ids[:width]), torch.tensor(labels[:width])
    return inputs_bt, labels_bt


class Conversations:
    """Random conversations from a separate generator, which can be saved and restored."""

    def __init__(self, examples: list[Example], batch_size: int, context: int, seed: int):
        # A long prompt may leave no room for a reply.
        self.examples = [each for each in examples if any(label != IGNORED for label in each[1][:context])]
        if not self.examples:
            raise InputError(f"no conversation reaches a reply within model.context ({context}): lengthen it")
        self.batch_size, self.context = batch_size, context
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self) -> Batch:
        chosen_b: Tensor = torch.randint(len(self.examples), (self.batch_size,), generator=self.generator)
        return stack([self.examples[index] for index in chosen_b.tolist()], self.context)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
