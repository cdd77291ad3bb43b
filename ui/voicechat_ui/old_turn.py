"""A spoken conversation: one turn is transcription, reply and synthesis, overlapped; plain asyncio, no Ray, no FastAPI.

    transcribe(recording) -> what was said
    generate(messages)    -> the reply, piece by piece   -+-> TextDelta events, at once
                                                          +-> sentences -> synthesize(sentence) -> SpeechChunk events

Two tasks run during a reply, one writing and one speaking; both put their events into one queue, so text never waits
for speech. Ending a turn early, by closing its iterator or by cancelling the task that reads it, stops both tasks and
whichever of the three callables is at work before the close returns.

What the history keeps: messages come in pairs, the person's and the reply, and a pair is added when its turn ends, no
matter how it ends. The reply that is kept is the concatenation of the TextDelta events that were handed out, so an
interrupted reply stays as far as it was written. A turn whose reply has no text (nothing heard, stopped or failed
before the first word) leaves no trace: chat templates want the two roles in strict alternation.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal

SPEECH_RATE_HZ = 24_000
"""Rate of the samples in a SpeechChunk."""

Message = dict[str, str]
"""One message of the history: {"role": "system" | "user" | "assistant", "content": text}."""

Stage = Literal["transcription", "generation", "synthesis"]

# Events a slow reader may fall behind by before the stages wait for it.
EVENTS_AHEAD = 64


@dataclass(frozen=True)
class Heard:
    """What the transcription made of the recording; absent in a typed turn."""

    text: str


@dataclass(frozen=True)
class NothingHeard:
    """The recording holds no speech: no reply follows."""


@dataclass(frozen=True)
class TextDelta:
    """The next piece of the reply, as the model wrote it."""

    text: str


@dataclass(frozen=True)
class SpeechChunk:
    """The next stretch of the spoken reply: signed 16-bit little-endian mono samples at SPEECH_RATE_HZ."""

    pcm: bytes


@dataclass(frozen=True)
class TurnFailed:
    """A stage raised; the turn ends, the conversation goes on."""

    stage: Stage
    error: Exception


@dataclass(kw_only=True)
class Timings:
    """Seconds from the start of the turn; None for what the turn did not reach."""

    transcription: float | None = None
    """The transcript was there."""
    first_token: float | None = None
    """The first piece of the reply was there."""
    first_sentence: float | None = None
    """The first sentence, or first clause, went to synthesis."""
    first_sound: float | None = None
    """The first samples of speech were there."""
    total: float | None = None
    """Everything was written and synthesised."""


@dataclass(frozen=True)
class TurnEnded:
    """The last event of every turn that was not cancelled."""

    timings: Timings


Event = Heard | NothingHeard | TextDelta | SpeechChunk | TurnFailed | TurnEnded

Transcribe = Callable[[bytes], Awaitable[str]]
Generate = Callable[[list[Message]], AsyncGenerator[str, None]]
Synthesize = Callable[[str], AsyncGenerator[bytes, None]]


class Conversation:
    """A history and the three callables that carry it on; one turn at a time.

    Args:
        transcribe: a whole recording, in any form that the callable reads, -> its words; blank where nobody spoke.
        generate: the messages so far, the newest last, -> the pieces of the reply.
        synthesize: one sentence -> its samples (see SpeechChunk).
        system_prompt: stands before the history in every request; none by default.
    """

    def __init__(
        self, *, transcribe: Transcribe, generate: Generate, synthesize: Synthesize, system_prompt: str = ""
    ) -> None:
        self.transcribe = transcribe
        self.generate = generate
        self.synthesize = synthesize
        self.system_prompt = system_prompt
        self.history: list[Message] = []
        self._in_turn = False

    def clear(self) -> None:
        """Forget everything that was said."""
        self.history = []

    async def turn(self, *, audio: bytes | None = None, text: str | None = None) -> AsyncGenerator[Event, None]:
        """One turn, from the person's recording or typed text to the end of the reply.

        Close the iterator (`contextlib.aclosing`) to be sure that an abandoned turn stops at once.

        Yields:
            Heard or NothingHeard (spoken turns), then TextDelta and SpeechChunk interleaved as they are made, then
            TurnFailed if a stage raised, then TurnEnded.

        Raises:
            ValueError: both or neither of `audio` and `text` are given.
            RuntimeError: another turn of this conversation is still going on.
        """
        if (audio is None) == (text is None):
            raise ValueError("a turn takes either audio or text")
        if self._in_turn:
            raise RuntimeError("the conversation is in another turn: close that one first")
        self._in_turn = True
        started = time.perf_counter()
        timings = Timings()
        try:
            if audio is not None:
                try:
                    text = (await self.transcribe(audio)).strip()
                except Exception as error:
                    yield TurnFailed("transcription", error)
                else:
                    timings.transcription = time.perf_counter() - started
                    yield Heard(text) if text else NothingHeard()
            if text:
                async with contextlib.aclosing(self._reply(text, started, timings)) as events:
                    async for event in events:
                        yield event
            timings.total = time.perf_counter() - started
            yield TurnEnded(timings)
        finally:
            self._in_turn = False

    async def _reply(self, said: str, started: float, timings: Timings) -> AsyncGenerator[Event, None]:
        """The reply's events; keeps the pair of messages in the history however it ends."""
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        question = {"role": "user", "content": said}
        messages = [*system, *self.history, question]
        # None: both tasks are through.
        events: asyncio.Queue[Event | None] = asyncio.Queue(EVENTS_AHEAD)
        sentences: asyncio.Queue[str | None] = asyncio.Queue()

        async def write() -> None:
            splitter = SentenceSplitter()
            async with contextlib.aclosing(self.generate(messages)) as pieces:
                async for piece in pieces:
                    if not piece:
                        continue
                    if timings.first_token is None:
                        timings.first_token = time.perf_counter() - started
                    await events.put(TextDelta(piece))
                    for sentence in splitter.feed(piece):
                        sentences.put_nowait(sentence)
            for sentence in splitter.flush():
                sentences.put_nowait(sentence)
            sentences.put_nowait(None)

        async def speak() -> None:
            while (sentence := await sentences.get()) is not None:
                # A voice has nothing to say for "..." or "***", and some invent a noise.
                if not any(character.isalnum() for character in sentence):
                    continue
                if timings.first_sentence is None:
                    timings.first_sentence = time.perf_counter() - started
                async with contextlib.aclosing(self.synthesize(sentence)) as chunks:
                    async for pcm in chunks:
                        if timings.first_sound is None:
                            timings.first_sound = time.perf_counter() - started
                        await events.put(SpeechChunk(pcm))

        async def both() -> None:
            stages: dict[asyncio.Task[None], Stage] = {
                asyncio.create_task(uncancelled(write())): "generation",
                asyncio.create_task(uncancelled(speak())): "synthesis",
            }
            try:
                done, _ = await asyncio.wait(stages, return_when=asyncio.FIRST_EXCEPTION)
                failed = [task for task in done if task.exception() is not None]
            finally:
                await stop(*stages)
            for task in failed[:1]:
                error = task.exception()
                assert isinstance(error, Exception)
                await events.put(TurnFailed(stages[task], error))
            await events.put(None)

        reply = ""
        work = asyncio.create_task(both())
        try:
            while (event := await events.get()) is not None:
                if isinstance(event, TextDelta):
                    reply += event.text
                yield event
        finally:
            if reply.strip():
                self.history += [question, {"role": "assistant", "content": reply}]
            await stop(work)


async def uncancelled(stage: Coroutine[Any, Any, None]) -> None:
    """Run a stage; a cancellation that nobody asked this task for is a failure like any other.

    A stage's backend may raise CancelledError for reasons of its own, and asyncio would end the task in silence, with
    the other stage waiting for it for ever.
    """
    try:
        await stage
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise RuntimeError("the stage was cancelled from within") from error


async def stop(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks and wait until each is over, however it ends."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class SentenceSplitter:
    """Cuts a streamed text into what is worth speaking at once, as early as that is certain.

    Sentences end at `. ! ? …` before a space, and at line ends, so verse is spoken line by line. The first cut may fall
    after a clause instead (`, ; :`), because the first sound should not wait for a long sentence. No sentence is longer
    than MAX_CHARACTERS. The cuts depend on the text alone, never on how it was chopped into pieces, and all of the
    text comes back in order, but for white space around the cuts.
    """

    MAX_CHARACTERS = 240
    # A shorter clause is spoken sooner than the next one can be written, and then there is a gap.
    MIN_FIRST_CLAUSE_CHARACTERS = 18

    # Every end is certain only when the white space after it is seen: "3.14" and "10:30" are not ends.
    _SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|\n")
    _CLAUSE_END = re.compile(r"[,;:—–]+[\"'”’)\]]*(?=\s)")
    _ABBREVIATION = re.compile(
        r"(?:\b(?:mr|mrs|ms|dr|prof|st|sr|jr|vs|etc|cf|approx|vol|fig|gen|capt|lt|col|rev|hon|e\.g|i\.e|a\.m|p\.m)"
        r"|(?<![\w'’])[a-z](?:\.[a-z])*"  # initials
        r"|^\s*\d{1,3})\.$",  # the number of a list's item
        re.IGNORECASE,
    )

    def __init__(self) -> None:
        self._rest = ""
        self._first = True

    def feed(self, piece: str) -> list[str]:
        """The sentences that are complete now that `piece` follows; often none."""
        self._rest += piece
        sentences = []
        while (cut := self._cut()) is not None:
            sentence, self._rest = self._rest[:cut].strip(), self._rest[cut:]
            if sentence:
                sentences.append(sentence)
                self._first = False
        return sentences

    def flush(self) -> list[str]:
        """What is left when the text is over: one sentence or none."""
        sentence, self._rest = self._rest.strip(), ""
        return [sentence] if sentence else []

    def _cut(self) -> int | None:
        """Where the next sentence ends in the text at hand; None if that cannot be known yet."""
        # Blank text at the start is no part of the sentence, so it does not count towards the cap.
        start = len(self._rest) - len(self._rest.lstrip())
        window = self._rest[: start + self.MAX_CHARACTERS + 1]
        ends = [
            match.end()
            for match in self._SENTENCE_END.finditer(window, start)
            if not self._ABBREVIATION.search(window[: match.end()])
        ]
        if self._first:
            clauses = (match.end() for match in self._CLAUSE_END.finditer(window, start))
            ends += [end for end in clauses if end - start >= self.MIN_FIRST_CLAUSE_CHARACTERS]
        if ends:
            return min(ends)
        if len(self._rest) - start <= self.MAX_CHARACTERS:
            return None
        capped = window[: start + self.MAX_CHARACTERS]
        clause_ends = [match.end() for match in self._CLAUSE_END.finditer(capped, start)]
        space = max(capped.rfind(" ", start), capped.rfind("\t", start))
        return max(clause_ends, default=0) or (space if space > start else len(capped))
