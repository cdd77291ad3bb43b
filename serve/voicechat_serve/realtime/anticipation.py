"""What is done at a pause, in case the turn is over: it is written down, its answer begun, its words judged."""

import asyncio
import logging
from collections.abc import Callable

from voicechat_serve.realtime.answering import Answering
from voicechat_serve.realtime.conversation import stop
from voicechat_serve.realtime.listening import Listening
from voicechat_serve.realtime.session_settings import SessionSettings
from voicechat_serve.realtime.stages import Stages
from voicechat_serve.realtime.utterance import Utterance

log = logging.getLogger("ray.serve.voicechat.realtime")

JUDGED_LANGUAGE = "en"
"""The only one in which the words tell whether the person has finished."""


class Anticipation:
    """
    Args:
        settings: the session's as they are now.
        stages: the models.
        listening: told how long a silence ends the turn.
        answering: drafts the reply.
    """

    def __init__(
        self, settings: Callable[[], SessionSettings], stages: Stages, listening: Listening, answering: Answering
    ):
        self.settings, self.stages, self.listening, self.answering = settings, stages, listening, answering
        self.preparing: asyncio.Task[None] | None = None
        """Writes down, and begins to answer."""
        self.judging: asyncio.Task[None] | None = None
        """Asks whether what was said so far is all; no turn waits for it."""

    def begin(self, utterance: Utterance) -> None:
        """At a pause."""
        detection = self.settings().audio.input.turn_detection
        if detection and (detection.anticipate or detection.is_by_words):
            self.preparing = asyncio.create_task(self._prepare(utterance))

    def take(self) -> asyncio.Task[None] | None:
        """The utterance was over: what prepares its turn, if anything does."""
        preparing, self.preparing = self.preparing, None
        return preparing

    async def drop(self) -> None:
        """The utterance was not over."""
        preparing = self.take()
        await stop(preparing, self.judging)
        if self.listening.utterance:
            await self.listening.utterance.resume()
        if preparing:
            await self.answering.drop_draft()

    async def close(self) -> None:
        await stop(self.preparing, self.judging)

    async def _prepare(self, utterance: Utterance) -> None:
        try:
            transcript = await utterance.written_so_far()
            detection = self.settings().audio.input.turn_detection
            if transcript.text and detection:
                is_answered = self.settings().type == "realtime" and detection.create_response and detection.anticipate
                if is_answered and not self.answering.is_responding():
                    await self.answering.draft_reply(transcript.text, transcript.language)
                is_judged = detection.is_by_words and transcript.language == JUDGED_LANGUAGE
                if is_judged and self.listening.utterance is utterance:  # else the turn is over already
                    self.judging = asyncio.create_task(self._judge(utterance, transcript.text))
                    return
        except Exception:  # the end of the utterance tries again, and tells the client
            log.warning("a turn could not be prepared at a pause", exc_info=True)
        self._expect_end(utterance, None)

    async def _judge(self, utterance: Utterance, words: str) -> None:
        probability = None
        try:
            probability = await self.stages.end_probability(words)
        except Exception:
            log.warning("nobody could tell whether an utterance has ended", exc_info=True)
        self._expect_end(utterance, probability)

    def _expect_end(self, utterance: Utterance, probability: float | None) -> None:
        if self.listening.utterance is utterance:
            self.listening.expect_end(probability)
