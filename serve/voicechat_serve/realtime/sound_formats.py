"""The sound formats of a session: 16-bit samples, and telephony's mu-law and A-law (ITU-T G.711), 8 bits a sample.

Letters: n samples, c the 256 codes of a law, k its 256 levels in ascending order.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import model_serializer, model_validator

from voicechat_serve.audio import Samples
from voicechat_serve.realtime.checked import Checked
from voicechat_serve.synthesis.voices import SPEECH_RATE

TELEPHONE_RATE = 8_000
FULL_SCALE = 32768

Type = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]


class Format(Checked):
    type: Type = "audio/pcm"
    rate: Literal[24000] | None = None
    """In Hz. Only for audio/pcm, as in OpenAI's protocol."""

    @model_validator(mode="after")
    def rate_is_of_the_type(self) -> "Format":
        if self.is_telephony and self.rate:
            raise ValueError(f"{self.type} always has {TELEPHONE_RATE} Hz: leave out its rate")
        if not self.is_telephony:
            self.rate = 24000
        return self

    @model_serializer(mode="wrap")
    def only_given(self, dump: Callable[["Format"], dict[str, Any]]) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if value is not None}

    @property
    def is_telephony(self) -> bool:
        return self.type != "audio/pcm"

    @property
    def hertz(self) -> int:
        return TELEPHONE_RATE if self.is_telephony else SPEECH_RATE

    @property
    def sample_bytes(self) -> int:
        return 1 if self.is_telephony else 2

    def decode(self, sound: bytes) -> Samples:
        """Return samples (n,) at `hertz`."""
        if self.is_telephony:
            return np.divide(levels(self.type)[np.frombuffer(sound, np.uint8)], FULL_SCALE, dtype=np.float32)
        return np.divide(np.frombuffer(sound, "<i2"), FULL_SCALE, dtype=np.float32)

    def encode(self, samples_n: Samples) -> bytes:
        """Return the bytes of samples (n,) at `hertz`."""
        scaled_n = np.clip(samples_n, -1, 1) * (FULL_SCALE - 1)
        if not self.is_telephony:
            return scaled_n.astype("<i2").tobytes()
        order_k, limits_k = sorted_levels(self.type)
        return order_k[np.searchsorted(limits_k, scaled_n)].tobytes()


@cache
def levels(law: Type) -> NDArray[np.int16]:
    """Return the 16-bit level (c,) of each code."""
    code_c = np.arange(256) ^ (0xFF if law == "audio/pcmu" else 0x55)
    segment_c, step_c = code_c >> 4 & 7, code_c & 15
    if law == "audio/pcmu":
        is_negative_c, level_c = code_c > 127, ((2 * step_c + 33) << segment_c + 2) - 132
    else:
        is_negative_c = code_c < 128
        level_c = np.where(segment_c == 0, 16 * step_c + 8, (16 * step_c + 264) << np.maximum(segment_c - 1, 0))
    return np.where(is_negative_c, -level_c, level_c).astype(np.int16)


@cache
def sorted_levels(law: Type) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the codes in the order of their levels, and the limits between two neighbouring levels."""
    order_k = np.argsort(levels(law), kind="stable").astype(np.uint8)
    level_k = levels(law)[order_k].astype(np.float32)
    return order_k, (level_k[:-1] + level_k[1:]) / np.float32(2)
