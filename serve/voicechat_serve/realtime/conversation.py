"""A spoken conversation: its messages, and a reply that is spoken while it is generated. Plain asyncio, no Ray.

    pieces of text -+-> TextDelta events, at once
                    +-> sentences -> text for the voice -> synthesize(text) -> SpeechChunk events

Two tasks run during a reply: one generates text, the other one synthesizes it. Both put their events into one queue, so
text never waits for speech. Both begin when the reply is made, before a reader takes its events: a reply can begin
while it is not yet certain that the person has finished, and be discarded. `Reply.close` stops both tasks, and the
calls that they wait for, before it returns. The reader gets no event afterwards.

The history keeps the text that the person heard. An item's text is the text that the reply's reader received. Of a
reply that was interrupted within a sentence, the history keeps only the words whose sound was played (`Item.truncate`).
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from voicechat_serve.audio import Samples
from voicechat_serve.generation.answer_form import Message
from voicechat_serve.generation.loaded_model import Delta
from voicechat_serve.synthesis.sentences import Sentence, SentenceSplitter
from voicechat_serve.synthesis.spoken_text import Reader
from voicechat_serve.synthesis.voices import SPEECH_RATE

log = logging.getLogger("ray.serve.voicechat.realtime")

Role = Literal["system", "user", "assistant"]
Stage = Literal["generation", "synthesis"]
Synthesize = Callable[[str], AsyncGenerator[Samples, None]]
"""A sentence as the voice speaks it -> its samples (n,), float32 at SPEECH_RATE."""

Made = TypeVar("Made")

EVENTS_AHEAD = 64
"""The most events that may wait for the reader; then the stages wait for it."""

MOST_ITEMS = 1000
MOST_CHARACTERS = 2**20
"""Beyond these limits the oldest items are deleted; no model's context reaches so far back."""

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


@dataclass
class Item:
    """One message of the conversation."""

    role: Role
    id: str = field(default_factory=lambda: new_id("item"))
    text: str = ""
    """The transcript if the item is sound; empty until it is known."""
    is_spoken: bool = False
    """Whether the item is sound: the person's speech, or a spoken reply."""
    is_complete: bool = True
    """False while the item is in progress; it stays False if the item was interrupted."""
    is_in_progress: bool = False
    """Whether the reply is still being generated."""
    spoken: list[Spoken] = field(default_factory=list)
    """The sentences of a reply that have sound, in their order."""
    heard_ms: float | None = None
    """How much of the sound was played; None means all of it."""

    @property
    def milliseconds(self) -> float:
        """The length of the reply's sound so far."""
        return sum(sentence.ms for sentence in self.spoken)

    def truncate(self, ms: float) -> None:
        """Record how much of the reply's sound was played. Keep the whole text, because a better figure may follow."""
        self.heard_ms = ms
        self.is_complete = False

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


class Conversation:
    """The items of a conversation, in their order."""

    def __init__(self) -> None:
        self.id = new_id("conv")
        self.items: list[Item] = []
        self.language: str | None = None
        """The language of the person's last message; None if that message was written."""

    def find(self, id: str) -> Item | None:
        return next((item for item in self.items if item.id == id), None)

    def add(self, item: Item, place: int | None = None) -> str | None:
        """Put an item at the end, or at a place counted from 0. Return the id of the item before it."""
        place = len(self.items) if place is None else place
        self.items.insert(place, item)
        previous = self.items[place - 1].id if place else None
        while len(self.items) > MOST_ITEMS or sum(len(item.text) for item in self.items) > MOST_CHARACTERS:
            del self.items[0]
        return previous

    def messages(self, instructions: str = "", also: Sequence[Item] = ()) -> list[Message]:
        """Return the messages that the model continues.

        Args:
            instructions: the system message; it comes before all items.
            also: items that come after all others; they do not belong to the conversation yet.

        Returns:
            The messages, without empty ones. Two consecutive messages of the same role are joined, because chat
            templates require that the person and the model alternate.
        """
        messages: list[Message] = [{"role": "system", "content": instructions}] if instructions.strip() else []
        for item in [*self.items, *also]:
            if not (text := item.heard.strip()):
                continue
            if messages and messages[-1]["role"] == item.role:
                messages[-1] = {"role": item.role, "content": f"{messages[-1]['content']}\n{text}"}
            else:
                messages.append({"role": item.role, "content": text})
        return messages


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


Event = TextDelta | SpeechChunk | Failed


class Reply:
    """A reply that is being generated. It begins at once.

    Args:
        pieces: the reply's text, as the model generates it; `close` closes them too.
        synthesize: the voice; None for a written reply.
        language: ISO-639-1 code of the voice's language.
    """

    def __init__(
        self, pieces: AsyncGenerator[Delta, None], synthesize: Synthesize | None, language: str = "en"
    ) -> None:
        self.item = Item(role="assistant", is_spoken=synthesize is not None, is_complete=False, is_in_progress=True)
        """The reply's item; it grows with the events that the reader receives."""
        self.last: Delta | None = None
        """The model's last piece: it has the counts of tokens and the finish reason."""
        self.unspoken: list[str] = []
        """The parts of the text that the voice could not speak."""
        self._reader = Reader(language)
        self._pieces = pieces
        self._synthesize = synthesize
        self._events: asyncio.Queue[tuple[Event, Spoken | None] | None] = asyncio.Queue(EVENTS_AHEAD)
        self._sentences: asyncio.Queue[Sentence | None] = asyncio.Queue()
        self._is_closed = False
        self._work = asyncio.create_task(self._both())

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield the reply's events until it ends or is closed. There must be only one reader."""
        while not self._is_closed and (made := await self._events.get()) is not None:
            event, sentence = made
            match event:
                case TextDelta(text):
                    self.item.text += text
                case SpeechChunk(samples_n) if sentence is not None:
                    if not self.item.spoken or self.item.spoken[-1] is not sentence:
                        for earlier in self.item.spoken:
                            earlier.is_whole = True
                        self.item.spoken.append(sentence)
                    sentence.ms += 1000 * len(samples_n) / SPEECH_RATE
            yield event
        if not self._is_closed:
            self.item.is_complete = True
            for sentence in self.item.spoken:
                sentence.is_whole = True

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
                if not piece.text:
                    continue
                await self._events.put((TextDelta(piece.text), None))
                for sentence in splitter.feed(piece.text):
                    self._sentences.put_nowait(sentence)
        for sentence in splitter.flush():
            self._sentences.put_nowait(sentence)
        self._sentences.put_nowait(None)

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
