"""A client of /v1/realtime that notes when each event comes, and what speaks and listens as a person would.

Letters: n samples.
"""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import numpy as np
import soxr
import websockets

from voicechat_serve.audio import HEARING_RATE, Samples
from voicechat_serve.synthesis.voices import SPEECH_RATE

MODEL = "smollm2-135m-instruct"
FRAME_S = 0.04
INSTRUCTIONS = "You are a friendly assistant in a spoken conversation. Answer in a few short, plain sentences."


class Person:
    """One end of a session."""

    def __init__(self, socket: Any):
        self.socket = socket
        self.events: list[tuple[float, dict[str, Any]]] = []
        """With the moments at which they came."""
        self.news = asyncio.Condition()

    async def listen(self) -> None:
        async for frame in self.socket:
            event = json.loads(frame)
            if event["type"] == "error":
                raise RuntimeError(event["error"]["message"])
            async with self.news:
                self.events.append((time.perf_counter(), event))
                self.news.notify_all()

    async def tell(self, kind: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def say(self, clip_n: Samples) -> float:
        """Speaks a clip at 16 kHz as fast as a person does; returns when the last of its speech went off."""
        pcm = as_pcm(clip_n)
        spoken_s = (int(np.flatnonzero(np.abs(clip_n) > 0.02)[-1]) + 1) / HEARING_RATE
        size, began = int(FRAME_S * SPEECH_RATE) * 2, time.perf_counter()
        for number, start in enumerate(range(0, len(pcm), size), 1):
            await self.tell("input_audio_buffer.append", audio=base64.b64encode(pcm[start : start + size]).decode())
            await asyncio.sleep(began + number * FRAME_S - time.perf_counter())
        return began + spoken_s

    @asynccontextmanager
    async def quiet(self) -> AsyncIterator[None]:
        """Sends silence while the block runs."""
        sending = asyncio.create_task(self._send_silence())
        try:
            yield
        finally:
            sending.cancel()

    async def _send_silence(self) -> None:
        silence = base64.b64encode(bytes(int(FRAME_S * SPEECH_RATE) * 2)).decode()
        began = time.perf_counter()
        for number in count(1):
            await self.tell("input_audio_buffer.append", audio=silence)
            await asyncio.sleep(began + number * FRAME_S - time.perf_counter())

    async def until(self, kind: str, since: float) -> tuple[float, dict[str, Any]]:
        """The first event of a kind after a moment."""
        async with asyncio.timeout(120), self.news:
            while True:
                for moment, event in self.events:
                    if moment >= since and event["type"] == kind:
                        return moment, event
                await self.news.wait()

    async def question(self, clip_n: Samples) -> dict[str, float]:
        """Asks, hears the whole answer out in silence, and returns the moments in seconds from the endpoint."""
        began = time.perf_counter()
        speech_end = await self.say(clip_n)
        async with self.quiet():
            endpoint, _ = await self.until("input_audio_buffer.speech_stopped", began)
            moments = {}
            for name, kind in (
                ("transcript", "conversation.item.input_audio_transcription.completed"),
                ("first token", "response.output_audio_transcript.delta"),
                ("first sound", "response.output_audio.delta"),
                ("all", "response.done"),
            ):
                moment, _ = await self.until(kind, began)
                moments[name] = moment - endpoint
            moments["from the end of speech"] = moments["first sound"] + endpoint - speech_end
            moments["longest gap"] = self.longest_gap(began)
            played_s = sum(seconds for _, seconds in self.sounds(began))
            await asyncio.sleep(max(0.0, endpoint + moments["first sound"] + played_s - time.perf_counter()))
        return moments

    async def first_sound(self, clip_n: Samples) -> tuple[float, float]:
        """Asks; seconds from the end of the speech to the endpoint, and to the first sound of the answer."""
        began = time.perf_counter()
        speech_end = await self.say(clip_n)
        async with self.quiet():
            endpoint, _ = await self.until("input_audio_buffer.speech_stopped", began)
            sound, _ = await self.until("response.output_audio.delta", began)
        return endpoint - speech_end, sound - speech_end

    async def is_cut_short(self, clip_n: Samples) -> bool:
        """Whether the server takes the first turn of the session for over more than half a second before its end."""
        began = time.perf_counter()
        speech_end = await self.say(clip_n)
        async with self.quiet():
            _, stopped = await self.until("input_audio_buffer.speech_stopped", began)
        return stopped["audio_end_ms"] < 1000 * (speech_end - began - 0.5)

    def sounds(self, since: float) -> list[tuple[float, float]]:
        """When each stretch of sound came, and how long it is."""
        return [
            (moment, len(base64.b64decode(event["delta"])) / 2 / SPEECH_RATE)
            for moment, event in self.events
            if moment >= since and event["type"] == "response.output_audio.delta"
        ]

    def longest_gap(self, since: float) -> float:
        """Silence in the middle of a reply that is played as it comes, in seconds."""
        gap, played_until = 0.0, 0.0
        for moment, seconds in self.sounds(since):
            if played_until:
                gap = max(gap, moment - played_until)
            played_until = max(played_until, moment) + seconds
        return gap


@asynccontextmanager
async def person(address: str, **turn_detection: Any) -> AsyncIterator[Person]:
    async with websockets.connect(address, max_size=2**24) as socket:
        one = Person(socket)
        listening = asyncio.create_task(one.listen())
        settings = {"instructions": INSTRUCTIONS, "temperature": 0, "max_output_tokens": 60}
        await one.tell("session.update", session=settings | {"audio": {"input": {"turn_detection": turn_detection}}})
        await one.until("session.updated", 0)
        try:
            yield one
        finally:
            listening.cancel()


def as_pcm(clip_n: Samples) -> bytes:
    at_24k_n = soxr.resample(clip_n, HEARING_RATE, SPEECH_RATE)
    return (np.clip(at_24k_n, -1, 1) * 32767).astype("<i2").tobytes()
