"""Long recordings in batches, as on a GPU, here on the CPU: the words, times and language of window after window."""

import asyncio
import re
import threading
from types import SimpleNamespace

import jiwer
import numpy as np
import pytest
from faster_whisper import BatchedInferencePipeline
from hypothesis import given
from hypothesis import strategies as st

from voicechat_platform.assets import locate
from voicechat_serve.audio import HEARING_RATE, decode
from voicechat_serve.transcription.batched import BatchedWhisper, finished, has_failed, joined
from voicechat_serve.transcription.transcriber import FRAME_RATE, Segment, Transcription

PAUSE_S = 2.0


def plain(text: str) -> str:
    return re.sub(r"[^a-z ]", "", text.lower().replace("-", " "))


@pytest.fixture(scope="module")
def english() -> Transcription:
    return Transcription(locate("whisper-tiny.en"))


@pytest.fixture
def batched(english, monkeypatch) -> Transcription:
    monkeypatch.setattr(english, "batched", BatchedWhisper(english.model))
    return english


@pytest.fixture(scope="module")
def lecture(clips) -> np.ndarray:
    """More than two windows, with pauses."""
    pause_n = np.zeros(int(PAUSE_S * HEARING_RATE), np.float32)
    parts = [part for clip, _ in clips for part in (decode(clip.read_bytes()), pause_n)]
    lecture_n = np.concatenate(parts * 2)
    assert len(lecture_n) > 65 * HEARING_RATE
    return lecture_n


def said(clips) -> str:
    return " ".join(words for _, words in clips * 2).replace("mister", "mr")


async def test_batches_hear_what_windows_hear(english, lecture, clips, monkeypatch):
    one_by_one = await english.transcribe(lecture, with_words=True)
    monkeypatch.setattr(english, "batched", BatchedWhisper(english.model))
    together = await english.transcribe(lecture, with_words=True)
    assert jiwer.wer(said(clips), plain(together.text)) < 0.05  # no words are lost where Whisper breaks a window off
    assert jiwer.wer(plain(one_by_one.text), plain(together.text)) < 0.05
    assert (together.language, together.seconds) == (one_by_one.language, one_by_one.seconds)
    words = [word for segment in together.segments for word in segment.words]
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert times[-1] <= together.seconds
    for mark in ("unless", "amiable"):
        theirs, ours = (
            [word.start for segment in heard.segments for word in segment.words if plain(word.text) == mark]
            for heard in (one_by_one, together)
        )
        assert ours == pytest.approx(theirs, abs=0.6)
    assert "".join(segment.text for segment in together.segments).strip() == together.text
    assert [segment.id for segment in together.segments] == list(range(len(together.segments)))
    assert all(segment.seek <= round(segment.start * FRAME_RATE) for segment in together.segments)


FIRST = 1000
"""The timestamp of 0 s; smaller tokens are words."""


@pytest.mark.parametrize(
    ("tokens", "end_s", "kept"),
    [
        ([1000, 1, 2, 1050], 0.0, 4),  # one phrase
        ([1000, 1, 1050, 1050, 2, 1100], 0.0, 6),  # two
        ([1000, 1, 1050, 1050, 2, 1100, 1100], 2.0, 6),  # broken off: the last is to begin another
        ([1000, 1, 1050, 1050, 2], 1.0, 3),  # broken off within a phrase
        ([1, 2], 0.0, 2),
        ([], 0.0, 0),
    ],
)
def test_where_a_window_breaks_off(tokens, end_s, kept):
    assert finished(tokens, FIRST) == (end_s, tokens[:kept])


@given(st.lists(st.integers(0, 1500), max_size=12))
def test_what_is_kept_ends_where_it_is_said_to(tokens):
    end_s, kept = finished(tokens, FIRST)
    assert kept == tokens[: len(kept)]
    assert end_s == 0 or kept[-1] == FIRST + round(50 * end_s)
    tail = {"tokens": [FIRST, 7, FIRST + 50], "avg_logprob": -0.5}
    whole = joined({"tokens": kept, "avg_logprob": -0.2, "no_speech_prob": 0.1}, tail, end_s, FIRST)
    assert whole["tokens"][len(kept) :] == [FIRST + round(50 * end_s), 7, FIRST + round(50 * end_s) + 50]
    assert whole["avg_logprob"] == -0.5


async def test_short_recordings_keep_their_way(batched, lecture, monkeypatch):
    monkeypatch.setattr(batched.batched, "transcribe", lambda *_, **options: pytest.fail("batched"))
    assert (await batched.transcribe(lecture[: 5 * HEARING_RATE])).text


async def test_a_long_silence_has_no_words(batched):
    assert (await batched.transcribe(np.zeros(70 * HEARING_RATE, np.float32))).text == ""


async def test_a_listener_who_leaves_ends_the_work(batched, lecture, monkeypatch):
    begun, encode = threading.Event(), batched.model.encode

    def noted(features):
        begun.set()
        return encode(features)

    monkeypatch.setattr(batched.model, "encode", noted)
    monkeypatch.setattr(batched.batched, "_batched_segments_generator", endless(batched.batched))
    waiting = asyncio.create_task(batched.transcribe(lecture))
    await asyncio.to_thread(begun.wait)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    batched.worker.submit(lambda: None).result(timeout=60)


def endless(pipeline: BatchedWhisper):
    """As in hours of music: batch after batch without a word."""

    def segments(features, tokenizer, chunks_metadata, batch_size, options, log_progress):
        while True:
            pipeline.model.encode(features[:1])
        yield

    return segments


@pytest.mark.nightly
async def test_a_window_that_failed_is_decoded_again(batched, lecture, clips, monkeypatch):
    """A loop in one window of the batch, as tiny models make them."""
    pipeline, decode_again, again = batched.batched, batched.batched.decode_again, []
    plain_batch = BatchedInferencePipeline.generate_segment_batched

    def with_a_loop(self, features, tokenizer, options):
        encoded, outputs = plain_batch(self, features, tokenizer, options)
        if not again:  # the first batch; the others are rests of its windows
            again.append(None)
            outputs[0] = outputs[0] | {"tokens": tokenizer.encode(" Thank you." * 60)}
        return encoded, outputs

    def noted(*arguments):
        again.append(decode_again(*arguments))
        return again[-1]

    monkeypatch.setattr(BatchedInferencePipeline, "generate_segment_batched", with_a_loop)
    monkeypatch.setattr(pipeline, "decode_again", noted)
    repaired = await batched.transcribe(lecture)
    assert len(again) == 2
    assert "Thank you" not in repaired.text
    assert jiwer.wer(said(clips), plain(repaired.text)) < 0.3
    again.clear()
    looped = await batched.transcribe(lecture, temperature=0.2)  # the client's: nothing is tried again
    assert again == [None]
    assert "Thank you. Thank you" not in looped.text  # left out as a loop
    assert all(isinstance(segment, Segment) for segment in looped.segments)


@pytest.mark.parametrize(
    ("avg_logprob", "no_speech_prob", "text", "failed"),
    [
        (-0.2, 0.1, "It was late.", False),
        (-1.2, 0.1, "It was late.", True),
        (-1.2, 0.9, "It was late.", False),  # silence
        (-0.2, 0.1, "late " * 60, True),
        (-0.2, 0.9, "late " * 60, True),
    ],
)
def test_what_has_failed(avg_logprob, no_speech_prob, text, failed):
    options = SimpleNamespace(log_prob_threshold=-1.0, no_speech_threshold=0.6, compression_ratio_threshold=2.4)
    output = {"avg_logprob": avg_logprob, "no_speech_prob": no_speech_prob, "tokens": []}
    assert has_failed(output, SimpleNamespace(decode=lambda tokens: text), options) is failed
