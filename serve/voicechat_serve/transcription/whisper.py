"""faster-whisper, made to stop between two windows of a long sound."""

import threading

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from numpy.typing import NDArray


class AbandonedError(Exception):
    """Nobody waits for the transcript any more."""


class Whisper(WhisperModel):
    """The model, with a way out.

    `transcribe` gives segments as they are asked for, but one that follows minutes of music is only found after every
    window of the music was heard: leaving has to be noticed in between.
    """

    abandoned = threading.Event()
    """Of the sound at work; set it before asking for a segment."""

    def encode(self, features: NDArray[np.float32]) -> ctranslate2.StorageView:
        """One window, of 30 s or an utterance's own; the first thing that is done with each.

        Raises:
            AbandonedError: `abandoned` is set.
        """
        if self.abandoned.is_set():
            raise AbandonedError
        return super().encode(features)
