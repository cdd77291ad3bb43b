"""Noise reduction in a session: less noise, the same speech, whatever the pieces in which the sound comes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime_session import connected
from voicechat_serve.audio import HEARING_RATE, decode
from voicechat_serve.realtime.noise_reduction import NoiseReduction, NoiseReductionSettings

NOISE = 0.02


def reduction(kind: str) -> NoiseReduction:
    return NoiseReduction(NoiseReductionSettings.model_validate({"type": kind}))


def decibels(samples_n: np.ndarray) -> float:
    return 10 * float(np.log10(np.square(samples_n).mean()))


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, NOISE, int(seconds * HEARING_RATE)).astype(np.float32)


def test_noise_becomes_quieter_and_speech_stays(clips):
    speech_n = decode(clips[0][0].read_bytes())
    noisy_n = np.concatenate([np.zeros(2 * HEARING_RATE, np.float32), speech_n])
    noisy_n = noisy_n + noise(60)[: len(noisy_n)]
    cleaned_n = reduction("near_field").clean(noisy_n)
    before = slice(HEARING_RATE, 2 * HEARING_RATE)
    assert decibels(cleaned_n[before]) < decibels(noisy_n[before]) - 10
    assert decibels(cleaned_n[before.stop :]) > decibels(speech_n) - 3


def test_a_far_voice_becomes_louder(clips):
    speech_n = 0.05 * decode(clips[0][0].read_bytes())
    assert decibels(reduction("far_field").clean(np.tile(speech_n, 3))) > decibels(speech_n) + 10


@given(cuts=st.lists(st.integers(0, HEARING_RATE), max_size=20))
@settings(max_examples=30, deadline=None)
def test_pieces_do_not_matter(cuts):
    sound_n = noise(1)
    whole_n = reduction("far_field").clean(sound_n)
    in_pieces = reduction("far_field")
    assert np.array_equal(np.concatenate([in_pieces.clean(part) for part in np.split(sound_n, sorted(cuts))]), whole_n)


@pytest.mark.parametrize("kind", ["near_field", "far_field"])
async def test_a_turn_in_noise(question, kind):
    async with connected() as client:
        client.send("session.update", session={"audio": {"input": {"noise_reduction": {"type": kind}}}})
        updated = await client.until("session.updated")
        assert updated["session"]["audio"]["input"]["noise_reduction"] == {"type": kind}
        generator = np.random.default_rng(0)
        client.play((question + generator.normal(0, NOISE / 4, len(question))).astype(np.float32))
        await client.until("response.done")
        client.send("session.update", session={"audio": {"input": {"noise_reduction": None}}})
        updated = await client.until("session.updated", 2)
        assert updated["session"]["audio"]["input"]["noise_reduction"] is None
