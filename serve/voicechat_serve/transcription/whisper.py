"""faster-whisper that can stop between two windows of a long sound."""

import threading

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from numpy.typing import NDArray


class AbandonedError(Exception):
    """The client does not wait for the transcript any more."""


class Whisper(WhisperModel):
    """The model, with a cancellation between windows.

    `transcribe` yields segments on demand, but a segment after minutes of music comes only after all windows of the
    music. So the cancellation must be checked in each window.
    """

    abandoned = threading.Event()
    """For the sound in transcription; set it before asking for a segment."""

    def encode(self, features: NDArray[np.float32]) -> ctranslate2.StorageView:
        """Encode one window, of 30 s or an utterance's length; this is the first step of each window.

        Raises:
            AbandonedError: `abandoned` is set.
        """
        if self.abandoned.is_set():
            raise AbandonedError
        return super().encode(features)
