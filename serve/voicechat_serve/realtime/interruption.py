"""What a person's speech over a reply is: agreement, an echo of the reply, noise, or an interruption.

    sound so far  -> Sound: voiced, flat, bright, loud?     -\
    reply's sound -> its bands; how alike is the sound?      -> judge -> a verdict, or None: the words are needed
    words so far  -> in the table? the reply's own words?    -/

All of this is computed from its arguments alone; overlap.py feeds it with a session's sound. Errors have different
costs: a person who is not heard must repeat everything, a reply that stops must be asked for again. So a doubt is an
interruption.

Letters: n samples, f frames of 10 ms, b bands.
"""

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby
from typing import Literal

import numpy as np
import numpy.typing as npt

from voicechat_serve.audio import HEARING_RATE, Samples

Verdict = Literal["backchannel", "echo", "noise", "interruption"]

FRAME_S, HOP_S = 0.02, 0.01
BAND_EDGES_HZ = (200, 300, 400, 550, 700, 900, 1150, 1450, 1800, 2250, 2800, 3400, 4000)
FLOOR = 1e-4
"""Added to each band before the logarithm, as a part of the loudest frame: it hides the noise between words."""

LOUD, LEAST_FRAMES = 0.01, 10
"""A loud frame has at least this part of the loudest one's energy; with fewer frames nothing is compared."""

LONGEST_ECHO_MS = 600
"""The longest time from the moment at which a reply's sound can be played to its return: network, loudspeaker, room."""

SURE_ECHO, LIKELY_ECHO = 0.84, 0.65
"""Correlations with the reply's sound. The first is an echo in any case; the second if the words are the reply's, or if
the sound ends when the reply is paused."""

VOICE_HZ = (75, 400)
PERIODIC = 0.5
"""The autocorrelation, at the best period of a voice, from which on a frame is voiced."""

NOISY_VOICED, NOISY_FLATNESS = 0.25, 0.2
"""A sound with fewer voiced frames and a flatter spectrum than this is no voice: cough, breath, knock, keyboard."""

DARK, PURE = 0.04, 0.01
"""The largest part of a hum's energy above 1 kHz, and its largest flatness."""

COMMANDS = frozenset(
    "no stop wait what who why hey hello sorry nein stopp halt warte non arrête attends espera para basta "  # noqa: SIM905
    "aspetta ferma não pare nee wacht".split()
)
"""Short words that must end a reply, even if a voice is so dark that they sound like a hum."""

MOST_AGREEING_WORDS = 5
MOST_WORDS_OF_HUM = 2
LEAST_LETTERS = 5

LISTENING_SOUNDS = frozenset(
    "o m mm mmm mhm mmhm mmhmm hm hmm hmmm uh huh uhhuh um ah aha ahh oh ooh ha haha hahaha hehe eh".split()  # noqa: SIM905
)
"""Sounds of a listener in every language, as speech recognition writes them."""

BACKCHANNELS = {
    "en": "yeah yep yup yes ya okay ok k kay right alright sure true exactly indeed totally definitely absolutely good "
    "great nice cool wow fine|i see|got it|of course|all right|makes sense|that's right|you know|uh huh|mm hmm",
    "es": "sí si ya vale claro exacto bueno bien ajá perfecto|de acuerdo|por supuesto|ya veo",
    "de": "ja jaja jo jap genau klar okay gut richtig stimmt ach aha tja|ach so|alles klar|na klar|ich verstehe",
    "fr": "oui ouais ok okay bien voilà exact exactement ah|d'accord|bien sûr|je vois|c'est ça|tout à fait",
    "it": "sì si ok okay certo esatto bene giusto già capito|va bene|ho capito|d'accordo",
    "pt": "sim é ok okay certo claro exato bom tá|tá bom|pois é|com certeza|entendi",
    "nl": "ja jaja oké ok precies goed klopt|ik snap het|ja hoor",
    "ja": "はい うん うんうん ええ そう そうそう なるほど へえ ああ そうですね そうですか",
    "zh": "嗯 嗯嗯 对 对对 是 是的 好 好的 哦 啊",
    "ko": "네 예 응 그래 맞아 맞아요 그렇군요 아",
}
"""By language: words of a listener who agrees; phrases of several words stand between bars."""

LAUGHTER = re.compile(r"(ha|he|hi|ho|ah|ja){2,}h?|lol")


def phrases_of(line: str) -> frozenset[str]:
    first, *rest = line.split("|")
    words = first.split()
    return frozenset([*words, *rest])


PHRASES = {language: phrases_of(line) | LISTENING_SOUNDS for language, line in BACKCHANNELS.items()}


@dataclass(frozen=True)
class Sound:
    """What can be measured of a sound without its words."""

    voiced: float
    """The part of the loud frames that has a voice's pitch, 0 to 1."""
    flatness: float
    """Geometric over arithmetic mean of the spectrum, 200 to 4,000 Hz: near 0 for a voice, near 0.6 for white noise."""
    brightness: float
    """The part of the energy that lies above 1 kHz."""
    echo: float
    """The correlation with the reply's sound at the best delay; 0 if there is nothing to compare."""
    is_brief: bool = False
    """Whether it is over after no more than a syllable or two."""
    ends_with_reply: bool = False
    """Whether it ended soon after the reply was paused, as its echo does."""

    @property
    def is_noise(self) -> bool:
        return self.voiced < NOISY_VOICED and self.flatness > NOISY_FLATNESS

    @property
    def is_hum(self) -> bool:
        return not self.is_noise and self.brightness < DARK and self.flatness < PURE


@dataclass(frozen=True)
class Words:
    """What was said so far, and what the reply says at this time."""

    text: str
    language: str
    reply: str = ""
    """The sentences of the reply that can be heard at present."""


def judge(sound: Sound, words: Words | None = None) -> Verdict | None:
    """Return what the speech is; None if that depends on the words, which are not given."""
    if sound.echo >= SURE_ECHO:
        return "echo"
    if sound.is_noise:
        return "noise"
    if words is None:
        return None
    said = plain_words(words.text)
    is_command = bool(COMMANDS.intersection(said))
    if sound.echo >= LIKELY_ECHO and not is_command and (sound.ends_with_reply or are_among(said, words.reply)):
        return "echo"
    if not said:
        return "backchannel" if sound.is_brief or sound.is_hum else "interruption"
    if sound.is_hum and len(said) <= MOST_WORDS_OF_HUM and not is_command:
        return "backchannel"  # speech recognition writes any words for "mhm"
    return "backchannel" if is_backchannel(said, words.language) else "interruption"


def plain_words(text: str) -> list[str]:
    """Return the words in small letters, without punctuation and without repetitions in a row: speech recognition
    repeats a short word until its limit. "mm-hmm" is two words."""
    return [word for word, _ in groupby(re.findall(r"[\w']+", text.lower().replace("’", "'")))]


def is_backchannel(said: list[str], language: str) -> bool:
    """Return whether words consist of nothing but agreement."""
    if len(said) > MOST_AGREEING_WORDS:
        return False
    known, place = PHRASES.get(language, LISTENING_SOUNDS), 0
    while place < len(said):
        fits = [n for n in (3, 2, 1) if " ".join(said[place : place + n]) in known and place + n <= len(said)]
        if not fits and not LAUGHTER.fullmatch(said[place]):
            return False
        place += fits[0] if fits else 1
    return bool(said)


def are_among(said: list[str], reply: str) -> bool:
    """Return whether the reply has most of the letters of the words in the same order: an echo is not heard well."""
    letters = " ".join(said)
    if len(letters) < LEAST_LETTERS:
        return False
    blocks = SequenceMatcher(None, letters, reply.lower(), autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks if block.size >= 2) >= 0.7 * len(letters)


# The sound.


def bands(samples_n: Samples, rate: int) -> npt.NDArray[np.float32]:
    """Return the energy in each band, (f, b). Sounds of different rates are comparable."""
    width, hop = int(FRAME_S * rate), int(HOP_S * rate)
    if len(samples_n) < width:
        return np.zeros((0, len(BAND_EDGES_HZ) - 1), np.float32)
    frames_fn = np.lib.stride_tricks.sliding_window_view(samples_n, width)[::hop]
    power_fk = np.abs(np.fft.rfft(frames_fn * np.hanning(width).astype(np.float32), axis=1) / width) ** 2
    edges = [round(edge * FRAME_S) for edge in BAND_EDGES_HZ]
    return np.add.reduceat(power_fk, edges, axis=1)[:, :-1].astype(np.float32)


def likeness(heard_fb: npt.NDArray[np.float32], played_fb: npt.NDArray[np.float32]) -> float:
    """Return the largest correlation of the logarithms of bands over all places at which the first fits into the
    second, -1 to 1; 0 if there is nothing to compare. Loudness and the colour of a room do not matter.

    All frames are compared, because the gaps tell much, and the loud ones alone, because an echo ends when the reply is
    paused.
    """
    length = len(heard_fb)
    if length < LEAST_FRAMES or len(played_fb) < length or not heard_fb.any():
        return 0.0
    energy_f = heard_fb.sum(axis=1)
    loud_f = energy_f >= LOUD * energy_f.max()
    best = 0.0
    for chosen_f in (np.ones(length, bool), loud_f):
        if chosen_f.sum() < LEAST_FRAMES:
            continue
        wanted_fb = contrast(heard_fb[chosen_f])
        norm = float(np.linalg.norm(wanted_fb))
        for start in range(len(played_fb) - length + 1):
            part_fb = played_fb[start : start + length][chosen_f]
            if part_fb.any():
                found_fb = contrast(part_fb)
                size = norm * float(np.linalg.norm(found_fb))
                best = max(best, float((wanted_fb * found_fb).sum()) / size if size else 0.0)
    return best


def contrast(power_fb: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    log_fb = np.log(power_fb + FLOOR * power_fb.max() + 1e-12)
    return np.asarray(log_fb - log_fb.mean(axis=0), np.float32)


def measure(samples_n: Samples, played_fb: npt.NDArray[np.float32]) -> Sound:
    """Measure a person's sound at HEARING_RATE.

    Args:
        samples_n: (n,) the speech so far, without the silence before and after it.
        played_fb: the bands of the reply's sound that can have returned during these samples: as many frames, and
            those of LONGEST_ECHO_MS before them.
    """
    heard_fb = bands(samples_n, HEARING_RATE)
    if not len(heard_fb) or not heard_fb.any():
        return Sound(0.0, 1.0, 0.0, 0.0)
    width, hop = 2 * int(FRAME_S * HEARING_RATE), int(HOP_S * HEARING_RATE)
    padded_n = np.pad(samples_n, (0, max(0, width - len(samples_n))))
    frames_fn = np.lib.stride_tricks.sliding_window_view(padded_n, width)[::hop]
    energy_f = np.square(frames_fn).sum(axis=1)
    loud_fn = frames_fn[energy_f >= 0.05 * energy_f.max()]
    spectrum_fk = np.abs(np.fft.rfft(loud_fn * np.hanning(width).astype(np.float32), n=2 * width, axis=1)) ** 2
    period = slice(HEARING_RATE // VOICE_HZ[1], HEARING_RATE // VOICE_HZ[0])
    lags_fn = np.fft.irfft(spectrum_fk, axis=1)
    window_n = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(width), n=2 * width)) ** 2)
    periodic_f = (lags_fn[:, period] / np.maximum(window_n[period] / window_n[0], 0.05)).max(axis=1) / lags_fn[:, 0]
    step = HEARING_RATE / (2 * width)
    middle_fk = spectrum_fk[:, int(200 / step) : int(4000 / step)] + 1e-12
    flat_f = np.exp(np.log(middle_fk).mean(axis=1)) / middle_fk.mean(axis=1)
    above = spectrum_fk[:, int(1000 / step) :].sum() / spectrum_fk.sum()
    return Sound(
        voiced=float((periodic_f >= PERIODIC).mean()),
        flatness=float(np.median(flat_f)),
        brightness=float(above),
        echo=likeness(heard_fb, played_fb),
    )


class PlayedSound:
    """The bands of a reply's sound, from its beginning."""

    def __init__(self, rate: int):
        self.rate = rate
        self.rest_n: Samples = np.zeros(0, np.float32)
        self.parts: list[npt.NDArray[np.float32]] = []

    def append(self, samples_n: Samples) -> None:
        sound_n = np.concatenate([self.rest_n, samples_n])
        found_fb = bands(sound_n, self.rate)
        self.rest_n = sound_n[len(found_fb) * int(HOP_S * self.rate) :]
        self.parts.append(found_fb)

    def between(self, start_ms: float, end_ms: float) -> npt.NDArray[np.float32]:
        """Return the bands of a stretch of the sound. What lies before the beginning or after the end is silence."""
        start, end = int(start_ms / 1000 / HOP_S), int(end_ms / 1000 / HOP_S)
        if len(self.parts) > 1:
            self.parts = [np.concatenate(self.parts)]
        whole_fb = self.parts[0] if self.parts else np.zeros((0, len(BAND_EDGES_HZ) - 1), np.float32)
        inside_fb = whole_fb[max(0, start) : max(0, end)]
        before = min(max(0, -start), max(0, end - start))
        return np.pad(inside_fb, ((before, max(0, end - start - before - len(inside_fb))), (0, 0)))
