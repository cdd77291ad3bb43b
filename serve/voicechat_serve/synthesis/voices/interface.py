"""What every speech engine is to the rest, and what bounds the text that any of them is given."""

import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol
from unicodedata import digit

from voicechat_serve.audio import Samples

SPEECH_RATE = 24_000
"""Samples a second of all speech, whatever the engine's own."""

MOST_PHONEMES = 400
"""Spoken at once, as hibari itself has it where there is a comma to cut at. Without a limit, 4000 characters that have
none took 5 GB."""

MOST_CHARACTERS = 600
"""Of a sentence, whose sounds are found at once: the time that takes grows with the square of some texts' length."""

LONG_WORD = re.compile(r"\S{64}")
"""For the same reason: 4000 characters without a space took half a minute."""

LONG_NUMBER = re.compile(r"\d(?:,?\d){15,}")
"""Spoken digit by digit, as a person would: hibari has no names for numbers from 10^36."""


@dataclass(frozen=True)
class Voice:
    id: str
    """As clients name it."""
    language: str
    """ISO-639-1 code of what it speaks."""
    engine: str
    """ "hibari", "piper" or "kokoro"."""


class Speaker(Protocol):
    """A voice whose model is loaded."""

    def speak(self, text: str, speed: float) -> Iterator[Samples]:
        """A chunk (n,) at SPEECH_RATE for each sentence, as soon as it is made; none without a pronounceable word.

        Args:
            text: of any length and content; what is made at once is bounded.
            speed: 1 is the voice's own pace; 0.25 to 4.
        """


Installed = tuple[Voice, Callable[[], Speaker]]
"""A voice, and what loads its model."""


def sentences(text: str) -> Iterator[str]:
    """The text in pieces of at most MOST_CHARACTERS, cut at the ends of sentences where they allow it."""
    from hibari import Hibari

    for sentence in Hibari.split_sentences(pronounceable(text)):
        yield from textwrap.wrap(sentence, MOST_CHARACTERS)


def english_sentences(text: str) -> Iterator[str]:
    """The same, for engines that do not know dates, times and titles; hibari's normalization writes them out."""
    from hibari.g2p.normalize import normalize

    yield from map(normalize, sentences(text))


def pronounceable(text: str) -> str:
    """The text without what the engines take too long for, or fail at."""
    text = LONG_NUMBER.sub(lambda found: " ".join(found[0].replace(",", "")), text)
    text = LONG_WORD.sub(r"\g<0> ", text)
    # Digits in circles and the like, which hibari takes for numbers and then cannot read; it knows squares and cubes.
    return "".join(str(digit(one)) if one.isdigit() and not (one.isdecimal() or one in "²³") else one for one in text)
