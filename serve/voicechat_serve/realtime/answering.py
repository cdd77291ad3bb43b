"""Transcribe and answer a session's turns in order, with one response at a time."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from voicechat_serve.realtime.conversation import stop
from voicechat_serve.realtime.errors import EventError
from voicechat_serve.realtime.listening import Listening
from voicechat_serve.realtime.response import Reason, decline
from voicechat_serve.realtime.session_settings import ResponseSettings
from voicechat_serve.realtime.turn import Context, State, Turn

log = logging.getLogger("ray.serve.voicechat.realtime")

MOST_TURNS = 16
"""The most turns in the queue: each may hold a minute of sound."""


class Answering:
    """The queue of a session's turns and responses.

    Args:
        context: the session's.
        listening: detects whether the person speaks again.
    """

    def __init__(self, context: Context, listening: Listening):
        self.context, self.listening = context, listening
        self.queue: list[asyncio.Task[None]] = []
        """The work on turns, transcription and answer, in the order of the turns."""
        self.untranscribed: dict[str, Turn] = {}
        """Turns by the id of their item. A turn that waits for others may never begin."""
        self.unanswered: Turn | None = None
        """A transcribed turn without an answer, because more speech followed."""
        self.requested: asyncio.Task[None] | None = None
        """The response that the client requested, while it waits for the speech before it."""

    def require_place(self) -> None:
        """Require a place in the queue for one more turn.

        Raises:
            EventError: too many turns wait.
        """
        if len(self.queue) >= MOST_TURNS:
            raise EventError("too_many_turns", f"{MOST_TURNS} turns wait already: wait until one is finished")

    async def wait_for_place(self) -> None:
        """Wait until the queue has a place for one more turn."""
        while len(self.queue) >= MOST_TURNS:
            await asyncio.wait([self.queue[0]])

    def add(self, turn: Turn) -> None:
        """Transcribe and answer a turn whose speech is over, after the turns before it."""
        self.untranscribed[turn.id] = turn
        self._put(self._take(turn))

    def request(self, wanted: ResponseSettings) -> None:
        """Begin the response that the client requests, when all earlier speech is transcribed and answered.

        It waits for the end of a response that has called: many clients send the result, and request the next response,
        as soon as they have the call.

        Raises:
            EventError: there is another response already, or too many turns wait.
        """
        if self.requested or (self.context.is_responding and not self.context.has_called):
            raise already_responding()
        self.require_place()
        self.requested = self._put(self._answer_request(wanted))

    def answer_the_rest(self) -> None:
        """Answer the earlier turn, because the speech that followed was dropped."""
        if self.unanswered and len(self.queue) < MOST_TURNS:
            self._put(self._answer())

    async def interrupt(self, reason: Reason) -> None:
        """End the active response."""
        if self.context.answered:
            await self.context.answered.interrupt(reason)

    async def cancel_expected(self, reason: Reason) -> bool:
        """Cancel the response that is to follow when all speech is transcribed. Return whether there was one."""
        expected = [turn for turn in self.untranscribed.values() if turn.wants_answer]
        if not (expected or self.unanswered or self.requested):
            return False
        requested, self.requested = self.requested, None
        unanswered, self.unanswered = self.unanswered, None
        for turn in expected:
            turn.wants_answer = False
        await stop(requested)
        if unanswered:
            await unanswered.finish()
        for turn in expected:
            await turn.drop_draft()
        await decline(self.context.settings.model, reason, self.context.wire, self.context.stages)
        return True

    async def close(self) -> None:
        """End all work."""
        await stop(*self.queue)
        for turn in (*self.untranscribed.values(), self.unanswered, self.context.answered):
            if turn:
                await turn.close()

    async def _take(self, turn: Turn) -> None:
        try:
            await turn.transcribe()
        except BaseException:
            await turn.close()
            raise
        finally:
            del self.untranscribed[turn.id]
        if turn.state is State.TRANSCRIBED:
            earlier, self.unanswered = self.unanswered, turn
            if earlier:
                await earlier.finish()
        await self._answer(turn.ended_at)

    async def _answer(self, ended_at: float | None = None) -> None:
        """Answer the turn that has just ended, or an earlier one. Do nothing if all turns are answered."""
        if self.unanswered and self.context.answered and self.context.answered.responding:
            await asyncio.wait([self.context.answered.responding])  # the speech must not interrupt it
        if (turn := self.unanswered) is None:
            return
        if self.listening.is_speaking or self.queue[-1] is not asyncio.current_task():
            return await turn.drop_draft()  # the next answer covers this turn too
        self.unanswered = None
        turn.answer(ended_at=ended_at)
        await turn.drop_draft()

    async def _answer_request(self, wanted: ResponseSettings) -> None:
        calling = self.context.answered
        if calling and calling.responding and self.context.has_called:
            await asyncio.wait([calling.responding])
        self.requested = None
        if self.context.is_responding:
            return self.context.wire.emit_error(already_responding().body)
        if unanswered := self.unanswered:
            self.unanswered = None
            await unanswered.finish()
        Turn(self.context, State.WAITING).answer(wanted)

    def _put(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Add work to the queue. The work begins when all work before it has ended."""
        before = list(self.queue)  # all of them: the last may be cancelled while others still run

        async def in_order() -> None:
            try:
                if before:
                    await asyncio.wait(before)
            except BaseException:
                work.close()
                raise
            await work

        task = asyncio.create_task(in_order())
        self.queue.append(task)
        task.add_done_callback(self._end)
        return task

    def _end(self, task: asyncio.Task[None]) -> None:
        self.queue.remove(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a turn failed", exc_info=error)
            if isinstance(error, Exception):
                self.context.wire.emit_error(self.context.stages.explain(error))


def already_responding() -> EventError:
    message = "a response is active already: cancel it, or wait for its response.done"
    return EventError("conversation_already_has_active_response", message)
