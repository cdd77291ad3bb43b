"""Short utterances through Whisper in a third of the time: the encoder reads the utterance, not a window of 30 s.

    utterance -> voice activity -> features of the stretch with speech, and PADDING_FRAMES of padding
    -> encoder -> [language] -> decoder -> words, and `is_sure` accepts or rejects them

If `is_sure` rejects the words, the caller transcribes the full window. Measured with tiny.en (int8) on 83 clips of 1.5
to 7 s: five of LibriVox, and questions that hibari spoke at seven speeds, two thirds of them in noise of 5 to 30 dB.
The full window with its five beams has 1.3% wrong words.

                                      greedy               3 beams, no length penalty
    padding                       2 s    3 s    4 s       2 s    3 s    4 s
    repeated, so rejected           9      6      4         1      1      1
    wrong words of accepted ones  1.6%   1.5%   1.2%      0.9%   1.2%   0.7%

With less padding the decoder does not see the end and repeats the sentence (greedy: 14% of clips at half a second). It
also repeats with Whisper's usual length penalty, because the average over the tokens is better for a repeated sentence
(5 beams, 4 s: 3 of 29 clips), and when it writes timestamps. The padding is zeros, as in Whisper's own window. With the
features of silence instead, 9.5% of the words are wrong at 3 s, greedy; with zeros 2.8%.

What faster-whisper calls inside `transcribe` is called one by one here, and is not documented (read in 1.2.1).

Letters: n samples, m mel bands, w frames of 10 ms.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from voicechat_serve.audio import HEARING_RATE, Samples

if TYPE_CHECKING:
    from voicechat_serve.transcription.whisper import Whisper

MOST_SECONDS = 25
"""The longest utterance: beyond it, with the padding, there is almost nothing to gain over the full window."""

PADDING_FRAMES = 300
"""Frames of 10 ms after the utterance; see above."""

GLIMPSE_FRAMES, GLIMPSE_TOKENS = 500, 8
"""For half a second of speech: with less padding the decoder repeats even more words, and the limit ends that early."""

BEAM_SIZE = 3
"""Five beams are not better here."""

TOKENS_PER_SECOND = 12
"""No speech has more of Whisper's tokens (English has 4, digits read out have 8); this cuts off a loop."""


@dataclass(frozen=True)
class Gates:
    """What words must have that need no transcription of the full window."""

    log_probability: float
    """The least average over the tokens."""
    no_speech: float
    """The largest probability of "no speech"."""
    compression: float
    """The largest factor by which zlib compresses the text."""
    language: float
    """The least probability of the detected language."""


MEASURED = Gates(log_probability=-0.6, no_speech=0.5, compression=2.4, language=0.5)
"""For the packaged models, in int8. Log-probability: clips had -0.43 or more, noise -0.6 or less, except in a loop. "No
speech": the clips had 0.44 (base) and 0.16 (tiny.en) or less, audio without speech 0.43 and 0.56 or more. Compression:
Whisper's own threshold. Language: base gave English clips 0.74 or more."""

CAUTIOUS = Gates(log_probability=-0.4, no_speech=0.2, compression=2.0, language=0.75)
"""For models with which nothing was measured: more utterances than necessary get the full window, which costs time and
no words."""


@dataclass(frozen=True)
class Decoded:
    """A decoded text, and how sure Whisper is of it."""

    text: str
    language: str
    language_probability: float
    """1 if the caller gave the language."""
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    is_ended: bool
    """Whether the decoder reached an end by itself."""


def speech_in(samples_n: Samples) -> Samples:
    """Return the stretch from the first speech to the last, with a small margin; empty if there is no speech.

    Takes 3 ms for a sentence.
    """
    from faster_whisper.vad import get_speech_timestamps

    stretches = get_speech_timestamps(samples_n)
    return samples_n[stretches[0]["start"] : stretches[-1]["end"]] if stretches else samples_n[:0]


def decode_utterance(
    model: "Whisper", samples_n: Samples, language: str | None, prompt: str | None, is_glimpse: bool = False
) -> Decoded:
    """Decode one utterance.

    Args:
        samples_n: (n,) 16 kHz mono, at most MOST_SECONDS.
        language: code of a language that the model knows; None detects it.
        prompt: text that the utterance continues.
        is_glimpse: whether a few words, soon, are better than all words: for half a second of speech.
    """
    from faster_whisper.tokenizer import Tokenizer
    from faster_whisper.transcribe import get_compression_ratio, get_suppressed_tokens

    features_mw = np.pad(
        model.feature_extractor(samples_n), ((0, 0), (0, GLIMPSE_FRAMES if is_glimpse else PADDING_FRAMES))
    )
    frames = features_mw.shape[1] // 2 * 2  # the encoder halves them
    encoded = model.encode(features_mw[:, :frames])
    probability = 1.0
    is_multilingual = model.model.is_multilingual
    if language is None and is_multilingual:
        token, probability = model.model.detect_language(encoded)[0][0]
        language = token.strip("<|>")
    tokenizer = Tokenizer(model.hf_tokenizer, is_multilingual, "transcribe", language or "en")
    previous = tokenizer.encode(" " + prompt.strip()) if prompt else []
    prompt_ids = model.get_prompt(tokenizer, previous, without_timestamps=True)
    most = min(
        GLIMPSE_TOKENS if is_glimpse else 16 + len(samples_n) * TOKENS_PER_SECOND // HEARING_RATE,
        model.max_length // 2,
        model.max_length - len(prompt_ids),
    )
    result = model.model.generate(
        encoded,
        [prompt_ids],
        beam_size=BEAM_SIZE,
        length_penalty=0,  # see above
        # CTranslate2 reserves half of it for the answer, unless the prompt leaves less.
        max_length=len(prompt_ids) + most if is_glimpse else max(2 * most, len(prompt_ids) + most),
        return_scores=True,
        return_no_speech_prob=True,
        suppress_tokens=list(get_suppressed_tokens(tokenizer, [-1])),
    )[0]
    token_ids = result.sequences_ids[0]
    text = tokenizer.decode(token_ids).strip()
    return Decoded(
        text=text,
        language=tokenizer.language_code,
        language_probability=probability,
        avg_logprob=result.scores[0] / (len(token_ids) + 1),
        no_speech_prob=result.no_speech_prob,
        compression_ratio=get_compression_ratio(text),
        is_ended=len(token_ids) < most,
    )


def is_sure(heard: Decoded, gates: Gates = MEASURED) -> bool:
    """Return whether the words need no transcription of the full window."""
    return (
        any(character.isalnum() for character in heard.text)
        and heard.is_ended
        and heard.avg_logprob >= gates.log_probability
        and heard.no_speech_prob <= gates.no_speech
        and heard.compression_ratio <= gates.compression
        and heard.language_probability >= gates.language
        and not says_it_again(heard.text)
    )


def says_it_again(text: str) -> bool:
    """Return whether at least half of the text repeats its beginning, as from a decoder that has not seen the end.

    A person may repeat, too: then the full window has the same words.
    """
    words = re.findall(r"\w+", text.lower())
    return any(words[period:] == words[:-period] for period in range(1, len(words) * 2 // 3 + 1))
