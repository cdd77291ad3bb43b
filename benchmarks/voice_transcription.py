"""Short utterances through our short context (`Transcription.hear`), beside faster-whisper's own `transcribe` with the
same weights, int8, and threads: time, and wrong words. A part of voice_turn.py.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import jiwer
from faster_whisper import WhisperModel
from reporting import bar
from voice_clips import THREADS, Clip, clips, plain

from voicechat_platform.assets import locate
from voicechat_serve.audio import HEARING_RATE, Samples
from voicechat_serve.transcription.transcriber import Transcription

Part = tuple[list[dict[str, Any]], list[dict[str, Any]]]
"""Rows of results, and bars."""


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

    async def counted(samples_n: Samples, *options: Any) -> Any:
        full.append(len(samples_n))
        return await transcribe(samples_n, *options)

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
