"""Conversations for a chat model, in its own chat template: those of a JSON-lines file, perhaps with calls of tools, or
a play, where each speech answers the one before.

Letters: b batch, t position.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from voicechat_platform.corpora.batches import IGNORED, Batch
from voicechat_platform.corpora.conversations import SUFFIX, Conversation, read_conversations
from voicechat_platform.corpora.texts import SPEAKER, Text
from voicechat_platform.errors import InputError
from voicechat_platform.tool_text import MARKS_OF_CALLS, form_of, told_in_text

TURNS = 4
"""Speeches per conversation: two of the user, two of the assistant."""

Example = tuple[list[int], list[int]]
"""Token ids of a conversation, and its labels: the next token in the assistant's messages, IGNORED elsewhere."""


@dataclass(frozen=True)
class Dialogue:
    """Conversations. The validation part is at their end."""

    source: str
    sha256: str
    tokenizer: PreTrainedTokenizerFast
    train_examples: list[Example]
    validation_examples: list[Example]
    characters_per_token: float
    """For the assistant's messages in the validation part."""
    held_out: list[Conversation]
    """The validation part."""
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
    """Make conversations from a JSON-lines file or a play.

    Raises:
        InputError: the text is neither, the tokenizer has no chat template, or the template cannot be cut into turns.
    """
    if text.source.endswith(SUFFIX):
        whole = read_conversations(text)
        num_trained = int(len(whole) * (1 - validation_fraction))
        train, validation = whole[:num_trained], whole[num_trained:]
    elif text.is_play:
        train, validation, _ = (conversations(part) for part in text.split(validation_fraction))
    else:
        raise InputError(
            f"corpus {text.source!r} is not a play: dialogue needs speeches under lines with the speaker's name and "
            f"a colon, or a file *{SUFFIX} with a conversation a line; use form: text"
        )
    if tokenizer.chat_template is None:
        raise InputError("the model has no chat template, so it cannot learn a dialogue; use form: text")
    if not train or not validation:
        raise InputError(f"corpus {text.source!r} is too short for a training and a validation part")
    check_marks(train + validation, tokenizer, text.source)
    validation_examples = [example(tokenizer, conversation) for conversation in validation]
    spoken = sum(
        len(message["content"])
        for conversation in validation
        for message in told_in_text(conversation.messages, [])
        if message["role"] == "assistant"
    )
    tokens = sum(label != IGNORED for _, labels in validation_examples for label in labels)
    return Dialogue(
        source=text.source,
        sha256=text.sha256,
        tokenizer=tokenizer,
        train_examples=[example(tokenizer, conversation) for conversation in train],
        validation_examples=validation_examples,
        characters_per_token=spoken / tokens,
        held_out=validation,
    )


def conversations(play: str) -> list[Conversation]:
    """Return conversations of a few speeches, each speech an answer to the one before."""
    speeches = [re.sub(r"\s+", " ", speech).strip() for speech in re.split(SPEAKER, play)[1:]]
    messages = [
        {"role": "assistant" if number % 2 else "user", "content": speech}
        for number, speech in enumerate(speech for speech in speeches if speech)
    ]
    return [Conversation(messages[start : start + TURNS]) for start in range(0, len(messages) - TURNS + 1, TURNS)]


def check_marks(whole: list[Conversation], tokenizer: PreTrainedTokenizerFast, source: str) -> None:
    """Check that no text holds a mark of turns or calls: the service changes these in its prompts.

    Raises:
        InputError: a text holds one.
    """
    marks = re.compile("|".join(map(re.escape, [*tokenizer.all_special_tokens, *MARKS_OF_CALLS])))
    for number, conversation in enumerate(whole, 1):
        if found := marks.search(json.dumps([conversation.messages, conversation.tools], ensure_ascii=False)):
            raise InputError(
                f"{source}, conversation {number} holds {found[0]}, which marks a turn or a call: leave it out of the "
                f"texts, and give calls as tool_calls"
            )


def render(
    tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, Any]], tools: list[dict[str, Any]], is_prompt: bool
) -> str:
    """Return the text of messages, as the service renders it.

    Args:
        tools: in the form for chat templates.
        is_prompt: whether the assistant's next message follows.
    """
    if form_of(tokenizer.chat_template) is None:
        role: Literal["system", "user"] = "system" if not tools or shows_system(tokenizer) else "user"
        messages, tools = told_in_text(messages, tools, role), []
    return tokenizer.apply_chat_template(messages, tools=tools or None, tokenize=False, add_generation_prompt=is_prompt)


def shows_system(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Return whether the chat template has a place for the system's message; some refuse it, others leave it out."""
    messages = [{"role": "system", "content": "Instructions."}, {"role": "user", "content": "Question?"}]
    try:
        return "Instructions." in tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:  # a template may call anything that Python's texts and lists have
        return False


def example(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> Example:
    """Tokenise turn by turn, as the service does: first the prompt, then the model's reply.

    Raises:
        InputError: the template rewrites earlier turns.
    """
    messages, tools = conversation.messages, conversation.tools
    ids: list[int] = []
    counts: list[bool] = []
    done = ""
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = render(tokenizer, messages[:number], tools, is_prompt=True)
        whole = render(tokenizer, messages[: number + 1], tools, is_prompt=False)
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
