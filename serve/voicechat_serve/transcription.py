"""The transcription deployment: faster-whisper, which hears nothing where nothing is said."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np

from voicechat_platform.errors import InputError
from voicechat_serve.audio import HEARING_RATE, Samples
from voicechat_serve.loopback import listen_where_ray_listens
from voicechat_serve.metrics import AUDIO_HEARD_SECONDS, TRANSCRIPTION_SECONDS

BEAM_SIZE = 5
"""Fewer wrong words than greedy on our clips (tiny.en: 4.3% against 7.5%). Most of an utterance's time goes into
encoding Whisper's 30 s window, whatever the beam."""


@dataclass(frozen=True)
class Transcript:
    text: str
    """Empty when no speech was found."""
    language: str
    seconds: float
    """Length of the sound."""


class Transcription:
    """
    Args:
        folder: a faster-whisper model directory.
        threads: CPU threads for the model.
    """

    def __init__(self, folder: Path, threads: int = 2):
        listen_where_ray_listens()
        # Imported here, because the driver and the API import this module for its types alone.
        from faster_whisper import WhisperModel

        self.model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=threads)
        # One at a time: a second would only take the first one's cores.
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="transcription")
        silence_n = np.zeros(HEARING_RATE, np.float32)
        self.hear(
            silence_n, None, None, 0.0, threading.Event()
        )  # loads the voice activity detector, which then finds nothing
        list(self.model.transcribe(silence_n, language="en", without_timestamps=True, max_new_tokens=1)[0])

    async def transcribe(
        self, samples_n: Samples, language: str | None = None, prompt: str | None = None, temperature: float = 0.0
    ) -> Transcript:
        """What is said.

        Args:
            samples_n: (n,) 16 kHz mono.
            language: ISO-639-1 code; detected when not given.
            prompt: text that the sound continues, for names and spelling.
            temperature: 0 starts greedy and rises only where the result is implausible.

        Raises:
            InputError: a language that the model does not know.
        """
        if language is not None and self.model.model.is_multilingual:
            known = self.model.supported_languages  # told without the client's own word, which Serve would log
            if language not in known:
                raise InputError(f"unknown language; known are {', '.join(known)}")
        abandoned = threading.Event()
        began = time.monotonic()
        loop = asyncio.get_running_loop()
        try:
            transcript = await loop.run_in_executor(
                self.worker, self.hear, samples_n, language, prompt, temperature, abandoned
            )
            TRANSCRIPTION_SECONDS.observe(time.monotonic() - began)
            if transcript.seconds:
                AUDIO_HEARD_SECONDS.inc(transcript.seconds)
            return transcript
        finally:
            abandoned.set()

    def hear(
        self,
        samples_n: Samples,
        language: str | None,
        prompt: str | None,
        temperature: float,
        abandoned: threading.Event,
    ) -> Transcript:
        segments, information = self.model.transcribe(
            samples_n,
            language=language,
            initial_prompt=prompt,
            beam_size=BEAM_SIZE,
            # Without the detector, Whisper invents words on silence; with its own text as context, it repeats them.
            vad_filter=True,
            condition_on_previous_text=False,
            **({"temperature": temperature} if temperature else {}),
        )
        # Segments are transcribed as they are asked for: nobody waits for those of a client that has gone.
        text = "".join(segment.text for segment in takewhile(lambda _: not abandoned.is_set(), segments)).strip()
        return Transcript(text, information.language, len(samples_n) / HEARING_RATE)
