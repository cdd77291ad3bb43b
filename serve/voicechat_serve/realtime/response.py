"""One response of a session: it sends a reply, whole or interrupted, as OpenAI's events in OpenAI's order."""

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import soxr
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
    ResponseFunctionCallArgumentsDeltaEvent,
    ResponseFunctionCallArgumentsDoneEvent,
    ResponseMcpCallArgumentsDelta,
    ResponseMcpCallArgumentsDone,
    ResponseMcpCallCompleted,
    ResponseMcpCallFailed,
    ResponseMcpCallInProgress,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
    ResponseTextDeltaEvent,
    ResponseTextDoneEvent,
)

from voicechat_serve.audio import Samples
from voicechat_serve.generation.answer_form import NO_TOOLS, CallPiece, Message, ToolUse
from voicechat_serve.generation.loaded_model import Delta
from voicechat_serve.realtime.conversation import (
    Begun,
    Conversation,
    Failed,
    Reply,
    SpeechChunk,
    TextDelta,
    stop,
)
from voicechat_serve.realtime.interruption import PlayedSound
from voicechat_serve.realtime.items import CallItem, Item, MessageItem, OutputItem, new_id
from voicechat_serve.realtime.server_events import item_added, item_done, item_resource
from voicechat_serve.realtime.session_settings import MOST_TOKENS
from voicechat_serve.realtime.sound_formats import Format
from voicechat_serve.realtime.stages import Stages
from voicechat_serve.realtime.wire import Wire
from voicechat_serve.synthesis.voices import SPEECH_RATE
from voicechat_serve.tools.connection import ToolFailedError

DELTA_S = 0.4
"""The most sound in one event."""

MOST_METADATA = 512
"""The most characters of one value; OpenAI's limit."""

CallTool = Callable[[str, str, str], Awaitable[str]]

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
    format: Format = field(default_factory=Format)
    """Of the sound."""
    tools: ToolUse = NO_TOOLS
    labels: Mapping[str, str] = field(default_factory=dict)
    """By the name of each tool that this service calls: the label of its server."""

    def begin(self, stages: Stages) -> Reply:
        sampling: dict[str, Any] = {"max_tokens": self.max_tokens}
        if self.temperature is not None:
            sampling["temperature"] = self.temperature
        pieces = stages.write(self.model, self.messages, sampling, self.tools)
        if self.voice is None:
            return Reply(pieces, None, labels=self.labels)
        speak = partial(stages.speak, speed=self.speed, voice=self.voice)
        return Reply(pieces, speak, stages.language_of(self.voice), self.labels)


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
        conversation: the conversation that the response becomes a part of; None for no conversation.
        metadata: the client's; `response.done` returns them.
        wire: sends the events.
        explain: returns an error as {"type", "code", "message"}.
        on_sound: is called when the first sound is sent.
        call_tool: the label of a server, the name of its tool, and the arguments -> the result; it may raise
            ToolFailedError.
    """

    def __init__(
        self,
        reply: Reply,
        request: ReplyRequest,
        conversation: Conversation | None,
        metadata: dict[str, str],
        wire: Wire,
        explain: Callable[[Exception], dict[str, Any]],
        on_sound: Callable[[], None],
        call_tool: CallTool,
    ):
        self.id = new_id("resp")
        self.reply, self.request, self.conversation, self.metadata = reply, request, conversation, metadata
        self.wire, self.explain, self.on_sound, self.call_tool = wire, explain, on_sound, call_tool
        self.emit = wire.emit
        self.message = reply.message
        self.output: list[OutputItem] = []
        """The items that have begun; all but the last are done, and those that wait for a result."""
        self.before: Item | None = conversation.items[-1] if conversation and conversation.items else None
        """The item behind which the next one is put: what the client creates meanwhile comes after the reply."""
        self.previous_ids: dict[str, str | None] = {}
        """By the id of each item: the id of the item before it."""
        self.calling: list[asyncio.Task[None]] = []
        """The calls of hosted tools."""
        self.cancelled: Reason | None = None
        self.failure: dict[str, Any] | None = None
        rate = request.format.hertz
        self.resampler = soxr.ResampleStream(SPEECH_RATE, rate, 1) if rate != SPEECH_RATE else None
        self.sounds_since: float | None = None
        """The time when the first sound was sent, later by the time of all pauses; monotonic."""
        self.paused_at: float | None = None
        """The time since which the client has paused the sound; monotonic."""
        self.played = PlayedSound(rate)

    @property
    def has_called(self) -> bool:
        """Whether a call of the client's function is complete, so that its result may come."""
        calls = (item for item in self.output if isinstance(item, CallItem) and not item.server_label)
        return any(call.status == "completed" for call in calls)

    @property
    def goes_on(self) -> bool:
        """Whether the model is to answer with the results of this response's calls, all of which are here."""
        calls = [item for item in self.output if isinstance(item, CallItem)]
        return self.status == "completed" and bool(calls) and all(call.server_label for call in calls)

    @property
    def played_ms(self) -> float:
        """The most sound that a client can have played by now, if it plays the sound when it arrives."""
        if self.sounds_since is None:
            return 0.0
        now = time.monotonic() if self.paused_at is None else self.paused_at
        return min(1000 * (now - self.sounds_since), self.message.milliseconds)

    @property
    def is_playing(self) -> bool:
        is_cut = self.message.heard_ms is not None  # the client plays no more of it
        return self.sounds_since is not None and not is_cut and self.played_ms < self.message.milliseconds

    def pause(self) -> None:
        """Count no time as played: the client pauses the sound. The reply goes on."""
        self.paused_at = time.monotonic()

    def resume(self) -> None:
        """Count on: the client resumes the sound."""
        if self.sounds_since is not None and self.paused_at is not None:
            self.sounds_since += time.monotonic() - self.paused_at
        self.paused_at = None

    async def cancel(self, reason: Reason) -> None:
        """Stop the reply; `run` sends the last events."""
        self.cancelled = self.cancelled or reason
        await self.reply.close()
        await stop(*self.calling)

    async def run(self) -> None:
        """Send all events of the response, until the reply ends or is cancelled."""
        begun = self.resource("in_progress")
        self.emit(ResponseCreatedEvent(type="response.created", event_id=new_id("event"), response=begun))
        async for event in self.reply.events():
            match event:
                case Begun(item):
                    if self.output:
                        await self._end_item(self.output[-1])
                    self.output.append(item)
                    self._emit_item_added(item)
                case TextDelta(delta):
                    await self._emit_text(delta)
                case SpeechChunk(samples_n):
                    await self._emit_sound(samples_n)
                case CallPiece(arguments=delta) if delta:
                    await self._emit_arguments(delta)
                case Failed(_, error):
                    self.failure = self.explain(error)
        if self.output:
            if self.output[-1].status == "in_progress":
                self.output[-1].status = "incomplete"
            await self._end_item(self.output[-1])
        await self._call_hosted_tools()
        self.metadata |= self._left_unspoken()
        response = self.resource(self.status)
        self.emit(ResponseDoneEvent(type="response.done", event_id=new_id("event"), response=response))

    def _emit_item_added(self, item: OutputItem) -> None:
        resource = item_resource(item)
        self.emit(ResponseOutputItemAddedEvent(type="response.output_item.added", item=resource, **self._output()))
        if self.conversation:
            self.previous_ids[item.id], self.before = self.conversation.add_after(self.before, item), item
            self.emit(item_added(item, self.previous_ids[item.id]))
        if isinstance(item, MessageItem):
            part = self._part(with_text=False)
            self.emit(ResponseContentPartAddedEvent(type="response.content_part.added", **part, **self._content()))

    async def _emit_text(self, delta: str) -> None:
        place = self._content()
        event = (
            ResponseAudioTranscriptDeltaEvent(type="response.output_audio_transcript.delta", delta=delta, **place)
            if self.message.is_spoken
            else ResponseTextDeltaEvent(type="response.output_text.delta", delta=delta, **place)
        )
        await self.wire.post(event)

    async def _emit_sound(self, samples_n: Samples, is_last: bool = False) -> None:
        format = self.request.format
        if self.resampler:
            samples_n = self.resampler.resample_chunk(samples_n, is_last)
        size = int(DELTA_S * format.hertz)
        for start in range(0, len(samples_n), size):
            if self.cancelled:
                return
            delta = base64.b64encode(format.encode(samples_n[start : start + size])).decode()
            event = ResponseAudioDeltaEvent(type="response.output_audio.delta", delta=delta, **self._content())
            await self.wire.post(event)
            self.played.append(samples_n[start : start + size])
            if self.sounds_since is None:
                self.sounds_since = time.monotonic()
                self.on_sound()

    async def _emit_arguments(self, delta: str) -> None:
        call = self.output[-1]
        assert isinstance(call, CallItem)
        event = (
            ResponseMcpCallArgumentsDelta(
                type="response.mcp_call_arguments.delta", delta=delta, item_id=call.id, **self._output()
            )
            if call.server_label
            else ResponseFunctionCallArgumentsDeltaEvent(
                type="response.function_call_arguments.delta", delta=delta, **self._call()
            )
        )
        await self.wire.post(event)

    async def _end_item(self, item: OutputItem) -> None:
        if self.resampler and isinstance(item, MessageItem) and self.sounds_since is not None:
            await self._emit_sound(np.zeros(0, np.float32), is_last=True)
        self._emit_item_done(item)

    def _emit_item_done(self, item: OutputItem) -> None:
        if isinstance(item, CallItem) and item.server_label:  # it is done when its result is here
            if item.status == "completed":
                self.emit(
                    ResponseMcpCallArgumentsDone(
                        type="response.mcp_call_arguments.done",
                        arguments=item.arguments,
                        item_id=item.id,
                        **self._output(),
                    )
                )
            return
        if isinstance(item, MessageItem):
            self._emit_message_done()
        elif item.status == "completed":  # clients make the call at this event
            self.emit(
                ResponseFunctionCallArgumentsDoneEvent(
                    type="response.function_call_arguments.done",
                    name=item.name,
                    arguments=item.arguments,
                    **self._call(),
                )
            )
        self._emit_output_done(item, self._output())

    def _emit_output_done(self, item: OutputItem, place: dict[str, Any]) -> None:
        resource = item_resource(item)
        self.emit(ResponseOutputItemDoneEvent(type="response.output_item.done", item=resource, **place))
        if self.conversation:
            self.emit(item_done(item, self.previous_ids[item.id]))

    async def _call_hosted_tools(self) -> None:
        """Make the calls of hosted tools, all at once, and send their results."""
        calls = [
            (number, item)
            for number, item in enumerate(self.output)
            if isinstance(item, CallItem) and item.server_label
        ]
        if self.status == "completed":
            self.calling = [asyncio.create_task(self._call_hosted_tool(*each)) for each in calls]
            try:
                await asyncio.gather(*self.calling, return_exceptions=True)
            finally:
                await stop(*self.calling)
        for number, call in calls:
            if call.result is None:
                call.error = "the call was interrupted" if self.cancelled else "the call is not complete"
            self._emit_output_done(call, self._output(number))

    async def _call_hosted_tool(self, number: int, call: CallItem) -> None:
        place: dict[str, Any] = {"item_id": call.id, "output_index": number}
        begun = ResponseMcpCallInProgress(type="response.mcp_call.in_progress", event_id=new_id("event"), **place)
        self.emit(begun)
        try:
            call.output = await self.call_tool(call.server_label, call.name, call.arguments)
        except ToolFailedError as error:
            call.error = str(error)
            self.emit(ResponseMcpCallFailed(type="response.mcp_call.failed", event_id=new_id("event"), **place))
        else:
            self.emit(ResponseMcpCallCompleted(type="response.mcp_call.completed", event_id=new_id("event"), **place))

    def _emit_message_done(self) -> None:
        text, place = self.message.text, self._content
        if self.message.is_spoken:
            self.emit(ResponseAudioDoneEvent(type="response.output_audio.done", **place()))
            self.emit(
                ResponseAudioTranscriptDoneEvent(
                    type="response.output_audio_transcript.done", transcript=text, **place()
                )
            )
        else:
            self.emit(ResponseTextDoneEvent(type="response.output_text.done", text=text, **place()))
        part = self._part(with_text=True)
        self.emit(ResponseContentPartDoneEvent(type="response.content_part.done", **part, **place()))

    def _left_unspoken(self) -> dict[str, str]:
        """Return the metadata about parts of the reply that the voice did not speak; empty if it spoke all of it."""
        if not self.message.is_spoken or self.cancelled or self.failure:
            return {}
        unspoken = "; ".join(self.reply.unspoken)
        metadata = {"unspoken": unspoken[:MOST_METADATA]} if unspoken else {}
        if self.message.text.strip() and not self.message.spoken:
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
        voice = {"format": self.request.format.model_dump(), "voice": self.request.voice}
        return RealtimeResponse.model_validate(
            {
                "object": "realtime.response",
                "id": self.id,
                "status": status,
                "status_details": details.get(status),
                "output": [item_resource(item) for item in self.output],
                "conversation_id": self.conversation.id if self.conversation else None,
                "usage": usage if is_done else None,
                "audio": {"output": voice} if self.message.is_spoken else None,
                "metadata": self.metadata or None,
                "output_modalities": ["audio" if self.message.is_spoken else "text"],
                "max_output_tokens": self.request.max_tokens,
            }
        )

    def _output(self, number: int | None = None) -> dict[str, Any]:
        """Return the fields that name an item in an event, by default the last one."""
        number = len(self.output) - 1 if number is None else number
        return {"event_id": new_id("event"), "response_id": self.id, "output_index": number}

    def _content(self) -> dict[str, Any]:
        """Return the fields that name the message's only part in an event."""
        return self._output() | {"item_id": self.message.id, "content_index": 0}

    def _call(self) -> dict[str, Any]:
        """Return the fields that name the last item, a call, in an event."""
        call = self.output[-1]
        assert isinstance(call, CallItem)
        return self._output() | {"item_id": call.id, "call_id": call.call_id}

    def _part(self, with_text: bool) -> dict[str, Any]:
        kind, name = ("audio", "transcript") if self.message.is_spoken else ("text", "text")
        return {"part": {"type": kind, name: self.message.text if with_text else ""}}


async def decline(model: str, reason: Reason, wire: Wire, stages: Stages) -> None:
    """Send the events of a response that was cancelled before it began."""
    reply = Reply(nothing(), None)
    await reply.close()
    request = ReplyRequest(model, [], MOST_TOKENS, temperature=None, voice=None, speed=1.0)
    declined = Response(reply, request, None, {}, wire, stages.explain, lambda: None, no_call)
    await declined.cancel(reason)
    await declined.run()


async def no_call(label: str, name: str, arguments: str) -> str:
    raise AssertionError("there is no reply that calls")


async def nothing() -> AsyncGenerator[Delta, None]:
    return
    yield
