"""How a session listens: it takes sound in pieces of any size, and the voice detector or the client cuts it into turns.

Letters: n samples.
"""

import asyncio
import base64
import binascii
from collections import deque
from collections.abc import AsyncGenerator
from typing import Literal

import numpy as np
import soxr

from voicechat_serve.audio import HEARING_RATE, Samples
from voicechat_serve.realtime.errors import EventError
from voicechat_serve.realtime.noise_reduction import NoiseReduction
from voicechat_serve.realtime.overlap import PAUSES_AFTER_MS, Overlap, OverlapState
from voicechat_serve.realtime.session_settings import AudioInput, TurnDetection
from voicechat_serve.realtime.turn import Context, State, Turn
from voicechat_serve.transcription.voice_activity import (
    BEGINS_AFTER_MS,
    CHUNK,
    CHUNK_MS,
    INTERRUPTS_AFTER_MS,
    Change,
    VoiceActivity,
)

LONGEST_UTTERANCE_S = 600

SOUND_LATE_S = 1.0
"""A client that sends no sound for so long during an utterance has stopped. The missing sound counts as silence.
A network that stalls for a shorter time ends no turn."""

SHORTEST_COMMIT_MS = 100

Heard = Change | Literal["dropped"]
"""A change of the turn; or speech over a reply was dropped, because it was no turn."""


class Listening:
    """The input audio buffer of a session, with the detector of speech.

    Args:
        context: the session's.
    """

    def __init__(self, context: Context):
        self.context = context
        self.take_sound_as(context.settings.audio.input)
        self.rest_n: Samples = np.zeros(0, np.float32)
        """Samples that do not fill a chunk yet."""
        self.samples = 0
        """The number of samples received so far, without the rest: the session's clock."""
        self.before: deque[Samples] = deque()
        """The chunks before the speech: its padding."""
        self.turn: Turn | None = None
        """The turn that the person speaks at present."""
        self.overlap: Overlap | None = None
        """Speech over a reply that is no turn yet."""
        self.begin(context.settings.audio.input.turn_detection)

    def take_sound_as(self, settings: AudioInput) -> None:
        """Take the following sound in the format, and with the noise reduction, of these settings."""
        self.format, wanted = settings.format, settings.noise_reduction
        self.resampler = soxr.ResampleStream(self.format.hertz, HEARING_RATE, 1, dtype="float32", quality="MQ")
        self.noise_reduction = NoiseReduction(wanted) if wanted else None

    def begin(self, detection: TurnDetection | None) -> None:
        """Begin to listen with other settings of turn detection. The caller must first discard the present turn."""
        self.detection = detection
        self.voice_activity = (
            VoiceActivity(detection.threshold, detection.longest_silence_ms) if detection is not None else None
        )
        self.before.clear()

    def adjust(self, detection: TurnDetection) -> None:
        """Change the settings of the active detector."""
        if detection == self.detection:
            return  # a silence that has begun keeps its length
        assert self.voice_activity is not None
        self.detection = detection
        self.voice_activity.threshold = detection.threshold
        if self.turn:
            self.turn.silence_ms = None

    @property
    def is_speaking(self) -> bool:
        return self.voice_activity is not None and self.voice_activity.is_speaking

    @property
    def heard_ms(self) -> float:
        """The session's time: the length of the sound received so far."""
        return 1000 * self.samples / HEARING_RATE

    @property
    def start_ms(self) -> int:
        """The start of the turn, in the session's time."""
        assert self.turn is not None
        return max(0, round(self.heard_ms - 1000 * self.turn.utterance.seconds))

    @property
    def end_ms(self) -> int:
        """The end of the speech, in the session's time, without the silence after it."""
        return round(self.heard_ms - (self.voice_activity.quiet_ms if self.voice_activity else 0))

    async def hear(self, encoded: str) -> AsyncGenerator[Heard, None]:
        """Take sound, and yield each change at the sample where it is detected.

        Args:
            encoded: base64 of sound in the session's format.

        Raises:
            EventError: the text is not that, or the buffer is full because the client did not commit it.
        """
        try:
            sound = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise EventError("invalid_value", "audio is not base64", "audio") from None
        if len(sound) % self.format.sample_bytes:
            raise EventError("invalid_value", "audio is 16-bit samples, so it needs an even number of bytes", "audio")
        # One second at a time, so that a long sound does not delay the other sessions.
        second = self.format.hertz * self.format.sample_bytes
        for start in range(0, len(sound), second):
            samples_n = self.format.decode(sound[start : start + second])
            sound_n = self.resampler.resample_chunk(samples_n)
            if self.noise_reduction:
                sound_n = self.noise_reduction.clean(sound_n)
            self.rest_n = np.concatenate([self.rest_n, sound_n])
            while len(self.rest_n) >= CHUNK:
                chunk_n, self.rest_n = self.rest_n[:CHUNK], self.rest_n[CHUNK:]
                self.samples += CHUNK
                change = await (self._detect(chunk_n) if self.voice_activity else self._gather(chunk_n))
                if change:
                    yield change
                await asyncio.sleep(0)

    async def miss(self, seconds: float) -> Heard | None:
        """Return what changes because no sound has come for a while; None if nothing changes.

        Args:
            seconds: the time since the last sound.
        """
        if self.voice_activity is None:
            return None
        self._expect_end()
        change = self.voice_activity.miss(1000 * seconds if seconds >= SOUND_LATE_S else 0.0)
        return await self._settle(await self.overlap.follow(change)) if self.overlap else change

    def _expect_end(self) -> None:
        """Set the length of the silence that ends the turn. It depends on the words. Until they are classified, it is
        the longest silence of the settings."""
        assert self.voice_activity is not None
        assert self.detection is not None
        by_words_ms = self.turn.silence_ms if self.turn else None
        self.voice_activity.silence_ms = self.detection.longest_silence_ms if by_words_ms is None else by_words_ms

    async def _gather(self, chunk_n: Samples) -> None:
        self.turn = self.turn or Turn(self.context, State.SPEAKING)
        if self.turn.utterance.seconds >= LONGEST_UTTERANCE_S:
            self._take_rest()
            message = f"the buffer is full with {LONGEST_UTTERANCE_S // 60} minutes of sound: commit or clear it"
            raise EventError("input_audio_buffer_full", message)
        await self.turn.utterance.append(chunk_n)

    async def _detect(self, chunk_n: Samples) -> Heard | None:
        assert self.voice_activity is not None
        assert self.detection is not None
        self._expect_end()
        response = self.context.response
        can_pause = self.detection.interruption == "adaptive" and response is not None and response.is_playing
        # A cough must not interrupt a reply.
        begins_after_ms = INTERRUPTS_AFTER_MS if self.context.is_audible else BEGINS_AFTER_MS
        change = self.voice_activity.feed(chunk_n, PAUSES_AFTER_MS if can_pause else begins_after_ms)
        if self.overlap:
            return await self._settle(await self.overlap.feed(chunk_n, change))
        if change == "started":
            sound, self.before = [*self.before, chunk_n], deque()
            if can_pause:
                assert response is not None
                self.overlap = Overlap(self.context, response, self.voice_activity, sound, self.heard_ms)
                return None
            await self._begin_turn(sound)
        elif self.turn is None:
            self.before.append(chunk_n)
            # The last chunks may be the beginning of speech, which is not certain yet: keep them besides the padding.
            kept = (self.detection.prefix_padding_ms + self.voice_activity.speech_ms) / CHUNK_MS
            while len(self.before) > kept:
                self.before.popleft()
        else:
            await self.turn.utterance.append(chunk_n)
            if self.turn.utterance.seconds >= LONGEST_UTTERANCE_S:
                change = "stopped"
        return change

    async def _begin_turn(self, sound: list[Samples]) -> None:
        self.turn = Turn(self.context, State.SPEAKING, is_detected=True)
        for chunk_n in sound:
            await self.turn.utterance.append(chunk_n)

    async def _settle(self, state: OverlapState) -> Heard | None:
        """Return the change that follows from what speech over a reply is now."""
        if self.overlap is None or self.voice_activity is None or state == "open":
            return None
        overlap, self.overlap = self.overlap, None
        if state == "over":
            self.voice_activity.end()
            return "dropped"
        await self._begin_turn(overlap.sound)
        self.voice_activity.reopen()
        return "started"

    async def give_turn(self) -> Heard | None:
        """Make a turn of speech over a reply that is not judged yet, because the client commits it."""
        return await self._settle("interruption")

    def take(self) -> Turn:
        """Remove the turn whose speech is over, and return it."""
        assert self.turn is not None
        turn, self.turn = self.turn, None
        if self.voice_activity:
            self.voice_activity.end()
        return turn

    def _take_rest(self) -> Samples:
        rest_n, self.rest_n = self.rest_n, self.rest_n[:0]
        self.samples += len(rest_n)
        return rest_n

    async def commit(self) -> Turn:
        """Remove the turn that the client commits, and return it.

        Raises:
            EventError: there is no turn, or it is too short.
        """
        if self.turn is None or 1000 * self.turn.utterance.seconds < SHORTEST_COMMIT_MS:
            message = f"there is less than {SHORTEST_COMMIT_MS} ms of sound in the buffer"
            raise EventError("input_audio_buffer_commit_empty", message)
        await self.turn.utterance.append(self._take_rest())
        return self.take()

    async def forget(self) -> None:
        """Discard the turn's sound, and the turn. A reply that was paused for it goes on."""
        self._take_rest()
        if self.overlap:
            await self.overlap.drop()
            await self._settle("over")
        self.before.clear()
        if self.turn:
            await self.take().close()
