"""Kokoro, an extra: one model, many voices, in the folder voices/kokoro of VOICECHAT_HOME (one *.onnx, one *.bin).

The files are kokoro-onnx's own, kokoro-v1.0.int8.onnx and voices-v1.0.bin of its releases page.
"""

import textwrap
from collections.abc import Iterator
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np

from voicechat_platform.errors import InputError
from voicechat_platform.settings import settings
from voicechat_serve.audio import Samples
from voicechat_serve.synthesis.voices.interface import (
    MOST_PHONEMES,
    ONNX_ON_GPU,
    SPEECH_RATE,
    Installed,
    Voice,
    english_sentences,
    sentences,
)

if TYPE_CHECKING:
    from kokoro_onnx import Kokoro

LANGUAGES = {"a": "en-us", "b": "en-gb", "e": "es", "f": "fr-fr", "h": "hi", "i": "it", "p": "pt-br"}
"""A voice's first letter -> its language in espeak-ng's notation. It cannot read Japanese (j) and Chinese (z)."""

PAUSE_S = 0.25
"""The pause after a sentence. The package cuts off the silence around it."""

SLOWEST, FASTEST = 0.5, 2.0
"""The package's range of speeds; other speeds are spoken at its limits."""


def installed() -> Iterator[Installed]:
    """Find the voices.

    Raises:
        InputError: the file of the voices has no voices.
    """
    folder = settings().home.absolute() / "voices" / "kokoro"
    models, styles = sorted(folder.glob("*.onnx")), sorted(folder.glob("*.bin"))
    if find_spec("kokoro_onnx") is None or not models or not styles:
        return
    try:
        with np.load(styles[0]) as archive:
            names = list(archive)
    except (OSError, EOFError, ValueError, TypeError, BadZipFile) as error:
        raise InputError(f"{styles[0]} does not hold Kokoro's voices: fetch it again, or take it away") from error
    for name in names:
        if language := LANGUAGES.get(name[:1]):
            voice = Voice(name, language.partition("-")[0], "kokoro")
            yield voice, partial(KokoroSpeaker, models[0], styles[0], name, language)


@cache
def load(model: Path, styles: Path, on_gpu: bool) -> "Kokoro":
    """Load the model once for all voices."""
    from kokoro_onnx import Kokoro
    from onnxruntime import InferenceSession

    if on_gpu:
        kokoro = Kokoro.from_session(InferenceSession(str(model), providers=[ONNX_ON_GPU]), str(styles))
    else:
        kokoro = Kokoro(str(model), str(styles))
    kokoro.create("Ready.", kokoro.get_voices()[0])  # the first call takes twice as long
    return kokoro


class KokoroSpeaker:
    """One voice.

    Args:
        model: the .onnx file.
        styles: the file of the voices.
        name: one of them.
        language: in espeak-ng's notation.
        on_gpu: whether to run on a GPU.
    """

    def __init__(self, model: Path, styles: Path, name: str, language: str, on_gpu: bool = False):
        self.model, self.name, self.language = load(model, styles, on_gpu), name, language

    def speak(self, text: str, speed: float) -> Iterator[Samples]:
        for sentence in english_sentences(text) if self.language.startswith("en") else sentences(text):
            for part in textwrap.wrap(self.model.tokenizer.phonemize(sentence, self.language), MOST_PHONEMES):
                sound_n, _ = self.model.create(part, self.name, min(max(speed, SLOWEST), FASTEST), is_phonemes=True)
                yield np.pad(sound_n, (0, int(PAUSE_S * SPEECH_RATE)))
