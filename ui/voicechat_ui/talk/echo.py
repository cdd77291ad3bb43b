"""The microphone's sound without the loudspeaker's, by WebRTC's audio processing (the package pywebrtc-audio): echo
cancellation, noise suppression and gain control."""

import threading

import numpy as np
from pywebrtc_audio import AudioProcessor

RATE = 24_000
"""Samples per second of the devices, and of the processing."""

MOST_BEHIND_S = 1.0
"""Played sound that is kept for a microphone that gives nothing."""


class EchoCanceller:
    """Cleans what the microphone records of what the loudspeaker plays. Each device has a thread of its own."""

    def __init__(self) -> None:
        self._processor = AudioProcessor(RATE, echo_cancellation=True, noise_suppression=True, auto_gain_control=True)
        self._lock = threading.Lock()
        self._played = bytearray()
        """Sound that was given to the loudspeaker, and not yet compared with the microphone's."""

    def played(self, pcm: bytes) -> None:
        """Take what the loudspeaker plays, silence included: 16-bit samples."""
        with self._lock:
            self._played += pcm
            del self._played[: max(0, len(self._played) - int(2 * RATE * MOST_BEHIND_S))]

    def clean(self, pcm: bytes) -> bytes:
        """Return recorded 16-bit samples without the echo.

        Args:
            pcm: whole frames of 10 ms, because a part of one would be filled up with silence.
        """
        with self._lock:
            played = bytes(self._played[: len(pcm)]).ljust(len(pcm), b"\0")
            del self._played[: len(pcm)]
        return self._processor.process(np.frombuffer(pcm, np.int16), np.frombuffer(played, np.int16)).tobytes()
