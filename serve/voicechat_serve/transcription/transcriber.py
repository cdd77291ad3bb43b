"""The transcription deployment: faster-whisper, which writes nothing for audio without speech."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from voicechat_platform.errors import InputError
from voicechat_serve.audio import HEARING_RATE, Samples
from voicechat_serve.generation.served_model import Device
from voicechat_serve.operations.devices import ComputeType
from voicechat_serve.operations.health import Health
from voicechat_serve.operations.metrics import AUDIO_HEARD_SECONDS, TRANSCRIPTION_SECONDS
from voicechat_serve.operations.serve_private import listen_where_ray_listens
from voicechat_serve.transcription.sentence_end import SentenceEnd
from voicechat_serve.transcription.short_context import (
    MEASURED,
    MOST_SECONDS,
    Decoded,
    Gates,
    decode_utterance,
    is_sure,
    speech_in,
)
from voicechat_serve.transcription.smart_turn import SmartTurn

if TYPE_CHECKING:
    import faster_whisper.transcribe as faster_whisper

BEAM_SIZE = 5
"""Five beams give fewer wrong words than greedy decoding on our clips (tiny.en: 4.3% against 7.5%). The encoder takes
most of an utterance's time for Whisper's 30 s window, with any number of beams."""

SILENT_NO_SPEECH = 0.6
SILENT_LOG_PROBABILITY = -0.7
"""A window is silence if Whisper's probability of "no speech" is above the one threshold, and the average
log-probability of its words is below the other. Without the voice activity detector, tiny.en's invented words on
silence, noise, hum, music and clicks had 0.83 to 0.95 and -0.86 to -1.40. Clips of speech had 0.10 or less and -0.40 or
more. Speech that noise half covers had 0.29 and -1.00, so one value alone is not enough. Whisper's own threshold, -1,
accepts "You" in audio without speech."""

REPEATING_COMPRESSION = 12
"""A text that zlib compresses by more than this factor is a loop: one of Whisper's had 32, a sentence that a person
really repeated seven times had 5.5. From 2.4 on Whisper decodes a window again, up to five times and with rising
temperature. Text that still repeats is dropped."""

WINDOW_S = 30
"""The length of Whisper's window."""

FRAME_RATE = 100
"""Whisper's frames per second, the unit of `Segment.seek`."""

Task = Literal["transcribe", "translate"]
"""The language of the transcript: that of the speech, or English."""


@dataclass(frozen=True)
class Word:
    text: str
    """With its punctuation, without spaces around."""
    start: float
    """Seconds from the start of the audio, as all times here."""
    end: float


@dataclass(frozen=True)
class Segment:
    """A phrase, and Whisper's confidence; the confidence belongs to the window of up to 30 s around the phrase."""

    id: int
    """Counts from 0."""
    seek: int
    """The start of the speech in the segment's window, in frames of 10 ms."""
    start: float
    end: float
    text: str
    """Begins with the space that separates it from the segment before it; the joined segments are the transcript."""
    tokens: tuple[int, ...]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    words: tuple[Word, ...] = ()
    """Empty unless the caller asks for them."""


@dataclass(frozen=True)
class Transcript:
    text: str
    """Empty when no speech was found."""
    language: str
    """ISO-639-1 code of the spoken language."""
    seconds: float
    """The length of the audio."""
    segments: tuple[Segment, ...] = ()


UNINTELLIGIBLE = -1.75
"""The average log-probability below which the words of a glimpse say nothing: "mhm" has -2.1 to -1.8 as any words."""


class Transcription:
    """The deployment.

    Args:
        folder: a faster-whisper model directory.
        threads: CPU threads for Whisper.
        chat_model: it classifies by the words whether a turn is over; None for no such classifier.
        smart_turn: the same by the sound.
        gates: how sure the short context must be; CAUTIOUS for a model that is not packaged.
        device: auto takes a GPU if there is one.
        compute_type: auto is float16 on a GPU, int8 on a CPU.

    Raises:
        InputError: the device is missing or does not have the compute type, or the model cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        threads: int = 2,
        chat_model: Path | None = None,
        smart_turn: Path | None = None,
        gates: Gates = MEASURED,
        device: Device = "auto",
        compute_type: ComputeType = "auto",
    ):
        listen_where_ray_listens()
        # Imported here, because the driver and the API import this module only for its types.
        from voicechat_serve.transcription.batched import BatchedWhisper
        from voicechat_serve.transcription.whisper import AbandonedError, load_whisper

        self.gates = gates
        self.model = load_whisper(folder, device, compute_type, threads)
        # On a CPU several windows at once are not faster, and others would wait longer.
        self.batched = BatchedWhisper(self.model) if self.model.model.device == "cuda" else None
        # One worker: a second one would only take the first one's cores. Several sounds take turns by segments, so that
        # a word need not wait for a lecture.
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="transcription")
        self.at_work = 0
        """The number of sounds in transcription or waiting for it."""
        self.health = Health(AbandonedError)
        self.sentence_end = SentenceEnd(chat_model) if chat_model else None
        self.smart_turn = SmartTurn(smart_turn) if smart_turn else None
        silence_n = np.zeros(HEARING_RATE, np.float32)
        list(self.model.transcribe(silence_n, vad_filter=True)[0])  # loads the voice activity detector, finds nothing
        list(self.model.transcribe(silence_n, language="en", without_timestamps=True, max_new_tokens=1)[0])
        decode_utterance(self.model, silence_n, None, None)
        if self.sentence_end:
            self.sentence_end.probability("I am ready")
        if self.smart_turn:
            self.smart_turn.probability(silence_n)

    async def end_by_words(self, words: str) -> float | None:
        """Return the probability, 0 to 1, that a sentence ends after these words; None without a classifier. Does not
        wait for the worker."""
        return await self.classify(self.sentence_end, words)

    async def end_by_sound(self, samples_n: Samples) -> float | None:
        """Return the probability, 0 to 1, that the turn is over after this sound; None without a classifier. Does not
        wait for the worker."""
        return await self.classify(self.smart_turn, samples_n)

    async def classify(self, classifier: SentenceEnd | SmartTurn | None, given: Any) -> float | None:
        if classifier is None:
            return None
        with self.health.step("classifying"):
            return await asyncio.to_thread(classifier.probability, given)

    async def hear(
        self, samples_n: Samples, language: str | None = None, prompt: str | None = None, only_if_idle: bool = False
    ) -> Transcript | None:
        """Transcribe one utterance of a conversation, in a third of `transcribe`'s time if Whisper is sure.

        If it is not sure, or the audio is longer than MOST_SECONDS, the result is that of `transcribe`. A cancellation
        ends the work within one window. Arguments and errors are those of `listen`.

        Returns:
            A transcript without segments. Without speech it has no text, and the given language or English. None with
            `only_if_idle` if another sound is in transcription: partial transcripts must not delay final ones.
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
            if heard is None or is_silent(heard.no_speech_prob, heard.avg_logprob) or is_sure(heard, self.gates):
                TRANSCRIPTION_SECONDS.observe(time.monotonic() - began)
                if seconds:
                    AUDIO_HEARD_SECONDS.inc(seconds)
                if heard is None or not is_sure(heard, self.gates):
                    return Transcript("", language or "en", seconds)
                return Transcript(heard.text, heard.language, seconds)
        return replace(await self.transcribe(samples_n, language, prompt), segments=())

    async def glimpse(self, samples_n: Samples, language: str | None, prompt: str | None) -> Transcript:
        """Return the words of a sound of at most MOST_SECONDS as soon as possible: those of the short context, which
        for half a second of speech are often not sure. No words if they are UNINTELLIGIBLE. Errors are those of
        `listen`."""
        self.require(language, "transcribe")
        self.at_work += 1
        try:
            loop = asyncio.get_running_loop()
            heard = await loop.run_in_executor(self.worker, self.hear_briefly, samples_n, language, prompt, True)
        finally:
            self.at_work -= 1
        seconds = len(samples_n) / HEARING_RATE
        if heard is None or heard.avg_logprob < UNINTELLIGIBLE:
            return Transcript("", language or "en", seconds)
        return Transcript(heard.text, heard.language, seconds)

    def hear_briefly(
        self, samples_n: Samples, language: str | None, prompt: str | None, is_glimpse: bool = False
    ) -> Decoded | None:
        """Decode the stretch with speech, on the worker; return None if there is none."""
        self.model.abandoned = threading.Event()  # a cancellation removes this step from the queue, or lets it end
        with self.health.step("hearing an utterance"):
            speech_n = speech_in(samples_n)
            if not len(speech_n):
                return None
            return decode_utterance(self.model, speech_n, language, prompt, is_glimpse)

    async def transcribe(
        self,
        samples_n: Samples,
        language: str | None = None,
        prompt: str | None = None,
        temperature: float = 0.0,
        task: Task = "transcribe",
        with_words: bool = False,
    ) -> Transcript:
        """Return the complete transcript; arguments and errors are those of `listen`."""
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
        """Yield each segment as soon as it is known, and at last the whole transcript.

        Args:
            samples_n: (n,) 16 kHz mono.
            language: ISO-639-1 code of the spoken language; None detects it.
            prompt: text that the audio continues, for names and spelling.
            temperature: 0 starts greedy and rises only if the result is implausible.
            task: the language to write.
            with_words: whether to find each word's times, which takes longer.

        Raises:
            InputError: the model does not know the language, or cannot translate.
        """
        self.require(language, task)
        self.at_work += 1
        abandoned = threading.Event()
        began = time.monotonic()
        loop = asyncio.get_running_loop()

        def begin() -> tuple[Iterator["faster_whisper.Segment"], str]:
            self.model.abandoned = abandoned
            with self.health.step("finding speech"):
                options: dict[str, Any] = {"temperature": temperature} if temperature else {}
                transcribe = self.model.transcribe
                if self.batched is not None and len(samples_n) > WINDOW_S * HEARING_RATE:
                    transcribe = self.batched.transcribe
                    options["without_timestamps"] = False
                segments, information = transcribe(
                    samples_n,
                    language=language,
                    task=task,
                    initial_prompt=prompt,
                    beam_size=BEAM_SIZE,
                    word_timestamps=with_words,
                    # Without the detector, Whisper invents words on silence; with its own text as context, it repeats.
                    vad_filter=True,
                    condition_on_previous_text=False,
                    **options,
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
                if found.seek != window:  # counted without the silence that the detector removed
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
        """Check that this model supports the request.

        Raises:
            InputError: it does not.
        """
        if not self.model.model.is_multilingual:
            if task == "translate":
                raise InputError("this model knows only English; translations need a multilingual one, such as base")
            if language not in (None, "en"):
                raise InputError("this model knows only English: leave language out, or serve a multilingual one")
        if language is not None:
            known = [code for code in self.model.supported_languages if self.knows(code)]
            if language not in known:  # the message omits the client's word, because Serve would log it
                raise InputError(f"unknown language; known are {', '.join(known)}")

    def check_health(self) -> None:
        """Check the replica; Serve calls this, and replaces the replica when it raises."""
        self.health.check()

    def knows(self, language: str) -> bool:
        """Return whether the model has a token for the language: codes such as yue exist only in larger models, and an
        English model has none."""
        is_multilingual = self.model.model.is_multilingual
        return not is_multilingual or self.model.hf_tokenizer.token_to_id(f"<|{language}|>") is not None


def is_invented(segment: "faster_whisper.Segment") -> bool:
    """Return whether Whisper invented words, by its own measures."""
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
    """Return the segment with its times inside the audio: Whisper's window is longer, and so its times may be.

    Args:
        begins: seconds; no time is before it.
        seconds: length of the audio; no time is after it.
    """
    start, end = ordered((segment.start, segment.end), begins, seconds)
    times = ordered([time for word in segment.words for time in (word.start, word.end)], start, seconds)
    pairs = zip(segment.words, times[::2], times[1::2], strict=True)
    words = tuple(replace(word, start=word_start, end=word_end) for word, word_start, word_end in pairs)
    return replace(segment, start=start, end=end, seek=min(segment.seek, int(seconds * FRAME_RATE)), words=words)


def ordered(times: Sequence[float], least: float, most: float) -> list[float]:
    """Return times in ascending order within the bounds."""
    return list(accumulate((min(max(time, least), most) for time in times), max))
