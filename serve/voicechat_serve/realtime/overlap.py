"""A person's speech over an audible reply, with `turn_detection.interruption: "adaptive"`.

The reply's sound is paused at once. What the speech is, is decided by interruption.py within DECIDED_AFTER_MS:

    PAUSED --> interruption                the speech becomes a turn, with its sound from the beginning
       |
       +-----> backchannel, echo, noise    the sound is resumed
                  |        |
                  |        +-> the speech goes on: it is judged again and again, and may still be an interruption
                  +-> the speech is over: it is dropped

Letters: n samples at HEARING_RATE.
"""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from voicechat_serve.audio import Samples
from voicechat_serve.realtime.conversation import stop
from voicechat_serve.realtime.interruption import LONGEST_ECHO_MS, Sound, Verdict, Words, judge, measure
from voicechat_serve.realtime.items import Overheard, new_id
from voicechat_serve.realtime.response import Response
from voicechat_serve.realtime.turn import Context
from voicechat_serve.transcription.transcriber import Transcript
from voicechat_serve.transcription.voice_activity import CHUNK_MS, Change, VoiceActivity

PAUSES_AFTER_MS = 96.0
"""Speech before the reply is paused; a wrong pause costs half a second, not the reply."""

HEARD_AFTER_MS = 288.0
"""Sound after the pause of the reply when the words are transcribed, unless the speech is over before."""

DECIDED_AFTER_MS = 480.0
"""Sound after the pause when the decision is due. Without words it is then an interruption."""

DECIDED_AFTER_S = 0.5
"""The same on the clock, if sound or words are late."""

JUDGED_EVERY_MS = 480.0
"""The sound between two judgements of speech that goes on although the reply was resumed."""

KEPT_MS = 3000.0
"""How much of such speech is kept: an echo may last as long as the reply."""

RECENT_MS, STILL_ECHO = 320.0, 0.5
"""While an echo goes on: the sound that is compared with the reply, and the least correlation. Below it somebody else
speaks, too."""

ENDS_WITH_REPLY_MS = 320.0
"""The most speech after the reply is paused that can still be its echo, with the way of the event to the client."""

BRIEF_MS = 480.0
"""The longest speech of a syllable or two, which is agreement if it has no words."""

NEW_SPEECH_MS = 96.0
"""Less speech than this after a judgement changes nothing."""

OverlapState = Literal["open", "over", "interruption"]


class AudioPaused(BaseModel):
    """The event by which the client pauses the reply's sound."""

    type: Literal["output_audio_buffer.paused"]
    event_id: str
    response_id: str
    item_id: str
    audio_start_ms: int
    """The start of the person's speech, in the session's time."""


class AudioResumed(BaseModel):
    """The event by which the client goes on where it paused."""

    type: Literal["output_audio_buffer.resumed"]
    event_id: str
    response_id: str
    item_id: str
    reason: Literal["backchannel", "echo", "noise"]
    transcript: str | None


class Overlap:
    """Speech over a reply.

    Args:
        context: the session's.
        response: the audible one.
        voice_activity: the detector, at the chunk where the speech counts as begun.
        sound: the chunks up to this one, with the padding.
        heard_ms: the session's time at the end of these chunks.
    """

    def __init__(
        self,
        context: Context,
        response: Response,
        voice_activity: VoiceActivity,
        sound: Iterable[Samples],
        heard_ms: float,
    ):
        self.context, self.response, self.voice_activity = context, response, voice_activity
        self.heard_ms = heard_ms
        self.sound = list(sound)
        """The chunks of the speech, with its padding."""
        self.padding_ms = CHUNK_MS * len(self.sound) - voice_activity.speech_ms
        self.begin_ms = response.played_ms - CHUNK_MS * len(self.sound)
        """The place in the reply's sound that could be heard at the first chunk."""
        self.waited_ms = self.new_ms = 0.0
        """The sound since the pause or the last judgement, and the speech in it."""
        self.hearing: asyncio.Task[Transcript] | None = None
        self.is_echo = False
        """Whether the speech was the reply's echo at the last judgement."""
        self._pause(heard_ms - voice_activity.speech_ms)

    def _pause(self, start_ms: float) -> None:
        self.began_at, self.is_paused = time.monotonic(), True
        self.response.pause()
        start = max(0, round(start_ms))
        self.context.wire.emit(AudioPaused(type="output_audio_buffer.paused", audio_start_ms=start, **self._place()))

    async def feed(self, chunk_n: Samples, change: Change | None) -> OverlapState:
        """Take the next chunk, and the change that it makes. Return what the speech is now."""
        self.sound.append(chunk_n)
        self.heard_ms += CHUNK_MS
        self.waited_ms += CHUNK_MS
        self.new_ms += CHUNK_MS if self.voice_activity.quiet_ms == 0 else 0.0
        return await self.follow(change)

    async def follow(self, change: Change | None) -> OverlapState:
        """Judge the speech if it is time to. Return what it is now."""
        is_silent = self.voice_activity.is_paused or not self.voice_activity.is_speaking
        if self.response.cancelled or self.response.message.heard_ms is not None:  # nobody speaks over it any more
            return await self._end("interruption")
        if not self.is_paused and is_silent and self.new_ms < NEW_SPEECH_MS:
            return await self._end("over")
        if self.is_echo and not self.is_paused and self.new_ms >= PAUSES_AFTER_MS and not self._is_still_echo():
            self._restart()
        after_ms = HEARD_AFTER_MS if self.is_paused else JUDGED_EVERY_MS
        if self.hearing is None and not is_silent and self.waited_ms < after_ms and not self._is_late:
            return "open"
        sound = self._sound()
        verdict = judge(sound)
        transcript = None
        if verdict is None:
            self.hearing = self.hearing or asyncio.create_task(self._hear())
            is_due = change == "stopped" or (self.is_paused and (self.waited_ms >= DECIDED_AFTER_MS or self._is_late))
            if not self.hearing.done() and not is_due:
                return "open"
            transcript = await self._words_in_time()
            words = Words(transcript.text, transcript.language, self._reply_words()) if transcript else None
            verdict = judge(sound, words) or "interruption"
        return await self._decide(verdict, transcript, is_silent)

    def _is_still_echo(self) -> bool:
        recent = self.sound[-round(RECENT_MS / CHUNK_MS) :]
        end_ms = self.begin_ms + CHUNK_MS * len(self.sound)
        played_fb = self.response.played.between(end_ms - RECENT_MS - LONGEST_ECHO_MS, end_ms)
        return measure(np.concatenate(recent), played_fb).echo >= STILL_ECHO

    def _restart(self) -> None:
        """Pause again: somebody speaks while the echo goes on."""
        kept = self.sound[-round(RECENT_MS / CHUNK_MS) :]
        self.begin_ms += CHUNK_MS * (len(self.sound) - len(kept))
        self.sound, self.padding_ms, self.is_echo = kept, 0.0, False
        self.waited_ms = self.new_ms = 0.0
        self._pause(self.heard_ms - PAUSES_AFTER_MS)

    async def drop(self) -> None:
        """Forget the speech, because the client cleared it: the reply's sound goes on."""
        await self._decide("noise", None, is_silent=True)

    async def close(self) -> None:
        await stop(self.hearing)

    @property
    def _is_late(self) -> bool:
        return self.is_paused and time.monotonic() > self.began_at + DECIDED_AFTER_S

    async def _hear(self) -> Transcript:
        transcription = self.context.settings.audio.input.transcription
        language, prompt = (transcription.language, transcription.prompt) if transcription else (None, None)
        return await self.context.stages.glimpse(np.concatenate(self.sound), language, prompt)

    async def _words_in_time(self) -> Transcript | None:
        """Return the words; None if they failed, or are too late."""
        assert self.hearing is not None
        left_s = self.began_at + DECIDED_AFTER_S - time.monotonic() if self.is_paused else DECIDED_AFTER_S
        await asyncio.wait([self.hearing], timeout=max(0.0, left_s))
        if not self.hearing.done() or self.hearing.exception():
            return None
        return self.hearing.result()

    def _sound(self) -> Sound:
        """Measure the speech so far, or since the last judgement, without the silence before and after it."""
        whole_ms = CHUNK_MS * len(self.sound)
        start_ms = self.padding_ms if self.is_paused else max(self.padding_ms, whole_ms - self.waited_ms)
        end_ms = whole_ms - self.voice_activity.quiet_ms
        speech = self.sound[round(start_ms / CHUNK_MS) : round(end_ms / CHUNK_MS)]
        begin_ms = self.begin_ms + start_ms
        played_fb = self.response.played.between(begin_ms - LONGEST_ECHO_MS, self.begin_ms + end_ms)
        sound = measure(np.concatenate([np.zeros(0, np.float32), *speech]), played_fb)
        has_ended = self.is_paused and self.voice_activity.quiet_ms > 0 and self.new_ms <= ENDS_WITH_REPLY_MS
        is_brief = self.voice_activity.quiet_ms > 0 and CHUNK_MS * len(speech) <= BRIEF_MS
        return replace(sound, ends_with_reply=has_ended, is_brief=is_brief)

    def _reply_words(self) -> str:
        """Return the sentences of the reply that can be heard in this speech."""
        place_ms, found = 0.0, []
        for sentence in self.response.message.spoken:
            if place_ms + sentence.ms > self.begin_ms - LONGEST_ECHO_MS and place_ms < self.response.played_ms:
                found.append(sentence.text)
            place_ms += sentence.ms
        return " ".join(found)

    async def _decide(self, verdict: Verdict, transcript: Transcript | None, is_silent: bool) -> OverlapState:
        if verdict == "interruption":
            return await self._end("interruption")
        text = transcript.text if transcript and transcript.text else None
        if self.is_paused:
            self.response.resume()
            self.begin_ms = self.response.played_ms - CHUNK_MS * len(self.sound)  # it stood still
            self.is_paused = False
            self.response.message.overheard.append(Overheard(verdict, text, round(self.response.played_ms)))
            self.context.wire.emit(
                AudioResumed(type="output_audio_buffer.resumed", reason=verdict, transcript=text, **self._place())
            )
        if is_silent:
            return await self._end("over")
        await stop(self.hearing)
        self.hearing, self.waited_ms, self.new_ms, self.is_echo = None, 0.0, 0.0, verdict == "echo"
        while CHUNK_MS * len(self.sound) > KEPT_MS:
            del self.sound[0]
            self.begin_ms, self.padding_ms = self.begin_ms + CHUNK_MS, max(0.0, self.padding_ms - CHUNK_MS)
        return "open"

    async def _end(self, state: OverlapState) -> OverlapState:
        await stop(self.hearing)
        return state

    def _place(self) -> dict[str, Any]:
        return {
            "event_id": new_id("event"),
            "response_id": self.response.id,
            "item_id": self.response.message.id,
        }
