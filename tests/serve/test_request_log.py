"""The line and the count of each request, without Ray: the real API around deployments that answer as told."""

import asyncio
import io
import json
import logging
import wave
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from ray._common.formatters import JSONFormatter
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from voicechat_serve.api import request_log
from voicechat_serve.api.ingress import build
from voicechat_serve.api.request_log import CleanRequestId, RequestLog, current_request
from voicechat_serve.api.services import Services
from voicechat_serve.generation.language_model import Delta
from voicechat_serve.generation.served_model import ServedModel
from voicechat_serve.synthesis.voices import SPEECH_RATE
from voicechat_serve.transcription.transcriber import Transcript

SECRET = "zanzibar"


class Stream:
    """What a handle's streaming call gives."""

    def __init__(self, pieces):
        self.pieces = pieces

    def __aiter__(self):
        return self.iterate()

    async def iterate(self):
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def __anext__(self):
        self.pieces = iter(self.pieces)
        return next(self.pieces)

    def cancel(self):
        pass


class Handle:
    """A deployment whose every method answers the same."""

    def __init__(self, answer):
        self.answer = answer

    def options(self, stream):
        return self

    def __getattr__(self, method):
        return self

    def remote(self, *arguments):
        return self.answer()


async def transcript() -> Transcript:
    return Transcript(SECRET, "en", 1.5)


def services(folder: Path, deltas) -> Services:
    return Services(
        models={"m": ServedModel(id="m", path=folder)},
        language_models={"m": Handle(lambda: Stream(list(deltas)))},
        transcription=Handle(transcript),
        transcription_model="whisper-base",
        synthesis=Handle(lambda: Stream([np.zeros(SPEECH_RATE, np.float32)] * 2)),
    )


DELTAS = [Delta(SECRET, 7, 1, None), Delta(SECRET, 7, 4, None), Delta("", 7, 5, "stop")]
CHAT = {"model": "m", "messages": [{"role": "user", "content": SECRET}]}


@pytest.fixture
def lines():
    """The lines as Serve's own formatter writes them, parsed."""
    written: list[dict] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(json.loads(JSONFormatter().format(record)))

    handler = Collect()
    request_log.log.addHandler(handler)
    request_log.log.setLevel(logging.INFO)
    yield written
    request_log.log.removeHandler(handler)
    request_log.log.setLevel(logging.NOTSET)
    assert written
    assert SECRET not in json.dumps(written)


@pytest.fixture
def counted(monkeypatch) -> list[tuple]:
    """The arguments of each `observe_request`."""
    calls: list[tuple] = []
    monkeypatch.setattr(request_log, "observe_request", lambda *arguments: calls.append(arguments))
    return calls


@pytest.fixture
async def http(tmp_path) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(build(services(tmp_path, DELTAS)), root_path="/v1", raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        yield http


@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat(http, lines, counted, stream):
    response = await http.post("/v1/chat/completions", json=CHAT | {"stream": stream})
    assert response.status_code == 200
    (line,) = lines
    assert (
        line.items()
        >= {
            "request_id": response.headers["x-request-id"],
            "method": "POST",
            "path": "/v1/chat/completions",
            "model": "m",
            "status": 200,
            "prompt_tokens": 7,
            "completion_tokens": 5,
            "cancelled": False,
        }.items()
    )
    assert type(line["status"]) is int
    assert type(line["seconds"]) is float
    assert 0 <= line["first_byte_seconds"] <= line["seconds"]
    assert line["time"].endswith("+00:00")
    assert not {"audio_seconds", "error", "key_id", "client_request_id"} & set(line)  # only what is known
    del line["skip_context_filter"]  # of Serve's handlers, which take it away
    ((endpoint, model, status, seconds, first_byte, cancelled),) = counted
    assert (endpoint, model, status, cancelled) == ("/v1/chat/completions", "m", 200, False)
    assert 0 <= first_byte <= seconds


async def test_audio(http, lines):
    await http.post("/v1/audio/speech", json={"model": "tts-1", "input": SECRET, "response_format": "pcm"})
    sound = {"file": ("zanzibar.wav", wav())}
    await http.post("/v1/audio/transcriptions", data={"model": "whisper-1", "prompt": SECRET}, files=sound)
    # Names that clients use for a model are all the model's own here.
    assert [(line["model"], line["audio_seconds"]) for line in lines] == [("hibari", 2.0), ("whisper-base", 1.5)]


def wav() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, 16_000, 0, "NONE", ""))
        writer.writeframes(bytes(32_000))
    return file.getvalue()


@pytest.mark.parametrize(
    ("method", "path", "content", "endpoint", "status", "error"),
    [
        ("GET", f"/v1/{SECRET}", None, "unknown", 404, "not_found"),
        ("GET", f"/v1/models/{SECRET}", None, "/v1/models/{name:path}", 404, "model_not_found"),
        ("GET", f"/v1/models?key={SECRET}", None, "/v1/models", 200, None),
        ("POST", "/v1/chat/completions", CHAT | {"model": SECRET}, "/v1/chat/completions", 404, "model_not_found"),
        (
            "POST",
            "/v1/chat/completions",
            CHAT | {"suffix": SECRET},
            "/v1/chat/completions",
            400,
            "unsupported_parameter",
        ),
        ("POST", "/v1/chat/completions", {SECRET: SECRET}, "/v1/chat/completions", 400, "unsupported_parameter"),
    ],
)
async def test_no_word_of_the_clients(http, lines, counted, method, path, content, endpoint, status, error):
    await http.request(method, path, json=content)
    (line,) = lines  # whose text the fixture has checked
    assert (line["path"], line["status"], line.get("error")) == (endpoint, status, error)
    assert counted[0][:3] == (endpoint, line.get("model", "unknown"), status)


async def test_what_others_refuse_is_seen(http, lines):
    await http.get("/v1/models", headers={"host": "evil.example"})
    await http.post("/v1/chat/completions", content=b"", headers={"content-length": str(10**9)})
    assert [(line["status"], line["path"]) for line in lines] == [(403, "unknown"), (413, "unknown")]


async def test_an_error_in_mid_stream(tmp_path, lines):
    app = build(services(tmp_path, [DELTAS[0], RuntimeError(SECRET)]))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
        response = await http.post("/chat/completions", json=CHAT | {"stream": True})
    assert '"server_error"' in response.text
    (line,) = lines
    assert (line["status"], line["error"], line["cancelled"]) == (200, "server_error", False)


async def test_a_failure_is_no_cancellation(lines):
    app = FastAPI()
    app.add_middleware(RequestLog)

    @app.get("/broken")
    async def broken():
        raise RuntimeError("broken")

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        assert (await http.get("/broken")).status_code == 500
    (line,) = lines
    assert (line["path"], line["status"], line["cancelled"]) == ("/broken", 500, False)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (None, False),
        ("trace-1_A", True),
        ("x" * 64, True),
        ("x" * 65, False),
        ("", False),
        ("two words", False),
        ('"},{"', False),
        ("a\u00e9", False),
        ("a\n", False),
    ],
)
async def test_request_ids(lines, sent, kept):
    headers = [(b"host", b"127.0.0.1")] + ([(b"x-request-id", sent.encode())] if sent is not None else [])
    told = await call(RequestLog(answer), headers)
    (line,) = lines
    if kept:
        assert line["request_id"] == sent
        assert told == []  # Serve's proxy sends it, which is where it came from
    else:
        assert told == [line["request_id"]]
        assert len(line["request_id"]) == 32
        assert line["request_id"] != sent
    # Behind the proxy's own middleware a bad one has never been sent.
    seen = []

    async def look(scope, receive, send):
        seen.extend(value.decode() for name, value in scope["headers"] if name == b"x-request-id")

    await CleanRequestId(look)({"type": "http", "headers": headers}, None, None)
    assert seen == ([sent] if kept else [])


async def answer(scope, receive, send):
    scope["state"]["key_id"] = "key-7"
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def call(app, headers=(), receive=None, **scope) -> list[str]:
    """The request ids that the client is told."""
    told = []

    async def send(message):
        told.extend(value.decode() for name, value in message.get("headers", []) if name == b"x-request-id")

    scope = {"type": "http", "method": "GET", "path": "/", "headers": list(headers)} | scope
    await app(scope, receive, send)
    return told


async def test_the_key_and_the_clients_own_id(lines):
    await call(RequestLog(answer), [(b"x-client-request-id", b"mine"), (b"x-request-id", b"ours")])
    await call(RequestLog(answer), [(b"x-client-request-id", b"not mine")])
    assert [line["key_id"] for line in lines] == ["key-7", "key-7"]
    assert lines[0]["client_request_id"] == "mine"
    assert "client_request_id" not in lines[1]
    assert "first_byte_seconds" not in lines[0]  # there was none


async def test_a_client_that_leaves(lines, counted):
    """In mid-stream, after the last word, and before there is a status."""
    left = asyncio.Event()

    async def body(is_last: bool):
        yield b"one"
        current_request().is_at_end = is_last
        yield b"two"
        left.set()
        await asyncio.Event().wait()

    app = FastAPI()
    app.add_middleware(RequestLog)

    @app.get("/stream")
    async def stream():
        return StreamingResponse(body(False))

    @app.get("/told")
    async def told():
        return StreamingResponse(body(True))

    @app.get("/slow")
    async def slow():
        left.set()
        await asyncio.Event().wait()

    async def receive():
        await left.wait()
        return {"type": "http.disconnect"}

    async def request(path: str) -> None:
        await call(app, receive=receive, path=path, raw_path=path.encode(), query_string=b"", http_version="1.1")

    await asyncio.wait_for(request("/stream"), 10)
    left.clear()
    await asyncio.wait_for(request("/told"), 10)
    left.clear()
    task = asyncio.create_task(request("/slow"))
    await left.wait()
    task.cancel()  # as Serve does
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [(line["path"], line["status"], line["cancelled"]) for line in lines] == [
        ("/stream", 200, True),
        ("/told", 200, False),  # the stream was open, but all of it had been said
        ("/slow", 499, True),
    ]
    assert "first_byte_seconds" in lines[0]
    assert [call[-1] for call in counted] == [True, False, True]


def test_a_websocket(lines):
    app = FastAPI()
    app.add_middleware(RequestLog)

    @app.websocket("/talk")
    async def talk(websocket: WebSocket):
        await websocket.accept()
        current_request().model = "m"
        await websocket.send_text(SECRET)
        await websocket.close()

    @app.websocket("/refused")
    async def refused(websocket: WebSocket):
        await websocket.close()

    with TestClient(app) as client:
        with client.websocket_connect("/talk") as websocket:
            assert websocket.receive_text() == SECRET
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/refused"):
            pass
    assert [(line["method"], line["path"], line["status"], line["cancelled"]) for line in lines] == [
        ("WEBSOCKET", "/talk", 101, False),
        ("WEBSOCKET", "/refused", 403, False),
    ]
    assert lines[0]["model"] == "m"
    assert "first_byte_seconds" in lines[0]


def test_outside_of_a_request_nothing_is_kept():
    current_request().model = "m"
    assert current_request().model is None
