"""How well a model calls tools: the shares of valid and of right calls in its answers in held-out conversations.

The model writes its answers freely, the likeliest token at each place. The history of each answer is that of the
conversation, not what the model has written before.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import binomtest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from voicechat_platform.corpora.conversations import Conversation, fault_of
from voicechat_platform.corpora.dialogue import render
from voicechat_platform.errors import InputError
from voicechat_platform.tool_text import HERMES, CallForm, form_of

LONGEST_ANSWER = 128
"""In tokens; a longer one is cut off."""

AT_ONCE = 16
"""The number of answers in a batch."""

Call = tuple[str, dict[str, Any]]
"""The name of a tool, and the arguments."""


@dataclass(frozen=True)
class Turn:
    """A place in a conversation where the assistant answers."""

    conversation: Conversation
    place: int
    """The index of its message."""

    @property
    def expected(self) -> list[Call]:
        """The calls that it makes."""
        calls = self.conversation.messages[self.place].get("tool_calls", ())
        return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]

    def prompt(self, tokenizer: PreTrainedTokenizerFast) -> list[int]:
        """Return the tokens of the prompt, as the service makes them."""
        before = self.conversation.messages[: self.place]
        return tokenizer.encode(
            render(tokenizer, before, self.conversation.tools, is_prompt=True), add_special_tokens=False
        )


def turns_of(conversations: Sequence[Conversation]) -> list[Turn]:
    """Return the assistant's turns."""
    return [
        Turn(conversation, place)
        for conversation in conversations
        for place, message in enumerate(conversation.messages)
        if message["role"] == "assistant"
    ]


def spread(turns: list[Turn], most: int) -> list[Turn]:
    """Return at most this number of turns, spread evenly."""
    return [turns[index * len(turns) // most] for index in range(most)] if most < len(turns) else turns


def evaluate_calls(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, turns: Sequence[Turn]) -> dict[str, Any]:
    """Let the model answer, and return the result of `count_calls`.

    Raises:
        InputError: the model has no chat template, or a conversation is longer than its context.
    """
    if tokenizer.chat_template is None:
        raise InputError("the model has no chat template, so it cannot be asked to call tools")
    form = form_of(tokenizer.chat_template) or HERMES
    return count_calls((turn, calls_in(text, form)) for turn, text in answers(model, tokenizer, turns))


def count_calls(answered: Iterable[tuple[Turn, list[Call] | None]]) -> dict[str, Any]:
    """Return the shares of good answers, each with its 95% interval (Wilson), null where there is no such turn.

    valid_calls: of the turns that need a call, the share whose answer is calls of tools that exist, with arguments that
    their schemas allow. right_calls: the share with the names and arguments of the conversation. needless_calls: of the
    turns that need none, the share whose answer has a call, or something that begins like one.

    Args:
        answered: each turn with the calls of its answer, None for something that begins like a call and is none.
    """
    valid, right, needless = list[bool](), list[bool](), list[bool]()
    for turn, calls in answered:
        if turn.expected:
            valid.append(bool(calls) and all(is_allowed(call, turn.conversation) for call in calls or ()))
            right.append(valid[-1] and are_same(calls or (), turn.expected))
        else:
            needless.append(calls != [])
    result: dict[str, Any] = {"turns": len(valid) + len(needless), "turns_with_calls": len(valid)}
    for name, hits in (("valid_calls", valid), ("right_calls", right), ("needless_calls", needless)):
        result |= share(name, hits)
    return result


def share(name: str, hits: list[bool]) -> dict[str, Any]:
    if not hits:
        return {name: None, f"{name}_interval": None}
    interval = binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
    return {
        name: round(sum(hits) / len(hits), 4),
        f"{name}_interval": [round(float(interval.low), 4), round(float(interval.high), 4)],
    }


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, turns: Sequence[Turn]
) -> Iterator[tuple[Turn, str]]:
    """Yield each turn, the shortest prompts first, with the model's answer."""
    device = next(model.parameters()).device
    room = model.config.max_position_embeddings - LONGEST_ANSWER
    prompts = sorted(((turn.prompt(tokenizer), turn) for turn in turns), key=lambda pair: len(pair[0]))
    if prompts and len(prompts[-1][0]) > room:
        raise InputError(
            f"a conversation has {len(prompts[-1][0])} tokens before an answer, and the model's context leaves {room}"
        )
    stops = getattr(model.config, "reply_stops", None) or ()
    for start in range(0, len(prompts), AT_ONCE):
        batch = prompts[start : start + AT_ONCE]
        length = len(batch[-1][0])
        prompt_bt = torch.zeros(len(batch), length, dtype=torch.long)
        mask_bt = torch.zeros_like(prompt_bt)
        for row, (ids, _) in enumerate(batch):  # padded on the left, so that all answers begin at one place
            prompt_bt[row, length - len(ids) :], mask_bt[row, length - len(ids) :] = torch.tensor(ids), 1
        written_bt = model.generate(
            prompt_bt.to(device),
            attention_mask=mask_bt.to(device),
            max_new_tokens=LONGEST_ANSWER,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id or 0,
        )
        for (_, turn), written in zip(batch, written_bt[:, length:], strict=True):
            text = tokenizer.decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for stop in stops:
                text = text.partition(stop)[0]
            yield turn, text


def calls_in(text: str, form: CallForm) -> list[Call] | None:
    """Return the calls in a whole answer; None if something begins like a call and is none."""
    begin, end = form.begin.strip(), form.end.strip()
    if not begin:
        return [call] if (call := read_call(text, form)) else None if text.lstrip().startswith("{") else []
    found = re.compile(f"{re.escape(begin)}(.*?){re.escape(end)}", re.DOTALL)
    calls = [read_call(inner, form) for inner in found.findall(text)]
    if None in calls or begin in found.sub("", text):
        return None
    return [call for call in calls if call]


def read_call(text: str, form: CallForm) -> Call | None:
    """Return the call that a JSON object says, or None."""
    try:
        read = json.loads(text)
    except ValueError:
        return None
    if not isinstance(read, dict) or read.keys() != {"name", form.arguments}:
        return None
    name, arguments = read["name"], read[form.arguments]
    return (name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None


def is_allowed(call: Call, conversation: Conversation) -> bool:
    name, arguments = call
    schema = conversation.schema_of(name)
    return schema is not None and fault_of(arguments, schema) is None


def are_same(calls: Sequence[Call], expected: Sequence[Call]) -> bool:
    """Return whether these are the same calls, in any order."""
    left = list(expected)
    for call in calls:
        if call not in left:
            return False
        left.remove(call)
    return not left
