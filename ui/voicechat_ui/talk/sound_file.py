"""Sound files for `voicechat talk`: the user's speech, and the model's replies.

Letters: n samples.
"""

import wave
from pathlib import Path

import numpy as np
import soxr

from voicechat_platform.errors import InputError
from voicechat_serve.audio import HEARING_RATE, decode
from voicechat_ui.talk.sound_device import BYTES_PER_SAMPLE, RATE


def read_sound(path: Path) -> bytes:
    """Return a sound file as signed 16-bit mono samples at the protocol's rate.

    Raises:
        InputError: the file does not exist, or contains no sound.
    """
    try:
        samples_n = decode(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    resampled_n = soxr.resample(samples_n, HEARING_RATE, RATE)
    return (np.clip(resampled_n, -1, 1) * 32767).astype("<i2").tobytes()


class SoundFile:
    """A WAV file of the model's speech. It is valid at any time: each write also updates the length in its header.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
        except OSError as error:
            raise InputError(f"the reply cannot be written to {path}: {error.strerror}") from None
        self._sound = wave.open(self._file, "wb")  # noqa: SIM115 (closed by `close`)
        self._sound.setparams((1, BYTES_PER_SAMPLE, RATE, 0, "NONE", ""))
        self._sound.writeframes(b"")

    def write(self, pcm: bytes) -> None:
        self._sound.writeframes(pcm)

    def close(self) -> None:
        self._sound.close()
        self._file.close()
