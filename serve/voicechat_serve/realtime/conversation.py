"""A spoken conversation: its messages, and a reply that is spoken while it is generated. Plain asyncio, no Ray.

    pieces of text -+-> TextDelta events, at once
                    +-> sentences -> text for the voice -> synthesize(text) -> SpeechChunk events
    pieces of calls --> CallPiece events, when the text before them is spoken

Two tasks run during a reply: one generates text, the other one synthesizes it. Both put their events into one queue, so
text never waits for speech. Both begin when the reply is made, before a reader takes its events: a reply can begin
while it is not yet certain that the person has finished, and be discarded. `Reply.close` stops both tasks, and the
calls that they wait for, before it returns. The reader gets no event afterwards.

The history keeps the text that the person heard. An item's text is the text that the reply's reader received. Of a
reply that was interrupted within a sentence, the history keeps only the words whose sound was played
(`MessageItem.truncate`).
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from voicechat_serve.audio import Samples
from voicechat_serve.generation.answer_form import CallPiece, Message
from voicechat_serve.generation.loaded_model import Delta
from voicechat_serve.json_values import object_of
from voicechat_serve.realtime.items import (
    CallItem,
    Item,
    MessageItem,
    OutputItem,
    ResultItem,
    Spoken,
    new_id,
)
from voicechat_serve.synthesis.sentences import Sentence, SentenceSplitter
from voicechat_serve.synthesis.spoken_text import Reader
from voicechat_serve.synthesis.voices import SPEECH_RATE

log = logging.getLogger("ray.serve.voicechat.realtime")

Stage = Literal["generation", "synthesis"]
Synthesize = Callable[[str], AsyncGenerator[Samples, None]]
"""A sentence as the voice speaks it -> its samples (n,), float32 at SPEECH_RATE."""

Made = TypeVar("Made")

EVENTS_AHEAD = 64
"""The most events that may wait for the reader; then the stages wait for it."""

MOST_ITEMS = 1000
MOST_CHARACTERS = 2**20
"""Beyond these limits the oldest items are deleted; no model's context reaches so far back."""

NO_LABELS: Mapping[str, str] = MappingProxyType({})

NO_RESULT = "There is no result yet."
"""Follows a call in the prompt until the client sends its result."""


class Conversation:
    """The items of a conversation, in their order."""

    def __init__(self) -> None:
        self.id = new_id("conv")
        self.items: list[Item] = []
        self.language: str | None = None
        """The language of the person's last message; None if that message was written."""

    def find(self, id: str) -> Item | None:
        return next((item for item in self.items if item.id == id), None)

    def made_call(self, call_id: str) -> CallItem | None:
        """Return the call of that id; None if no call was made under it."""
        calls = (item for item in self.items if isinstance(item, CallItem))
        return next((call for call in calls if call.call_id == call_id and call.status == "completed"), None)

    def has_result(self, call_id: str) -> bool:
        return any(isinstance(item, ResultItem) and item.call_id == call_id for item in self.items)

    def add(self, item: Item, place: int | None = None) -> str | None:
        """Put an item at the end, or at a place counted from 0. Return the id of the item before it."""
        place = len(self.items) if place is None else place
        self.items.insert(place, item)
        previous = self.items[place - 1].id if place else None
        while len(self.items) > MOST_ITEMS or sum(item.num_characters for item in self.items) > MOST_CHARACTERS:
            del self.items[0]
        return previous

    def add_after(self, before: Item | None, item: Item) -> str | None:
        """Put an item behind another one, or at the beginning for None, or at the end if the other one was deleted.
        Return the id of the item before it."""
        if before is None:
            return self.add(item, 0)
        return self.add(item, self.items.index(before) + 1 if before in self.items else None)

    def messages(self, instructions: str = "", also: Sequence[Item] = ()) -> list[Message]:
        """Return the messages that the model continues.

        Args:
            instructions: the system message; it comes before all items.
            also: items that come after all others; they do not belong to the conversation yet.

        Returns:
            The messages, without empty ones. Two consecutive messages of the same role are joined, because chat
            templates require that the person and the model alternate. Calls belong to the message of the model before
            them; their results follow at once, wherever the items are, because templates require this too. A call
            without a result has NO_RESULT.
        """
        items = [*self.items, *also]
        results = {item.call_id: item.output for item in items if isinstance(item, ResultItem)}
        hosted = (item for item in items if isinstance(item, CallItem) and item.server_label)
        results |= {item.call_id: item.result for item in hosted if item.result is not None}
        messages: list[Message] = [{"role": "system", "content": instructions}] if instructions.strip() else []
        has_result = False
        """Whether a result followed the last call: then the next call is in a message of its own."""
        for item in items:
            last: Message = messages[-1] if messages else {"role": None}
            match item:
                case MessageItem():
                    if not (text := item.heard.strip()):
                        continue
                    if last["role"] == item.role and "tool_calls" not in last:
                        last["content"] += f"\n{text}"
                    else:
                        messages.append({"role": item.role, "content": text})
                case CallItem(status="completed"):
                    if last["role"] != "assistant" or ("tool_calls" in last and (has_result or item.is_first)):
                        messages.append(last := {"role": "assistant", "content": ""})
                    last.setdefault("tool_calls", []).append(described(item))
                    has_result = False
                case ResultItem():
                    has_result = True
        return [told for message in messages for told in (message, *results_of(message, results))]


def described(call: CallItem) -> dict[str, Any]:
    """Return a call as a part of its message."""
    function = {"name": call.name, "arguments": object_of(call.arguments)}
    return {"id": call.call_id, "type": "function", "function": function}


def results_of(message: Message, results: dict[str, str]) -> list[Message]:
    """Return the messages with the results of a message's calls."""
    return [
        {
            "role": "tool",
            "name": call["function"]["name"],
            "tool_call_id": call["id"],
            "content": results.get(call["id"], NO_RESULT),
        }
        for call in message.get("tool_calls", ())
    ]


@dataclass(frozen=True)
class Begun:
    """An item of the reply begins; the one before it is complete."""

    item: OutputItem


@dataclass(frozen=True)
class TextDelta:
    """The next piece of the reply's text, as the model generated it."""

    text: str


@dataclass(frozen=True)
class SpeechChunk:
    """The next samples of the spoken reply."""

    samples_n: Samples


@dataclass(frozen=True)
class Failed:
    """A stage raised; nothing follows."""

    stage: Stage
    error: Exception


Event = Begun | TextDelta | SpeechChunk | CallPiece | Failed


class Reply:
    """A reply that is being generated. It begins at once.

    Args:
        pieces: the reply's text, as the model generates it; `close` closes them too.
        synthesize: the voice; None for a written reply.
        language: ISO-639-1 code of the voice's language.
        labels: by the name of each tool that this service calls: the label of its server.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[Delta, None],
        synthesize: Synthesize | None,
        language: str = "en",
        labels: Mapping[str, str] = NO_LABELS,
    ) -> None:
        self.message = MessageItem(role="assistant", is_spoken=synthesize is not None, status="in_progress")
        """The reply's text; it grows with the events that the reader receives."""
        self.output: list[OutputItem] = []
        """The items that have begun: the message, if there is text, and then calls."""
        self.last: Delta | None = None
        """The model's last piece: it has the counts of tokens and the finish reason."""
        self.unspoken: list[str] = []
        """The parts of the text that the voice could not speak."""
        self._reader = Reader(language)
        self._pieces = pieces
        self._synthesize = synthesize
        self._labels = labels
        self._events: asyncio.Queue[tuple[Event, Spoken | None] | None] = asyncio.Queue(EVENTS_AHEAD)
        self._sentences: asyncio.Queue[Sentence | None] = asyncio.Queue()
        self._is_spoken = asyncio.Event()
        self._is_closed = self._has_failed = False
        self._work = asyncio.create_task(self._both())

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield the reply's events until it ends or is closed. There must be only one reader."""
        while not self._is_closed and (made := await self._events.get()) is not None:
            event, sentence = made
            match event:
                case TextDelta(text):
                    if not self.output:
                        yield self._begin(self.message)
                    self.message.text += text
                case SpeechChunk(samples_n) if sentence is not None:
                    spoken = self.message.spoken
                    if not spoken or spoken[-1] is not sentence:
                        for earlier in spoken:
                            earlier.is_whole = True
                        spoken.append(sentence)
                    sentence.ms += 1000 * len(samples_n) / SPEECH_RATE
                case CallPiece(name=name, arguments=arguments):
                    if name:
                        self._complete_last()
                        label, is_first = self._labels.get(name, ""), not self.output
                        item = CallItem(name, status="in_progress", server_label=label, is_first=is_first)
                        yield self._begin(item)
                    call = self.output[-1]
                    assert isinstance(call, CallItem)
                    call.arguments += arguments
                case Failed():
                    self._has_failed = True
            yield event
        if not (self._is_closed or self._has_failed):
            self._complete_last()

    def _begin(self, item: OutputItem) -> Begun:
        self.output.append(item)
        return Begun(item)

    def _complete_last(self) -> None:
        if self.output:
            self.output[-1].complete()

    async def close(self) -> None:
        """Stop the reply. Return when all of its work has ended."""
        self._is_closed = True
        await stop(self._work)
        await self._pieces.aclose()  # if the work was stopped before it began
        with contextlib.suppress(asyncio.QueueFull):
            self._events.put_nowait(None)  # wakes a reader that waits

    async def _both(self) -> None:
        stages: dict[asyncio.Task[None], Stage] = {
            asyncio.create_task(uncancelled(self._write())): "generation",
            asyncio.create_task(uncancelled(self._speak())): "synthesis",
        }
        try:
            done, _ = await asyncio.wait(stages, return_when=asyncio.FIRST_EXCEPTION)
            failed = [task for task in done if task.exception() is not None]
        finally:
            await stop(*stages)
        for task in failed[:1]:
            error = task.exception()
            assert isinstance(error, Exception)
            await self._events.put((Failed(stages[task], error), None))
        await self._events.put(None)

    async def _write(self) -> None:
        splitter = SentenceSplitter()
        async with contextlib.aclosing(self._pieces) as pieces:
            async for piece in pieces:
                self.last = piece
                if piece.text:
                    await self._events.put((TextDelta(piece.text), None))
                    for sentence in splitter.feed(piece.text):
                        self._sentences.put_nowait(sentence)
                for call in piece.calls:
                    await self._end_text(splitter)
                    await self._events.put((call, None))
        await self._end_text(splitter)

    async def _end_text(self, splitter: SentenceSplitter) -> None:
        """Let the voice speak the rest, and wait for it: an item of a response begins when the one before is
        complete."""
        for sentence in splitter.flush():
            self._sentences.put_nowait(sentence)
        self._sentences.put_nowait(None)
        await self._is_spoken.wait()

    async def _speak(self) -> None:
        while (sentence := await self._sentences.get()) is not None:
            if self._synthesize is None:
                continue
            reading = self._reader.read(sentence.text, sentence.begins_line)
            self.unspoken += reading.unspoken
            if not reading.aloud:  # for "..." or "***", for example; some voices invent a noise
                continue
            spoken, has_sound = Spoken(sentence.text, start=sentence.start, aloud=reading.aloud), False
            async with contextlib.aclosing(self._synthesize(reading.aloud)) as chunks:
                async for samples_n in chunks:
                    has_sound = True
                    await self._events.put((SpeechChunk(samples_n), spoken))
            if not has_sound:
                self.unspoken.append(sentence.text)
        self._is_spoken.set()


async def uncancelled(stage: Coroutine[Any, Any, Made]) -> Made:
    """Run a stage, and raise RuntimeError if it is cancelled although this task was not.

    A stage's backend may raise CancelledError for reasons of its own. asyncio would then end the task without an error,
    and the other stage would wait for it for ever.
    """
    try:
        return await stage
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise RuntimeError("the stage was cancelled from within") from error


async def stop(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel tasks, and wait until each has ended. An error of a task that was still running is logged, because no
    other task receives it."""
    begun = [task for task in tasks if task is not None]
    running = [task for task in begun if not task.done()]
    for task in running:
        task.cancel()
    await asyncio.gather(*begun, return_exceptions=True)
    for task in running:
        if not task.cancelled() and (error := task.exception()):
            log.warning("a task failed while it was stopped", exc_info=error)
