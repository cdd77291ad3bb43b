"""The synthesis deployment: hibari, which speaks each sentence as soon as it is ready."""

import asyncio
import time
from collections.abc import AsyncIterator

from voicechat_serve.audio import Samples
from voicechat_serve.loopback import listen_where_ray_listens
from voicechat_serve.metrics import AUDIO_SPOKEN_SECONDS, SYNTHESIS_SECONDS

SPEECH_RATE = 24_000
"""Samples a second of what `speak` yields."""

VOICE = "heart"
"""The one voice that comes with the package; any other name would be downloaded."""


class Synthesis:
    def __init__(self):
        listen_where_ray_listens()
        from hibari import Hibari

        self.model = Hibari(voice=VOICE, threads=1)
        list(self.model.stream("Ready."))  # the first call costs a second, later ones a tenth

    async def speak(self, text: str, speed: float = 1.0) -> AsyncIterator[Samples]:
        """One chunk (n,) per sentence, 24 kHz mono; nothing when the text has no pronounceable word."""
        sentences = self.model.stream(text, speed=speed)
        began, listened = time.monotonic(), 0.0
        while (samples_n := await asyncio.to_thread(next, sentences, None)) is not None:
            if len(samples_n):
                AUDIO_SPOKEN_SECONDS.inc(len(samples_n) / SPEECH_RATE)
                handed_over = time.monotonic()
                yield samples_n
                listened += time.monotonic() - handed_over
        SYNTHESIS_SECONDS.observe(time.monotonic() - began - listened)
