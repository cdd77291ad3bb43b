"""/audio/speech without Ray: its events, and an end of the work when nobody listens."""

import asyncio
import base64
import json
import subprocess
import sys

import httpx
import numpy as np
import pytest

from voicechat_serve.api.ingress import build
from voicechat_serve.api.services import Services
from voicechat_serve.audio import SPEECH_FORMATS
from voicechat_serve.synthesis.synthesizer import Synthesis
from voicechat_serve.synthesis.voices import HEART, SPEECH_RATE

BODY = {"model": "tts-1", "voice": {"id": "nova"}, "input": "One. Two. Three.", "response_format": "pcm"}
HEADERS = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]


class Sentences:
    """A handle of the synthesis and its stream in one: a second of tone for each sentence, on demand."""

    def __init__(self, count: int, error: Exception | None = None):
        self.count, self.error = count, error
        self.spoken = 0
        self.cancelled = asyncio.Event()

    def options(self, stream: bool) -> "Sentences":
        self.speak = self
        return self

    def remote(self, text: str, speed: float, voice: str) -> "Sentences":
        self.text = text
        return self

    def __aiter__(self) -> "Sentences":
        return self

    async def __anext__(self) -> np.ndarray:
        await asyncio.sleep(0)
        if self.spoken == self.count:
            if self.error:
                raise self.error
            raise StopAsyncIteration
        self.spoken += 1
        return np.full(SPEECH_RATE, 0.25, np.float32)

    def cancel(self) -> None:
        self.cancelled.set()


def app(sentences: Sentences):
    return build(
        Services(
            models={},
            language_models={},
            transcription=None,
            transcription_model="whisper-base",
            synthesis=sentences,
        )
    )


async def post(sentences: Sentences, body: dict) -> httpx.Response:
    transport = httpx.ASGITransport(app(sentences))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        return await http.post("/audio/speech", json=body)


def events_of(response: httpx.Response) -> list[dict]:
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, rest = response.text.split("\n\n")
    assert rest == ""
    return [json.loads(event.removeprefix("data: ")) for event in events]


@pytest.mark.parametrize("form", SPEECH_FORMATS)
async def test_events_hold_the_same_bytes(form):
    whole = await post(Sentences(3), BODY | {"response_format": form})
    response = await post(Sentences(3), BODY | {"response_format": form, "stream_format": "sse"})
    *deltas, done = events_of(response)
    assert all(list(delta) == ["type", "audio"] for delta in deltas)
    assert {delta["type"] for delta in deltas} == {"speech.audio.delta"}
    assert len(deltas) >= 3
    assert b"".join(base64.b64decode(delta["audio"], validate=True) for delta in deltas) == whole.content
    assert done == {
        "type": "speech.audio.done",
        "usage": {"input_tokens": 16, "output_tokens": 150, "total_tokens": 166},
    }
    assert all(type(count) is int for count in done["usage"].values())


async def test_a_failure_in_mid_speech_is_an_event():
    response = await post(Sentences(1, RuntimeError("no voice")), BODY | {"stream_format": "sse"})
    delta, failure = events_of(response)
    assert delta["type"] == "speech.audio.delta"
    assert list(failure) == ["error"]
    assert list(failure["error"]) == ["message", "type", "param", "code"]
    assert "no voice" not in response.text


@pytest.mark.parametrize("stream_format", ["audio", "sse"])
@pytest.mark.parametrize("form", SPEECH_FORMATS)
@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("\u4f60\u597d", "'\u4f60\u597d'"),
        (
            "Say \u4f60\u597d or \u041f\u0440\u0438\u0432\u0435\u0442.",
            "'\u4f60\u597d', '\u041f\u0440\u0438\u0432\u0435\u0442'",
        ),
        ("...", "'...'"),
        (" \n", "' \\n'"),
        ("\u200b\u0300", "no word to speak"),
    ],
)
async def test_what_the_voice_cannot_speak_is_refused_by_name(text, quoted, form, stream_format):
    sentences = Sentences(1)
    response = await post(sentences, BODY | {"input": text, "response_format": form, "stream_format": stream_format})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "input", "invalid_value")
    assert quoted in error["message"]
    assert sentences.spoken == 0


@pytest.mark.parametrize("stream_format", ["audio", "sse"])
async def test_a_voice_that_makes_no_sound_is_no_success(stream_format):
    response = await post(Sentences(0), BODY | {"stream_format": stream_format})
    assert response.status_code == 400
    assert "no word to speak: 'One. Two. Three.'" in response.json()["error"]["message"]


async def test_the_voice_is_given_what_a_person_reads_aloud():
    sentences = Sentences(1)
    response = await post(sentences, BODY | {"input": "## Results\n\n- **5 km**\n- [here](https://x.y)"})
    assert response.status_code == 200
    assert sentences.text == "Results.\n5 kilometers.\nhere."


@pytest.mark.parametrize("stream_format", ["audio", "sse"])
async def test_a_listener_who_leaves_cancels_the_speech(stream_format):
    sentences = Sentences(1_000_000)
    heard = asyncio.Event()
    request = [{"type": "http.request", "body": json.dumps(BODY | {"stream_format": stream_format}).encode()}]

    async def receive() -> dict:
        if request:
            return request.pop()
        await heard.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        if message.get("body"):
            heard.set()
        await asyncio.sleep(0)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "method": "POST",
        "path": "/audio/speech",
        "raw_path": b"/audio/speech",
        "query_string": b"",
        "headers": HEADERS,
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
    }
    await app(sentences)(scope, receive, send)
    await asyncio.wait_for(sentences.cancelled.wait(), 10)
    assert sentences.spoken < 100


@pytest.fixture(scope="module")
def synthesis() -> Synthesis:
    return Synthesis()


async def test_leaving_stops_the_voice_within_a_sentence(synthesis, monkeypatch):
    spoken: list[int] = []
    model = synthesis.speakers[HEART].model
    from_ids = model.from_ids

    def counted(ids, *arguments):
        spoken.append(len(ids))
        return from_ids(ids, *arguments)

    monkeypatch.setattr(model, "from_ids", counted)
    text = " ".join(f"This is sentence number {number}." for number in range(40))

    sentences = synthesis.speak(text)
    await anext(sentences)
    following = asyncio.create_task(anext(sentences))
    while len(spoken) < 2:  # the next one is being made
        await asyncio.sleep(0.001)
    following.cancel()
    await asyncio.wait([following])
    await sentences.aclose()
    assert len(spoken) == 2
    assert len([samples_n async for samples_n in synthesis.speak(text)]) == 40  # and the voice goes on


def test_any_text_is_spoken_in_small_parts(synthesis, monkeypatch, hard_to_say):
    """The real sounds of each text; the model that speaks them is left out, for time's sake."""
    asked = []
    heart = synthesis.speakers[HEART]
    monkeypatch.setattr(heart.model, "from_phonemes", lambda phonemes, speed: asked.append(phonemes) or phonemes)
    parts = list(heart.speak(hard_to_say.text, 1.0))
    assert parts == asked
    assert all(len(phonemes) <= 400 for phonemes in asked)
    assert bool(asked) is (hard_to_say.name not in ("nothing in English", "slashes"))


def test_text_without_a_full_stop_is_spoken_within_bounded_memory():
    """Spoken at once it took 1.6 GB; hibari itself splits it only at punctuation."""
    code = """
import resource
from voicechat_serve.synthesis.voices.hibari import HibariSpeaker
heart = HibariSpeaker()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
seconds = sum(len(samples_n) for samples_n in heart.speak("word " * 819, 1.0)) / 24_000
print(seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    seconds, megabytes = map(float, told[-2:])
    assert seconds > 100
    assert megabytes < 600
