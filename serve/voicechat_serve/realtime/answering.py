"""How a session answers: one response at a time, begun early where the person has perhaps finished."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from voicechat_serve.generation.chat_tokenizer import Message
from voicechat_serve.generation.loaded_model import Delta
from voicechat_serve.realtime.conversation import Conversation, Item, Reply, new_id, stop
from voicechat_serve.realtime.response import Reason, ReplyOptions, Response
from voicechat_serve.realtime.session_settings import MOST_TOKENS, ResponseSettings, SessionSettings
from voicechat_serve.realtime.stages import Stages
from voicechat_serve.realtime.wire import Wire

log = logging.getLogger("ray.serve.voicechat.realtime")

JUST_THE_SESSIONS = ResponseSettings()
"""Nothing but the session's settings."""


@dataclass(frozen=True)
class Draft:
    """A reply that was begun before it was certain that the person had finished."""

    reply: Reply
    options: ReplyOptions
    messages: list[Message]


class Answering:
    """
    Args:
        conversation: what is answered, and grows.
        settings: the session's as they are now.
        stages: the models.
        wire: where events go.
        on_first_sound: told the seconds from the end of a spoken turn to the first sound of its response.
    """

    def __init__(
        self,
        conversation: Conversation,
        settings: Callable[[], SessionSettings],
        stages: Stages,
        wire: Wire,
        on_first_sound: Callable[[float], None],
    ):
        self.conversation_id = new_id("conv")
        self.conversation, self.settings, self.stages, self.wire = conversation, settings, stages, wire
        self.on_first_sound = on_first_sound
        self.draft: Draft | None = None
        self.response: Response | None = None
        """Under way, or the last one."""
        self.responding: asyncio.Task[None] | None = None

    def is_responding(self) -> bool:
        return self.responding is not None and not self.responding.done()

    def is_heard(self) -> bool:
        """Whether a reply is being made, or can still be playing."""
        return self.is_responding() or (self.response is not None and self.response.is_playing)

    async def draft_reply(self, said: str, language: str) -> None:
        """Begins to answer what is not yet in the conversation; `respond` takes it over if all is as foreseen."""
        options = self._options(JUST_THE_SESSIONS, language)
        item = Item(role="user", text=said)
        messages = self.conversation.messages(self.settings().instructions, [item])
        earlier, self.draft = self.draft, Draft(self._begin(options, messages), options, messages)
        if earlier:
            await earlier.reply.close()

    async def drop_draft(self) -> None:
        draft, self.draft = self.draft, None
        if draft:
            await draft.reply.close()

    async def respond(
        self,
        wanted: ResponseSettings = JUST_THE_SESSIONS,
        language: str | None = None,
        endpoint_at: float | None = None,
    ) -> None:
        """Begins a response; what forbids it is told to the client.

        Args:
            wanted: what it is to have instead of the session's settings.
            language: of what is answered, where that is known.
            endpoint_at: when the spoken turn ended that is answered; monotonic.
        """
        try:
            options, messages = self._options(wanted, language), self._messages(wanted)
        except Exception as error:  # no such voice
            await self.drop_draft()
            return self.wire.emit_error(self.stages.explain(error))
        if not messages:
            message = "there is nothing to answer yet"
            return self.wire.emit_error({"type": "invalid_request_error", "code": "empty", "message": message})
        # Without waiting for anything: speech that begins meanwhile must find the response, or it would not end it.
        draft, self.draft = self.draft, None
        is_foreseen = draft is not None and (draft.options, draft.messages) == (options, messages)
        reply = draft.reply if draft and is_foreseen else self._begin(options, messages)
        metadata = dict(wanted.metadata or {})
        if options.voice is None and self._wants_voice(wanted):
            metadata |= {"spoken": "false", "reason": f"no voice speaks {language}"}
        is_kept = wanted.conversation != "none"
        self.response = Response(
            reply=reply,
            options=options,
            conversation_id=self.conversation_id if is_kept else None,
            metadata=metadata,
            wire=self.wire,
            explain=self.stages.explain,
            on_sound=partial(self._first_sound, endpoint_at),
        )
        previous = self.conversation.add(reply.item) if is_kept else None
        self.responding = asyncio.create_task(self.response.run(previous))
        self.responding.add_done_callback(self._tell_failure)
        if draft and not is_foreseen:
            await draft.reply.close()

    async def interrupt(self, reason: Reason) -> None:
        """Ends the response under way; what can have been heard of it by now stays. Returns when the client is told."""
        response, responding = self.response, self.responding
        if response is None or responding is None or responding.done():
            return
        if response.item.is_spoken:
            response.item.truncate(response.played_ms)
        await response.cancel(reason)
        await asyncio.wait([responding])

    async def decline(self, reason: Reason) -> None:
        """Tells the client of a response that was to come, and that was cancelled before it began."""
        await self.drop_draft()
        reply = Reply(nothing(), None)
        await reply.close()
        options = ReplyOptions(self.settings().model, MOST_TOKENS, None, None, 1.0)
        declined = Response(
            reply=reply,
            options=options,
            conversation_id=None,
            metadata={},
            wire=self.wire,
            explain=self.stages.explain,
            on_sound=lambda: None,
        )
        await declined.cancel(reason)
        await declined.run(None)

    async def close(self) -> None:
        await self.drop_draft()
        await stop(self.responding)
        if self.response:
            await self.response.reply.close()

    def _begin(self, options: ReplyOptions, messages: list[Message]) -> Reply:
        sampling: dict[str, Any] = {"max_tokens": options.max_tokens}
        if options.temperature is not None:
            sampling["temperature"] = options.temperature
        pieces = self.stages.write(options.model, messages, sampling)
        if options.voice is None:
            return Reply(pieces, None)
        speak = partial(self.stages.speak, speed=options.speed, voice=options.voice)
        return Reply(pieces, speak, self.stages.language_of(options.voice))

    def _messages(self, wanted: ResponseSettings) -> list[Message]:
        instructions = self.settings().instructions if wanted.instructions is None else wanted.instructions
        if wanted.input is None:
            return self.conversation.messages(instructions)
        other = Conversation()
        for given in wanted.input:
            other.add(Item(role=given.role, text=given.text))
        return other.messages(instructions)

    def _wants_voice(self, wanted: ResponseSettings) -> bool:
        return (wanted.output_modalities or self.settings().output_modalities) == ["audio"]

    def _options(self, wanted: ResponseSettings, language: str | None) -> ReplyOptions:
        settings = self.settings()
        output = settings.audio.output
        if wanted.audio:
            output = output.model_copy(update={name: own for name, own in wanted.audio.output if own is not None})
        most = wanted.max_output_tokens or settings.max_output_tokens
        return ReplyOptions(
            model=settings.model,
            max_tokens=MOST_TOKENS if most == "inf" else most,
            temperature=settings.temperature if wanted.temperature is None else wanted.temperature,
            voice=self.stages.voice(output.voice_id, language) if self._wants_voice(wanted) else None,
            speed=output.speed,
        )

    def _first_sound(self, endpoint_at: float | None) -> None:
        if endpoint_at is not None:
            self.on_first_sound(time.monotonic() - endpoint_at)

    def _tell_failure(self, responding: asyncio.Task[None]) -> None:
        """Of the response's own task: those of the models are told by the response itself."""
        if not responding.cancelled() and (error := responding.exception()):
            log.error("a response broke off", exc_info=error)
            if isinstance(error, Exception):
                self.wire.emit_error(self.stages.explain(error))


async def nothing() -> AsyncGenerator[Delta, None]:
    return
    yield
