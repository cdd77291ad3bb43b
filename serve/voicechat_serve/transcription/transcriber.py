"""The transcription deployment: faster-whisper, which hears nothing where nothing is said."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from voicechat_platform.errors import InputError
from voicechat_serve.audio import HEARING_RATE, Samples
from voicechat_serve.operations.health import Health
from voicechat_serve.operations.loopback import listen_where_ray_listens
from voicechat_serve.operations.metrics import AUDIO_HEARD_SECONDS, TRANSCRIPTION_SECONDS
from voicechat_serve.transcription.sentence_end import SentenceEnd
from voicechat_serve.transcription.short_context import MOST_SECONDS, Decoded, decode_utterance, is_sure, speech_in

if TYPE_CHECKING:
    import faster_whisper.transcribe as faster_whisper

BEAM_SIZE = 5
"""Fewer wrong words than greedy on our clips (tiny.en: 4.3% against 7.5%). Most of an utterance's time goes into
encoding Whisper's 30 s window, whatever the beam."""

SILENT_NO_SPEECH = 0.6
SILENT_LOG_PROBABILITY = -0.7
"""A window is taken for silence where Whisper gives "no speech" more than the one, and its own words on average less
than the other. Without the voice activity detector, tiny.en's inventions on silence, noise, hum, music and clicks stood
at 0.83 to 0.95 and -0.86 to -1.40, clips of speech at 0.10 or less and -0.40 or more; speech that noise half drowns at
0.29 and -1.00, so neither alone is a sign. Whisper's own gate, at -1, lets "You" pass where nothing is said."""

REPEATING_COMPRESSION = 12
"""Text that zlib makes more than this many times shorter is a loop: one of Whisper's stood at 32, a sentence that a
person really said seven times at 5.5. From 2.4 on Whisper decodes a window again, up to five times and ever more at
random; what still repeats without end is dropped."""

FRAME_RATE = 100
"""Whisper's frames a second, the unit of `Segment.seek`."""

Task = Literal["transcribe", "translate"]
"""Write what is said in its own language, or in English."""


@dataclass(frozen=True)
class Word:
    text: str
    """With its punctuation, without spaces around."""
    start: float
    """Seconds from the beginning of the sound, as all times here."""
    end: float


@dataclass(frozen=True)
class Segment:
    """A phrase, and how sure Whisper is of it; the sureness is that of the window of up to 30 s that holds it."""

    id: int
    """Counts from 0."""
    seek: int
    """Where the speech of the segment's window begins, in frames of 10 ms."""
    start: float
    end: float
    text: str
    """Begins with the space that separates it from the segment before; joined, segments are the transcript."""
    tokens: tuple[int, ...]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    words: tuple[Word, ...] = ()
    """Empty unless they were asked for."""


@dataclass(frozen=True)
class Transcript:
    text: str
    """Empty when no speech was found."""
    language: str
    """ISO-639-1 code of what is spoken."""
    seconds: float
    """Length of the sound."""
    segments: tuple[Segment, ...] = ()


class Transcription:
    """
    Args:
        folder: a faster-whisper model directory.
        threads: CPU threads for Whisper.
        chat_model: judges whether somebody has finished; nobody does when not given.
    """

    def __init__(self, folder: Path, threads: int = 2, chat_model: Path | None = None):
        listen_where_ray_listens()
        # Imported here, because the driver and the API import this module for its types alone.
        from voicechat_serve.transcription.whisper import AbandonedError, Whisper

        self.model = Whisper(str(folder), device="cpu", compute_type="int8", cpu_threads=threads)
        # One at a time: a second would only take the first one's cores. Several sounds take turns by segments, so that
        # a word need not wait for a lecture.
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="transcription")
        self.at_work = 0
        """Sounds that are being transcribed, or wait for it."""
        self.health = Health(AbandonedError)
        self.sentence_end = SentenceEnd(chat_model) if chat_model else None
        silence_n = np.zeros(HEARING_RATE, np.float32)
        list(self.model.transcribe(silence_n, vad_filter=True)[0])  # loads the voice activity detector, finds nothing
        list(self.model.transcribe(silence_n, language="en", without_timestamps=True, max_new_tokens=1)[0])
        decode_utterance(self.model, silence_n, None, None)
        if self.sentence_end:
            self.sentence_end.probability("I am ready")

    async def end_probability(self, words: str) -> float | None:
        """That what is said ends after these words, 0 to 1; None where nobody judges. Does not wait for the worker."""
        if self.sentence_end is None:
            return None
        with self.health.step("judging"):
            return await asyncio.to_thread(self.sentence_end.probability, words)

    async def hear(
        self, samples_n: Samples, language: str | None = None, prompt: str | None = None, only_if_idle: bool = False
    ) -> Transcript | None:
        """What is said in one utterance of a conversation, in a third of `transcribe`'s time where Whisper is sure.

        Where it is not, or the sound is longer than MOST_SECONDS, it is what `transcribe` hears. Leaving early ends the
        work within one window. Arguments and errors are those of `listen`.

        Returns:
            A transcript without segments; of no text, and the language that was given or English, where nothing is
            said. None with `only_if_idle`, where another sound is at work: what is only shown early must not hold up
            what is waited for.
        """
        if only_if_idle and self.at_work:
            return None
        self.at_work += 1
        try:
            return await self.hear_now(samples_n, language, prompt)
        finally:
            self.at_work -= 1

    async def hear_now(self, samples_n: Samples, language: str | None, prompt: str | None) -> Transcript:
        self.require(language, "transcribe")
        began = time.monotonic()
        seconds = len(samples_n) / HEARING_RATE
        if seconds <= MOST_SECONDS:
            loop = asyncio.get_running_loop()
            heard = await loop.run_in_executor(self.worker, self.hear_briefly, samples_n, language, prompt)
            if heard is None or is_silent(heard.no_speech_prob, heard.avg_logprob) or is_sure(heard):
                TRANSCRIPTION_SECONDS.observe(time.monotonic() - began)
                if seconds:
                    AUDIO_HEARD_SECONDS.inc(seconds)
                if heard is None or not is_sure(heard):
                    return Transcript("", language or "en", seconds)
                return Transcript(heard.text, heard.language, seconds)
        return replace(await self.transcribe(samples_n, language, prompt), segments=())

    def hear_briefly(self, samples_n: Samples, language: str | None, prompt: str | None) -> Decoded | None:
        """On the worker: what is decoded from the stretch that holds speech; None where there is none."""
        self.model.abandoned = threading.Event()  # whoever leaves takes this one step out of the queue, or lets it end
        with self.health.step("hearing an utterance"):
            speech_n = speech_in(samples_n)
            return decode_utterance(self.model, speech_n, language, prompt) if len(speech_n) else None

    async def transcribe(
        self,
        samples_n: Samples,
        language: str | None = None,
        prompt: str | None = None,
        temperature: float = 0.0,
        task: Task = "transcribe",
        with_words: bool = False,
    ) -> Transcript:
        """What is said, when all of it is known; arguments and errors are those of `listen`."""
        async for heard in self.listen(samples_n, language, prompt, temperature, task, with_words):
            if isinstance(heard, Transcript):
                transcript = heard
        return transcript

    async def listen(
        self,
        samples_n: Samples,
        language: str | None = None,
        prompt: str | None = None,
        temperature: float = 0.0,
        task: Task = "transcribe",
        with_words: bool = False,
    ) -> AsyncIterator[Segment | Transcript]:
        """Each segment as soon as it is known, and at last the whole.

        Args:
            samples_n: (n,) 16 kHz mono.
            language: ISO-639-1 code of what is spoken; detected when not given.
            prompt: text that the sound continues, for names and spelling.
            temperature: 0 starts greedy and rises only where the result is implausible.
            task: what to write.
            with_words: whether to find each word's times, which takes longer.

        Raises:
            InputError: a language that the model does not know, or a translation by a model that knows only English.
        """
        self.require(language, task)
        self.at_work += 1
        abandoned = threading.Event()
        began = time.monotonic()
        loop = asyncio.get_running_loop()

        def begin() -> tuple[Iterator["faster_whisper.Segment"], str]:
            self.model.abandoned = abandoned
            with self.health.step("finding speech"):
                segments, information = self.model.transcribe(
                    samples_n,
                    language=language,
                    task=task,
                    initial_prompt=prompt,
                    beam_size=BEAM_SIZE,
                    word_timestamps=with_words,
                    # Without the detector, Whisper invents words on silence; with its own text as context, it repeats.
                    vad_filter=True,
                    condition_on_previous_text=False,
                    **({"temperature": temperature} if temperature else {}),
                )
                return iter(segments), information.language

        def following() -> "faster_whisper.Segment | None":
            self.model.abandoned = abandoned
            with self.health.step("transcribing"):
                return next(segments, None)

        try:
            segments, spoken_language = await loop.run_in_executor(self.worker, begin)
            kept: list[Segment] = []
            window, seek = -1, 0
            while (found := await loop.run_in_executor(self.worker, following)) is not None:
                if found.seek != window:  # counted without the silence that the detector took out
                    window, seek = found.seek, round(found.start * FRAME_RATE)
                if not is_invented(found):
                    begins = kept[-1].start if kept else 0.0
                    kept.append(within(as_segment(found, len(kept), seek), begins, len(samples_n) / HEARING_RATE))
                    yield kept[-1]
            text = "".join(segment.text for segment in kept).strip()
            transcript = Transcript(text, spoken_language, len(samples_n) / HEARING_RATE, tuple(kept))
            TRANSCRIPTION_SECONDS.observe(time.monotonic() - began)
            if transcript.seconds:
                AUDIO_HEARD_SECONDS.inc(transcript.seconds)
            yield transcript
        finally:
            self.at_work -= 1
            abandoned.set()

    def require(self, language: str | None, task: Task) -> None:
        """
        Raises:
            InputError: this model cannot do it.
        """
        if not self.model.model.is_multilingual:
            if task == "translate":
                raise InputError("this model knows only English; translations need a multilingual one, such as base")
            if language not in (None, "en"):
                raise InputError("this model knows only English: leave language out, or serve a multilingual one")
        if language is not None:
            known = [code for code in self.model.supported_languages if self.knows(code)]
            if language not in known:  # told without the client's own word, which Serve would log
                raise InputError(f"unknown language; known are {', '.join(known)}")

    def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this raises."""
        self.health.check()

    def knows(self, language: str) -> bool:
        """Codes that only larger models have, such as yue, have no token here; an English model has none at all."""
        is_multilingual = self.model.model.is_multilingual
        return not is_multilingual or self.model.hf_tokenizer.token_to_id(f"<|{language}|>") is not None


def is_invented(segment: "faster_whisper.Segment") -> bool:
    """Whether Whisper wrote words that nobody said, by its own account."""
    return is_silent(segment.no_speech_prob, segment.avg_logprob) or segment.compression_ratio > REPEATING_COMPRESSION


def is_silent(no_speech_prob: float, avg_logprob: float) -> bool:
    return no_speech_prob > SILENT_NO_SPEECH and avg_logprob < SILENT_LOG_PROBABILITY


def as_segment(found: "faster_whisper.Segment", id: int, seek: int) -> Segment:
    return Segment(
        id=id,
        seek=seek,
        start=float(found.start),
        end=float(found.end),
        text=found.text.rstrip(),
        tokens=tuple(found.tokens),
        temperature=float(found.temperature),
        avg_logprob=float(found.avg_logprob),
        compression_ratio=float(found.compression_ratio),
        no_speech_prob=float(found.no_speech_prob),
        words=tuple(Word(word.word.strip(), float(word.start), float(word.end)) for word in found.words or ()),
    )


def within(segment: Segment, begins: float, seconds: float) -> Segment:
    """The segment with its times inside the sound: Whisper's window is longer, and so its times may be.

    Args:
        begins: seconds; no time is before it.
        seconds: length of the sound; no time is after it.
    """
    start, end = ordered((segment.start, segment.end), begins, seconds)
    times = ordered([time for word in segment.words for time in (word.start, word.end)], start, seconds)
    pairs = zip(segment.words, times[::2], times[1::2], strict=True)
    words = tuple(replace(word, start=word_start, end=word_end) for word, word_start, word_end in pairs)
    return replace(segment, start=start, end=end, seek=min(segment.seek, int(seconds * FRAME_RATE)), words=words)


def ordered(times: Sequence[float], least: float, most: float) -> list[float]:
    """Times that never go back, none outside of the bounds."""
    return list(accumulate((min(max(time, least), most) for time in times), max))
