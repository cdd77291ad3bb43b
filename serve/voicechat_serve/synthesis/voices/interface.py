"""The interface of all speech engines, and limits for the text that they receive."""

import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Protocol
from unicodedata import digit

from pydantic import BaseModel, ConfigDict, StringConstraints

from voicechat_serve.audio import Samples

SPEECH_RATE = 24_000
"""The sample rate of all speech, in Hz, for any engine."""

MOST_PHONEMES = 400
"""The most phonemes in one synthesis, as hibari itself limits it where there is a comma. Without a limit, 4000
characters without a comma took 5 GB."""

MOST_CHARACTERS = 600
"""The longest sentence. The phonemes of a sentence are computed at once, and for some texts the time grows with the
square of the length."""

LONG_WORD = re.compile(r"\S{64}")
"""The longest word, for the same reason: 4000 characters without a space took half a minute."""

LONG_NUMBER = re.compile(r"\d(?:,?\d){15,}")
"""Numbers to speak digit by digit, as a person does: hibari has no names for numbers from 10^36."""


@dataclass(frozen=True)
class Voice:
    id: str
    """The name in requests."""
    language: str
    """ISO-639-1 code of its language."""
    engine: str
    """ "hibari", "piper" or "kokoro"."""


class VoiceId(BaseModel):
    """A voice as an object, which OpenAI's clients may send in place of its name."""

    model_config = ConfigDict(strict=True, extra="forbid")

    id: Annotated[str, StringConstraints(max_length=256)]


class Speaker(Protocol):
    """A voice whose model is loaded."""

    def speak(self, text: str, speed: float) -> Iterator[Samples]:
        """Yield a chunk (n,) at SPEECH_RATE for each sentence as soon as it is ready; none without a pronounceable
        word.

        Args:
            text: of any length and content; each synthesis is bounded.
            speed: 1 is the voice's own pace; 0.25 to 4.
        """


Installed = tuple[Voice, Callable[[bool], Speaker]]
"""A voice, and the function that loads its model; its argument: whether on a GPU, if the engine can."""

ONNX_ON_GPU = "CUDAExecutionProvider"
"""onnxruntime's provider for NVIDIA's GPUs."""


def sentences(text: str) -> Iterator[str]:
    """Yield the text in pieces of at most MOST_CHARACTERS, cut at sentence ends if possible."""
    from hibari import Hibari

    for sentence in Hibari.split_sentences(pronounceable(text)):
        yield from textwrap.wrap(sentence, MOST_CHARACTERS)


def english_sentences(text: str) -> Iterator[str]:
    """Yield the same, for engines that do not know dates, times and titles; hibari's normalization writes them out."""
    from hibari.g2p.normalize import normalize

    yield from map(normalize, sentences(text))


def pronounceable(text: str) -> str:
    """Return the text without parts for which the engines fail or take too long."""
    text = LONG_NUMBER.sub(lambda found: " ".join(found[0].replace(",", "")), text)
    text = LONG_WORD.sub(r"\g<0> ", text)
    # hibari takes digits in circles and the like for numbers and then cannot read them; it reads squares and cubes.
    return "".join(str(digit(one)) if one.isdigit() and not (one.isdecimal() or one in "²³") else one for one in text)
