"""One response of a session: it sends a reply, whole or interrupted, as OpenAI's events in OpenAI's order."""

import base64
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from openai.types.realtime import (
    RealtimeResponse,
    ResponseAudioDeltaEvent,
    ResponseAudioDoneEvent,
    ResponseAudioTranscriptDeltaEvent,
    ResponseAudioTranscriptDoneEvent,
    ResponseContentPartAddedEvent,
    ResponseContentPartDoneEvent,
    ResponseCreatedEvent,
    ResponseDoneEvent,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
    ResponseTextDeltaEvent,
    ResponseTextDoneEvent,
)

from voicechat_serve.audio import Samples
from voicechat_serve.generation.answer_form import Message
from voicechat_serve.generation.loaded_model import Delta
from voicechat_serve.realtime.conversation import Failed, Reply, SpeechChunk, TextDelta, new_id
from voicechat_serve.realtime.server_events import item_added, item_done, item_resource
from voicechat_serve.realtime.session_settings import MOST_TOKENS
from voicechat_serve.realtime.stages import Stages
from voicechat_serve.realtime.wire import Wire
from voicechat_serve.synthesis.voices import SPEECH_RATE

DELTA_S = 0.4
"""The most sound in one event."""

MOST_METADATA = 512
"""The most characters of one value; OpenAI's limit."""

Reason = Literal["turn_detected", "client_cancelled"]


@dataclass(frozen=True)
class ReplyRequest:
    """All that a reply depends on: a draft serves every request that equals its own."""

    model: str
    messages: list[Message]
    max_tokens: int
    temperature: float | None
    voice: str | None
    """None for a written reply."""
    speed: float

    def begin(self, stages: Stages) -> Reply:
        sampling: dict[str, Any] = {"max_tokens": self.max_tokens}
        if self.temperature is not None:
            sampling["temperature"] = self.temperature
        pieces = stages.write(self.model, self.messages, sampling)
        if self.voice is None:
            return Reply(pieces, None)
        speak = partial(stages.speak, speed=self.speed, voice=self.voice)
        return Reply(pieces, speak, stages.language_of(self.voice))


@dataclass(frozen=True)
class Draft:
    """A reply that begins before it is certain that the person has finished."""

    request: ReplyRequest
    reply: Reply


class Response:
    """A response: a reply and its events.

    Args:
        reply: the reply, which has begun already.
        request: the request of the reply.
        conversation_id: the conversation that the response becomes a part of; None for no conversation.
        metadata: the client's; `response.done` returns them.
        wire: sends the events.
        explain: returns an error as {"type", "code", "message"}.
        on_sound: is called when the first sound is sent.
    """

    def __init__(
        self,
        reply: Reply,
        request: ReplyRequest,
        conversation_id: str | None,
        metadata: dict[str, str],
        wire: Wire,
        explain: Callable[[Exception], dict[str, Any]],
        on_sound: Callable[[], None],
    ):
        self.id = new_id("resp")
        self.reply, self.request, self.conversation_id, self.metadata = reply, request, conversation_id, metadata
        self.wire, self.explain, self.on_sound = wire, explain, on_sound
        self.emit = wire.emit
        self.item = reply.item
        self.cancelled: Reason | None = None
        self.failure: dict[str, Any] | None = None
        self.sounds_since: float | None = None
        """The time when the first sound was sent; monotonic."""

    @property
    def played_ms(self) -> float:
        """The most sound that a client can have played by now, if it plays the sound when it arrives."""
        if self.sounds_since is None:
            return 0.0
        return min(1000 * (time.monotonic() - self.sounds_since), self.item.milliseconds)

    @property
    def is_playing(self) -> bool:
        is_cut = self.item.heard_ms is not None  # the client plays no more of it
        return self.sounds_since is not None and not is_cut and self.played_ms < self.item.milliseconds

    async def cancel(self, reason: Reason) -> None:
        """Stop the reply; `run` sends the last events."""
        self.cancelled = self.cancelled or reason
        await self.reply.close()

    async def run(self, previous_item_id: str | None) -> None:
        """Send all events of the response, until the reply ends or is cancelled."""
        self._emit_begin(previous_item_id)
        async for event in self.reply.events():
            match event:
                case TextDelta(delta):
                    await self._emit_text(delta)
                case SpeechChunk(samples_n):
                    await self._emit_sound(samples_n)
                case Failed(_, error):
                    self.failure = self.explain(error)
        self.item.is_in_progress = False
        if self.failure:
            self.item.is_complete = False
        self._emit_end(previous_item_id)

    def _emit_begin(self, previous_item_id: str | None) -> None:
        response, item = self.resource("in_progress"), item_resource(self.item)
        self.emit(ResponseCreatedEvent(type="response.created", event_id=new_id("event"), response=response))
        self.emit(ResponseOutputItemAddedEvent(type="response.output_item.added", item=item, **self._output()))
        if self.conversation_id:
            self.emit(item_added(self.item, previous_item_id))
        part = self._part(with_text=False)
        self.emit(ResponseContentPartAddedEvent(type="response.content_part.added", **part, **self._content()))

    async def _emit_text(self, delta: str) -> None:
        place = self._content()
        event = (
            ResponseAudioTranscriptDeltaEvent(type="response.output_audio_transcript.delta", delta=delta, **place)
            if self.item.is_spoken
            else ResponseTextDeltaEvent(type="response.output_text.delta", delta=delta, **place)
        )
        await self.wire.post(event)

    async def _emit_sound(self, samples_n: Samples) -> None:
        size = int(DELTA_S * SPEECH_RATE)
        for start in range(0, len(samples_n), size):
            if self.cancelled:
                return
            pcm = (np.clip(samples_n[start : start + size], -1, 1) * 32767).astype("<i2").tobytes()
            delta = base64.b64encode(pcm).decode()
            event = ResponseAudioDeltaEvent(type="response.output_audio.delta", delta=delta, **self._content())
            await self.wire.post(event)
            if self.sounds_since is None:
                self.sounds_since = time.monotonic()
                self.on_sound()

    def _emit_end(self, previous_item_id: str | None) -> None:
        text, place = self.item.text, self._content
        if self.item.is_spoken:
            self.emit(ResponseAudioDoneEvent(type="response.output_audio.done", **place()))
            self.emit(
                ResponseAudioTranscriptDoneEvent(
                    type="response.output_audio_transcript.done", transcript=text, **place()
                )
            )
        else:
            self.emit(ResponseTextDoneEvent(type="response.output_text.done", text=text, **place()))
        part, item = self._part(with_text=True), item_resource(self.item)
        self.emit(ResponseContentPartDoneEvent(type="response.content_part.done", **part, **place()))
        self.emit(ResponseOutputItemDoneEvent(type="response.output_item.done", item=item, **self._output()))
        if self.conversation_id:
            self.emit(item_done(self.item, previous_item_id))
        self.metadata |= self._left_unspoken()
        response = self.resource(self.status)
        self.emit(ResponseDoneEvent(type="response.done", event_id=new_id("event"), response=response))

    def _left_unspoken(self) -> dict[str, str]:
        """Return the metadata about parts of the reply that the voice did not speak; empty if it spoke all of it."""
        if not self.item.is_spoken or self.cancelled or self.failure:
            return {}
        unspoken = "; ".join(self.reply.unspoken)
        metadata = {"unspoken": unspoken[:MOST_METADATA]} if unspoken else {}
        if self.item.text.strip() and not self.item.spoken:
            metadata |= {"spoken": "false", "reason": "the reply has no word that the voice can speak"}
        return metadata

    @property
    def status(self) -> str:
        if self.cancelled:
            return "cancelled"
        if self.failure:
            return "failed"
        return "incomplete" if self.cut else "completed"

    @property
    def cut(self) -> str | None:
        """The reason for which the reply is not whole."""
        reasons = {"length": "max_output_tokens", "content_filter": "content_filter"}
        return reasons.get(str(self.reply.last.finish_reason)) if self.reply.last else None

    def resource(self, status: str) -> RealtimeResponse:
        """Return the response as OpenAI's resource, with a status."""
        details: dict[str, dict[str, Any]] = {
            "cancelled": {"type": "cancelled", "reason": self.cancelled},
            "failed": {"type": "failed", "error": self.failure},
            "incomplete": {"type": "incomplete", "reason": self.cut},
        }
        is_done = status != "in_progress"
        last = self.reply.last
        counts = (last.prompt_tokens, last.completion_tokens) if last else (0, 0)
        usage = {"input_tokens": counts[0], "output_tokens": counts[1], "total_tokens": sum(counts)}
        voice = {"format": {"type": "audio/pcm", "rate": SPEECH_RATE}, "voice": self.request.voice}
        return RealtimeResponse.model_validate(
            {
                "object": "realtime.response",
                "id": self.id,
                "status": status,
                "status_details": details.get(status),
                "output": [item_resource(self.item)] if is_done else [],
                "conversation_id": self.conversation_id,
                "usage": usage if is_done else None,
                "audio": {"output": voice} if self.item.is_spoken else None,
                "metadata": self.metadata or None,
                "output_modalities": ["audio" if self.item.is_spoken else "text"],
                "max_output_tokens": self.request.max_tokens,
            }
        )

    def _output(self) -> dict[str, Any]:
        """Return the fields that name the response's only item in an event."""
        return {"event_id": new_id("event"), "response_id": self.id, "output_index": 0}

    def _content(self) -> dict[str, Any]:
        """Return the fields that name the item's only part in an event."""
        return self._output() | {"item_id": self.item.id, "content_index": 0}

    def _part(self, with_text: bool) -> dict[str, Any]:
        kind, name = ("audio", "transcript") if self.item.is_spoken else ("text", "text")
        return {"part": {"type": kind, name: self.item.text if with_text else ""}}


async def decline(model: str, reason: Reason, wire: Wire, stages: Stages) -> None:
    """Send the events of a response that was cancelled before it began."""
    reply = Reply(nothing(), None)
    await reply.close()
    request = ReplyRequest(model, [], MOST_TOKENS, temperature=None, voice=None, speed=1.0)
    declined = Response(reply, request, None, {}, wire, stages.explain, on_sound=lambda: None)
    await declined.cancel(reason)
    await declined.run(None)


async def nothing() -> AsyncGenerator[Delta, None]:
    return
    yield
