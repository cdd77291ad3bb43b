"""Noise reduction of a session's sound by WebRTC's audio processing (the package pywebrtc-audio), before anything hears
it. For a microphone at some distance the level is evened out, too.

Letters: n samples at HEARING_RATE.
"""

from typing import Any, Literal, get_args

import numpy as np
from pydantic import model_validator
from pywebrtc_audio import GainController, NoiseSuppressor

from voicechat_serve.audio import HEARING_RATE, Samples
from voicechat_serve.realtime.checked import Checked

FRAME = HEARING_RATE // 100
LEVEL = 2
"""Of suppression, 0 to 3."""


Type = Literal["near_field", "far_field"]


class NoiseReductionSettings(Checked):
    type: Type
    """The microphone: a headset's, or one of a laptop or a room."""

    @model_validator(mode="before")
    @classmethod
    def has_a_known_type(cls, given: Any) -> Any:
        """Refuse the whole field: without its type, nothing is left of it."""
        if isinstance(given, dict) and isinstance(given.get("type"), str) and given["type"] not in get_args(Type):
            raise ValueError(f"type is one of {', '.join(get_args(Type))}")
        return given


class NoiseReduction:
    """The state for one stream of sound."""

    def __init__(self, settings: NoiseReductionSettings):
        self.settings = settings
        self.suppressor = NoiseSuppressor(HEARING_RATE, level=LEVEL)
        self.gain = GainController(HEARING_RATE) if settings.type == "far_field" else None
        self.rest_n: Samples = np.zeros(0, np.float32)
        """Less than a frame."""

    def clean(self, samples_n: Samples) -> Samples:
        """Return cleaned sound: of all whole frames of 10 ms so far."""
        sound_n = np.concatenate([self.rest_n, samples_n])
        whole = len(sound_n) - len(sound_n) % FRAME
        self.rest_n = sound_n[whole:]
        if not whole:
            return np.zeros(0, np.float32)
        cleaned_n = self.suppressor.process(sound_n[:whole])
        return np.asarray(self.gain.process(cleaned_n) if self.gain else cleaned_n, np.float32)
