"""hibari, the engine that is always installed: English, 16 MB, a first sentence after a tenth of a second."""

import textwrap
from collections.abc import Iterator

from voicechat_serve.audio import Samples
from voicechat_serve.synthesis.voices.interface import MOST_PHONEMES, Installed, Voice, sentences

HEART = Voice("heart", "en", "hibari")
"""The one voice in the package; any other would be downloaded."""


def installed() -> Iterator[Installed]:
    yield HEART, HibariSpeaker


class HibariSpeaker:
    """The voice, always on the CPU: the package asks for no other device.

    Args:
        on_gpu: without effect; one core speaks 130 times as fast as a person.
    """

    def __init__(self, on_gpu: bool = False) -> None:
        from hibari import Hibari

        self.model = Hibari(voice=HEART.id, threads=1)
        list(self.model.stream("Ready."))  # the first call takes a second, later ones a tenth

    def speak(self, text: str, speed: float) -> Iterator[Samples]:
        for sentence in sentences(text):
            for phonemes in self.model.phonemize(sentence):
                for part in textwrap.wrap(phonemes, MOST_PHONEMES):
                    yield self.model.from_phonemes(part, speed)
