"""Piper, an extra (it is GPL-3.0): a voice is a pair of files, NAME.onnx and NAME.onnx.json.

This module finds them in every installed package whose name ends in _piper_voice, and in the folder voices/ of
VOICECHAT_HOME.
"""

import json
import pkgutil
import re
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import soxr

from voicechat_platform.errors import InputError
from voicechat_platform.settings import settings
from voicechat_serve.audio import Samples
from voicechat_serve.synthesis.voices.interface import (
    MOST_PHONEMES,
    SPEECH_RATE,
    Installed,
    Voice,
    english_sentences,
    sentences,
)


def installed() -> Iterator[Installed]:
    """Find the voices.

    Raises:
        InputError: a voice's description is invalid.
    """
    if find_spec("piper") is None:
        return
    for model in sorted(model for folder in folders() for model in folder.rglob("*.onnx")):
        described = Path(f"{model}.json")
        if described.exists():
            facts = described_in(described)
            # Others need packages that turn Chinese, Japanese and so on into phonemes.
            if facts.get("phoneme_type", "espeak") in ("espeak", "text"):
                language = facts["espeak"]["voice"].partition("-")[0]
                yield Voice(model.name.removesuffix(".onnx"), language, "piper"), partial(PiperSpeaker, model)


def described_in(path: Path) -> dict[str, Any]:
    """Read the description of a voice.

    Raises:
        InputError: the file is not Piper's description of a voice.
    """
    try:
        facts = json.loads(path.read_text())
        str(facts["espeak"]["voice"]), int(facts["audio"]["sample_rate"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path} does not describe a Piper voice: fetch it again, or take it away") from error
    return facts


def folders() -> Iterator[Path]:
    for package in pkgutil.iter_modules():
        if package.name.endswith("_piper_voice"):
            spec = find_spec(package.name)  # this does not import it
            assert spec is not None
            yield from map(Path, spec.submodule_search_locations or ())
    yield settings().home.absolute() / "voices"


class PiperSpeaker:
    """One voice.

    Args:
        model: the .onnx file.
        on_gpu: whether to run on a GPU.
    """

    def __init__(self, model: Path, on_gpu: bool = False):
        from piper import PiperVoice

        self.model = PiperVoice.load(model, use_cuda=on_gpu)
        list(self.speak("Ready.", 1.0))  # the first call takes twice as long

    def speak(self, text: str, speed: float) -> Iterator[Samples]:
        from piper import SynthesisConfig

        pace = SynthesisConfig(length_scale=self.model.config.length_scale / speed)
        text = re.sub(r"\[(?=\[)", "[ ", text)  # Piper would read [[ ]] as phonemes
        is_english = self.model.config.espeak_voice.startswith("en")
        for sentence in english_sentences(text) if is_english else sentences(text):
            for phonemes in self.model.phonemize(sentence):
                for start in range(0, len(phonemes), MOST_PHONEMES):
                    ids = self.model.phonemes_to_ids(phonemes[start : start + MOST_PHONEMES])
                    sound_n = self.model.phoneme_ids_to_audio(ids, pace)
                    yield soxr.resample(sound_n, self.model.config.sample_rate, SPEECH_RATE)
