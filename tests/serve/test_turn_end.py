"""How sound and words become a probability, and a probability a silence; and what Smart Turn hears."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicechat_platform import assets
from voicechat_serve.audio import HEARING_RATE, decode
from voicechat_serve.realtime.turn_end import EAGERNESS, end_probability
from voicechat_serve.transcription.smart_turn import SmartTurn, find_smart_turn

probabilities = st.floats(0, 1)
known_or_not = st.none() | probabilities


@given(one=probabilities, other=probabilities)
@pytest.mark.parametrize("eagerness", EAGERNESS)
def test_a_likelier_end_never_waits_longer(eagerness, one, other):
    patience = EAGERNESS[eagerness]
    less, more = sorted((one, other))
    if more > 0:
        shortest, longest = patience.silence_ms(more), patience.silence_ms(max(less, 1e-9))
        assert patience.least_ms <= shortest <= longest <= patience.most_ms


@given(probability=known_or_not.filter(lambda p: p != 0))
def test_more_eagerness_never_waits_longer(probability):
    high, medium, low = (EAGERNESS[name].silence_ms(probability) for name in ("high", "medium", "low"))
    assert high <= medium <= low


@given(sound=known_or_not, words=known_or_not, more=st.floats(0, 0.5))
def test_both_judges_count(sound, words, more):
    both = end_probability(sound, words)
    if sound is None and words is None:
        assert both is None
        return
    assert 0 < both < 1
    if sound is not None:
        assert end_probability(min(1, sound + more), words) >= both
    if words is not None:
        assert end_probability(sound, min(1, words + more)) >= both


def test_smart_turn_hears_whether_a_sentence_is_whole(clips):
    """Real speech: the ends of five recordings, and places in their middles."""
    path = find_smart_turn()
    assert path is not None
    smart_turn, silence_n = SmartTurn(path), np.zeros(HEARING_RATE // 5, np.float32)
    speech = [decode(clip.read_bytes()) for clip, _ in clips]
    middles = [sound_n[: len(sound_n) * share // 10] for sound_n in speech for share in (4, 5, 6)]
    whole, broken = (
        np.array([smart_turn.probability(np.concatenate([sound_n, silence_n])) for sound_n in sounds])
        for sounds in (speech, middles)
    )
    assert np.median(whole) > np.median(broken)
    assert broken.min() >= 0
    assert whole.max() <= 1
    assert smart_turn.probability(np.zeros(0, np.float32)) <= 1


def test_without_the_package_the_words_decide_alone(monkeypatch, caplog):
    monkeypatch.setattr(assets, "packaged_files", lambda asset: None)
    assert find_smart_turn() is None
    assert "pip install --no-deps pipecat-ai" in caplog.text
