"""Uploads and requests that mean harm, against the real API without Ray: each is a 4xx in OpenAI's form, in bounded
memory."""

import contextlib
import io
import json
import pickle
import struct
import subprocess
import sys
import wave
from collections.abc import AsyncIterator
from fractions import Fraction

import av
import httpx
import numpy as np
import pytest

from voicechat_serve.api.ingress import build
from voicechat_serve.api.services import Services
from voicechat_serve.audio import HEARING_RATE, AudioError, DecodingLimits, decode
from voicechat_serve.transcription.transcriber import Transcript

TRANSCRIBE = "/audio/transcriptions"
TRANSLATE = "/audio/translations"
SPEECH = "/audio/speech"


class HearingNothing:
    """A transcription deployment's handle; counts what reaches it."""

    def __init__(self):
        self.heard = []
        self.transcribe = self

    async def remote(self, samples_n, *options):
        self.heard.append((len(samples_n), *options))
        return Transcript("", "en", len(samples_n) / HEARING_RATE)


class Unreachable:
    """A deployment's handle that no request here may come to."""

    def options(self, **options):
        raise AssertionError("reached the deployment")


@pytest.fixture
def transcription() -> HearingNothing:
    return HearingNothing()


@pytest.fixture
async def http(transcription) -> AsyncIterator[httpx.AsyncClient]:
    services = Services(
        models={},
        language_models={},
        transcription=transcription,
        transcription_model="whisper-base",
        synthesis=Unreachable(),
    )
    transport = httpx.ASGITransport(build(services), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        yield http


def error_of(response: httpx.Response, status: int = 400) -> dict:
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body) == ["error"]
    error = body["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["type"] == "invalid_request_error"
    assert isinstance(error["message"], str)
    assert error["message"]
    return error


def wav(samples: int = 1600, rate: int = HEARING_RATE, channels: int = 1) -> bytearray:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((channels, 2, rate, 0, "NONE", ""))
        writer.writeframes(bytes(2 * samples * channels))
    return bytearray(file.getvalue())


def contained(form: str, codec: str, seconds: float = 1.0) -> bytes:
    """Silence in any container."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=48_000, layout="mono")
        for _ in range(int(seconds * 10)):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), format="s16", layout="mono")
            frame.sample_rate = 48_000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


CONTAINED = {
    "wav": ("wav", "pcm_s16le"),
    "mp3": ("mp3", "libmp3lame"),
    "ogg": ("ogg", "libopus"),
    "flac": ("flac", "flac"),
    "aac": ("adts", "aac"),
    "mp4": ("mp4", "aac"),
    "webm": ("webm", "libopus"),
    "aiff": ("aiff", "pcm_s16be"),
}


@pytest.mark.parametrize("name", CONTAINED)
def test_every_truncation_of_every_container(name):
    whole = contained(*CONTAINED[name], seconds=0.3)
    longest = len(decode(whole)) + 1600  # a codec's padding, which only the end of the file cuts off
    for length in [*range(min(len(whole), 600)), *range(600, len(whole), 97)]:
        with contextlib.suppress(AudioError):
            assert 0 < len(decode(whole[:length])) <= longest


@pytest.mark.parametrize("name", CONTAINED)
def test_noise_in_every_container(name):
    """Bytes changed at random: an error or a sound, and nothing else."""
    whole = contained(*CONTAINED[name], seconds=0.3)
    rng = np.random.default_rng(0)
    for _ in range(150):
        broken = bytearray(whole)
        for position in rng.integers(0, min(len(broken), 2000), 6):
            broken[position] = rng.integers(256)
        with contextlib.suppress(AudioError):
            assert len(decode(bytes(broken)))


def mp4_claiming(samples: int) -> bytes:
    """A second of sound whose tables of samples say that there are so many."""
    data = bytearray(contained("mp4", "aac"))

    def overwrite(table: bytes, *offsets: int) -> None:
        for offset in offsets:
            struct.pack_into(">I", data, data.index(table) + 4 + offset, samples)

    overwrite(b"stsz", 8)
    overwrite(b"stsc", 12)  # of the first chunk
    overwrite(b"stts", 8)  # of the first entry
    struct.pack_into(">I", data, data.index(b"stsz") + 8, 4)  # all samples of 4 bytes: the table needs no entries
    return bytes(data)


def wav_claiming(size: int) -> bytes:
    data = wav()
    struct.pack_into("<I", data, 4, size)
    struct.pack_into("<I", data, 40, size)
    return bytes(data)


def wav_at(rate: int) -> bytes:
    data = wav(200_000)
    struct.pack_into("<I", data, 24, rate)
    return bytes(data)


def with_a_picture() -> bytes:
    """A video stream beside the sound, which only FFmpeg's wish to describe the file would decode."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        video = container.add_stream("mjpeg", rate=1, width=512, height=512, pix_fmt="yuvj420p")
        sound = container.add_stream("pcm_s16le", rate=48_000, layout="mono")
        container.mux(video.encode(av.VideoFrame(512, 512, "yuvj420p")))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 48_000
        container.mux(sound.encode(frame))
    return file.getvalue()


def hours_of_silence(hours: int) -> bytes:
    """Opus, three bytes for every 20 ms: the same packets over and over."""
    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=48_000, layout="mono")
        stream.bit_rate = 6_000
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 48_000
        packet = bytes(stream.encode(frame)[-1])
        for position in range(hours * 3600 * 50):
            again = av.Packet(packet)
            again.stream = stream
            again.pts = again.dts = position * 960
            again.duration = 960
            again.time_base = Fraction(1, 48_000)
            container.mux(again)
    return file.getvalue()


@pytest.fixture(scope="module")
def bombs() -> dict[str, bytes]:
    return {
        "hours of silence": hours_of_silence(3),
        "a gigabyte declared": wav_claiming(2**30),
        "a rate of 1 Hz": wav_at(1),
        "a rate of 2 GHz": wav_at(2**31 - 1),
        "a rate of 4 GHz": wav_at(2**32 - 1),
        "a rate of 0": wav_at(0),
        "60 million samples in a kilobyte": mp4_claiming(60_000_000),
        "4 billion samples in a kilobyte": mp4_claiming(2**32 - 1),
        "a million samples in a kilobyte": mp4_claiming(1_000_000),
        "a picture": with_a_picture(),
        "255 channels": bytes(wav(2000, channels=255)),
    }


DECODE_EACH = """
import json, pickle, resource, sys
from voicechat_serve.audio import AudioError, DecodingLimits, decode
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
for name, upload in pickle.load(sys.stdin.buffer).items():
    before = peak()
    try:
        told = len(decode(upload))
    except AudioError as error:
        told = str(error)
    print(json.dumps([name, told, (peak() - before) / 2**20]), flush=True)
"""


def test_bombs_stay_small(bombs):
    """Decoded in a process of their own, whose memory is looked at after each."""
    assert all(len(upload) < DecodingLimits().upload_bytes for upload in bombs.values())
    ran = subprocess.run(
        [sys.executable, "-c", DECODE_EACH], input=pickle.dumps(bombs), capture_output=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr.decode()
    found = {name: (told, grown) for name, told, grown in map(json.loads, ran.stdout.splitlines())}
    assert list(found) == list(bombs)
    assert found["hours of silence"][0] == "the audio is longer than 30 minutes"
    for name in ("a rate of 1 Hz", "a rate of 2 GHz"):
        assert "samples per second; audio has" in found[name][0]
    assert found["a gigabyte declared"][0] == 1600  # the sound that is there
    for name, (_, grown) in found.items():
        # Half an hour at 16 kHz is 110 MB, and the buffer that it grows in an eighth more.
        assert grown < (200 if name == "hours of silence" else 100), (name, grown)


async def test_bombs_are_refused(http, transcription, bombs):
    for name, upload in bombs.items():
        if name in ("a gigabyte declared", "a picture"):
            continue  # these hold a sound that can be heard
        error = error_of(await http.post(TRANSCRIBE, data={"model": "whisper-1"}, files={"file": ("a.ogg", upload)}))
        assert (error["param"], error["code"]) == ("file", "invalid_audio"), name
    assert transcription.heard == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": "../../etc/passwd"}, "model"),
        ({"model": "whisper-1\0"}, "model"),
        ({"response_format": "docx"}, "response_format"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"response_format": "json\0"}, "response_format"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": "nan"}, "temperature"),
        ({"temperature": "-1"}, "temperature"),
        ({"temperature": "1e999"}, "temperature"),
        ({"prompt": "p" * 4097}, "prompt"),
        ({"stream": "maybe"}, "stream"),
        ({"stream": "true", "response_format": "srt"}, "response_format"),
        ({"include[]": "logprobs"}, "include"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities"),
        ({"timestamp_granularities[]": "segment", "response_format": "srt"}, "timestamp_granularities"),
        ({"timestamp_granularities[]": ["word", "phoneme"], "response_format": "verbose_json"}, None),
    ],
)
async def test_wrong_fields_of_a_transcription(http, transcription, fields, param):
    form = {"model": "whisper-1"} | fields
    response = await http.post(TRANSCRIBE, data=form, files={"file": ("clip.wav", bytes(wav()))})
    error = error_of(response, 404 if "model" in fields else 400)
    assert error["param"] == (param or "timestamp_granularities[].1")
    assert transcription.heard == []


@pytest.mark.parametrize("path", [TRANSCRIBE, TRANSLATE])
@pytest.mark.parametrize("name", ["model", "prompt", "response_format", "temperature"])
async def test_files_in_place_of_texts(http, transcription, path, name):
    files = [("file", ("clip.wav", bytes(wav()))), (name, ("name.txt", b"whisper-1"))]
    form = {"model": "whisper-1"} if name != "model" else {}
    assert error_of(await http.post(path, data=form, files=files))["param"] == name
    assert transcription.heard == []


@pytest.mark.parametrize("path", [TRANSCRIBE, TRANSLATE])
async def test_a_text_in_place_of_the_file_and_no_file(http, path):
    for form in ({"model": "whisper-1", "file": "/etc/passwd"}, {"model": "whisper-1"}):
        response = await http.post(path, data=form, files={"user": (None, "a form, then")})
        assert error_of(response)["param"] == "file"
    assert error_of(await http.post(path, files={"file": b"x"}))["param"] == "model"
    no_form = error_of(await http.post(path, json={"model": "whisper-1", "file": "/etc/passwd"}))
    assert "send Content-Type: multipart/form-data" in no_form["message"]


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/passwd", "../../../../etc/passwd", "file:///etc/passwd", "http://127.0.0.1:1/a.wav", "concat:a|b"),
        *("a\0.wav", "a" * 2_000, "%00", '".wav', "\\\\host\\share\\a.wav", "|id", "é😀.wav"),
    ],
)
async def test_a_files_name_means_nothing(http, transcription, name):
    form, sound = {"model": "whisper-1"}, bytes(wav())
    response = await http.post(TRANSCRIBE, data=form, files={"file": (name, sound)})
    assert response.json() == {"text": "", "usage": {"type": "duration", "seconds": 0.1}}
    assert error_of(await http.post(TRANSCRIBE, data=form, files={"file": (name, b"")}))["param"] == "file"
    assert len(transcription.heard) == 1


async def test_nul_bytes_reach_the_model_as_they_are(http, transcription):
    form = {"model": "whisper-1", "prompt": "a\0b"}
    assert (await http.post(TRANSCRIBE, data=form, files={"file": bytes(wav())})).status_code == 200
    assert transcription.heard == [(1600, None, "a\0b", 0.0, "transcribe", False)]


def multipart(prompt: bytes) -> bytes:
    parts = [(b'name="model"', b"whisper-1"), (b'name="prompt"', prompt), (b'name="file"; filename="a"', bytes(wav()))]
    lines = [b"--b\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + body + b"\r\n" for head, body in parts]
    return b"".join(lines) + b"--b--\r\n"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", multipart(b"p")),
        ("multipart/form-data; boundary=", multipart(b"p")),
        ("multipart/form-data; boundary=c", multipart(b"p")),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", multipart(b"p")[:100]),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\n\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", b"\0" * 1000),
        ("multipart/form-data; boundary=" + "b" * 5000, multipart(b"p")),
        ("multipart/form-data; boundary=b; charset=unicode_escape", multipart(b"\\ud800")),
        ("multipart/form-data; boundary=b; charset=utf-7", multipart(b"+2AA-")),
        ("multipart/form-data; boundary=b; charset=punycode", multipart(b"\xff-\xff")),
        ("multipart/form-data; boundary=b; charset=idna", multipart(b"xn--\xff")),
        ("multipart/form-data; boundary=b; charset=zlib", multipart(b"p")),
        ("multipart/form-data; boundary=b; charset=utf-16", multipart(b"odd")),
        ("application/x-www-form-urlencoded", b"model=whisper-1&file=%00"),
        ("application/json", b'{"model": "whisper-1"}'),
        ("text/plain", b"whisper-1"),
        ("", b""),
    ],
)
async def test_bodies_that_are_no_form(http, content_type, body):
    for path in (TRANSCRIBE, TRANSLATE):
        response = await http.post(path, content=body, headers={"content-type": content_type})
        if response.status_code != 200:  # a strange charset may still say something
            error_of(response)
        else:
            assert "charset" in content_type


@pytest.mark.parametrize("declared", [str(2**30), "9" * 30, "-1", "1e3", ""])
async def test_declared_lengths(http, declared):
    headers = {"content-type": "multipart/form-data; boundary=b", "content-length": declared}
    response = await http.post(TRANSCRIBE, content=multipart(b"p"), headers=headers)
    error_of(response, 413 if declared.startswith(("1073", "999")) else 400)


async def test_a_body_that_never_says_its_length(http):
    async def endless():
        yield multipart(b"p").removesuffix(b"\r\n--b--\r\n")
        while True:
            yield bytes(2**20)

    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert error_of(await http.post(TRANSCRIBE, content=endless(), headers=headers), 413)["code"] == "too_large"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": "a" * 5000}, "input"),
        ({"input": "\ud800"}, "input"),
        ({"input": "\0"}, "input"),
        ({"input": None}, "input"),
        ({"input": ["Hello."]}, "input"),
        ({"input": {"text": "Hello."}}, "input"),
        ({"model": 5}, "model"),
        ({"model": "\udfff"}, "model"),
        ({"voice": 5}, "voice"),
        ({"voice": {"id": 5}}, "voice"),
        ({"voice": {"name": "alloy"}}, "voice"),
        ({"voice": "\ud800"}, "voice"),
        ({"voice": "/etc/passwd"}, "voice"),
        ({"voice": {"id": "http://127.0.0.1/voice"}}, "voice"),
        ({"response_format": "exe"}, "response_format"),
        ({"response_format": ["mp3"]}, "response_format"),
        ({"speed": "1"}, "speed"),
        ({"speed": 0}, "speed"),
        ({"speed": 0.2}, "speed"),
        ({"speed": 4.1}, "speed"),
        ({"speed": True}, "speed"),
        ({"speed": float("nan")}, "speed"),
        ({"speed": float("inf")}, "speed"),
        ({"stream_format": "xml"}, "stream_format"),
        ({"stream_format": True}, "stream_format"),
    ],
)
async def test_wrong_fields_of_speech(http, fields, param):
    body = json.dumps({"model": "tts-1", "input": "Hello.", "voice": "alloy"} | fields)
    response = await http.post(SPEECH, content=body, headers={"content-type": "application/json"})
    assert error_of(response)["param"].startswith(param)
