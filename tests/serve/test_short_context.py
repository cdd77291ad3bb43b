"""Short utterances heard quickly, with the real models: right words, none where nothing is said, and a doubt settled by
the full window."""

import asyncio
import re
import threading
from dataclasses import replace

import jiwer
import numpy as np
import pytest
import soxr
from hibari import Hibari
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voicechat_platform.assets import locate
from voicechat_platform.errors import InputError
from voicechat_serve.audio import HEARING_RATE, decode
from voicechat_serve.transcription.short_context import MOST_SECONDS, Decoded, decode_utterance, is_sure, says_it_again
from voicechat_serve.transcription.transcriber import Transcription

SURE = Decoded("What time is it?", "en", 1.0, -0.1, 0.02, 0.9, True)


def plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z]+", text.lower()))


@pytest.fixture(scope="module")
def english() -> Transcription:
    return Transcription(locate("whisper-tiny.en"))


@pytest.fixture
def asked(english, monkeypatch) -> list[str]:
    """What was called, in order: "brief" for a short context, "full" for the full window."""
    calls: list[str] = []
    brief, full = english.hear_briefly, english.transcribe

    def hear_briefly(*arguments):
        calls.append("brief")
        return brief(*arguments)

    async def transcribe(*arguments):
        calls.append("full")
        return await full(*arguments)

    monkeypatch.setattr(english, "hear_briefly", hear_briefly)
    monkeypatch.setattr(english, "transcribe", transcribe)
    return calls


@pytest.fixture(scope="module")
def question() -> np.ndarray:
    """ "What is the capital of France?", 16 kHz."""
    return soxr.resample(Hibari(threads=1)("What is the capital of France?", seed=0), 24_000, HEARING_RATE)


async def test_speech_is_heard_as_by_the_full_window(english, clips, question, asked):
    said, heard, whole = [], [], []
    recorded = [(decode(clip.read_bytes()), words) for clip, words in clips]
    for samples_n, words in [(question, "what is the capital of france"), *recorded]:
        transcript = await english.hear(samples_n)
        assert (transcript.language, transcript.seconds) == ("en", len(samples_n) / HEARING_RATE)
        assert not transcript.segments
        said.append(plain(words))
        heard.append(plain(transcript.text))
    assert "full" not in asked  # of all these it was sure
    for samples_n, _ in recorded:
        whole.append(plain((await english.transcribe(samples_n)).text))
    assert heard[0] == said[0]
    wrong = [jiwer.process_words(said[1:], texts) for texts in (heard[1:], whole)]
    brief, full = (each.substitutions + each.insertions + each.deletions for each in wrong)
    assert brief <= full + 2  # of 71; that one looks for the best of five beams


async def test_silence_around_an_utterance_changes_nothing(english, question):
    pause_n = np.zeros(6 * HEARING_RATE, np.float32)
    heard = await english.hear(np.concatenate([pause_n, question, pause_n]))
    assert plain(heard.text) == "what is the capital of france"
    assert heard.seconds == pytest.approx(12 + len(question) / HEARING_RATE)


async def test_a_prompt_gives_the_spelling(english, clips):
    samples_n = decode(clips[1][0].read_bytes())
    assert "ill-disposed" not in (await english.hear(samples_n)).text
    assert "ill-disposed" in (await english.hear(samples_n, prompt="An ill-disposed woman, ill-disposed men.")).text


def noise(kind: str, seconds: float, level: float, seed: int) -> np.ndarray:
    """(n,) Sound that holds no word, `level` at its loudest."""
    rng = np.random.default_rng(seed)
    count = int(seconds * HEARING_RATE)
    time_n = np.arange(count) / HEARING_RATE
    sound_n = np.zeros(count)
    if kind == "white":
        sound_n = rng.standard_normal(count)
    elif kind == "brown":
        sound_n = np.cumsum(rng.standard_normal(count))
    elif kind == "hum":
        pitch = rng.uniform(40, 500)
        sound_n = sum(np.sin(2 * np.pi * pitch * k * time_n) / k for k in range(1, rng.integers(2, 9)))
    elif kind == "clicks":
        sound_n = (rng.random(count) < 0.0005) * 1.0
    elif kind in ("knocks", "coughs"):  # bursts of noise that die away, within 10 or 100 ms
        fading = 160 if kind == "knocks" else 1600
        for start in rng.integers(0, count, max(1, int(seconds))):
            burst_n = rng.standard_normal(min(8000, count - start))
            sound_n[start : start + len(burst_n)] += burst_n * np.exp(-np.arange(len(burst_n)) / fading)
    elif kind in ("chords", "melody"):
        for start in range(0, count, HEARING_RATE * 3 // 10):
            note_n = time_n[: min(HEARING_RATE // 2, count - start)]
            for step in rng.choice([0, 2, 4, 5, 7, 9, 11, 12], 3 if kind == "chords" else 1, replace=False):
                for overtone in range(1, 6):
                    wave_n = np.sin(2 * np.pi * 220 * 2 ** (step / 12) * overtone * note_n) / overtone
                    sound_n[start : start + len(note_n)] += wave_n * np.exp(-3 * note_n)
    return (level * sound_n / max(1e-9, np.abs(sound_n).max(initial=0))).astype(np.float32)


KINDS = ("silence", "white", "brown", "hum", "clicks", "knocks", "coughs", "chords", "melody")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seconds", [0.3, 2.5])
async def test_nothing_is_invented(english, kind, seconds):
    for seed, level in enumerate((0.01, 0.9)):
        assert (await english.hear(noise(kind, seconds, level, seed))).text == ""


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["tiny.en", "base"])
def test_nothing_is_invented_whatever_the_sound(name):
    transcription = Transcription(locate(f"whisper-{name}"))

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        kind=st.sampled_from(KINDS),
        seconds=st.floats(0.02, 12),
        level=st.floats(0.003, 1),
        seed=st.integers(0, 2**32 - 1),
    )
    def check(kind, seconds, level, seed):
        assert asyncio.run(transcription.hear(noise(kind, seconds, level, seed))).text == ""

    check()


async def test_what_gets_past_the_detector_is_not_invented_either(english, monkeypatch):
    """The voice activity detector takes some hums and breaths for speech: Whisper's own account decides then."""
    monkeypatch.setattr("voicechat_serve.transcription.transcriber.speech_in", lambda samples_n: samples_n)
    for kind in KINDS:
        for seconds in (0.3, 2.0):
            assert (await english.hear(noise(kind, seconds, 0.5, 1))).text == ""


@pytest.mark.parametrize("samples", [0, 1, 159, 400])
async def test_next_to_no_sound(english, samples):
    heard = await english.hear(np.full(samples, 0.1, np.float32))
    assert (heard.text, heard.seconds) == ("", samples / HEARING_RATE)


@pytest.mark.parametrize(
    "doubt",
    [
        {"text": ""},
        {"text": "..."},
        {"text": "What time is it? What time is it?"},
        {"avg_logprob": -0.7},
        {"no_speech_prob": 0.7},
        {"compression_ratio": 2.5},
        {"is_ended": False},
        {"language_probability": 0.4},
    ],
    ids=lambda doubt: next(iter(doubt)),
)
async def test_a_doubt_is_settled_by_the_full_window(english, question, asked, monkeypatch, doubt):
    assert is_sure(SURE)
    doubtful = replace(SURE, **doubt)
    monkeypatch.setattr("voicechat_serve.transcription.transcriber.decode_utterance", lambda *_: doubtful)
    heard = await english.hear(question)
    assert asked == ["brief", "full"]
    assert plain(heard.text) == "what is the capital of france"
    assert not heard.segments


async def test_long_sounds_get_the_full_window(english, question, asked):
    heard = await english.hear(np.concatenate([np.zeros(MOST_SECONDS * HEARING_RATE, np.float32), question]))
    assert asked == ["full"]
    assert plain(heard.text) == "what is the capital of france"


@pytest.mark.parametrize(
    ("text", "again"),
    [
        ("What time is it? What time is it?", True),
        ("What time is it? What time", True),
        ("What time is it? What", False),
        ("No, no, no.", True),
        ("Hello", False),
        ("To be or not to be", True),  # costs time only
        ("To be or to leave", False),
        ("", False),
    ],
)
def test_a_sentence_said_again(text, again):
    assert says_it_again(text) is again


def test_a_decoder_without_an_end_is_cut_off(english):
    """A tune makes tiny.en laugh until it is stopped."""
    english.model.abandoned = threading.Event()
    heard = decode_utterance(english.model, noise("melody", 6.0, 0.5, 0), None, None)
    assert len(heard.text) < 6 * 100
    assert not is_sure(heard)


async def test_the_language_is_told():
    multilingual = Transcription(locate("whisper-base"))
    question_n = soxr.resample(Hibari(threads=1)("How many legs does a spider have?", seed=0), 24_000, HEARING_RATE)
    assert (await multilingual.hear(question_n)).language == "en"
    german = await multilingual.hear(question_n, language="de")
    assert german.language == "de"
    assert german.text
    assert (await multilingual.hear(question_n[:0], language="de")).language == "de"
    with pytest.raises(InputError, match="unknown language"):
        await multilingual.hear(question_n, language="klingon")


async def test_leaving_takes_the_work_out_of_the_queue(english, question, asked):
    gate = threading.Event()
    english.worker.submit(gate.wait)
    waiting = [asyncio.create_task(english.hear(question)) for _ in range(5)]
    await asyncio.sleep(0.01)
    for task in waiting[:4]:
        task.cancel()
    await asyncio.wait(waiting[:4])
    gate.set()
    assert plain((await waiting[4]).text) == "what is the capital of france"
    assert asked == ["brief"]


@pytest.mark.nightly
async def test_a_word_need_not_wait_for_a_lecture(english, clips, question):
    ended: list[str] = []

    async def heard(name: str, hearing) -> None:
        await hearing
        ended.append(name)

    lecture_n = np.concatenate([decode(clip.read_bytes()) for clip, _ in clips] * 3)
    lecture = asyncio.create_task(heard("lecture", english.transcribe(lecture_n)))
    await asyncio.sleep(0)
    await asyncio.gather(lecture, heard("word", english.hear(question)))
    assert ended == ["word", "lecture"]


def test_a_prompt_that_fills_the_context_is_cut_off_too(english, question):
    english.model.abandoned = threading.Event()
    long_n = np.tile(question, 20)[: MOST_SECONDS * HEARING_RATE]
    heard = decode_utterance(english.model, long_n, None, "7 " * 512)
    assert not heard.is_ended  # tiny.en goes on with the sevens
