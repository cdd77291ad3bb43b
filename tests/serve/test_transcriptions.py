"""Transcriptions and translations as clients meet them: the real server, the real openai client, and the raw JSON."""

import asyncio
import re

import httpx
import jiwer
import numpy as np
import openai
import pytest
from openai.types.audio import TranscriptionTextDeltaEvent, TranscriptionTextDoneEvent, TranscriptionVerbose

from voicechat_serve.audio import HEARING_RATE, decode, encode

TRANSCRIBE = "/v1/audio/transcriptions"


def plain(text: str) -> str:
    return re.sub(r"[^a-z ]", "", text.lower().replace("-", " "))


@pytest.fixture(scope="module")
def recording(clips) -> tuple[bytes, str]:
    """All clips in one file, and what is said in them."""
    parts = [decode(clip.read_bytes()) for clip, _ in clips]
    return b"".join(encode(parts, "flac", HEARING_RATE)), " ".join(text for _, text in clips)


def ask(http, recording, **fields) -> httpx.Response:
    response = http.post(TRANSCRIBE, data={"model": "whisper-1"} | fields, files={"file": recording[0]})
    assert response.status_code == 200, response.text
    return response


@pytest.fixture(scope="module")
def verbose(http, recording) -> dict:
    granularities = {"timestamp_granularities[]": ["segment", "word"]}
    return ask(http, recording, response_format="verbose_json", **granularities).json()


def test_verbose_json_has_every_field_with_its_type(verbose, recording):
    assert set(verbose) == {"task", "language", "duration", "text", "segments", "words", "usage"}
    assert (verbose["task"], verbose["language"]) == ("transcribe", "english")
    assert type(verbose["duration"]) is float
    assert verbose["usage"] == {"type": "duration", "seconds": verbose["duration"]}
    assert jiwer.wer(plain(recording[1]), plain(verbose["text"])) <= 0.15
    integers, floats = {"id", "seek"}, {"start", "end", "temperature", "avg_logprob", "compression_ratio"}
    for segment in verbose["segments"]:
        assert set(segment) == integers | floats | {"no_speech_prob", "text", "tokens"}
        assert all(type(segment[name]) is int for name in integers)
        assert all(type(segment[name]) is float for name in floats | {"no_speech_prob"})
        assert type(segment["text"]) is str
        assert {type(token) for token in segment["tokens"]} == {int}
        assert 0 <= segment["start"] < segment["end"] <= verbose["duration"]
    assert len(verbose["segments"]) > 2
    assert "".join(segment["text"] for segment in verbose["segments"]).strip() == verbose["text"]
    for word in verbose["words"]:
        assert list(word) == ["word", "start", "end"]
        assert [type(value) for value in word.values()] == [str, float, float]
    assert "".join(word["word"] for word in verbose["words"]) == verbose["text"].replace(" ", "")
    TranscriptionVerbose.model_validate(verbose, strict=True)


@pytest.fixture(scope="module")
def default(client, recording) -> TranscriptionVerbose:
    """verbose_json of who asks for no granularity."""
    return client.audio.transcriptions.create(
        model="whisper-1", file=("a.flac", recording[0]), response_format="verbose_json"
    )


@pytest.fixture(scope="module")
def whole(http, recording) -> dict:
    return ask(http, recording).json()


def test_granularities(client, recording, default):
    words = client.audio.transcriptions.create(
        model="whisper-1",
        file=("a.flac", recording[0]),
        response_format="verbose_json",
        timestamp_granularities=["word"],
    )
    assert default.segments
    assert default.words is None
    assert words.segments is None
    assert words.words
    assert words.words[0].end <= words.duration


def test_json_and_text(http, recording, whole):
    assert set(whole) == {"text", "usage"}
    assert type(whole["usage"]["seconds"]) is float
    text = ask(http, recording, response_format="text")
    assert text.headers["content-type"].startswith("text/plain")
    assert text.text == whole["text"] + "\n"


CUE = r"(\d\d:\d\d:\d\d{point}\d{{3}}) --> (\d\d:\d\d:\d\d{point}\d{{3}})\n(.+)\n\n"


def seconds(clock: str) -> float:
    hours, minutes, rest = clock.replace(",", ".").split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_subtitles(client, recording, default, form):
    """Read back, they are the segments of verbose_json."""
    subtitles = client.audio.transcriptions.create(
        model="whisper-1", file=("a.flac", recording[0]), response_format=form
    )
    assert isinstance(subtitles, str)
    pattern = {"srt": r"(\d+)\n" + CUE.format(point=","), "vtt": "()" + CUE.format(point=r"\.")}[form]
    heading = "WEBVTT\n\n" if form == "vtt" else ""
    assert re.fullmatch(f"{heading}({pattern})+", subtitles)
    cues = re.findall(pattern, subtitles)
    assert [cue[0] for cue in cues] == [str(i + 1) if form == "srt" else "" for i in range(len(default.segments))]
    for (_, start, end, text), segment in zip(cues, default.segments, strict=True):
        assert (seconds(start), seconds(end)) == pytest.approx((segment.start, segment.end), abs=0.001)
        assert text == segment.text.strip()


def test_stream(client, recording, whole):
    stream = client.audio.transcriptions.create(model="whisper-1", file=("a.flac", recording[0]), stream=True)
    *deltas, done = list(stream)
    assert len(deltas) > 2
    assert all(isinstance(delta, TranscriptionTextDeltaEvent) for delta in deltas)
    assert isinstance(done, TranscriptionTextDoneEvent)
    assert "".join(delta.delta for delta in deltas) == done.text == whole["text"]
    raw = done.usage.to_dict()
    assert raw["type"] == "tokens"
    assert raw["total_tokens"] == raw["input_tokens"] + raw["output_tokens"]
    assert raw["input_tokens"] == pytest.approx(50 * whole["usage"]["seconds"], abs=1)
    assert raw["output_tokens"] > len(done.text.split())
    assert all(type(raw[name]) is int for name in ("input_tokens", "output_tokens", "total_tokens"))


def test_a_stream_of_silence_and_one_that_cannot_begin(client, http):
    silence = b"".join(encode([np.zeros(HEARING_RATE, np.float32)], "wav", HEARING_RATE))
    (done,) = client.audio.transcriptions.create(model="whisper-1", file=("a.wav", silence), stream=True)
    assert (done.type, done.text) == ("transcript.text.done", "")
    with pytest.raises(openai.BadRequestError, match="only English"):
        client.audio.transcriptions.create(model="whisper-1", file=("a.wav", silence), stream=True, language="de")
    with pytest.raises(openai.BadRequestError) as refused:
        client.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"no sound"), stream=True)
    assert refused.value.code == "invalid_audio"


def test_what_is_refused(client, recording):
    file = ("a.flac", recording[0])
    create = client.audio.transcriptions.create
    with pytest.raises(openai.BadRequestError) as refused:
        create(model="whisper-1", file=file, timestamp_granularities=["word"])
    assert refused.value.param == "timestamp_granularities"
    with pytest.raises(openai.BadRequestError) as refused:
        create(model="gpt-4o-transcribe", file=file, include=["logprobs"])
    assert refused.value.param == "include"
    with pytest.raises(openai.BadRequestError, match="only English"):
        create(model="whisper-1", file=file, language="fr")
    with pytest.raises(openai.BadRequestError, match="knows only English") as refused:
        client.audio.translations.create(model="whisper-1", file=file)
    assert (refused.value.param, refused.value.code) == ("model", "unsupported_value")


TRANSCRIPTION = "ServeReplica:api:transcription"


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_leaving_ends_the_work(service, clips, stream):
    """Twelve minutes of speech are two dozen windows of a second or two of computing each."""
    parts = [decode(clip.read_bytes()) for clip, _ in clips]
    times = 1 + 12 * 60 * HEARING_RATE // sum(map(len, parts))
    lecture = b"".join(encode(parts * times, "flac", HEARING_RATE))
    form = {"model": "whisper-1", "stream": str(stream).lower()}
    async with httpx.AsyncClient(base_url=service.url, timeout=60) as http:
        if stream:
            async with http.stream("POST", TRANSCRIBE, data=form, files={"file": lecture}) as response:
                assert response.status_code == 200
                await anext(response.aiter_lines())  # a window is heard
        else:
            answering = asyncio.create_task(http.post(TRANSCRIBE, data=form, files={"file": lecture}))
            await service.at_work(TRANSCRIPTION, answering)
            answering.cancel()
            await asyncio.wait([answering])
    assert await service.cpu_seconds_until_idle(TRANSCRIPTION) < 8
