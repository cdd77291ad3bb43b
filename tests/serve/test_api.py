"""The API as clients meet it: the real openai client, and the raw JSON that it would coerce."""

import asyncio
import io
import json
import re
import runpy
import socket
import time
import wave
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import jiwer
import numpy as np
import openai
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from heard import wrong_characters
from voicechat_platform.errors import InputError
from voicechat_serve.audio import HEARING_RATE, decode
from voicechat_serve.generation.loaded_model import GenerationOptions
from voicechat_serve.generation.remote_model import RemoteModel
from voicechat_serve.generation.served_model import Remote

EXAMPLES = Path(__file__).parents[2] / "examples"
SMOLLM2 = "smollm2-135m-instruct"
SAY_HELLO = [{"role": "user", "content": "Say hello."}]


def plain(text: str) -> str:
    return re.sub(r"[^a-z ]", "", text.lower().replace("-", " "))


def wav(samples_n: np.ndarray, rate: int = HEARING_RATE) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, rate, 0, "NONE", ""))
        writer.writeframes((samples_n * 32767).astype("<i2").tobytes())
    return file.getvalue()


def test_models(client):
    names = [model.id for model in client.models.list()]
    assert names == ["shakespeare", SMOLLM2, "romeo", "vectors", "whisper-tiny.en", "hibari"]
    assert client.models.retrieve("shakespeare").object == "model"
    assert client.models.retrieve("whisper-1").id == "whisper-1"
    with pytest.raises(openai.NotFoundError, match="shakespeare"):
        client.models.retrieve("with/slash")


def test_embeddings(client):
    texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "The stock market fell by two percent."]
    answer = client.embeddings.create(model="vectors", input=texts)
    cat_d, kitten_d, market_d = (np.array(each.embedding) for each in answer.data)
    assert cat_d @ kitten_d > max(cat_d @ market_d, kitten_d @ market_d)
    for wrong in ({"input": ""}, {"input": "word " * 300}, {"input": texts, "dimensions": 577}):
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(model="vectors", **wrong)
    with pytest.raises(openai.BadRequestError, match="makes embeddings"):
        client.chat.completions.create(model="vectors", messages=SAY_HELLO)


def test_whole_chat(http):
    body = {"model": SMOLLM2, "messages": SAY_HELLO, "max_tokens": 24, "temperature": 0}
    answer = http.post("/v1/chat/completions", json=body).json()
    assert set(answer) == {"id", "object", "created", "model", "choices", "usage", "system_fingerprint"}
    assert answer["object"] == "chat.completion"
    assert isinstance(answer["created"], int)
    (choice,) = answer["choices"]
    assert choice["index"] == 0
    assert choice["finish_reason"] in ("stop", "length")
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"].strip()  # int8 on another processor may word it otherwise
    usage = answer["usage"]
    assert 0 < usage["completion_tokens"] <= 24
    assert usage["prompt_tokens"] > 10
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_this_service_as_a_model_elsewhere(server, client):
    """Text, usage and scores are the same through `engine: openai` as asked directly."""
    model = RemoteModel(Remote(url=f"{server}/v1", model="shakespeare"), "far")
    sampling = {"max_tokens": 12, "temperature": 0.0, "top_k": 5, "logit_bias": ((3, -1.0),)}
    options = GenerationOptions(sampling=sampling, top_scores=2)
    same = {"model": "shakespeare", "max_tokens": 12, "temperature": 0, "logit_bias": {"3": -1}}
    direct = client.completions.create(prompt="ROMEO:\n", logprobs=2, extra_body={"top_k": 5}, **same)
    through = [delta async for delta in model.complete("ROMEO:\n", options)]
    scores = [score for delta in through for score in delta.scores]
    expected = direct.choices[0].logprobs
    assert "".join(delta.text for delta in through) == direct.choices[0].text
    assert [score.text for score in scores] == expected.tokens
    assert [score.logprob for score in scores] == expected.token_logprobs
    assert [score.offset for score in scores] == expected.text_offset
    messages = [{"role": "user", "content": "Speak."}]
    direct = client.chat.completions.create(messages=messages, extra_body={"top_k": 5}, **same)
    through = [delta async for delta in model.chat(messages, GenerationOptions(sampling=sampling))]
    last = through[-1]
    assert "".join(delta.text for delta in through) == direct.choices[0].message.content
    assert last.finish_reason == direct.choices[0].finish_reason
    assert (last.prompt_tokens, last.completion_tokens) == (direct.usage.prompt_tokens, direct.usage.completion_tokens)
    with pytest.raises(InputError, match="context"):
        await anext(model.chat([{"role": "user", "content": "Speak. " * 5000}], GenerationOptions()))
    await model.engine.client.close()


def test_streamed_chat_is_the_whole_chat(client):
    request = {"model": SMOLLM2, "messages": SAY_HELLO, "max_completion_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**request)
    stream = client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True})
    *chunks, last = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    reasons = [c.choices[0].finish_reason for c in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [whole.choices[0].finish_reason]
    assert last.choices == []
    assert last.usage == whole.usage
    assert len(chunks) > 5  # and not all at once


def test_raw_event_stream(http):
    body = {"model": "shakespeare", "messages": SAY_HELLO, "max_tokens": 5, "stream": True, "seed": 1}
    response = http.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])


def test_completions(client):
    request = {"model": "shakespeare", "prompt": "To be", "max_tokens": 12, "temperature": 1, "seed": 7}
    whole = client.completions.create(**request)
    assert whole.object == "text_completion"
    assert len(whole.choices[0].text) == whole.usage.completion_tokens == 12
    assert whole.choices[0].finish_reason == "length"
    assert (
        "".join(c.choices[0].text for c in client.completions.create(**request, stream=True)) == whole.choices[0].text
    )


def test_a_seed_gives_the_same_text_in_any_company(client):
    request = {"model": "shakespeare", "messages": SAY_HELLO, "max_tokens": 40, "seed": 3, "stream": True}
    streams = [client.chat.completions.create(**request) for _ in range(8)]
    texts = {"".join(c.choices[0].delta.content or "" for c in stream) for stream in streams}
    assert len(texts) == 1


def test_stop_strings(client):
    request = {"model": "shakespeare", "prompt": "To be", "max_tokens": 30, "temperature": 1, "seed": 7}
    free = client.completions.create(**request).choices[0].text
    stopped = client.completions.create(**request, stop=[free[8:11]]).choices[0]
    assert stopped.text == free.split(free[8:11])[0]
    assert stopped.finish_reason == "stop"


def test_a_conversation_beyond_the_context(client):
    messages = [{"role": "user", "content": "x" * 90} for _ in range(5)]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="shakespeare", messages=messages)
    assert refused.value.code == "context_length_exceeded"
    answer = client.chat.completions.create(
        model="shakespeare", messages=messages, max_tokens=4, extra_body={"truncation": "auto"}
    )
    assert answer.usage.prompt_tokens <= 128


def test_a_single_message_beyond_the_context_loses_its_beginning(client):
    messages = [{"role": "user", "content": "x" * 2000}]
    answer = client.chat.completions.create(
        model="shakespeare", messages=messages, max_tokens=4, extra_body={"truncation": "auto"}
    )
    assert answer.usage.prompt_tokens == 128  # half of the context: the answer needs room


def test_a_huge_conversation_holds_nobody_up(client):
    messages = [{"role": "user", "content": "word " * 150} for _ in range(2000)]
    answer = client.chat.completions.create(
        model="smollm2-135m-instruct", messages=messages, max_tokens=2, extra_body={"truncation": "auto"}
    )
    assert 1 <= answer.usage.completion_tokens <= 2
    assert 1000 < answer.usage.prompt_tokens <= 1536  # as much of it as leaves the answer room


def test_transcription_of_real_speech(client, clips):
    said, heard = [], []
    for clip, text in clips:
        with clip.open("rb") as file:
            transcription = client.audio.transcriptions.create(model="whisper-1", file=file)
        said.append(plain(text))
        heard.append(plain(transcription.text))
        assert transcription.usage.type == "duration"
        assert transcription.usage.seconds > 1
    assert jiwer.wer(said, heard) <= 0.10


def test_transcription_as_text(http, clips):
    clip, text = clips[4]
    response = http.post(
        "/v1/audio/transcriptions",
        data={"model": "whisper-1", "response_format": "text"},
        files={"file": ("clip.wav", clip.read_bytes())},
    )
    assert response.headers["content-type"].startswith("text/plain")
    assert jiwer.wer(plain(text), plain(response.text)) <= 0.1


@pytest.mark.parametrize("level", [0, 0.003, 0.1], ids=["silence", "hiss", "noise"])
def test_nothing_is_invented_where_nothing_is_said(client, level):
    noise_n = np.random.default_rng(0).normal(0, 1, 3 * HEARING_RATE).clip(-3, 3) / 3 * level
    assert client.audio.transcriptions.create(model="whisper-1", file=("quiet.wav", wav(noise_n))).text == ""


@pytest.mark.parametrize("form", ["mp3", "opus", "aac", "flac", "wav"])
def test_speech_is_heard_as_its_text(client, form):
    text = "The quick brown fox jumps over the lazy dog."
    speech = client.audio.speech.create(model="tts-1", voice="alloy", input=text, response_format=form)
    transcription = client.audio.transcriptions.create(
        model="gpt-4o-mini-transcribe", file=(f"speech.{form}", speech.content)
    )
    assert wrong_characters(text, transcription.text) < 0.15


def test_speech_comes_sentence_by_sentence(client):
    text = " ".join(f"This is sentence number {number}, and it goes on for a while." for number in range(12))
    began = time.monotonic()
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="nova", input=text, response_format="pcm"
    ) as response:
        arrivals = [time.monotonic() - began for _ in response.iter_bytes(4096)]
    assert arrivals[0] < arrivals[-1] / 2


def test_speed_changes_the_length_of_speech(client):
    def seconds(speed):
        speech = client.audio.speech.create(
            model="tts-1", voice="echo", input="How long is this sentence?", speed=speed, response_format="wav"
        )
        return len(decode(speech.content)) / HEARING_RATE

    assert seconds(0.5) > 1.5 * seconds(1) > 2.2 * seconds(2)


CHAT = "/v1/chat/completions"
TRANSCRIBE = "/v1/audio/transcriptions"
GOOD_CHAT = {"model": "shakespeare", "messages": SAY_HELLO}
GOOD_SPEECH = {"model": "tts-1", "input": "Hello.", "voice": "alloy"}


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (CHAT, GOOD_CHAT | {"model": "gpt-9"}, 404, "model"),
        (CHAT, GOOD_CHAT | {"model": 5}, 400, "model"),
        (CHAT, GOOD_CHAT | {"messages": "hello"}, 400, "messages"),
        (CHAT, GOOD_CHAT | {"messages": []}, 400, "messages"),
        (CHAT, GOOD_CHAT | {"messages": [{"role": "cat", "content": "meow"}]}, 400, "messages.0.role"),
        (CHAT, GOOD_CHAT | {"messages": [{"role": "user"}]}, 400, "messages.0.content"),
        (CHAT, GOOD_CHAT | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, None),
        (CHAT, GOOD_CHAT | {"temperature": "hot"}, 400, "temperature"),
        (CHAT, GOOD_CHAT | {"temperature": 9}, 400, "temperature"),
        (CHAT, GOOD_CHAT | {"max_tokens": 0}, 400, "max_tokens"),
        (CHAT, GOOD_CHAT | {"top_k": 10**23}, 400, "top_k"),
        (CHAT, GOOD_CHAT | {"tools": [{"type": "function"}]}, 400, "tools.0.function"),
        (CHAT, GOOD_CHAT | {"messages": [{"role": "user", "content": "\ud800"}]}, 400, None),
        (CHAT, ["not", "an", "object"], 400, None),
        ("/v1/completions", {"model": "shakespeare"}, 400, "prompt"),
        ("/v1/completions", {"model": "shakespeare", "prompt": ""}, 400, None),
        ("/v1/audio/speech", GOOD_SPEECH | {"voice": "bob"}, 400, "voice"),
        ("/v1/audio/speech", GOOD_SPEECH | {"input": ""}, 400, "input"),
        ("/v1/audio/speech", GOOD_SPEECH | {"input": "  ... "}, 400, "input"),
        (CHAT, GOOD_CHAT | {"messages": [{"role": "user", "content": 5}]}, 400, "messages.0.content"),
        ("/v1/audio/speech", GOOD_SPEECH | {"input": "a" * 4097}, 400, "input"),
        ("/v1/audio/speech", GOOD_SPEECH | {"response_format": "ogg"}, 400, "response_format"),
        ("/v1/audio/speech", GOOD_SPEECH | {"model": "shakespeare"}, 404, "model"),
        ("/v1/embeddings", {}, 400, "model"),
        ("/v1/moderations", {}, 404, None),
        ("/nowhere", {}, 404, None),
    ],
)
def test_errors_have_openais_form(http, path, body, status, param):
    content = json.dumps(body)  # httpx would refuse half a surrogate pair itself
    response = http.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert param is None or error["param"] == param
    assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("upload", "fields", "param"),
    [
        (b"", {}, "file"),
        (b"this is no sound", {}, "file"),
        (wav(np.zeros(100))[:30], {}, "file"),
        (wav(np.zeros(100)), {"response_format": "mp3"}, "response_format"),
        (wav(np.zeros(100)), {"temperature": "hot"}, "temperature"),
        (None, {}, "file"),
    ],
)
def test_bad_transcription_requests(http, upload, fields, param):
    files = {"file": ("clip.wav", upload)} if upload is not None else None
    response = http.post(TRANSCRIBE, data={"model": "whisper-1"} | fields, files=files)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_bodies_beyond_the_limit(http):
    response = http.post(TRANSCRIBE, data={"model": "whisper-1"}, files={"file": ("a.wav", bytes(26 * 2**20))})
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "too_large"
    response = http.post(CHAT, json=GOOD_CHAT | {"user": "u" * 3 * 2**20})
    assert response.status_code == 413


@pytest.mark.parametrize("content", [b'{"model": ', b"[" * 100_000, b"\xff\xfe", b""])
def test_invalid_json(http, content):
    response = http.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert list(response.json()) == ["error"]


def test_neutral_values_and_fields_without_effect_are_accepted(http):
    body = GOOD_CHAT | {"max_tokens": 2, "user": "u", "n": 1, "presence_penalty": 0, "logit_bias": None}
    assert http.post(CHAT, json=body).status_code == 200


def test_one_port_for_the_probes_and_the_api(http):
    assert http.get("/").status_code == 404  # test_secured_server.py has a page
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/ready").json() == {"status": "ready", "not_ready": {}}
    assert http.get("/v1/models").status_code == 200
    assert http.get("/v1").status_code == 404
    assert http.get("/v1/health").status_code == 404


def test_odd_corners_have_openais_form(http, server):
    """Through Serve's own proxy."""
    assert http.head("/health").status_code == 200
    for response, status in (
        (http.post("/health"), 405),
        (http.get("/v1/models/", follow_redirects=False), 404),
        (http.post("/v1/chat/completions/", follow_redirects=False), 404),
        (http.delete("/v1/models"), 405),
        (http.get("/v1/realtime"), 426),
        (http.post(CHAT, json=GOOD_CHAT, headers={"content-encoding": "gzip"}), 415),
    ):
        assert (response.status_code, list(response.json())) == (status, ["error"])
    for path in ("/nowhere", "/v1/nowhere", "/v1/models"):
        with pytest.raises(InvalidStatus) as refused:
            connect(f"{server.replace('http', 'ws')}{path}", proxy=None).__enter__()
        assert refused.value.response.status_code == 404
        assert json.loads(refused.value.response.body)["error"]["code"] == "not_found"
    address = urlsplit(server)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(b"GET /v1/models\x00 HTTP/1.1\r\n\r\n")
        head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert list(json.loads(body)) == ["error"]


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"host": "127.0.0.1.evil.example"},
    ],
)
@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/v1/models"])
def test_other_pages_of_the_browser_may_not_ask(http, path, headers):
    refused = http.get(path, headers=headers)
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "forbidden_origin"


def test_this_machines_own_names_may_ask(http):
    for name in ("localhost:8000", "127.0.0.1", "[::1]:1"):
        assert http.get("/v1/models", headers={"host": name, "origin": f"http://{name}"}).status_code == 200


async def test_overload_is_refused_and_passes(server, client):
    request = {"model": SMOLLM2, "messages": [{"role": "user", "content": "Write a long story."}], "max_tokens": 800}
    async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as crowd:
        tasks = [asyncio.create_task(crowd.chat.completions.create(**request)) for _ in range(120)]
        done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in waiting:
            task.cancel()
        await asyncio.wait(tasks)
    refused = [task.exception() for task in done if task.exception()]
    assert refused
    for error in refused:
        assert isinstance(error, openai.InternalServerError)
        assert (error.status_code, error.code) == (503, "overloaded")
        assert error.response.headers["retry-after"]
    assert client.chat.completions.create(**request | {"max_tokens": 2}).choices


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_leaving_ends_the_work(service, stream):
    """Two long answers keep SmolLM2's engine busy for half a minute, unless they end when their clients do."""
    replica = f"ServeReplica:api:model {SMOLLM2}"
    story = [{"role": "user", "content": "Write a very long story."}]
    long = {"model": SMOLLM2, "messages": story, "max_tokens": 1500, "stream": stream}
    async with httpx.AsyncClient(base_url=service.url, timeout=60) as http:
        if stream:
            for _ in range(2):
                async with http.stream("POST", CHAT, json=long) as response:
                    assert (await anext(response.aiter_lines())).startswith("data: {")
        else:
            answering = [asyncio.create_task(http.post(CHAT, json=long)) for _ in range(2)]
            await service.at_work(replica, answering[0])
            for task in answering:
                task.cancel()
            await asyncio.wait(answering)
    assert await service.cpu_seconds_until_idle(replica) < 8


def run_example(monkeypatch, script: str, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", [script, *arguments])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


def test_the_example_of_a_chat_client(service, monkeypatch, capsys):
    run_example(monkeypatch, "chat_client.py", "Say hello.", "--url", f"{service.url}/v1", "--max-tokens", "16")
    reply, usage = capsys.readouterr().out.rsplit("\n(", 1)
    assert reply.strip()
    assert re.fullmatch(r"\d+ tokens read, \d+ written\)\n", usage)


def test_the_example_of_a_voice_client(service, clips, monkeypatch, capsys, tmp_path):
    clip, words = min(clips, key=lambda clip: clip[0].stat().st_size)
    reply = tmp_path / "reply.wav"
    run_example(monkeypatch, "voice_client.py", str(clip), str(reply), "--url", f"{service.url}/v1")
    said = re.fullmatch(r"You:   (.*)\n +\(first sound after \d+\.\d\d s\)\nReply: (.*)\n", capsys.readouterr().out)
    assert said
    assert jiwer.wer(plain(words), plain(said[1])) < 0.3
    with wave.open(str(reply)) as file:
        assert file.getframerate() == 24_000
        assert file.getnframes() > 24_000 / 4
