"""A session of the realtime protocol: one conversation with one client, which sends events and receives events.

One task reads the client's events, one handles them in order, one sends the server's events. Each turn and each
response has a task of its own, so that the session takes sound and answers events at the same time.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

from openai.types.realtime import (
    ConversationItemDeletedEvent,
    ConversationItemTruncatedEvent,
    InputAudioBufferClearedEvent,
    RealtimeSessionCreateRequest,
    RealtimeTranscriptionSessionCreateRequest,
    SessionCreatedEvent,
    SessionUpdatedEvent,
)
from openai.types.realtime.realtime_server_event import ConversationItemRetrieved, OutputAudioBufferCleared

from voicechat_serve.realtime.answering import Answering
from voicechat_serve.realtime.client_items import conversation_of
from voicechat_serve.realtime.conversation import Conversation, stop
from voicechat_serve.realtime.errors import EventError, SessionEndedError
from voicechat_serve.realtime.hosted_tools import SessionTools
from voicechat_serve.realtime.items import Item, MessageItem, new_id
from voicechat_serve.realtime.listening import Heard, Listening
from voicechat_serve.realtime.server_events import item_added, item_done, item_resource, speech_started
from voicechat_serve.realtime.session_settings import (
    CLIENT_EVENTS,
    Append,
    CancelResponse,
    CreateItem,
    CreateResponse,
    NamedItem,
    Nothing,
    ResponseSettings,
    SessionSettings,
    SessionUpdate,
    Truncate,
)
from voicechat_serve.realtime.session_update import changed
from voicechat_serve.realtime.stages import Stages
from voicechat_serve.realtime.tool_settings import faults_of, hosted_in, misfit
from voicechat_serve.realtime.turn import Context
from voicechat_serve.realtime.wire import Wire, checked, kind_of, parsed

SESSION_S = 3600
"""OpenAI's own limit."""

IDLE_S = 600
"""A session ends after so long without speech and without an event other than silent sound."""

LIMITS_CHECKED_S = 10

LONGEST_EVENT_ID = 512
"""In characters; OpenAI's limit."""

SILENCE_CHECKED_S = 0.1
"""How often the session checks for missing sound while a person speaks."""

CLOCK_TOLERANCE_MS = 50
"""A client's clock may exceed the end of a reply's sound by so much."""


def resource_of(settings: SessionSettings, id: str, stages: Stages) -> dict[str, Any]:
    """Return a session as the fields of OpenAI's resource, with our own fields."""
    fields = settings.resource() | {"id": id}
    if transcription := fields["audio"]["input"]["transcription"]:
        transcription["model"] = transcription["model"] or stages.transcription_model
    return fields


class Session:
    """A session with one client.

    Args:
        settings: the settings at the start.
        stages: the models.
        receive: returns the client's next frame, a text; raises when the client has left.
        send: sends a frame.
        on_first_sound: receives the seconds from the end of a spoken turn to the first sound of its response.
    """

    def __init__(
        self,
        settings: SessionSettings,
        stages: Stages,
        receive: Callable[[], Awaitable[str]],
        send: Callable[[str], Awaitable[None]],
        on_first_sound: Callable[[float], None] = lambda seconds: None,
    ):
        self.id = new_id("sess")
        self.wire = Wire(receive, send)
        self.emit = self.wire.emit
        self.conversation = Conversation()
        hosted = SessionTools(stages.tool_servers, self.wire)
        self.context = Context(settings, stages, self.wire, self.conversation, hosted, on_first_sound)
        self.listening = Listening(self.context)
        self.answering = Answering(self.context, self.listening)
        self.began = self.last_activity = self.last_sound = time.monotonic()

    # Running.

    async def run(self) -> tuple[int, str]:
        """Run the session until it ends. Return the code and the reason for the close. Raises what `receive` raises."""
        wire = self.wire
        self.emit(SessionCreatedEvent(type="session.created", event_id=new_id("event"), session=self.resource()))
        tasks = [asyncio.create_task(work()) for work in (wire.read, self._handle_all, wire.write, wire.watch)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            raise AssertionError("each of these tasks ends only with an error")
        except SessionEndedError as end:
            await stop(*tasks)
            await self.close()
            await wire.farewell({"type": "invalid_request_error", "code": end.code, "message": str(end)})
            return end.close_code, end.code
        finally:
            await stop(*tasks)
            await self.close()

    async def close(self) -> None:
        """End all work."""
        await self.answering.close()
        if self.listening.overlap:
            await self.listening.overlap.close()
        await self.listening.forget()
        await self.context.hosted.close()

    async def _handle_all(self) -> None:
        while True:
            now = time.monotonic()
            if self.context.is_audible or self.listening.is_speaking:
                self.last_activity = now
            if now > self.began + SESSION_S:
                raise SessionEndedError("session_expired", f"a session lasts {SESSION_S // 60} minutes: open another")
            if now > self.last_activity + IDLE_S:
                message = f"there was no speech for {IDLE_S // 60} minutes: open another session to continue"
                raise SessionEndedError("session_idle", message)
            await self.wire.has_room.wait()  # events that the client requests must not pile up
            with contextlib.suppress(TimeoutError):
                is_speaking = self.listening.is_speaking
                await self._handle(await self.wire.next_frame(SILENCE_CHECKED_S if is_speaking else LIMITS_CHECKED_S))
            if change := await self.listening.miss(time.monotonic() - self.last_sound):
                await self._notice(change)
            await asyncio.sleep(0)  # many events at once must not delay the sending, or other sessions

    def resource(self) -> RealtimeSessionCreateRequest | RealtimeTranscriptionSessionCreateRequest:
        """Return the session as OpenAI's resource, with our own fields."""
        fields = resource_of(self.context.settings, self.id, self.context.stages)
        if self.context.settings.type == "realtime":
            return RealtimeSessionCreateRequest.model_validate(fields)
        return RealtimeTranscriptionSessionCreateRequest.model_validate(fields)

    # Events of the client.

    async def _handle(self, frame: str) -> None:
        event_id = None
        try:
            event = parsed(frame)
            event_id = event["event_id"][:LONGEST_EVENT_ID] if isinstance(event.get("event_id"), str) else None
            kind = kind_of(event)
            if kind != "input_audio_buffer.append":
                self.last_activity = time.monotonic()
            await HANDLERS[kind](self, checked(CLIENT_EVENTS[kind], event))
        except EventError as error:
            self.wire.emit_error(error.body, event_id)
        except SessionEndedError:
            raise
        except Exception as error:  # for a model's name, or from a model
            self.wire.emit_error(self.context.stages.explain(error), event_id)

    async def _update(self, event: SessionUpdate) -> None:
        patch = event.session
        has_begun = self.conversation.items or self.listening.turn
        before = self.context.settings
        if patch.get("type", before.type) != before.type and has_begun:
            raise EventError("invalid_value", f"the session's type is {before.type} already", "session.type")
        settings, errors = changed(before, patch, self.context.stages)
        had, wanted = before.audio.input.turn_detection, settings.audio.input.turn_detection
        self.context.settings = settings
        heard, wants = before.audio.input, settings.audio.input
        if (heard.format, heard.noise_reduction) != (wants.format, wants.noise_reduction):
            self.listening.take_sound_as(wants)
        if had and wanted:
            self.listening.adjust(wanted)
        elif had or wanted:
            is_lost = self.listening.turn is not None
            await self._forget_turn()
            self.listening.begin(wanted)
            if is_lost:
                self.emit(InputAudioBufferClearedEvent(type="input_audio_buffer.cleared", event_id=new_id("event")))
        self.emit(SessionUpdatedEvent(type="session.updated", event_id=new_id("event"), session=self.resource()))
        for body in errors:
            self.wire.emit_error(body, event.event_id)
        await self.context.hosted.use(hosted_in(settings.tools))

    async def _create_item(self, event: CreateItem) -> None:
        place = None
        if event.previous_item_id == "root":
            place = 0
        elif event.previous_item_id is not None:
            before = self._item(event.previous_item_id, "item_create_invalid_previous_item_id", "previous_item_id")
            place = self.conversation.items.index(before) + 1
        given = event.item
        is_being_spoken = self.listening.turn and given.id == self.listening.turn.id
        if given.id and (is_being_spoken or self.conversation.find(given.id)):
            raise EventError("item_create_duplicate_item_id", f"there is an item {given.id!r} already", "item.id")
        item = given.item(self.conversation)
        if isinstance(item, MessageItem) and item.role == "user":
            self.conversation.language = None
        previous = self.conversation.add(item, place)
        self.emit(item_added(item, previous))
        self.emit(item_done(item, previous))

    async def _retrieve_item(self, event: NamedItem) -> None:
        item = self._item(event.item_id, "item_retrieve_invalid_item_id")
        self.emit(
            ConversationItemRetrieved(
                type="conversation.item.retrieved", event_id=new_id("event"), item=item_resource(item)
            )
        )

    async def _delete_item(self, event: NamedItem) -> None:
        self.conversation.items.remove(self._item(event.item_id, "item_delete_invalid_item_id"))
        if turn := self.answering.untranscribed.get(event.item_id):
            turn.wants_answer = False
        self.emit(
            ConversationItemDeletedEvent(
                type="conversation.item.deleted", event_id=new_id("event"), item_id=event.item_id
            )
        )

    async def _truncate_item(self, event: Truncate) -> None:
        item = self._item(event.item_id, "item_truncate_invalid_item_id")
        if event.content_index != 0:
            raise EventError("invalid_value", "a reply has only one part, so content_index must be 0", "content_index")
        if not isinstance(item, MessageItem) or item.role != "assistant" or not item.is_spoken:
            raise EventError("item_truncate_invalid_item_id", "only a spoken reply can be truncated", "item_id")
        if not 0 <= event.audio_end_ms <= item.milliseconds + CLOCK_TOLERANCE_MS:
            message = f"audio_end_ms must be 0 to {int(item.milliseconds)}, the length of the sound"
            raise EventError("invalid_value", message, "audio_end_ms")
        item.truncate(event.audio_end_ms)
        self.emit(
            ConversationItemTruncatedEvent(
                type="conversation.item.truncated",
                event_id=new_id("event"),
                item_id=item.id,
                content_index=event.content_index,
                audio_end_ms=event.audio_end_ms,
            )
        )

    def _item(self, id: str, code: str, param: str = "item_id") -> Item:
        """Return the item of that id.

        Raises:
            EventError: with the code; there is no such item.
        """
        if item := self.conversation.find(id):
            return item
        raise EventError(code, f"there is no item {id[:100]!r} in the conversation", param)

    async def _create_response(self, event: CreateResponse) -> None:
        if self.context.settings.type != "realtime":
            raise EventError("invalid_value", "a transcription session gives no responses")
        wanted = event.response or ResponseSettings()
        for _, error in faults_of(wanted.tools or [], "response.", self.context.stages):
            raise error
        if wanted.tool_choice and (reason := misfit(wanted.tool_choice, self.context.tools(wanted))):
            raise EventError("invalid_value", f"response.tool_choice: {reason}", "response.tool_choice")
        conversation_of(wanted.input or [])  # to report its errors here
        self.answering.request(wanted)

    async def _cancel_response(self, event: CancelResponse) -> None:
        id, response = event.response_id, self.context.response
        if self.context.is_responding and (not id or (response and id == response.id)):
            await self.answering.interrupt("client_cancelled")
        elif id or not await self.answering.cancel_expected("client_cancelled"):
            raise EventError("response_cancel_not_active", "there is no such active response")

    async def _clear_output(self, event: Nothing) -> None:
        await self.answering.interrupt("client_cancelled")
        if response := self.context.response:
            self.emit(
                OutputAudioBufferCleared(
                    type="output_audio_buffer.cleared", event_id=new_id("event"), response_id=response.id
                )
            )

    # Sound.

    async def _append(self, event: Append) -> None:
        async with contextlib.aclosing(self.listening.hear(event.audio)) as changes:
            async for change in changes:
                await self._notice(change)
        self.last_sound = time.monotonic()

    async def _notice(self, change: Heard) -> None:
        if change == "dropped":
            return self.answering.answer_the_rest()
        turn = self.listening.turn
        assert turn is not None
        match change:
            case "started":
                self.emit(speech_started(turn.id, self.listening.start_ms))
                detection = self.context.settings.audio.input.turn_detection
                if detection and detection.interrupt_response:
                    await self.answering.interrupt("turn_detected")
                    if self.answering.requested:
                        await self.answering.cancel_expected("turn_detected")
            case "paused":
                turn.pause()
            case "resumed":
                await turn.resume()
            case "stopped":
                await self.answering.wait_for_place()
                end_ms = self.listening.end_ms
                self.listening.take()
                turn.end(end_ms)
                self.answering.add(turn)

    async def _commit(self, event: Nothing) -> None:
        self.answering.require_place()
        if change := await self.listening.give_turn():
            await self._notice(change)
        turn = await self.listening.commit()
        turn.end(None)
        self.answering.add(turn)

    async def _clear_input(self, event: Nothing) -> None:
        await self._forget_turn()
        self.emit(InputAudioBufferClearedEvent(type="input_audio_buffer.cleared", event_id=new_id("event")))

    async def _forget_turn(self) -> None:
        """Discard the present turn, and answer the earlier turn that waited for its end."""
        await self.listening.forget()
        self.answering.answer_the_rest()


HANDLERS: dict[str, Callable[[Session, Any], Awaitable[None]]] = {
    "session.update": Session._update,
    "input_audio_buffer.append": Session._append,
    "input_audio_buffer.commit": Session._commit,
    "input_audio_buffer.clear": Session._clear_input,
    "conversation.item.create": Session._create_item,
    "conversation.item.retrieve": Session._retrieve_item,
    "conversation.item.delete": Session._delete_item,
    "conversation.item.truncate": Session._truncate_item,
    "response.create": Session._create_response,
    "response.cancel": Session._cancel_response,
    "output_audio_buffer.clear": Session._clear_output,
}
"""The function for each of the client's events. It receives the event after the check by its type in CLIENT_EVENTS."""
