"""Adaptive interruption: which speech over a reply ends it, how soon, and does a reply interrupt itself by its echo?

    python benchmarks/interruptions.py [--whisper tiny.en] [--quick]

Interruptions and agreement are spoken by hibari (seven speeds, its one voice higher and lower); interruptions also by
the readers of LibriVox. Coughs and noises are made with numpy, echoes from the replies' own sound. Half of the speech
is mixed with an echo of the reply. Each clip begins somewhere in a reply that plays, and goes through the session's
own detector, Overlap and Whisper. Sound time passes at once: words come when as much sound has passed as Whisper has
worked (CPU seconds by its threads, so that other programs do not count). `silence alone` is the usual rule: 288 ms of
speech end the reply. A reply that ends before the person speaks counts as wrong. The limits of
realtime/interruption.py were chosen on these sounds, so that others will be judged worse.
"""

import argparse
import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import soxr
from hibari import Hibari
from reporting import bar, floor, report
from voice_clips import QUESTIONS, THREADS, clips

from voicechat_serve.audio import HEARING_RATE, Samples
from voicechat_serve.realtime.interruption import PlayedSound
from voicechat_serve.realtime.items import MessageItem, Spoken
from voicechat_serve.realtime.overlap import PAUSES_AFTER_MS, Overlap
from voicechat_serve.realtime.session_settings import SessionSettings
from voicechat_serve.synthesis.voices import SPEECH_RATE
from voicechat_serve.transcription.transcriber import Transcript, Transcription
from voicechat_serve.transcription.voice_activity import CHUNK, CHUNK_MS, INTERRUPTS_AFTER_MS, VoiceActivity
from voicechat_serve.transcription.whisper_files import find_whisper

INTERRUPTIONS = (
    "Stop.",
    "No.",
    "Wait.",
    "Hold on a second.",
    "No, that's not what I meant.",
    "Stop talking, please.",
    "What about Spain?",
    "Can I ask something else?",
    "Sorry, I have to go now.",
    "Yeah, but wait a minute.",
    "Okay, and how much does it cost?",
    "Actually, tell me about London instead.",
    "Excuse me, what did you say?",
    "Never mind.",
    "Right, but what is the capital?",
    "Please speak more slowly.",
    "How do you know that?",
    "Cancel that.",
)
AGREEMENT = (
    "Mhm.", "Mm-hmm.", "Yeah.", "Okay.", "Right.", "Uh-huh.", "Yes.", "Sure.", "I see.", "Yeah, yeah.", "Hmm.", "Ah.",
    "Exactly.", "Got it.", "Oh.", "Of course.", "Great.", "Haha.", "Yep.", "All right.",
)  # fmt: skip
REPLIES = (
    "Paris is the capital of France, and more than two million people live there. It lies on the river Seine.",
    "A bicycle stays upright because the rider steers into every fall, and because the wheels are turning.",
    "Once upon a time there was a little dragon who was afraid of fire. One day a girl came to his cave.",
    "You could cook a soup of carrots and ginger. It takes half an hour, and it is warm and healthy.",
    "The moon is about four hundred thousand kilometres away, which is thirty times the width of the earth.",
)
SPEEDS = (0.85, 0.95, 1.05, 1.15, 1.25, 1.35, 1.45)
PITCHES = (1.0, 1.15, 0.87)
LEVELS_DB = (-6, -12, -20)
DELAYS_MS = (40, 80, 120, 160, 200)
ROOM_S = 0.15


@dataclass
class Said:
    """A sound over a reply."""

    kind: str
    name: str
    sound_n: Samples
    """16 kHz, without silence before it."""
    is_interruption: bool = False


@dataclass
class Outcome:
    said: Said
    pause_ms: float | None = None
    """From the beginning of the sound; None if the reply was not paused."""
    ended_ms: float | None = None
    """The same for the end of the reply; None if it was not interrupted."""
    decision_ms: float | None = None
    """From the pause to the first decision."""
    transcripts: list[str] = field(default_factory=list)
    by_silence: bool = False
    """Whether INTERRUPTS_AFTER_MS of speech would have ended it."""


class Ear:
    """Whisper in sound time."""

    def __init__(self, transcription: Transcription):
        self.transcription, self.heard = transcription, list[str]()
        self.now_ms = 0.0
        self.moved = asyncio.Event()
        self.is_parked = False
        """Whether the words are known, and wait for their time."""

    def move(self, now_ms: float) -> None:
        self.now_ms = now_ms
        self.moved.set()

    async def glimpse(self, samples_n: Samples, language: str | None, prompt: str | None) -> Transcript:
        began, asked_ms = time.process_time(), self.now_ms
        transcript = await self.transcription.glimpse(samples_n, language, prompt)
        ready_ms = asked_ms + 1000 * (time.process_time() - began) / THREADS
        self.heard.append(transcript.text)
        while self.now_ms < ready_ms:
            self.is_parked = True
            self.moved.clear()
            await self.moved.wait()
        self.is_parked = False
        return transcript


@dataclass
class Playing:
    """A reply that plays, in sound time."""

    sound_n: Samples
    """24 kHz."""
    text: str
    played_ms: float = 0.0
    cancelled: None = None
    id: str = "resp"
    is_paused: bool = False

    def __post_init__(self) -> None:
        self.played = PlayedSound(SPEECH_RATE)
        self.played.append(self.sound_n)
        self.message = MessageItem("assistant", text=self.text, is_spoken=True)
        self.message.spoken = [Spoken(self.text, 1000 * len(self.sound_n) / SPEECH_RATE, is_whole=True)]
        self.heard_n = soxr.resample(self.sound_n, SPEECH_RATE, HEARING_RATE)

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False

    def next_chunk(self) -> Samples:
        """Return what the loudspeaker plays in one chunk."""
        if self.is_paused:
            return np.zeros(CHUNK, np.float32)
        start = int(self.played_ms / 1000 * HEARING_RATE)
        self.played_ms += CHUNK_MS
        part_n = self.heard_n[start : start + CHUNK]
        return np.pad(part_n, (0, CHUNK - len(part_n)))


class Echo:
    """The way of a reply's sound into the microphone: a delay, a room that decays in ROOM_S, and a level."""

    def __init__(self, level_db: float, delay_ms: float, seed: int):
        generator, length = np.random.default_rng(seed), int(ROOM_S * HEARING_RATE)
        room_n = generator.standard_normal(length) * np.exp(-6.9 * np.arange(length) / length) * 0.1
        room_n[0] = 1.0
        delay = int(delay_ms / 1000 * HEARING_RATE)
        self.response_n = np.concatenate([np.zeros(delay), room_n / np.sqrt(np.square(room_n).sum())])
        self.response_n *= 10 ** (level_db / 20)
        self.tail_n = np.zeros(len(self.response_n) - 1)

    def feed(self, played_n: Samples) -> Samples:
        whole_n = np.convolve(played_n, self.response_n)
        whole_n[: len(self.tail_n)] += self.tail_n
        self.tail_n = whole_n[len(played_n) :]
        return whole_n[: len(played_n)].astype(np.float32)


async def speak_over(said: Said | None, reply: Playing, begin_s: float, echo: Echo | None, ear: Ear) -> Outcome:
    """Play a reply, and a sound over it. Return what happened."""
    outcome = Outcome(said or Said("echo", reply.text, np.zeros(0, np.float32)))
    settings = SessionSettings()
    wire = SimpleNamespace(emit=lambda event: None)
    context: Any = SimpleNamespace(settings=settings, stages=ear, wire=wire)
    paused_ms = 0.0
    activity, usual = VoiceActivity(0.5, 500), VoiceActivity(0.5, 500)
    before, overlap = list[Samples](), None
    sound_n = outcome.said.sound_n
    begin = int(begin_s * HEARING_RATE)
    whole_n = np.concatenate([np.zeros(begin), sound_n, np.zeros(HEARING_RATE)]).astype(np.float32)
    num_chunks = max(len(whole_n), len(reply.heard_n) if said is None else 0) // CHUNK
    whole_n = np.pad(whole_n, (0, max(0, num_chunks * CHUNK - len(whole_n))))
    for number in range(num_chunks):
        chunk_n = whole_n[number * CHUNK : (number + 1) * CHUNK] + NOISE_FLOOR.standard_normal(CHUNK) * 0.0005
        played_n = reply.next_chunk()
        chunk_n = (chunk_n + (echo.feed(played_n) if echo else 0)).astype(np.float32)
        now_ms = CHUNK_MS * (number + 1) - 1000 * begin_s
        outcome.by_silence |= usual.feed(chunk_n, INTERRUPTS_AFTER_MS) == "started"
        change = activity.feed(chunk_n, PAUSES_AFTER_MS)
        if overlap:
            was_paused = reply.is_paused
            ear.move(now_ms)
            await asyncio.sleep(0)  # words whose time has come
            overlap.began_at = time.monotonic() - (now_ms - paused_ms) / 1000
            state = await overlap.feed(chunk_n, change)
            if reply.is_paused and not was_paused:
                paused_ms = now_ms
                outcome.pause_ms = now_ms if outcome.pause_ms is None or outcome.pause_ms < 0 else outcome.pause_ms
            if overlap.hearing:
                await settled(ear, overlap.hearing)
            if was_paused and (state != "open" or not reply.is_paused) and outcome.decision_ms is None:
                outcome.decision_ms = now_ms - paused_ms
            if state == "interruption":
                outcome.ended_ms = now_ms
                break
            if state == "over":
                activity.end()
                overlap = None
        elif change == "started":
            overlap = Overlap(context, reply, activity, [*before, chunk_n], 0.0)  # type: ignore[arg-type]
            before, paused_ms = [], now_ms
            outcome.pause_ms = now_ms if outcome.pause_ms is None or outcome.pause_ms < 0 else outcome.pause_ms
        else:
            before = [*before, chunk_n][-round((300 + activity.speech_ms) / CHUNK_MS) :]
    if overlap:
        await overlap.close()
    outcome.transcripts, ear.heard = ear.heard, []
    return outcome


async def settled(ear: Ear, hearing: "asyncio.Task[Transcript]") -> None:
    """Wait until the words are known."""
    while not (hearing.done() or ear.is_parked):
        await asyncio.sleep(0.001)


NOISE_FLOOR = np.random.default_rng(9)


def cut(sound_n: Samples) -> Samples:
    loud = np.flatnonzero(np.abs(sound_n) > 0.01)
    return sound_n[loud[0] : loud[-1] + 1]


class Voices:
    """Hibari at other pitches."""

    def __init__(self) -> None:
        self.hibari = Hibari(threads=THREADS)

    def say(self, text: str, number: int) -> Samples:
        pitch = PITCHES[number % len(PITCHES)]
        spoken_n = self.hibari(text, speed=SPEEDS[number % len(SPEEDS)] / pitch, seed=number)
        return cut(soxr.resample(spoken_n, SPEECH_RATE * pitch, HEARING_RATE).astype(np.float32))


def sounds(voices: Voices, rounds: int) -> Iterator[Said]:
    """Yield what is said over replies."""
    for number, text in enumerate((INTERRUPTIONS + QUESTIONS[:6]) * rounds):
        yield Said("interruption", text, voices.say(text, number), is_interruption=True)
    for clip in clips():
        if clip.source == "LibriVox":
            yield Said("interruption, read", clip.words, cut(clip.samples_n)[: 3 * HEARING_RATE], is_interruption=True)
    for number, text in enumerate(AGREEMENT * rounds):
        yield Said("agreement", text, voices.say(text, 100 + number))
    for number in range(10 * rounds):
        yield Said("cough", "cough", cough(number))
        yield Said("noise", ("knock", "typing", "hiss", "hum")[number % 4], noise(number))


def cough(seed: int) -> Samples:
    """One to three bursts of throat noise, each with a sharp attack."""
    generator, bursts = np.random.default_rng(seed), []
    for _ in range(generator.integers(1, 4)):
        length = int(generator.uniform(0.12, 0.3) * HEARING_RATE)
        burst_n = generator.standard_normal(length)
        color = generator.uniform(0.0, 0.6)
        for place in range(1, length):
            burst_n[place] += color * burst_n[place - 1]
        burst_n *= np.exp(-generator.uniform(4, 8) * np.arange(length) / length)
        bursts += [burst_n * generator.uniform(0.1, 0.3), np.zeros(int(generator.uniform(0.03, 0.15) * HEARING_RATE))]
    return np.concatenate(bursts).astype(np.float32)


def noise(seed: int) -> Samples:
    generator, seconds_n = np.random.default_rng(1000 + seed), np.arange(HEARING_RATE) / HEARING_RATE
    kind = seed % 4
    if kind == 0:
        return (0.6 * np.exp(-40 * seconds_n) * np.sin(2 * np.pi * generator.uniform(90, 300) * seconds_n)).astype("f4")
    if kind == 1:
        keys_n = np.zeros(HEARING_RATE)
        for place in generator.integers(0, HEARING_RATE - 800, 7):
            keys_n[place : place + 800] += generator.standard_normal(800) * np.exp(-np.arange(800) / 120) * 0.3
        return keys_n.astype(np.float32)
    if kind == 2:
        return (generator.standard_normal(HEARING_RATE) * generator.uniform(0.02, 0.1)).astype(np.float32)
    return sum(0.05 * np.sin(2 * np.pi * 50 * n * seconds_n) for n in (1, 2, 3)).astype(np.float32)  # type: ignore[union-attr]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--whisper", default="tiny.en", help="a size, a folder or OWNER/NAME of the hub")
    parser.add_argument("--quick", action="store_true", help="a few of each kind; the bars mean nothing then")
    parser.add_argument("--wrong", action="store_true", help="print each wrong decision")
    arguments = parser.parse_args()
    ear = Ear(Transcription(find_whisper(arguments.whisper).folder, device="cpu"))
    outcomes, echoes = asyncio.run(
        listen(ear, rounds=1 if arguments.quick else 5, replies=5 if arguments.quick else 50)
    )
    if arguments.wrong:
        for each in outcomes + echoes:
            if each.said.is_interruption != (each.ended_ms is not None) or (each.decision_ms or 0) > 500:
                print(each.decision_ms, each.said.kind, each.said.name, each.ended_ms, each.pause_ms, each.transcripts)
    report("interruptions", rows(outcomes + echoes), bars(outcomes, echoes))


async def listen(ear: Ear, rounds: int, replies: int) -> tuple[list[Outcome], list[Outcome]]:
    """Return the outcomes of sounds over replies, and of replies whose echo alone is heard."""
    voices = Voices()
    spoken = [(text, cut(voices.hibari(text, seed=number))) for number, text in enumerate(REPLIES)]
    generator, outcomes, echoes = np.random.default_rng(1), list[Outcome](), list[Outcome]()
    ways = [(level, delay) for delay in DELAYS_MS for level in LEVELS_DB]
    for number, said in enumerate(sounds(voices, rounds)):
        text, reply_n = spoken[number % len(spoken)]
        echo = Echo(-20, DELAYS_MS[number % len(DELAYS_MS)], number) if number % 2 else None
        begin_s = float(generator.uniform(0.3, 1.5))
        outcomes.append(await speak_over(said, Playing(reply_n, text), begin_s, echo, ear))
    for number in range(replies):
        text, reply_n = spoken[number % len(spoken)]
        level, delay = ways[number % len(ways)]
        echoes.append(await speak_over(None, Playing(reply_n, text), 0.0, Echo(level, delay, number), ear))
    return outcomes, echoes


def rows(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    found = []
    for kind in dict.fromkeys(outcome.said.kind for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.said.kind == kind]
        found.append(
            {
                "sound": kind,
                "clips": len(own),
                "paused": sum(each.pause_ms is not None for each in own),
                "reply ended": sum(each.ended_ms is not None for each in own),
                "ended by silence alone": sum(each.by_silence for each in own),
                "pause p95 ms": percentile([each.pause_ms for each in own if each.pause_ms is not None]),
                "decision p95 ms": percentile([each.decision_ms for each in own if each.decision_ms is not None]),
            }
        )
    return found


def percentile(values: list[float]) -> float:
    return round(float(np.percentile(values, 95))) if values else 0.0


def bars(outcomes: list[Outcome], echoes: list[Outcome]) -> list[dict[str, Any]]:
    real = [outcome for outcome in outcomes if outcome.said.is_interruption]
    ended = [outcome for outcome in outcomes + echoes if outcome.ended_ms is not None]
    pauses = [outcome.pause_ms for outcome in real if outcome.pause_ms is not None and outcome.pause_ms >= 0]
    decisions = [outcome.decision_ms for outcome in outcomes if outcome.decision_ms is not None]
    right = sum(outcome.said.is_interruption and (outcome.ended_ms or 0) >= 0 for outcome in ended)
    return [
        floor("recall of interruptions %", 100 * right / len(real), 100),
        floor("precision %", 100 * right / max(1, len(ended)), 86),
        bar("decision p95 ms", percentile(decisions), 500),
        bar("time to silence p95 ms", percentile(pauses), 300),
        bar("replies that interrupt themselves", sum(each.ended_ms is not None for each in echoes), 0),
    ]


if __name__ == "__main__":
    main()
