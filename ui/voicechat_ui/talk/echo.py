"""The microphone's sound without the loudspeaker's, by WebRTC's audio processing (the package pywebrtc-audio): echo
cancellation, noise suppression and gain control."""

import threading

import numpy as np
from pywebrtc_audio import AudioProcessor

from voicechat_ui.talk.sound_device import BYTES_PER_SAMPLE, RATE

MOST_KEPT_S = 1.0
"""Played sound that is kept for a microphone that gives nothing."""

CUSHION_S = 0.02
"""Played sound that may wait all the time, because the callbacks of the two devices do not alternate exactly. It must
be less than the time from a loudspeaker's callback to the echo: the canceller cannot use sound that comes after its
echo."""

WATCHED_S = 0.5
"""The least sound that waits in this time waits all the time."""


class EchoCanceller:
    """Cleans what the microphone records of what the loudspeaker plays. Each device has a thread of its own."""

    def __init__(self) -> None:
        self._processor = AudioProcessor(RATE, echo_cancellation=True, noise_suppression=True, auto_gain_control=True)
        self._lock = threading.Lock()
        self._played = bytearray()
        """Sound that was given to the loudspeaker, and not yet compared with the microphone's."""
        self._least_waiting = self._watched = 0
        """The fewest bytes that waited after a piece of the microphone, and the bytes that it has given meanwhile."""

    def played(self, pcm: bytes) -> None:
        """Take what the loudspeaker plays, silence included: 16-bit samples."""
        with self._lock:
            self._played += pcm
            del self._played[: max(0, len(self._played) - bytes_of(MOST_KEPT_S))]

    def clean(self, pcm: bytes) -> bytes:
        """Return recorded 16-bit samples without the echo.

        Args:
            pcm: whole frames of 10 ms, because a part of one would be filled up with silence.
        """
        with self._lock:
            played = bytes(self._played[: len(pcm)]).ljust(len(pcm), b"\0")
            del self._played[: len(pcm)]
            self._catch_up(len(pcm))
        return self._processor.process(np.frombuffer(pcm, np.int16), np.frombuffer(played, np.int16)).tobytes()

    def _catch_up(self, recorded: int) -> None:
        """Drop played sound that waits all the time: the loudspeaker began earlier, or has a faster clock."""
        self._least_waiting = min(self._least_waiting, len(self._played)) if self._watched else len(self._played)
        self._watched += recorded
        if self._watched >= bytes_of(WATCHED_S):
            del self._played[: max(0, self._least_waiting - bytes_of(CUSHION_S))]
            self._watched = 0


def bytes_of(seconds: float) -> int:
    return BYTES_PER_SAMPLE * int(RATE * seconds)
