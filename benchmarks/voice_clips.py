"""Utterances to hear: real ones, and questions in a synthesised voice, quiet and in noise; the same in every run."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
from hibari import Hibari

from voicechat_serve.audio import HEARING_RATE, Samples, decode
from voicechat_serve.synthesis.voices import SPEECH_RATE

THREADS = 2

LIBRIVOX = Path(os.environ.get("VOICECHAT_LIBRIVOX", "/usr/share/pocketsphinx/test/data/librivox"))

QUESTIONS = (
    "What is the capital of France?",
    "How many legs does a spider have?",
    "Can you tell me a story about a dragon and a little girl?",
    "Who wrote the play about the prince of Denmark?",
    "Why is the sky blue in the morning and red in the evening?",
    "Please explain how a bicycle stays upright when it is moving.",
    "What should I cook for dinner tonight?",
    "Tell me a joke.",
    "How far away is the moon from the earth?",
    "I would like to know what the weather will be like in London tomorrow afternoon.",
    "Where can I buy a good pair of walking shoes?",
    "What time is it?",
    "Do you think that machines can think?",
    "Give me three reasons to learn a musical instrument.",
    "Could you say that again, a little more slowly?",
    "What is the difference between a lake and a sea?",
    "Thank you, that is all for today.",
    "How do I get from the station to the museum?",
)
HESITATIONS = (
    "I would like to book a table for | four people on Friday evening.",
    "Can you explain to me how | the engine of a car works?",
    "My sister told me that | you know a lot about birds.",
    "What was the name of the | man who invented the telephone?",
    "Yesterday I bought a new | phone, but the screen is broken.",
    "We are going to travel to Spain and | we need some ideas for the children.",
    "Is there a way to | learn a language in three months?",
    "The reason that I am asking is | that my father has lost his keys.",
    "Could you remind me to | call the doctor tomorrow morning?",
    "How much water should I | give to a cactus in winter?",
    "I think that the best film is | the one with the two old friends.",
    "Please tell me the difference between | a frog and a toad.",
)
"""Where somebody might stop to think."""
HESITATION_S = 0.8

SPEEDS = (0.85, 1.0, 1.2, 1.4)
SIGNAL_TO_NOISE_DB = (15, 10, 5)
"""Of every second question, once more in white noise."""


@dataclass(frozen=True)
class Clip:
    source: str
    words: str
    samples_n: Samples
    """16 kHz."""


def clips() -> list[Clip]:
    """Utterances of 1 to 8 s, the same in every run; those of one source stand together."""
    recorded, quiet, noisy = [], [], []
    for line in (LIBRIVOX / "transcription").read_text().splitlines():
        if found := re.match(r"<s> (.*) </s> \((.*)\)", line):
            recorded.append(Clip("LibriVox", found[1], decode((LIBRIVOX / f"{found[2]}.wav").read_bytes())))
    voice, rng = Hibari(threads=THREADS), np.random.default_rng(0)
    for number, question in enumerate(QUESTIONS):
        spoken_n = voice(question, speed=SPEEDS[number % len(SPEEDS)], seed=number)
        # As a turn comes from a detector: a little before, and the silence that ended it.
        speech_n = np.pad(soxr.resample(spoken_n, SPEECH_RATE, HEARING_RATE), (HEARING_RATE // 5, HEARING_RATE // 2))
        quiet.append(Clip("synthesised", question, speech_n))
        if number % 2 == 0:
            ratio = 10 ** (SIGNAL_TO_NOISE_DB[number // 2 % len(SIGNAL_TO_NOISE_DB)] / 10)
            noise_n = np.sqrt(np.mean(speech_n**2) / ratio) * rng.standard_normal(len(speech_n))
            noisy.append(Clip("in noise", question, (speech_n + noise_n).astype(np.float32)))
    found = [*recorded, *quiet, *noisy]
    assert len(found) >= 20
    assert all(1 <= len(clip.samples_n) / HEARING_RATE <= 8 for clip in found)
    return found


@dataclass(frozen=True)
class Hesitation:
    whole: Clip
    """Said in one go."""
    broken: Clip
    """With a silence in the middle."""


def hesitations() -> list[Hesitation]:
    """The same in every run; none of them was looked at when the turn's end was tuned."""
    voice = Hibari(threads=THREADS)

    def spoken(words: str, seed: int) -> Samples:
        samples_n = soxr.resample(voice(words, seed=seed), SPEECH_RATE, HEARING_RATE)
        loud = np.flatnonzero(np.abs(samples_n) > 0.01)
        return samples_n[loud[0] : loud[-1] + 1]

    found = []
    for number, text in enumerate(HESITATIONS):
        words = text.replace("| ", "")
        first, second = (part.strip() for part in text.split("|"))
        silence_n = np.zeros(int(HESITATION_S * HEARING_RATE), np.float32)
        broken_n = np.concatenate([spoken(first, number), silence_n, spoken(second, number)])
        around = (HEARING_RATE // 5, HEARING_RATE // 5)
        whole_n = np.pad(spoken(words, number), around)
        found.append(Hesitation(Clip("whole", words, whole_n), Clip("broken", words, np.pad(broken_n, around))))
    return found


def plain(text: str) -> str:
    """Words as LibriVox writes them."""
    return " ".join(re.findall(r"[a-z']+", re.sub(r"\bmr\b", "mister", text.lower())))
