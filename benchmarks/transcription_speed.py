"""Seconds of sound per second of work: Whisper on a CPU or a GPU, window after window, and in batches.

    python benchmarks/transcription_speed.py [--whisper base] [--device cuda] [--minutes 10]

The recording is hibari's reading of benchmarks/spoken_questions.txt, again and again. A service batches only on a GPU.
"""

import argparse
import asyncio
import time
from pathlib import Path

import jiwer
import numpy as np
import soxr
from hibari import Hibari
from reporting import report
from voice_clips import plain

from voicechat_serve.audio import HEARING_RATE, Samples
from voicechat_serve.synthesis.voices import SPEECH_RATE
from voicechat_serve.transcription.batched import BatchedWhisper
from voicechat_serve.transcription.transcriber import Transcription
from voicechat_serve.transcription.whisper_files import find_whisper

QUESTIONS = Path(__file__).parent / "spoken_questions.txt"
READ = 20
"""Questions to read before they begin again."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--whisper", default="base", help="a size, a folder or OWNER/NAME of the hub")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--minutes", type=float, default=10, help="length of the recording")
    arguments = parser.parse_args()
    whisper = find_whisper(arguments.whisper)
    transcription = Transcription(whisper.folder, device=arguments.device)
    sound_n, said = recording(arguments.minutes * 60)
    results = []
    for way, batched in (("windows", None), ("batches", BatchedWhisper(transcription.model))):
        transcription.batched = batched
        asyncio.run(transcription.transcribe(sound_n[: 40 * HEARING_RATE], "en"))  # warm
        began = time.perf_counter()
        heard = asyncio.run(transcription.transcribe(sound_n, "en"))
        seconds = time.perf_counter() - began
        results.append(
            {
                "whisper": whisper.id,
                "device": transcription.model.model.device,
                "compute type": transcription.model.model.compute_type,
                "way": way,
                "sound s": round(heard.seconds),
                "times real": round(heard.seconds / seconds, 1),
                "WER %": round(100 * jiwer.wer(plain(said), plain(heard.text)), 1),
            }
        )
    report("transcription_speed", results, [])


def recording(seconds: float) -> tuple[Samples, str]:
    """Return a recording of this length or a little more, and its words."""
    lines = [line.strip() for line in QUESTIONS.read_text().splitlines() if line.strip()][:READ]
    voice, pause_n = Hibari(threads=1), np.zeros(HEARING_RATE, np.float32)
    spoken = [
        np.concatenate([soxr.resample(voice(line, seed=seed), SPEECH_RATE, HEARING_RATE), pause_n])
        for seed, line in enumerate(lines)
    ]
    once_s = sum(map(len, spoken)) / HEARING_RATE
    rounds = int(np.ceil(seconds / once_s))
    count = int(np.ceil(seconds / once_s * len(lines)))
    return np.concatenate((spoken * rounds)[:count]), " ".join((lines * rounds)[:count])


if __name__ == "__main__":
    main()
