"""A conversation on a loudspeaker: what it plays comes back into the microphone, late, through a room."""

from pathlib import Path

import numpy as np
import pytest
import soxr

from voicechat_serve.audio import HEARING_RATE, decode
from voicechat_serve.transcription.voice_activity import CHUNK, INTERRUPTS_AFTER_MS, VoiceActivity
from voicechat_ui.talk.echo import RATE, EchoCanceller

LIBRIVOX = Path("/usr/share/pocketsphinx/test/data/librivox")
PIECE, ROOM_S = RATE // 25, 0.15


@pytest.fixture(scope="module")
def speech() -> list[np.ndarray]:
    """Of two readers: a reply, and a person."""
    clips = sorted(LIBRIVOX.glob("*.wav"))
    return [soxr.resample(decode(clip.read_bytes()), HEARING_RATE, RATE) for clip in (clips[0], clips[-1])]


def room(level_db: float, delay_ms: float) -> np.ndarray:
    generator, length = np.random.default_rng(0), int(ROOM_S * RATE)
    echo_n = generator.standard_normal(length) * np.exp(-6.9 * np.arange(length) / length) * 0.1
    echo_n[0] = 1.0
    echo_n *= 10 ** (level_db / 20) / np.sqrt(np.square(echo_n).sum())
    return np.concatenate([np.zeros(int(delay_ms / 1000 * RATE)), echo_n])


def begins(recorded_n: np.ndarray) -> list[float]:
    """Return the seconds at which somebody interrupts a reply."""
    activity, heard_n = VoiceActivity(0.5, 500), soxr.resample(recorded_n, RATE, HEARING_RATE).astype(np.float32)
    return [
        place / HEARING_RATE
        for place in range(0, len(heard_n) - CHUNK, CHUNK)
        if activity.feed(heard_n[place : place + CHUNK], INTERRUPTS_AFTER_MS) == "started"
    ]


def through_the_canceller(recorded_n: np.ndarray, played_n: np.ndarray) -> np.ndarray:
    canceller, cleaned = EchoCanceller(), bytearray()
    recorded, played = ((np.clip(sound_n, -1, 1) * 32767).astype("<i2") for sound_n in (recorded_n, played_n))
    for start in range(0, len(recorded) - PIECE + 1, PIECE):
        canceller.played(played[start : start + PIECE].tobytes())
        cleaned += canceller.clean(recorded[start : start + PIECE].tobytes())
    return np.frombuffer(bytes(cleaned), "<i2").astype(np.float32) / 32768


@pytest.mark.parametrize(("level_db", "delay_ms"), [(-6, 40), (-6, 200), (-12, 120), (-20, 80)])
def test_a_reply_does_not_interrupt_itself_and_a_person_does(speech, level_db, delay_ms):
    reply_n, person_n = speech
    played_n = np.concatenate([np.zeros(RATE), reply_n, reply_n])
    echo_n = np.convolve(played_n, room(level_db, delay_ms))[: len(played_n)]
    echo_n += np.random.default_rng(1).normal(0, 0.0005, len(echo_n))
    assert begins(echo_n), "without the canceller it would"
    assert not begins(through_the_canceller(echo_n, played_n))

    spoken_at = RATE + len(reply_n)
    both_n = echo_n.copy()
    person_n = person_n[: len(both_n) - spoken_at]
    both_n[spoken_at : spoken_at + len(person_n)] += person_n
    (first, *_) = begins(through_the_canceller(both_n, played_n))
    assert spoken_at / RATE <= first < spoken_at / RATE + 1.5


def test_without_a_reply_the_speech_comes_through(speech):
    person_n = np.concatenate([np.zeros(RATE), speech[1][: -(len(speech[1]) % PIECE)]])
    cleaned_n = through_the_canceller(person_n, np.zeros(0))
    assert begins(cleaned_n)
    assert len(cleaned_n) == len(person_n)


def test_a_microphone_that_gives_nothing_keeps_no_more_than_a_second():
    canceller = EchoCanceller()
    for _ in range(100):
        canceller.played(bytes(2 * PIECE))
    assert len(canceller._played) == 2 * RATE
