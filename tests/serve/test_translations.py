"""/audio/translations and the written formats, without Ray: the real API around a transcript that is given."""

from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest

from voicechat_serve.api.ingress import build
from voicechat_serve.api.services import Services
from voicechat_serve.api.transcript_formats import as_srt, as_vtt
from voicechat_serve.audio import HEARING_RATE, encode
from voicechat_serve.transcription.transcriber import Segment, Transcript

SEGMENT = Segment(0, 50, 0.5, 2.0, " Good day,", (1, 2), 0.0, -0.2, 1.1, 0.05)
LATER = Segment(1, 50, 3599.9996, 36_000.25, " <b>--> &\n\nSir.", (3,), 0.0, -0.2, 1.1, 0.05)
TRANSCRIPT = Transcript("Good day, Sir.", "de", 3.0, (SEGMENT,))


class Deployment:
    """A handle that gives TRANSCRIPT and keeps what it was asked."""

    def __init__(self):
        self.transcribe = self
        self.asked: tuple = ()

    async def remote(self, samples_n, *options) -> Transcript:
        self.asked = options
        return TRANSCRIPT


@pytest.fixture
def deployment() -> Deployment:
    return Deployment()


@pytest.fixture
async def http(deployment) -> AsyncIterator[httpx.AsyncClient]:
    services = Services(
        models={}, language_models={}, transcription=deployment, transcription_model="whisper-base", synthesis=None
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(build(services)), base_url="http://127.0.0.1") as http:
        yield http


async def test_possible_languages(http, deployment, tone):
    """What newer clients send beside, or in place of, `language`."""

    async def transcribe(**fields) -> httpx.Response:
        form = {"model": "gpt-transcribe"} | fields
        return await http.post("/audio/transcriptions", data=form, files={"file": ("a.wav", tone)})

    for one in ({"languages[]": "German"}, {"languages[]": ["de", "de-CH"]}, {"language": "de", "languages[]": "de"}):
        assert (await transcribe(**one)).status_code == 200
        assert deployment.asked[0] == "de"
    for several in ({"languages[]": ["de", "en"]}, {"language": "de", "languages[]": "en"}, {"languages[]": "xx"}):
        refused = await transcribe(**several)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "languages"
    assert (await transcribe(languages="de")).json()["error"]["code"] == "unsupported_parameter"


async def translate(http, tone, **fields) -> httpx.Response:
    form = {"model": "whisper-1"} | fields
    return await http.post("/audio/translations", data=form, files={"file": ("a.wav", tone)})


@pytest.fixture(scope="module")
def tone() -> bytes:

    return b"".join(encode([np.full(HEARING_RATE, 0.1, np.float32)], "wav", HEARING_RATE))


async def test_translations_in_every_format(http, deployment, tone):
    response = await translate(http, tone, prompt="Greetings", temperature="0.5")
    assert response.json() == {"text": "Good day, Sir."}
    assert deployment.asked == (None, "Greetings", 0.5, "translate")
    verbose = (await translate(http, tone, response_format="verbose_json")).json()
    assert set(verbose) == {"task", "language", "duration", "text", "segments"}
    assert (verbose["task"], verbose["language"], verbose["duration"]) == ("translate", "english", 3.0)
    assert [segment["text"] for segment in verbose["segments"]] == [" Good day,"]
    assert (await translate(http, tone, response_format="text")).text == "Good day, Sir.\n"
    assert (await translate(http, tone, response_format="srt")).text == as_srt(TRANSCRIPT)
    assert (await translate(http, tone, response_format="vtt")).text == as_vtt(TRANSCRIPT)


async def test_the_language_of_a_transcription_is_told_by_its_name(http, tone):
    form = {"model": "whisper-1", "response_format": "verbose_json"}
    response = await http.post("/audio/transcriptions", data=form, files={"file": ("a.wav", tone)})
    assert response.json()["language"] == "german"


def test_cues_hold_whatever_is_said():
    """No text of a cue can end it or begin another; times carry into minutes and hours."""
    transcript = Transcript("", "en", 40_000.0, (SEGMENT, LATER))
    assert as_srt(transcript) == (
        "1\n00:00:00,500 --> 00:00:02,000\nGood day,\n\n2\n01:00:00,000 --> 10:00:00,250\n<b>-> & Sir.\n\n"
    )
    assert as_vtt(transcript) == (
        "WEBVTT\n\n00:00:00.500 --> 00:00:02.000\nGood day,\n\n"
        "01:00:00.000 --> 10:00:00.250\n&lt;b&gt;-&gt; &amp; Sir.\n\n"
    )
    assert (as_srt(Transcript("", "en", 1.0)), as_vtt(Transcript("", "en", 1.0))) == ("", "WEBVTT\n\n")
