"""What a person says in one go, written down while they say it.

    |---- part ----|---- part ----|-- tail --|
       transcribed    transcribed    heard again and again while it grows, for partial transcripts,
       for good       for good       at a pause, in case it was the end, and at the end

A recogniser changes its mind about the last words when more follow. What is shown early is therefore only what two
transcripts in a row agree on (LocalAgreement: Macháček, Dabre & Bojar 2023, "Turning Whisper into a Real-Time
Transcription System", arXiv:2307.14743).

Letters: n samples at HEARING_RATE.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from itertools import takewhile
from typing import Any

import numpy as np

from voicechat_serve.audio import HEARING_RATE, Samples
from voicechat_serve.realtime.conversation import stop, uncancelled
from voicechat_serve.transcription.transcriber import Transcript

log = logging.getLogger("ray.serve.voicechat.realtime")

Hear = Callable[[Samples, bool], Coroutine[Any, Any, Transcript | None]]
"""A sound of at most LONGEST_PART_S and a bit; with True only where Whisper is idle: None where it was not."""

LONGEST_PART_S = 24.0
"""Longer ones are not heard in a short context."""

CUT_WITHIN_S = 10.0
"""A part ends where it is quietest among its last seconds."""

FIRST_PARTIAL_S, PARTIAL_EVERY_S = 0.8, 1.0
"""Of sound, between two partial transcripts."""

PARTS_AHEAD = 2
"""Parts that may wait for Whisper before more sound is taken."""


class Utterance:
    """
    Args:
        hear: transcribes.
        show: told the words that are sure already, as they become so; None where nobody wants them.
    """

    def __init__(self, hear: Hear, show: Callable[[str], None] | None = None):
        self.hear, self.show = hear, show
        self.parts: list[asyncio.Task[Transcript]] = []
        self.tail: list[Samples] = []
        self.tail_samples = 0
        self.samples = 0
        """In all."""
        self.shown = 0
        """Words of the tail that were shown."""
        self.partial: asyncio.Task[None] | None = None
        self.next_partial = int(FIRST_PARTIAL_S * HEARING_RATE)
        self.hypothesis: list[str] = []
        self.guess: asyncio.Task[Transcript] | None = None
        """Of the tail, made at a pause."""

    @property
    def seconds(self) -> float:
        return self.samples / HEARING_RATE

    async def append(self, samples_n: Samples) -> None:
        self.tail.append(samples_n)
        self.tail_samples += len(samples_n)
        self.samples += len(samples_n)
        if self.guess:  # only silence follows, or `resume`
            return
        if self.tail_samples >= LONGEST_PART_S * HEARING_RATE:
            await self._cut()
        elif self.show and self.tail_samples >= self.next_partial and self._is_heard_so_far():
            self.partial = asyncio.create_task(self._show_what_is_sure())

    async def transcribe_so_far(self) -> Transcript:
        """All that was said by now: perhaps it is over, and then `finish` gives the same.

        Raises: what `hear` raises.
        """
        await stop(self.partial)
        self.guess = self.guess or asyncio.create_task(self._hear_tail())
        if self.parts:
            await asyncio.wait(self.parts)  # unlike these, the guess is thrown away with whoever waits for it
        parts = [part.result() for part in self.parts]
        last = await self.guess
        text = " ".join(part.text for part in [*parts, last] if part.text)
        spoken = [part.language for part in [*parts, last] if part.text]
        return Transcript(text, spoken[-1] if spoken else last.language, self.seconds)

    async def resume(self) -> None:
        """It was not over."""
        guess, self.guess = self.guess, None
        await stop(guess)

    async def finish(self) -> Transcript:
        """All that was said; no sound follows. Raises as `transcribe_so_far`, which is tried again where it failed."""
        if self.guess and self.guess.done() and (self.guess.cancelled() or self.guess.exception()):
            self.guess = None
        return await self.transcribe_so_far()

    async def close(self) -> None:
        """Ends all work, and frees the sound."""
        await stop(self.partial, self.guess, *self.parts)
        self.tail = []

    def _is_heard_so_far(self) -> bool:
        return all(part.done() for part in self.parts) and (self.partial is None or self.partial.done())

    async def _cut(self) -> None:
        """The tail's beginning becomes a part, which is transcribed for good."""
        await stop(self.partial)
        tail_n = np.concatenate(self.tail)
        place = len(tail_n) - int(CUT_WITHIN_S * HEARING_RATE)
        place += quietest(tail_n[place:])
        while len(self.parts) >= PARTS_AHEAD and not self.parts[-PARTS_AHEAD].done():
            await asyncio.wait([self.parts[-PARTS_AHEAD]])
        self.parts.append(asyncio.create_task(self._hear_part(tail_n[:place], self.shown)))
        self.tail, self.tail_samples = [tail_n[place:]], len(tail_n) - place
        self.next_partial = self.tail_samples + int(PARTIAL_EVERY_S * HEARING_RATE)
        self.hypothesis, self.shown = [], 0

    async def _hear_part(self, samples_n: Samples, shown: int) -> Transcript:
        transcript = await self._hear(samples_n)
        if self.show and (rest := transcript.text.split()[shown:]):
            self.show(" ".join(rest))
        return transcript

    async def _hear(self, samples_n: Samples) -> Transcript:
        transcript = await uncancelled(self.hear(samples_n, False))
        assert transcript is not None
        return transcript

    async def _hear_tail(self) -> Transcript:
        return await self._hear(np.concatenate(self.tail) if self.tail else np.zeros(0, np.float32))

    async def _show_what_is_sure(self) -> None:
        samples = self.tail_samples
        self.next_partial = samples + int(PARTIAL_EVERY_S * HEARING_RATE)
        try:
            transcript = await self.hear(np.concatenate(self.tail), True)
        except Exception:  # the whole will be heard again, and tells the client
            return log.warning("a partial transcript could not be made", exc_info=True)
        if transcript is None or self.show is None:
            return
        words = transcript.text.split()
        pairs = zip(words, self.hypothesis, strict=False)
        agreed = [word for word, _ in takewhile(lambda pair: same(*pair), pairs)]
        self.hypothesis = words
        if len(agreed) > self.shown:
            self.show(" ".join(agreed[self.shown :]))
            self.shown = len(agreed)


def same(word: str, other: str) -> bool:
    """Whether two words differ in no more than capitals and punctuation."""
    return [c for c in word.lower() if c.isalnum()] == [c for c in other.lower() if c.isalnum()]


def quietest(samples_n: Samples) -> int:
    """The middle of the quietest fifth of a second."""
    width = HEARING_RATE // 50
    frames = len(samples_n) // width
    energy_f = np.square(samples_n[: frames * width]).reshape(frames, width).sum(1)
    smooth_f = np.convolve(energy_f, np.ones(10), "valid")
    return (int(smooth_f.argmin()) + 5) * width
