"""The synthesis deployment: hibari, which speaks each sentence as soon as it is ready."""

import asyncio
import re
import textwrap
import time
from collections.abc import AsyncIterator, Iterator
from unicodedata import digit

from voicechat_serve.audio import Samples
from voicechat_serve.loopback import listen_where_ray_listens
from voicechat_serve.metrics import AUDIO_SPOKEN_SECONDS, SYNTHESIS_SECONDS

SPEECH_RATE = 24_000
"""Samples a second of what `speak` yields."""

VOICE = "heart"
"""The one voice that comes with the package; any other name would be downloaded."""


MOST_PHONEMES = 400
"""Spoken at once, as hibari itself has it where there is a comma to cut at. Without a limit, 4000 characters that have
none took 5 GB."""

MOST_CHARACTERS = 600
"""Of a sentence, whose sounds are found at once: the time that takes grows with the square of some texts' length."""

LONG_WORD = re.compile(r"\S{64}")
"""For the same reason: 4000 characters without a space took half a minute."""

LONG_NUMBER = re.compile(r"\d(?:,?\d){15,}")
"""Spoken digit by digit, as a person would: hibari has no names for numbers from 10^36."""


class Synthesis:
    def __init__(self):
        listen_where_ray_listens()
        from hibari import Hibari

        self.model = Hibari(voice=VOICE, threads=1)
        list(self.model.stream("Ready."))  # the first call costs a second, later ones a tenth

    async def speak(self, text: str, speed: float = 1.0, voice: str = VOICE) -> AsyncIterator[Samples]:
        """One chunk (n,) per sentence, 24 kHz mono; nothing when the text has no pronounceable word.

        Closing it early ends the work within one sentence.
        """
        sentences = self.spoken(text, speed)
        began, listened = time.monotonic(), 0.0
        while (samples_n := await asyncio.to_thread(next, sentences, None)) is not None:
            if len(samples_n):
                AUDIO_SPOKEN_SECONDS.inc(len(samples_n) / SPEECH_RATE)
                handed_over = time.monotonic()
                yield samples_n
                listened += time.monotonic() - handed_over
        SYNTHESIS_SECONDS.observe(time.monotonic() - began - listened)

    def spoken(self, text: str, speed: float) -> Iterator[Samples]:
        for sentence in self.model.split_sentences(pronounceable(text)):
            for piece in textwrap.wrap(sentence, MOST_CHARACTERS):
                for phonemes in self.model.phonemize(piece):
                    for part in textwrap.wrap(phonemes, MOST_PHONEMES):
                        yield self.model.from_phonemes(part, speed)


def pronounceable(text: str) -> str:
    """The text without what hibari takes too long for, or fails at."""
    text = LONG_NUMBER.sub(lambda found: " ".join(found[0].replace(",", "")), text)
    text = LONG_WORD.sub(r"\g<0> ", text)
    # Digits in circles and the like, which hibari takes for numbers and then cannot read; it knows squares and cubes.
    return "".join(str(digit(one)) if one.isdigit() and not (one.isdecimal() or one in "²³") else one for one in text)
