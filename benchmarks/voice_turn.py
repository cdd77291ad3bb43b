"""What a spoken turn waits for, part by part.

transcription: short utterances through our short context (`Transcription.hear`), beside faster-whisper's own
`transcribe` with the same weights, int8, and threads: time, and wrong words.

    python benchmarks/voice_turn.py [--whisper base] [--rounds 3]
"""

import argparse
import asyncio
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import soxr
from faster_whisper import WhisperModel
from hibari import Hibari
from reporting import bar, report

from voicechat_platform.assets import locate
from voicechat_serve.audio import HEARING_RATE, Samples, decode
from voicechat_serve.transcription import Transcription
from voicechat_serve.voices import SPEECH_RATE

THREADS = 2

Part = tuple[list[dict[str, Any]], list[dict[str, Any]]]
"""Rows of results, and bars."""

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
SPEEDS = (0.85, 1.0, 1.2, 1.4)
SIGNAL_TO_NOISE_DB = (15, 10, 5)
"""Of every second question, once more in white noise."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--whisper", choices=["tiny.en", "base"], default="tiny.en")
    parser.add_argument("--rounds", type=int, default=3, help="times that each clip is heard; the fastest counts")
    arguments = parser.parse_args()
    results, bars = measure_transcription(arguments.whisper, arguments.rounds)
    report("voice_turn", results, bars)


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
class Hearing:
    clip: Clip
    ours: str
    theirs: str
    ours_s: float
    theirs_s: float
    in_full: bool
    """Whether ours went on to the full window."""


def measure_transcription(whisper: str, rounds: int) -> Part:
    folder = locate(f"whisper-{whisper}")
    transcription = Transcription(folder, THREADS)
    model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=THREADS)
    full: list[int] = []
    transcribe = transcription.transcribe

    async def counted(samples_n: Samples, *wishes: Any) -> Any:
        full.append(len(samples_n))
        return await transcribe(samples_n, *wishes)

    transcription.transcribe = counted  # type: ignore[method-assign]

    def ours(samples_n: Samples) -> str:
        return loop.run_until_complete(transcription.hear(samples_n)).text

    def theirs(samples_n: Samples) -> str:
        return "".join(segment.text for segment in model.transcribe(samples_n, language="en")[0])

    heard = []
    loop = asyncio.new_event_loop()
    for clip in clips():
        before = len(full)
        takes = [(timed(ours, clip.samples_n), timed(theirs, clip.samples_n)) for _ in range(rounds)]
        (_, our_text), (_, their_text) = takes[0]
        fastest = [min(take[way][0] for take in takes) for way in (0, 1)]
        heard.append(Hearing(clip, our_text, their_text, *fastest, in_full=len(full) > before))
    loop.close()
    rows = [summary(whisper, source, list(group)) for source, group in groupby(heard, lambda each: each.clip.source)]
    total = summary(whisper, "all", heard)
    bars = [
        bar("short context / faster_whisper.transcribe, time", total["ours / theirs"], 0.30),
        bar("wrong words, ours less faster_whisper.transcribe's, points", total["WER %"] - total["their WER %"], 1.0),
    ]
    return [*rows, total], bars


def timed(hear: Callable[[Samples], str], samples_n: Samples) -> tuple[float, str]:
    began = time.perf_counter()
    text = hear(samples_n)
    return time.perf_counter() - began, text


def summary(whisper: str, source: str, heard: list[Hearing]) -> dict[str, Any]:
    ours_s, theirs_s = sum(each.ours_s for each in heard), sum(each.theirs_s for each in heard)
    said = [plain(each.clip.words) for each in heard]
    return {
        "part": "transcription",
        "whisper": whisper,
        "clips": source,
        "number": len(heard),
        "mean s": sum(len(each.clip.samples_n) for each in heard) / HEARING_RATE / len(heard),
        "ours ms": 1000 * ours_s / len(heard),
        "theirs ms": 1000 * theirs_s / len(heard),
        "ours / theirs": ours_s / theirs_s,
        "slowest ms": 1000 * max(each.ours_s for each in heard),
        "full window": sum(each.in_full for each in heard),
        "WER %": 100 * jiwer.wer(said, [plain(each.ours) for each in heard]),
        "their WER %": 100 * jiwer.wer(said, [plain(each.theirs) for each in heard]),
    }


def plain(text: str) -> str:
    """Words as LibriVox writes them."""
    return " ".join(re.findall(r"[a-z']+", re.sub(r"\bmr\b", "mister", text.lower())))


if __name__ == "__main__":
    main()
