"""The transcription's own promises, with the real models: times, translations, turns, and an end when nobody waits."""

import asyncio
import re
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import jiwer
import numpy as np
import pytest
import soxr
from faster_whisper.transcribe import Segment as Found
from hypothesis import given
from hypothesis import strategies as st

from heard import wrong_characters
from voicechat_platform.assets import locate
from voicechat_platform.errors import InputError
from voicechat_serve.audio import HEARING_RATE, decode
from voicechat_serve.realtime.sound_formats import Format
from voicechat_serve.transcription.transcriber import (
    FRAME_RATE,
    Segment,
    Transcript,
    Transcription,
    Word,
    is_invented,
    within,
)

INFORMATION = SimpleNamespace(language="en")
"""What faster-whisper tells of a sound, as far as it is read."""


def plain(text: str) -> str:
    return re.sub(r"[^a-z ]", "", text.lower().replace("-", " "))


def silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * HEARING_RATE), np.float32)


@pytest.fixture(scope="module")
def english() -> Transcription:
    return Transcription(locate("whisper-tiny.en"))


@pytest.fixture(scope="module")
def multilingual() -> Transcription:
    return Transcription(locate("whisper-base"))


@pytest.fixture(scope="module")
def speech(clips) -> list[np.ndarray]:
    return [decode(clip.read_bytes()) for clip, _ in clips]


@pytest.fixture
def windows(english, monkeypatch) -> Iterator[list[int]]:
    """One entry for each window that English heard."""
    encoded: list[int] = []
    encode = english.model.encode

    def counted(features):
        result = encode(features)
        encoded.append(features.shape[-1])
        return result

    monkeypatch.setattr(english.model, "encode", counted)
    yield encoded
    idle(english)


def idle(transcription: Transcription) -> None:
    """Returns when the worker has nothing more to do."""
    transcription.worker.submit(lambda: None).result(timeout=60)


TIMES = st.floats(-5, 40)


@given(st.floats(0, 30), st.lists(st.tuples(TIMES, TIMES, st.lists(st.tuples(TIMES, TIMES), max_size=4)), max_size=5))
def test_no_time_leaves_the_sound_or_goes_back(seconds, found):
    begins = 0.0
    for start, end, words in found:
        given = Segment(0, 4000, start, end, "", (), 0, 0, 0, 0, tuple(Word("a", *times) for times in words))
        segment = within(given, begins, seconds)
        times = [segment.start, *(time for word in segment.words for time in (word.start, word.end))]
        assert times == sorted(times)
        assert begins <= segment.start <= segment.end <= seconds
        assert times[-1] <= seconds
        assert segment.seek <= seconds * FRAME_RATE
        begins = segment.start


@pytest.mark.parametrize("with_words", [False, True])
async def test_no_segment_ends_after_its_sound(english, speech, with_words):
    sound_n = speech[1][: int(2.6 * HEARING_RATE)]
    transcript = await english.transcribe(sound_n, with_words=with_words)
    assert transcript.segments
    times = [word.end for segment in transcript.segments for word in segment.words]
    assert max([segment.end for segment in transcript.segments] + times) <= transcript.seconds == 2.6


async def test_times_are_those_of_the_original_sound(english, speech):
    pauses = (4.0, 5.0)
    sound_n = np.concatenate([silence(pauses[0]), speech[1], silence(pauses[1]), speech[2], silence(2)])
    second_begins = pauses[0] + len(speech[1]) / HEARING_RATE + pauses[1]
    transcript = await english.transcribe(sound_n, with_words=True)
    segments = transcript.segments
    words = [word for segment in segments for word in segment.words]
    assert transcript.seconds == len(sound_n) / HEARING_RATE
    assert words[0].start == pytest.approx(pauses[0], abs=0.6)
    (unless,) = (word for word in words if plain(word.text) == "unless")
    assert unless.start == pytest.approx(second_begins, abs=0.6)
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert times[-1] < transcript.seconds - 1.5
    assert segments[0].seek == round(segments[0].start * FRAME_RATE)
    assert [segment.id for segment in segments] == list(range(len(segments)))
    assert "".join(word.text for word in words) == transcript.text.replace(" ", "")


async def test_segments_are_the_transcript(english, speech):
    heard = [part async for part in english.listen(np.concatenate(speech))]
    *segments, transcript = heard
    assert isinstance(transcript, Transcript)
    assert len(segments) > 2
    assert tuple(segments) == transcript.segments
    assert "".join(segment.text for segment in segments).strip() == transcript.text
    assert not any(segment.words for segment in segments)  # nobody asked
    assert heard[-1] == await english.transcribe(np.concatenate(speech))


async def test_translation(multilingual, speech, clips, monkeypatch):
    transcript = await multilingual.transcribe(speech[0], task="translate")
    assert transcript.language == "en"
    assert jiwer.wer(plain(clips[0][1]), plain(transcript.text)) < 0.2
    # English that is said to be German is written in either language, as int8 on this processor has it. What the model
    # was asked for is certain.
    asked: list[str] = []
    get_prompt = multilingual.model.get_prompt

    def noted(*arguments, **options):
        prompt = get_prompt(*arguments, **options)
        asked.append("".join(map(multilingual.model.hf_tokenizer.id_to_token, prompt)))
        return prompt

    monkeypatch.setattr(multilingual.model, "get_prompt", noted)
    await multilingual.transcribe(speech[0], language="de")
    translated = await multilingual.transcribe(speech[0], language="de", task="translate")
    assert "<|de|><|transcribe|>" in asked[0]
    assert "<|de|><|translate|>" in asked[-1]
    assert jiwer.wer(plain(clips[0][1]), plain(translated.text)) < 0.4


@pytest.mark.parametrize("language", ["klingon", "yue", "", "EN", "en\0", "😀"])
async def test_unknown_languages(multilingual, language):
    with pytest.raises(InputError, match=r"known are af, .*, zh$") as refused:
        await multilingual.transcribe(silence(1), language=language)
    assert not language.strip("yuEN") or language not in str(refused.value)


async def test_an_english_model_says_what_it_cannot(english):
    for wish in ({"language": "de"}, {"task": "translate"}, {"language": "en", "task": "translate"}):
        with pytest.raises(InputError, match="only English"):
            await english.transcribe(silence(1), **wish)
    assert (await english.transcribe(silence(1), language="en")).text == ""


async def test_a_listener_who_leaves_ends_the_work(english, speech, windows):
    sound_n = np.concatenate(speech * 4)
    async for heard in english.listen(sound_n):
        assert isinstance(heard, Segment)
        break
    idle(english)
    assert len(windows) <= 2
    await english.transcribe(sound_n)
    assert len(windows) >= 5


async def test_leaving_is_noticed_between_windows_that_hold_no_words(english, windows, monkeypatch):
    """As in minutes of music: Whisper goes from window to window before there is anything to give."""
    begun = threading.Event()

    def wordless():
        for _ in range(1000):
            english.model.encode(np.zeros((80, 3000), np.float32))
            begun.set()
        yield

    monkeypatch.setattr(english.model, "transcribe", lambda *_, **options: (wordless(), INFORMATION))
    waiting = asyncio.create_task(english.transcribe(silence(1)))
    await asyncio.to_thread(begun.wait)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    idle(english)
    assert len(windows) < 10


async def test_a_word_need_not_wait_for_a_lecture(english, speech):
    ended: list[str] = []

    async def hear(name: str, samples_n: np.ndarray) -> None:
        await english.transcribe(samples_n)
        ended.append(name)

    lecture = asyncio.create_task(hear("lecture", np.concatenate(speech * 3)))
    await asyncio.sleep(0)  # the lecture is first in the queue
    await asyncio.gather(lecture, hear("word", speech[1]))
    assert ended == ["word", "lecture"]


async def test_speech_over_a_telephone_is_heard(english, speech, clips):
    """Mu-law at 8 kHz, as a session decodes it."""
    format = Format(type="audio/pcmu")
    telephone = format.encode(soxr.resample(speech[0], HEARING_RATE, format.hertz))
    heard = await english.transcribe(soxr.resample(format.decode(telephone), format.hertz, HEARING_RATE))
    assert wrong_characters(clips[0][1], heard.text) < 0.1


def test_what_whisper_invents_is_told_from_what_it_hears(english, speech):
    """Without the voice activity detector, which hides most of the sounds that make Whisper invent."""
    english.model.abandoned = threading.Event()
    rng = np.random.default_rng(0)
    time_n = np.arange(8 * HEARING_RATE) / HEARING_RATE
    nothing_said = [silence(8), 0.3 * np.sin(2 * np.pi * 110 * time_n), (rng.random(len(time_n)) < 0.0005) * 1.0]
    invented = []
    for sound_n in nothing_said:
        segments, _ = english.model.transcribe(
            sound_n.astype(np.float32), condition_on_previous_text=False, no_speech_threshold=None
        )
        invented += list(segments)
    assert len(invented) >= 3
    assert all(is_invented(segment) for segment in invented)
    for samples_n in speech:
        segments, _ = english.model.transcribe(samples_n, condition_on_previous_text=False)
        assert not any(is_invented(segment) for segment in segments)


@pytest.mark.parametrize(
    ("no_speech", "log_probability", "compression", "invented"),
    [
        (0.9, -0.9, 1.0, True),
        (0.9, -0.3, 1.0, False),  # sure of its words, music or not
        (0.3, -1.0, 1.0, False),  # unsure, but of words
        (0.1, -0.2, 12.5, True),
        (0.1, -0.2, 5.5, False),
    ],
)
async def test_invented_segments_are_left_out(english, monkeypatch, no_speech, log_probability, compression, invented):
    def found(id: int, start: float, text: str, *sureness: float) -> Found:
        return Found(id, 0, start, start + 1, text, [1, 2], *sureness, None, 0.0)

    segments = [
        found(1, 0.5, " One,", -0.2, 1.0, 0.1),
        found(2, 2.0, " in doubt,", log_probability, compression, no_speech),
        found(3, 4.0, " three. ", -0.2, 1.0, 0.1),
    ]
    monkeypatch.setattr(english.model, "transcribe", lambda *_, **options: (iter(segments), INFORMATION))
    transcript = await english.transcribe(silence(5))
    assert transcript.text == ("One, three." if invented else "One, in doubt, three.")
    assert [segment.id for segment in transcript.segments] == list(range(2 if invented else 3))
    assert {segment.seek for segment in transcript.segments} == {50}  # where their one window begins
