"""An utterance: the person's speech of one turn, which is transcribed while the person speaks.

    |---- part ----|---- part ----|-- tail --|
       transcribed    transcribed    transcribed again and again while it grows: for partial transcripts,
       once           once           at a pause, because it may be the end, and at the end

Speech recognition may change the last words when more sound follows. Partial transcripts therefore have only the words
on which two consecutive transcripts agree (LocalAgreement: Macháček, Dabre & Bojar 2023, "Turning Whisper into a
Real-Time Transcription System", arXiv:2307.14743).

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
"""(a sound of little more than LONGEST_PART_S at most, only_if_idle) -> its transcript, or None if Whisper is busy."""

LONGEST_PART_S = 24.0
"""Whisper does not transcribe longer sounds in a short context."""

CUT_WITHIN_S = 10.0
"""A part ends at the quietest place of its last seconds."""

FIRST_PARTIAL_S, PARTIAL_EVERY_S = 0.8, 1.0
"""The sound before the first partial transcript, and between two of them."""

PARTS_AHEAD = 2
"""The most parts that may wait for Whisper; then `append` waits."""


class Utterance:
    """The sound of an utterance, and its transcripts.

    Args:
        hear: transcribes a sound.
        show: receives the words of partial transcripts, once they are certain; None for no partial transcripts.
    """

    def __init__(self, hear: Hear, show: Callable[[str], None] | None = None):
        self.hear, self.show = hear, show
        self.parts: list[asyncio.Task[Transcript]] = []
        self.tail: list[Samples] = []
        self.tail_samples = 0
        self.samples = 0
        """Of the whole utterance."""
        self.shown = 0
        """The number of the tail's words that were shown."""
        self.partial: asyncio.Task[None] | None = None
        self.next_partial = int(FIRST_PARTIAL_S * HEARING_RATE)
        self.hypothesis: list[str] = []
        self.guess: asyncio.Task[Transcript] | None = None
        """The transcript of the tail at a pause."""

    @property
    def seconds(self) -> float:
        return self.samples / HEARING_RATE

    def last(self, seconds: float) -> Samples:
        """Return the last seconds of the sound, or less."""
        tail_n = np.concatenate(self.tail) if self.tail else np.zeros(0, np.float32)
        return tail_n[-int(seconds * HEARING_RATE) :]

    async def append(self, samples_n: Samples) -> None:
        """Add sound. Wait if too many parts are in transcription."""
        self.tail.append(samples_n)
        self.tail_samples += len(samples_n)
        self.samples += len(samples_n)
        if self.guess:  # only silence follows, or `resume`
            return
        if self.tail_samples >= LONGEST_PART_S * HEARING_RATE:
            await self._cut()
        elif self.show and self.tail_samples >= self.next_partial and self._is_transcribed_so_far():
            self.partial = asyncio.create_task(self._show_what_is_sure())

    async def transcribe_so_far(self) -> Transcript:
        """Return the transcript of all sound so far. If no speech follows, `finish` returns the same.

        Raises: what `hear` raises.
        """
        await stop(self.partial)
        self.guess = self.guess or asyncio.create_task(self._hear_tail())
        if self.parts:
            await asyncio.wait(self.parts)  # the guess is cancelled together with its caller, the parts are not
        parts = [part.result() for part in self.parts]
        last = await self.guess
        text = " ".join(part.text for part in [*parts, last] if part.text)
        spoken = [part.language for part in [*parts, last] if part.text]
        return Transcript(text, spoken[-1] if spoken else last.language, self.seconds)

    async def resume(self) -> None:
        """Discard the transcript of the pause: the utterance continues."""
        guess, self.guess = self.guess, None
        await stop(guess)

    async def finish(self) -> Transcript:
        """Return the transcript of the whole utterance. Transcribe again if `transcribe_so_far` failed.

        Raises: what `hear` raises.
        """
        if self.guess and self.guess.done() and (self.guess.cancelled() or self.guess.exception()):
            self.guess = None
        return await self.transcribe_so_far()

    async def close(self) -> None:
        """End all work, and free the sound."""
        await stop(self.partial, self.guess, *self.parts)
        self.tail = []

    def _is_transcribed_so_far(self) -> bool:
        return all(part.done() for part in self.parts) and (self.partial is None or self.partial.done())

    async def _cut(self) -> None:
        """Make a part of the tail's beginning, and transcribe it."""
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
        except Exception:  # the whole is transcribed again, which reports the error
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
    """Return whether two words are equal without regard to capitals and punctuation."""
    return [c for c in word.lower() if c.isalnum()] == [c for c in other.lower() if c.isalnum()]


def quietest(samples_n: Samples) -> int:
    """Return the middle of the quietest 0.2 s, as an index of a sample."""
    width = HEARING_RATE // 50
    frames = len(samples_n) // width
    energy_f = np.square(samples_n[: frames * width]).reshape(frames, width).sum(1)
    smooth_f = np.convolve(energy_f, np.ones(10), "valid")
    return (int(smooth_f.argmin()) + 5) * width
