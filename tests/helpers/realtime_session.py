"""A session of the realtime protocol with made-up models, and the client at its other end.

Every event that it sends is checked, strictly, against the `openai` package's types, or our own.
"""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import numpy as np
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter

from voicechat_serve.api.errors import APIError, api_error
from voicechat_serve.api.tool_fields import require_parameters
from voicechat_serve.application_file import ToolServer
from voicechat_serve.audio import HEARING_RATE
from voicechat_serve.generation.answer_form import CallPiece, ToolUse
from voicechat_serve.generation.loaded_model import Delta
from voicechat_serve.realtime.overlap import AudioPaused, AudioResumed
from voicechat_serve.realtime.session import Session
from voicechat_serve.realtime.session_settings import SessionSettings
from voicechat_serve.synthesis.voices import SPEECH_RATE
from voicechat_serve.transcription.transcriber import Transcript

EVENT = TypeAdapter(RealtimeServerEvent)
OURS = {"output_audio_buffer.paused": AudioPaused, "output_audio_buffer.resumed": AudioResumed}


class MadeUpStages:
    """Models that say what they were asked."""

    transcription_model = "whisper-tiny.en"

    def __init__(self) -> None:
        self.tool_servers: dict[str, ToolServer] = {}
        self.words = "What is love"
        self.language = "en"
        self.reply = "Love is patient. Love is kind, as they say. And so on."
        self.calls: list[tuple[str, str]] = []
        """The names and the arguments of the calls after the reply; the next reply has none."""
        self.sound_s = 0.5
        self.heard: list[float] = []
        """Seconds of each sound that was transcribed."""
        self.asked: list[tuple[str, list[dict[str, str]], dict[str, Any]]] = []
        self.offered: list[ToolUse] = []
        """The tools of each of these."""
        self.probability: float | None = None
        """That an utterance is at its end by its words."""
        self.sound_probability: float | None = None
        """The same by its sound."""
        self.ends_heard: list[float] = []
        """Seconds of each sound that was classified."""
        self.classified: list[str] = []
        self.classifying_allowed = asyncio.Event()
        self.classifying_allowed.set()
        self.at_work = 0
        self.spoken_as: tuple[str, float] | None = None
        self.failing = ""
        self.waits = asyncio.Event()
        """Set: a piece of a reply is written at once."""
        self.waits.set()
        self.hearing_allowed = asyncio.Event()
        self.hearing_allowed.set()

    async def hear(self, samples_n, language, prompt, only_if_idle):
        self.heard.append(len(samples_n) / HEARING_RATE)
        await self.hearing_allowed.wait()
        if self.failing == "transcription":
            raise OSError("no ear")
        num_words = min(len(self.words.split()), 1 + int(2 * self.heard[-1]))
        return Transcript(" ".join(self.words.split()[:num_words]), language or self.language, self.heard[-1])

    async def glimpse(self, samples_n, language, prompt):
        return await self.hear(samples_n, language, prompt, False)

    async def end_by_sound(self, samples_n):
        self.ends_heard.append(len(samples_n) / HEARING_RATE)
        return self.sound_probability

    async def end_by_words(self, words):
        self.classified.append(words)
        await self.classifying_allowed.wait()
        return self.probability

    async def write(self, model, messages, sampling, tools) -> AsyncGenerator[Delta, None]:
        self.asked.append((model, messages, sampling))
        self.offered.append(tools)
        calls, self.calls = self.calls, []
        pieces = [(word + " ", ()) for word in self.reply.split()]
        for index, (name, arguments) in enumerate(calls):
            pieces.append(("", (CallPiece(index, name=name),)))
            pieces += [("", (CallPiece(index, arguments=arguments[n : n + 4]),)) for n in range(0, len(arguments), 4)]
        self.at_work += 1
        try:
            for number, (text, call) in enumerate(pieces, 1):
                await asyncio.sleep(0)
                await self.waits.wait()
                if self.failing == "generation":
                    raise OSError("no model")
                last = "tool_calls" if calls else "stop"
                yield Delta(text, 7, number, last if number == len(pieces) else None, calls=call)
        finally:
            self.at_work -= 1

    async def speak(self, sentence, speed, voice) -> AsyncGenerator[np.ndarray, None]:
        self.at_work += 1
        self.spoken_as = (voice, speed)
        try:
            await asyncio.sleep(0)
            yield np.full(int(self.sound_s * SPEECH_RATE), 0.1, np.float32)
        finally:
            self.at_work -= 1

    def require_model(self, name):
        if name not in ("bard", "poet"):
            raise APIError(404, f"the model {name} does not exist here", param="model", code="model_not_found")

    def require_transcription(self, name):
        if name not in ("whisper-1", self.transcription_model):
            raise APIError(404, "no such model", param="model", code="model_not_found")

    def language_code(self, tag):
        if not tag.lower().startswith(("en", "de")):
            raise APIError(400, "no such language", param="language", code="invalid_value")
        return tag[:2].lower()

    def require_schema(self, schema, param, is_strict):
        require_parameters(schema, param, is_strict)

    def voice(self, name, language):
        if name not in ("", "heart", "alloy"):
            raise APIError(400, "no such voice", param="voice", code="invalid_value")
        return "heart" if language in (None, "en") else None

    def language_of(self, voice):
        return "en"

    def explain(self, error):
        return api_error(error).body()["error"]


class Client:
    """The other end of a session."""

    def __init__(self, stages: MadeUpStages, **begin_with: Any):
        self.stages = stages
        self.frames: asyncio.Queue[str] = asyncio.Queue()
        self.events: list[dict[str, Any]] = []
        self.news = asyncio.Event()
        self.first_sounds: list[float] = []
        """Seconds from each spoken turn's end, as the metrics are told them."""
        settings = SessionSettings(model="bard", **begin_with)
        self.session = Session(settings, stages, self.frames.get, self.take, self.first_sounds.append)

    async def take(self, frame: str) -> None:
        event = json.loads(frame)
        if own := OURS.get(event["type"]):
            own.model_validate(event, strict=True)
        else:
            EVENT.validate_python(event, strict=True)
        self.events.append(event)
        self.news.set()

    def send(self, kind: str, **fields: Any) -> None:
        self.frames.put_nowait(json.dumps({"type": kind, **fields}))

    def play(self, sound_n: np.ndarray) -> None:
        """20 ms at a time, as a microphone would, but at once."""
        pcm = (np.clip(sound_n, -1, 1) * 32767).astype("<i2").tobytes()
        for start in range(0, len(pcm), 960):
            self.send("input_audio_buffer.append", audio=base64.b64encode(pcm[start : start + 960]).decode())

    async def until(self, kind: str, count: int = 1) -> dict[str, Any]:
        """Waits for the count-th event of a kind."""
        async with asyncio.timeout(60):
            while len(found := self.all(kind)) < count:
                self.news.clear()
                await self.news.wait()
        return found[count - 1]

    async def until_asked(self) -> None:
        """Waits until an answer is begun."""
        async with asyncio.timeout(60):
            while not self.stages.asked:
                await asyncio.sleep(0.01)

    async def until_classified(self) -> None:
        """Wait until the classifier received the words of an utterance."""
        async with asyncio.timeout(60):
            while not self.stages.classified:
                await asyncio.sleep(0.01)

    async def settled(self) -> None:
        """Waits until the session has done all that it can do without another event.

        It has no threads, so each round of the loop does one step of whatever is ready, on a slow machine too. What
        it does after an event is far fewer steps.
        """
        while self.frames.qsize() or self.session.wire.inbox.qsize():
            await asyncio.sleep(0)
        for _ in range(1000):
            await asyncio.sleep(0)

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    def kinds(self) -> list[str]:
        """In their order, without repetitions in a row and partial transcripts."""
        kinds = [e["type"] for e in self.events if not e["type"].endswith("input_audio_transcription.delta")]
        seen: list[str] = []
        for kind in kinds:
            is_delta = kind.endswith(".delta")
            if not (is_delta and kind in seen[-2:]):
                seen.append(kind)
        return seen


@contextlib.asynccontextmanager
async def connected(stages: MadeUpStages | None = None, **begin_with: Any) -> AsyncIterator[Client]:
    client = Client(stages or MadeUpStages(), **begin_with)
    running = asyncio.create_task(client.session.run())
    before = asyncio.all_tasks()
    try:
        await client.until("session.created")
        yield client
        assert not running.done(), running.exception()
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    assert client.stages.at_work == 0
    assert asyncio.all_tasks() <= before, "a task was left behind"


def silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * SPEECH_RATE), np.float32)


def up_to_the_pause(question_n: np.ndarray) -> np.ndarray:
    """With so much silence that an answer is anticipated, but the turn is not yet over."""
    end = np.flatnonzero(np.abs(question_n) > 0.02)[-1]
    return question_n[: end + int(0.35 * SPEECH_RATE)]


def written(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
