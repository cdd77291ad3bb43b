"""Bodies and headers that are too large, too slow or nonsense, over ASGI; test_secured_server.py sends some of them."""

import asyncio
import json

import httpx
import pytest
from fastapi import FastAPI, UploadFile
from pydantic import BaseModel, ConfigDict

from voicechat_serve.api.errors import answer_errors_in_openai_form
from voicechat_serve.api.fields import Text
from voicechat_serve.api.limits import RequestLimits


class Question(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    text: Text
    number: int | None = None


def service(**limits) -> FastAPI:
    app = FastAPI()
    app.add_middleware(RequestLimits, **{"upload_bytes": 2 * 2**20, "json_bytes": 2**20, "body_seconds": 5} | limits)
    answer_errors_in_openai_form(app)

    @app.post("/json")
    async def question(question: Question) -> dict:
        return {"length": len(question.text)}

    @app.post("/upload")
    async def upload(file: UploadFile) -> dict:
        return {"length": len(await file.read())}

    return app


async def post(app: FastAPI, path: str = "/json", **request) -> httpx.Response:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        return await client.post(path, **request)


def error(response: httpx.Response) -> tuple[int, str]:
    """The status and the code of an answer that has OpenAI's form, and nothing else."""
    (told,) = response.json().values()
    assert list(response.json()) == ["error"]
    assert set(told) == {"message", "type", "param", "code"}
    assert told["message"]
    return response.status_code, told["code"]


async def pieces(count: int, size: int, start: bytes = b""):
    yield start
    for _ in range(count):
        yield b"x" * size


async def test_bodies_are_counted_as_declared_and_as_received():
    app = service()
    text = json.dumps({"text": "x" * (2**20 - 12)})
    assert len(text) == 2**20
    kind = {"content-type": "application/json"}
    assert (await post(app, content=text, headers=kind)).json() == {"length": 2**20 - 12}
    assert error(await post(app, content=text + " ")) == (413, "too_large")
    assert error(await post(app, content=pieces(3, 2**19))) == (413, "too_large")
    assert error(await post(app, content=pieces(3, 2**19), headers={"content-length": "5"})) == (413, "too_large")
    file = {"file": ("a.wav", bytes(2 * 2**20 - 1000))}
    assert (await post(app, "/upload", files=file)).json() == {"length": 2 * 2**20 - 1000}
    assert error(await post(app, "/upload", files={"file": ("a.wav", bytes(2 * 2**20))})) == (413, "too_large")
    kind = {"content-type": "Multipart/Form-Data; boundary=x"}
    start = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    assert error(await post(app, "/upload", content=pieces(5, 2**19, start), headers=kind)) == (413, "too_large")


@pytest.mark.parametrize(
    ("length", "status"), [("9" * 5000, 413), ("9" * 20, 413), ("-1", 400), ("0x1", 400), ("²", 400)]
)
async def test_lengths_that_are_nonsense(length, status):
    response = await post(service(), content=b"{}", headers={"content-length": length.encode("latin-1")})
    assert error(response)[0] == status


async def test_a_body_that_dribbles_is_not_waited_for():
    async def dribble():
        yield b'{"text": "'
        while True:
            await asyncio.sleep(0.01)
            yield b"x"

    async def stall():
        yield b'{"text": "'
        await asyncio.Event().wait()

    for body in (dribble(), stall()):
        response = await post(service(body_seconds=0.1), content=body)
        assert error(response) == (408, None)
        assert response.headers["connection"] == "close"


async def test_word_that_the_client_has_left_is_waited_for_without_a_limit():
    """A long answer listens for it long after the body's time is up."""
    heard = []

    async def app(scope, receive, send):
        heard.append(await receive())
        heard.append(await receive())

    async def messages():
        yield {"type": "http.request", "body": b"", "more_body": False}
        await asyncio.sleep(0.1)
        yield {"type": "http.disconnect"}

    source = messages()
    scope = {"type": "http", "path": "/", "query_string": b"", "headers": []}
    await RequestLimits(app, body_seconds=0.02)(scope, source.__anext__, None)
    assert heard[1] == {"type": "http.disconnect"}


async def test_headers_are_counted():
    app = service(header_bytes=4096)
    body = {"text": "hello"}
    assert (await post(app, json=body, headers={"x-long": "x" * 3500})).status_code == 200
    assert error(await post(app, json=body, headers={"x-long": "x" * 5000})) == (431, "too_large")
    assert error(await post(app, json=body, headers={f"x-{n}": "x" for n in range(1000)})) == (431, "too_large")


DEPTHS = (100, 500, 900, 990, 1000, 2000, 10_000, 100_000)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
async def test_deep_json_is_answered(depth, opening, closing):
    deep = opening * depth + "1" + closing * depth
    wrong = await post(service(), content=deep, headers={"content-type": "application/json"})
    assert wrong.status_code == 400
    error(wrong)
    extra = '{"text": "hello", "novel": ' + deep + "}"
    response = await post(service(), content=extra, headers={"content-type": "application/json"})
    assert response.status_code in (200, 400)
    assert response.status_code == (200 if depth <= 900 else response.status_code)
    assert response.status_code == (400 if depth >= 10_000 else response.status_code)
    if response.status_code != 200:
        error(response)


@pytest.mark.parametrize(
    "content",
    [
        b'{"text": "a\x00b"}',  # JSON allows it escaped only
        b"\x00",
        b'{"text": "a", "number": ' + b"9" * 5000 + b"}",
        b'{"text": "a", "number": NaN}',
        b'{"text": "a", "number": 1e400}',
        b'{"text": "\\ud800"}',
        b'{"text": NaN}',
        b'\xef\xbb\xbf{"text": 5}',
        b'{"text": "a", "text": 5}',
        b'{"text": "\xff"}',
        b"",
    ],
)
async def test_nonsense_is_a_400(content):
    response = await post(service(), content=content, headers={"content-type": "application/json"})
    assert error(response)[0] == 400


async def test_an_escaped_nul_is_a_character():
    assert (
        await post(service(), content=rb'{"text": "a\u0000b"}', headers={"content-type": "application/json"})
    ).json() == {"length": 3}
