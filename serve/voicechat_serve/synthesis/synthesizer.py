"""The synthesis deployment: it speaks each sentence as soon as it is ready, in any installed voice."""

import asyncio
import time
from collections.abc import AsyncIterator

from voicechat_serve.audio import Samples
from voicechat_serve.generation.served_model import Device
from voicechat_serve.operations.devices import voices_on_gpu
from voicechat_serve.operations.health import Health
from voicechat_serve.operations.metrics import AUDIO_SPOKEN_SECONDS, SYNTHESIS_SECONDS
from voicechat_serve.operations.serve_private import listen_where_ray_listens
from voicechat_serve.synthesis.voices import HEART, SPEECH_RATE, find_voice, installed


class Synthesis:
    """All installed voices, loaded and warm before the first request.

    Loading takes 1.5 s for hibari, 1 s and 115 MB for each voice of Piper, and 3 s and 280 MB for all of Kokoro's
    together.

    Args:
        device: for Piper's and Kokoro's voices; auto takes a GPU if onnxruntime has a provider for it.

    Raises:
        InputError: the device is missing, or a voice's files are wrong.
    """

    def __init__(self, device: Device = "auto") -> None:
        listen_where_ray_listens()
        self.health = Health()
        on_gpu = voices_on_gpu(device)
        self.speakers = {voice: load(on_gpu) for voice, load in installed().items()}

    async def speak(self, text: str, speed: float = 1.0, voice: str = HEART.id) -> AsyncIterator[Samples]:
        """Yield one chunk (n,) per sentence, 24 kHz mono; nothing if the text has no pronounceable word.

        The text must come from `spoken_text`: without markup, in letters that the voice reads. If the caller closes the
        iterator early, the work ends within one sentence.

        Raises:
            InputError: there is no such voice.
        """
        speaker = find_voice(voice, tuple(self.speakers))
        sentences = self.speakers[speaker].speak(text, speed)

        def following() -> Samples | None:
            with self.health.step(speaker.id):
                return next(sentences, None)

        began, listened = time.monotonic(), 0.0
        while (samples_n := await asyncio.to_thread(following)) is not None:
            if len(samples_n):
                AUDIO_SPOKEN_SECONDS.inc(len(samples_n) / SPEECH_RATE)
                handed_over = time.monotonic()
                yield samples_n
                listened += time.monotonic() - handed_over
        SYNTHESIS_SECONDS.observe(time.monotonic() - began - listened)

    def check_health(self) -> None:
        """Check the replica; Serve calls this, and replaces the replica when it raises."""
        self.health.check()
