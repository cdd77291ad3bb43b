"""A session of the realtime protocol: the client's events in, the server's out, one conversation in between.

One task reads what the client sends, one handles it in order, one sends. Each utterance is written down, and each
response made, in a task of its own, so that sound is heard and events are answered meanwhile.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from voicechat_serve.audio import Samples
from voicechat_serve.realtime.answering import Answering
from voicechat_serve.realtime.anticipation import Anticipation
from voicechat_serve.realtime.conversation import Conversation, Item, new_id, stop
from voicechat_serve.realtime.errors import EventError, SessionEndedError
from voicechat_serve.realtime.listening import Listening
from voicechat_serve.realtime.response import Reason, told_item
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
from voicechat_serve.realtime.stages import Stages
from voicechat_serve.realtime.utterance import Utterance
from voicechat_serve.realtime.wire import Wire, checked, invalid, kind_of, parsed
from voicechat_serve.transcription.transcriber import Transcript
from voicechat_serve.transcription.voice_activity import Change

log = logging.getLogger("ray.serve.voicechat.realtime")

SESSION_S = 3600
"""OpenAI's own limit."""

IDLE_S = 600
"""Without speech and without any event but silence."""

LIMITS_CHECKED_S = 10

LONGEST_EVENT_ID = 512
"""Characters, as OpenAI allows."""

MOST_TURNS = 16
"""That wait for one another: each may hold a minute of sound."""

SILENCE_CHECKED_S = 0.1
"""While somebody speaks and no sound comes."""

TOLD_LATE_MS = 50
"""By which a client's clock may overshoot the end of a reply's sound."""


@dataclass
class Turn:
    """An utterance that is over, until it is written down and answered."""

    utterance: Utterance
    preparing: asyncio.Task[None] | None
    """What has begun to write it down and to answer it."""
    is_answered: bool
    """Whether a response is to follow."""


class Session:
    """
    Args:
        settings: what it begins with.
        stages: the models.
        receive: the client's next frame, a text; raises when it has left.
        send: sends a frame.
        on_first_sound: told the seconds from the end of a spoken turn to the first sound of its response.
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
        self.settings, self.stages = settings, stages
        self.wire = Wire(receive, send)
        self.emit = self.wire.emit
        self.conversation = Conversation()
        self.answering = Answering(self.conversation, lambda: self.settings, stages, self.wire, on_first_sound)
        detection = settings.audio.input.turn_detection
        self.utterance_id = ""
        """The item that the utterance will be."""
        self.listening = Listening(detection, self._new_utterance, self.answering.is_heard)
        self.language: str | None = None
        """Of what was said last; None where that was written."""
        self.anticipation = Anticipation(lambda: self.settings, stages, self.listening, self.answering)
        self.turns: list[asyncio.Task[None]] = []
        """Utterances that are written down and answered, in their order."""
        self.unfinished: dict[str, Turn] = {}
        """By the item. One that waits for others may never begin."""
        self.unanswered = False
        """Something was said, and its answer left off because more followed."""
        self.requested: asyncio.Task[None] | None = None
        """The client's own response, while it waits for what was said before."""
        self.began = self.last_activity = self.last_sound = time.monotonic()

    # Running.

    async def run(self) -> tuple[int, str]:
        """To the end; returns the code and the reason to close with. Raises what `receive` raises."""
        wire = self.wire
        self.emit({"type": "session.created", "session": self.told()})
        tasks = [asyncio.create_task(work()) for work in (wire.read, self._handle_all, wire.write, wire.watch)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            raise AssertionError("none of them ends by itself")
        except SessionEndedError as end:
            await stop(*tasks)
            await self.close()
            await wire.farewell({"type": "invalid_request_error", "code": end.code, "message": str(end)})
            return end.close_code, end.code
        finally:
            await stop(*tasks)
            await self.close()

    async def close(self) -> None:
        """Ends all work."""
        await self.anticipation.close()
        await stop(*self.turns)
        for turn in self.unfinished.values():
            await stop(turn.preparing)
            await turn.utterance.close()
        await self.answering.close()
        await self.listening.forget()

    async def _handle_all(self) -> None:
        while True:
            now = time.monotonic()
            if self.answering.is_heard() or self.listening.is_speaking:
                self.last_activity = now
            if now > self.began + SESSION_S:
                raise SessionEndedError("session_expired", f"a session lasts {SESSION_S // 60} minutes: open another")
            if now > self.last_activity + IDLE_S:
                message = f"nothing was said for {IDLE_S // 60} minutes: open another session to go on"
                raise SessionEndedError("session_idle", message)
            await self.wire.has_room.wait()  # events that the client asks for do not pile up
            with contextlib.suppress(TimeoutError):
                is_speaking = self.listening.is_speaking
                await self._handle(await self.wire.next_frame(SILENCE_CHECKED_S if is_speaking else LIMITS_CHECKED_S))
            if change := self.listening.miss(time.monotonic() - self.last_sound):
                await self._notice(change)
            await asyncio.sleep(0)  # many at once take their turn with what is sent, and with other sessions

    def told(self) -> dict[str, Any]:
        told = self.settings.told() | {"id": self.id}
        if transcription := told["audio"]["input"]["transcription"]:
            transcription["model"] = transcription["model"] or self.stages.transcription_model
        return told

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
        except Exception as error:  # of a model's name, or of a model
            self.wire.emit_error(self.stages.explain(error), event_id)

    async def _update(self, event: SessionUpdate) -> None:
        patch = event.session
        has_begun = self.conversation.items or self.listening.utterance
        if patch.get("type", self.settings.type) != self.settings.type and has_begun:
            raise EventError("invalid_value", f"the session's type is {self.settings.type} already", "session.type")
        try:
            settings = self.settings.updated(patch)
        except ValidationError as error:
            raise invalid(error, "session.") from None
        self.stages.require_model(settings.model)
        self.stages.voice(settings.audio.output.voice_id, None)
        if transcription := settings.audio.input.transcription:
            if transcription.model:
                self.stages.require_transcription(transcription.model)
            if transcription.language:
                transcription.language = self.stages.language_code(transcription.language)
        had, wanted = self.settings.audio.input.turn_detection, settings.audio.input.turn_detection
        self.settings = settings
        if had and wanted:
            self.listening.adjust(wanted)
        elif had or wanted:
            is_lost = self.listening.utterance is not None
            await self._forget_utterance()
            self.listening.begin(wanted)
            if is_lost:
                self.emit({"type": "input_audio_buffer.cleared"})
        self.emit({"type": "session.updated", "session": self.told()})

    async def _create_item(self, event: CreateItem) -> None:
        place = None
        if event.previous_item_id == "root":
            place = 0
        elif event.previous_item_id is not None:
            before = self._item(event.previous_item_id, "item_create_invalid_previous_item_id", "previous_item_id")
            place = self.conversation.items.index(before) + 1
        given = event.item
        is_being_said = self.listening.utterance and given.id == self.utterance_id
        if given.id and (is_being_said or self.conversation.find(given.id)):
            raise EventError("item_create_duplicate_item_id", f"there is an item {given.id!r} already", "item.id")
        if given.has_sound_only:
            message = "only text can be put into the conversation; sound goes through the input audio buffer"
            raise EventError("unsupported_parameter", message, "item.content")
        item = Item(role=given.role, id=given.id or new_id("item"), text=given.text)
        if item.role == "user":
            self.language = None
        previous = self.conversation.add(item, place)
        self._tell_added(item, previous)

    def _tell_added(self, item: Item, previous: str | None) -> None:
        for kind in ("added", "done"):
            self.emit({"type": f"conversation.item.{kind}", "previous_item_id": previous, "item": told_item(item)})

    async def _retrieve_item(self, event: NamedItem) -> None:
        item = self._item(event.item_id, "item_retrieve_invalid_item_id")
        self.emit({"type": "conversation.item.retrieved", "item": told_item(item)})

    async def _delete_item(self, event: NamedItem) -> None:
        self.conversation.items.remove(self._item(event.item_id, "item_delete_invalid_item_id"))
        if event.item_id in self.unfinished:
            self.unfinished[event.item_id].is_answered = False
        self.emit({"type": "conversation.item.deleted", "item_id": event.item_id})

    async def _truncate_item(self, event: Truncate) -> None:
        item = self._item(event.item_id, "item_truncate_invalid_item_id")
        if event.content_index != 0:
            raise EventError("invalid_value", "a reply has one part: content_index must be 0", "content_index")
        if item.role != "assistant" or not item.is_spoken:
            raise EventError("item_truncate_invalid_item_id", "only a spoken reply can be cut", "item_id")
        if not 0 <= event.audio_end_ms <= item.milliseconds + TOLD_LATE_MS:
            message = f"audio_end_ms must be 0 to {int(item.milliseconds)}, which is all of the sound"
            raise EventError("invalid_value", message, "audio_end_ms")
        item.truncate(event.audio_end_ms)
        told = {"item_id": item.id, "content_index": event.content_index, "audio_end_ms": event.audio_end_ms}
        self.emit({"type": "conversation.item.truncated"} | told)

    def _item(self, id: str, code: str, param: str = "item_id") -> Item:
        """
        Raises:
            EventError: with the code, there is no such item.
        """
        if item := self.conversation.find(id):
            return item
        raise EventError(code, f"there is no item {id[:100]!r} in the conversation", param)

    async def _create_response(self, event: CreateResponse) -> None:
        if self.settings.type != "realtime":
            raise EventError("invalid_value", "a transcription session gives no responses")
        if self.answering.is_responding() or self.requested:
            raise already_responding()
        self._require_place()
        self.requested = self._begin_turn(self._answer_client(event.response or ResponseSettings()))

    async def _cancel_response(self, event: CancelResponse) -> None:
        id, response = event.response_id, self.answering.response
        if self.answering.is_responding() and (not id or (response and id == response.id)):
            await self.answering.interrupt("client_cancelled")
        elif id or not await self._cancel_expected("client_cancelled"):
            raise EventError("response_cancel_not_active", "no such response is under way")

    async def _clear_output(self, event: Nothing) -> None:
        await self.answering.interrupt("client_cancelled")
        if response := self.answering.response:
            self.emit({"type": "output_audio_buffer.cleared", "response_id": response.id})

    async def _answer_client(self, wanted: ResponseSettings) -> None:
        self.requested = None
        if self.answering.is_responding():
            return self.wire.emit_error(already_responding().body)
        self.unanswered = False
        await self.answering.respond(wanted, self.language)

    async def _cancel_expected(self, reason: Reason) -> bool:
        """Cancels the response that is to follow once all that was said is written down; whether there was one."""
        is_expected = (
            self.requested is not None or self.unanswered or any(turn.is_answered for turn in self.unfinished.values())
        )
        if not is_expected:
            return False
        requested, self.requested = self.requested, None
        await stop(requested)
        self.unanswered = False
        for turn in self.unfinished.values():
            turn.is_answered = False
        await self.answering.decline(reason)
        return True

    # What is said.

    async def _append(self, event: Append) -> None:
        async with contextlib.aclosing(self.listening.hear(event.audio)) as changes:
            async for change in changes:
                await self._notice(change)
        self.last_sound = time.monotonic()

    async def _commit(self, event: Nothing) -> None:
        self._require_place()
        self._end_utterance(await self.listening.commit(), None)

    async def _clear_input(self, event: Nothing) -> None:
        await self._forget_utterance()
        self.emit({"type": "input_audio_buffer.cleared"})

    async def _notice(self, change: Change) -> None:
        if change == "started":
            place = {"audio_start_ms": self.listening.start_ms, "item_id": self.utterance_id}
            self.emit({"type": "input_audio_buffer.speech_started"} | place)
            detection = self.settings.audio.input.turn_detection
            if detection and detection.interrupt_response:
                await self.answering.interrupt("turn_detected")
                if self.requested:
                    await self._cancel_expected("turn_detected")
        elif change == "paused":
            if self.listening.utterance:
                self.anticipation.begin(self.listening.utterance)
        elif change == "resumed":
            await self.anticipation.drop()
        else:
            while len(self.turns) >= MOST_TURNS:
                await asyncio.wait([self.turns[0]])
            end_ms = self.listening.end_ms
            self._end_utterance(self.listening.take(), end_ms)

    def _new_utterance(self, with_partials: bool) -> Utterance:
        id = self.utterance_id = new_id("item")
        is_first = True
        transcription = self.settings.audio.input.transcription
        language = transcription.language if transcription else None
        prompt = transcription.prompt if transcription else None

        def show(words: str) -> None:
            nonlocal is_first
            delta, is_first = words if is_first else f" {words}", False
            self._transcribed(id, "delta", delta=delta)

        async def hear(samples_n: Samples, only_if_idle: bool) -> Transcript | None:
            return await self.stages.hear(samples_n, language, prompt, only_if_idle)

        return Utterance(hear, show if with_partials and transcription else None)

    def _end_utterance(self, utterance: Utterance, end_ms: int | None) -> None:
        """The utterance becomes an item, and its turn begins.

        Args:
            end_ms: where the speech ended, without the silence that told it; None where the client said so.
        """
        item = Item(role="user", id=self.utterance_id, is_spoken=True)
        endpoint_at = None if end_ms is None else time.monotonic()
        if end_ms is not None:
            self.emit({"type": "input_audio_buffer.speech_stopped", "audio_end_ms": end_ms, "item_id": item.id})
        previous = self.conversation.add(item)
        self.emit({"type": "input_audio_buffer.committed", "item_id": item.id, "previous_item_id": previous})
        self._tell_added(item, previous)
        detection = self.settings.audio.input.turn_detection
        is_heard_out = end_ms is not None and detection is not None and detection.create_response
        is_answered = is_heard_out and self.settings.type == "realtime"
        self.unfinished[item.id] = Turn(utterance, self.anticipation.take(), is_answered)
        self._begin_turn(self._turn(item, endpoint_at))

    async def _turn(self, item: Item, endpoint_at: float | None) -> None:
        """Writes an utterance down, and answers it."""
        turn = self.unfinished[item.id]
        try:
            if turn.preparing:
                await asyncio.wait([turn.preparing])
            transcript = await turn.utterance.finish()
        except Exception as error:
            told = self.stages.explain(error)
            self._transcribed(item.id, "failed", error=told)
            if self.settings.audio.input.transcription is None:
                self.wire.emit_error(told)
            return await self._answer(endpoint_at)
        finally:
            await stop(turn.preparing)
            await turn.utterance.close()
            del self.unfinished[item.id]
        if self.conversation.find(item.id) is None:  # deleted meanwhile
            return await self._answer(endpoint_at)
        item.text = transcript.text
        if item.text:
            self.language = transcript.language
        self._transcribed(
            item.id,
            "completed",
            transcript=transcript.text,
            usage={"type": "duration", "seconds": float(transcript.seconds)},
            languages=[{"code": transcript.language}] if transcript.text else None,
        )
        if turn.is_answered and item.text:
            self.unanswered = True
        await self._answer(endpoint_at)

    async def _answer(self, endpoint_at: float | None = None) -> None:
        """Answers what was said, if it was not yet: a turn, or the end of one."""
        if self.unanswered and self.answering.responding:  # it was not to be interrupted
            await asyncio.wait([self.answering.responding])
        more_follows = self.listening.is_speaking or self.turns[-1] is not asyncio.current_task()
        if not self.unanswered or more_follows:  # the answer to what follows answers this too
            return await self.answering.drop_draft()
        self.unanswered = False
        await self.answering.respond(language=self.language, endpoint_at=endpoint_at)

    def _transcribed(self, item_id: str, kind: str, **facts: Any) -> None:
        if self.settings.audio.input.transcription is not None:
            event = {"type": f"conversation.item.input_audio_transcription.{kind}", "item_id": item_id}
            self.emit(event | {"content_index": 0} | facts)

    async def _forget_utterance(self) -> None:
        """What is being said comes to nothing, and answers nothing that was said before."""
        await self.anticipation.drop()
        await self.listening.forget()
        if self.unanswered and len(self.turns) < MOST_TURNS:
            self._begin_turn(self._answer())

    def _require_place(self) -> None:
        if len(self.turns) >= MOST_TURNS:
            raise EventError("too_many_turns", f"{MOST_TURNS} turns wait already: wait until one is through")

    def _begin_turn(self, turn: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Turns follow one another: what was said first is written down, and answered, first."""
        before = self.turns[-1] if self.turns else None

        async def in_order() -> None:
            try:
                if before:
                    await asyncio.wait([before])
            except BaseException:
                turn.close()
                raise
            await turn

        task = asyncio.create_task(in_order())
        self.turns.append(task)
        task.add_done_callback(self._end_turn)
        return task

    def _end_turn(self, task: asyncio.Task[None]) -> None:
        self.turns.remove(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a turn broke off", exc_info=error)
            if isinstance(error, Exception):
                self.wire.emit_error(self.stages.explain(error))


def already_responding() -> EventError:
    message = "a response is under way: cancel it, or wait for its response.done"
    return EventError("conversation_already_has_active_response", message)


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
"""What is done for each of the client's events; each takes the event as CLIENT_EVENTS has checked it."""
