"""The items of a conversation: messages, calls of tools, and the results of calls."""

import secrets
from dataclasses import dataclass, field
from typing import Literal

from voicechat_serve.json_values import object_of

Role = Literal["system", "user", "assistant"]
Status = Literal["in_progress", "completed", "incomplete"]

MS_PER_CHARACTER = 65
"""The length of speech at a usual speed, for a sentence of which only the beginning was synthesized."""


def new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(10)}"


@dataclass
class Spoken:
    """A sentence of a reply and the length of its sound."""

    text: str
    """The sentence as it is written."""
    ms: float = 0.0
    """The length of its sound so far."""
    is_whole: bool = False
    """Whether all of its sound was synthesized."""
    start: int = 0
    """The first place in the reply's text where the sentence can begin."""
    aloud: str = ""
    """The sentence as the voice speaks it, if that differs from the text."""


@dataclass(frozen=True)
class Overheard:
    """Speech over a reply that did not interrupt it."""

    reason: Literal["backchannel", "echo", "noise"]
    transcript: str | None
    audio_ms: int
    """The place in the reply's sound where it was paused."""


@dataclass
class MessageItem:
    """One message of the conversation."""

    role: Role
    id: str = field(default_factory=lambda: new_id("item"))
    text: str = ""
    """The transcript if the item is sound; empty until it is known."""
    is_spoken: bool = False
    """Whether the item is sound: the person's speech, or a spoken reply."""
    status: Status = "completed"
    """Of a reply; it is incomplete if it was interrupted."""
    spoken: list[Spoken] = field(default_factory=list)
    """The sentences of a reply that have sound, in their order."""
    heard_ms: float | None = None
    """How much of the sound was played; None means all of it."""
    overheard: list[Overheard] = field(default_factory=list)
    """Where a reply was paused and went on."""

    @property
    def num_characters(self) -> int:
        return len(self.text)

    @property
    def milliseconds(self) -> float:
        """The length of the reply's sound so far."""
        return sum(sentence.ms for sentence in self.spoken)

    def complete(self) -> None:
        """Record that nothing of the reply follows."""
        for sentence in self.spoken:
            sentence.is_whole = True
        if self.status == "in_progress":
            self.status = "completed"

    def truncate(self, ms: float) -> None:
        """Record how much of the reply's sound was played. Keep the whole text, because a better figure may follow."""
        self.heard_ms = ms
        self.status = "incomplete"

    @property
    def heard(self) -> str:
        """The text, as far as its sound was played. It ends with a whole word."""
        if self.heard_ms is None:
            return self.text
        end, left_ms = 0, self.heard_ms
        for sentence in self.spoken:
            begin = self.text.find(sentence.text, max(end, sentence.start))
            if begin < 0:  # the reader has not received it yet
                break
            whole_ms = (
                sentence.ms
                if sentence.is_whole
                else max(sentence.ms, MS_PER_CHARACTER * len(sentence.aloud or sentence.text))
            )
            if left_ms < whole_ms:
                cut = int(len(sentence.text) * left_ms / whole_ms)
                heard = sentence.text[:cut] if sentence.text[cut].isspace() else sentence.text[:cut].rpartition(" ")[0]
                end = begin + len(heard) if heard else end
                break
            end, left_ms = begin + len(sentence.text), left_ms - whole_ms
        return self.text[:end].rstrip()


@dataclass
class CallItem:
    """A call of a tool."""

    name: str
    """The tool's name."""
    arguments: str = ""
    """A JSON object, as far as the model has written it."""
    call_id: str = field(default_factory=lambda: new_id("call"))
    """The client's result names it."""
    id: str = field(default_factory=lambda: new_id("item"))
    status: Status = "completed"
    """A call that is incomplete was never made."""
    server_label: str = ""
    """The operator's server of the tool; empty for a function of the client."""
    is_first: bool = False
    """Whether its response begins with it."""
    output: str | None = None
    """What the operator's server has answered; None until it has."""
    error: str = ""
    """Why there is no answer of the server."""

    @property
    def num_characters(self) -> int:
        return len(self.name) + len(self.arguments) + len(self.output or "")

    @property
    def result(self) -> str | None:
        """What the model reads of the call of a hosted tool; None if there is nothing yet."""
        return f"The tool failed: {self.error}" if self.error else self.output

    def complete(self) -> None:
        """Record that nothing of the call follows."""
        self.status = "incomplete" if object_of(self.arguments) is None else "completed"


@dataclass
class ResultItem:
    """The result of a call."""

    call_id: str
    output: str
    id: str = field(default_factory=lambda: new_id("item"))

    @property
    def num_characters(self) -> int:
        return len(self.output)


Item = MessageItem | CallItem | ResultItem
OutputItem = MessageItem | CallItem
"""What a reply consists of."""
