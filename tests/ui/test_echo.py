"""A conversation on a loudspeaker: what it plays comes back into the microphone, late, through a room."""

import asyncio
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soxr

from voicechat_serve.audio import HEARING_RATE, decode
from voicechat_serve.transcription.voice_activity import CHUNK, INTERRUPTS_AFTER_MS, VoiceActivity
from voicechat_ui.talk.echo import EchoCanceller, bytes_of
from voicechat_ui.talk.sound_device import PIECE_SAMPLES, RATE, Loudspeaker, Microphone

LIBRIVOX = Path("/usr/share/pocketsphinx/test/data/librivox")
ROOM_S = 0.15
BLOCK = 1024
"""Samples in a call of the loudspeaker's callback: no multiple of the microphone's."""

CONNECTS_S = 0.7
"""The loudspeaker runs for so long before the microphone starts."""


@pytest.fixture(scope="module")
def speech() -> list[np.ndarray]:
    """Of two readers: a reply, and a person."""
    clips = sorted(LIBRIVOX.glob("*.wav"))
    return [soxr.resample(decode(clip.read_bytes()), HEARING_RATE, RATE) for clip in (clips[0], clips[-1])]


class LoudRoom(ModuleType):
    """In the place of sounddevice: a loudspeaker and a microphone in one room.

    Args:
        level_db, delay_ms: of the loudspeaker's sound in the microphone.
    """

    PortAudioError = OSError

    def __init__(self, level_db: float, delay_ms: float) -> None:
        super().__init__("sounddevice")
        generator, length = np.random.default_rng(0), int(ROOM_S * RATE)
        room_n = generator.standard_normal(length) * np.exp(-6.9 * np.arange(length) / length) * 0.1
        room_n[0] = 1.0
        room_n *= 10 ** (level_db / 20) / np.sqrt(np.square(room_n).sum())
        self.room_n = np.concatenate([np.zeros(int(delay_ms / 1000 * RATE)), room_n])
        self.played_n = np.zeros(len(self.room_n) - 1)
        """All that the loudspeaker has played, after the silence before it."""
        self.callbacks: dict[str, Any] = {}

    def RawInputStream(self, callback: Any, **options: Any) -> SimpleNamespace:  # noqa: N802
        return self._opened("microphone", callback)

    def RawOutputStream(self, callback: Any, **options: Any) -> SimpleNamespace:  # noqa: N802
        return self._opened("loudspeaker", callback)

    def _opened(self, name: str, callback: Any) -> SimpleNamespace:
        self.callbacks[name] = callback
        return SimpleNamespace(start=lambda: None, close=lambda: None)

    def play_until(self, sample: int) -> None:
        while len(self.played_n) - len(self.room_n) + 1 < sample:
            out = bytearray(2 * BLOCK)
            self.callbacks["loudspeaker"](memoryview(out), BLOCK, None, None)
            self.played_n = np.concatenate([self.played_n, np.frombuffer(bytes(out), "<i2") / 32768])

    def record(self, start: int, person_n: np.ndarray, seed: int) -> None:
        """Let the microphone record a piece, with what the person says during it."""
        self.play_until(start + PIECE_SAMPLES)
        echo_n = np.convolve(self.played_n[start : start + PIECE_SAMPLES + len(self.room_n) - 1], self.room_n, "valid")
        noise_n = np.random.default_rng(seed).normal(0, 0.0005, PIECE_SAMPLES)
        self.callbacks["microphone"](pcm(echo_n + noise_n + person_n), PIECE_SAMPLES, None, None)


def pcm(sound_n: np.ndarray) -> bytes:
    return (np.clip(sound_n, -1, 1) * 32767).astype("<i2").tobytes()


async def sent(
    monkeypatch: pytest.MonkeyPatch, room: LoudRoom, canceller: EchoCanceller | None, reply_n: Any, person_n: Any
) -> np.ndarray:
    """Return what `voicechat talk` sends while it plays a reply, and a person speaks. Both have the same length."""
    monkeypatch.setitem(sys.modules, "sounddevice", room)
    microphone, loudspeaker = Microphone(canceller), Loudspeaker(canceller)
    begins = int(CONNECTS_S * RATE)
    room.play_until(begins)
    loudspeaker.write(pcm(reply_n))
    pieces = []
    for start in range(0, len(person_n) - PIECE_SAMPLES + 1, PIECE_SAMPLES):
        room.record(begins + start, person_n[start : start + PIECE_SAMPLES], start)
        pieces.append(await asyncio.wait_for(microphone.pieces.get(), 10))
    return np.frombuffer(b"".join(pieces), "<i2").astype(np.float32) / 32768


def begins(recorded_n: np.ndarray) -> list[float]:
    """Return the seconds at which somebody interrupts a reply."""
    activity, heard_n = VoiceActivity(0.5, 500), soxr.resample(recorded_n, RATE, HEARING_RATE).astype(np.float32)
    return [
        place / HEARING_RATE
        for place in range(0, len(heard_n) - CHUNK, CHUNK)
        if activity.feed(heard_n[place : place + CHUNK], INTERRUPTS_AFTER_MS) == "started"
    ]


@pytest.mark.parametrize(("level_db", "delay_ms"), [(-6, 40), (-6, 200), (-12, 120), (-20, 80)])
async def test_a_reply_does_not_interrupt_itself_and_a_person_does(speech, level_db, delay_ms, monkeypatch):
    reply_n = np.concatenate([np.zeros(RATE), speech[0], speech[0]])
    spoken_at = RATE + len(speech[0])
    person_n = np.zeros(len(reply_n))

    async def talked(canceller: EchoCanceller | None) -> list[float]:
        return begins(await sent(monkeypatch, LoudRoom(level_db, delay_ms), canceller, reply_n, person_n))

    assert await talked(None), "without the canceller it would"
    assert not await talked(EchoCanceller())
    person_n[spoken_at : spoken_at + len(speech[1])] = speech[1]
    (first, *_) = await talked(EchoCanceller())
    assert spoken_at / RATE <= first < spoken_at / RATE + 1.5


async def test_without_a_reply_the_speech_comes_through(speech, monkeypatch):
    person_n = np.concatenate([np.zeros(RATE), speech[1]])
    cleaned_n = await sent(monkeypatch, LoudRoom(-6, 40), EchoCanceller(), np.zeros(0), person_n)
    assert begins(cleaned_n)
    assert len(cleaned_n) == len(person_n) // PIECE_SAMPLES * PIECE_SAMPLES


def test_a_microphone_that_gives_nothing_keeps_no_more_than_a_second():
    canceller = EchoCanceller()
    for _ in range(100):
        canceller.played(bytes(2 * PIECE_SAMPLES))
    assert len(canceller._played) == bytes_of(1.0)
