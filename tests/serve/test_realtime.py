"""/v1/realtime on the real server: the real `openai` client, real ears, a real model and a real voice.

Every event is checked, strictly, against the client's own types.
"""

import asyncio
import base64
import json
import struct
import time
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jiwer
import numpy as np
import openai
import pytest
import soxr
import websockets
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter

from running_service import Service
from stalled_client import CLOSE, TEXT, StalledClient, frames
from voicechat_serve.api.ingress import build
from voicechat_serve.api.realtime import ServiceStages
from voicechat_serve.realtime import wire
from voicechat_serve.realtime.conversation import stop
from voicechat_serve.synthesis.voices import HEART, SPEECH_RATE

EVENT = TypeAdapter(RealtimeServerEvent)
MODEL = "smollm2-135m-instruct"
FRAME = SPEECH_RATE // 25

PROCESSES = ("ray::ServeReplica:api:api", "ray::ProxyActor")
"""Those that answers go through."""


class Talk:
    """A connection of the openai client's, and what came over it."""

    def __init__(self, connection: Any):
        self.connection = connection
        self.events: list[Any] = []

    async def play(self, sound_n: np.ndarray, speed: float = 1.0) -> None:
        """As a microphone gives it, or faster."""
        pcm = (np.clip(sound_n, -1, 1) * 32767).astype("<i2")
        for start in range(0, len(pcm), FRAME):
            audio = base64.b64encode(pcm[start : start + FRAME].tobytes()).decode()
            await self.connection.input_audio_buffer.append(audio=audio)
            await asyncio.sleep(0.04 / speed)

    async def read(self) -> None:
        """Notes all that comes, for good."""
        while True:
            self.events.append(await self.connection.recv())

    async def until(self, kind: str) -> Any:
        async with asyncio.timeout(60):
            while True:
                event = await self.connection.recv()
                EVENT.validate_python(event.model_dump(exclude_unset=True), strict=True)
                self.events.append(event)
                if event.type == kind:
                    return event
                assert event.type != "error", event

    def kinds(self) -> list[str]:
        return [event.type for event in self.events]


@asynccontextmanager
async def talking(server: str, **query: Any) -> AsyncIterator[Talk]:
    client = openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="none")
    async with client.realtime.connect(**(query or {"model": MODEL})) as connection:
        talk = Talk(connection)
        await talk.until("session.created")
        yield talk


@pytest.fixture(scope="module")
def question(client) -> np.ndarray:
    """A spoken question with silence around it, at 24 kHz."""
    pcm = client.audio.speech.create(
        input="What is the capital of France?", model="tts-1", voice=HEART.id, response_format="pcm"
    ).content
    speech_n = np.frombuffer(pcm, "<i2").astype(np.float32) / 32768
    return np.concatenate([np.zeros(SPEECH_RATE // 2), speech_n, np.zeros(SPEECH_RATE)])


async def test_a_whole_turn_and_one_that_is_interrupted(server, question):
    async with talking(server) as talk:
        await talk.connection.session.update(
            session={
                "type": "realtime",
                "instructions": "Answer in one sentence.",
                "temperature": 0,
                "audio": {"output": {"speed": 1.2}},
            }
        )
        await talk.until("session.updated")
        await talk.play(question)
        heard = await talk.until("conversation.item.input_audio_transcription.completed")
        assert "capital of france" in heard.transcript.lower()
        assert heard.languages[0].code == "en"
        done = await talk.until("response.done")
        assert done.response.status == "completed"
        text = done.response.output[0].content[0].transcript
        sound = b"".join(base64.b64decode(e.delta) for e in talk.events if e.type == "response.output_audio.delta")
        assert len(sound) > SPEECH_RATE
        assert "Paris" in text

        # The person speaks over the next reply, while it is written; the model may come to an end before.
        await talk.connection.session.update(session={"type": "realtime", "instructions": "", "temperature": 1})
        text = "Tell me a long story about the sea, with all the details."
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
        for _ in range(5):
            await talk.connection.conversation.item.create(item=item)
            await talk.connection.response.create()
            await talk.until("response.output_audio_transcript.delta")
            talk.events.clear()
            await talk.play(question[np.flatnonzero(np.abs(question) > 0.02)[0] :])
            done = await talk.until("response.done")
            if done.response.status == "cancelled":
                break
            await talk.until("response.done")  # the question was answered
        assert done.response.status == "cancelled"
        assert done.response.status_details.reason == "turn_detected"
        assert "input_audio_buffer.speech_started" in talk.kinds()
        interrupted = done.response.output[0].id
        await talk.connection.conversation.item.truncate(item_id=interrupted, content_index=0, audio_end_ms=0)
        answer = await talk.until("response.done")
        assert answer.response.status in ("completed", "incomplete")  # at this temperature it may go on and on
        late = [e for e in talk.events if e.type == "response.output_audio.delta" and e.item_id == interrupted]
        assert talk.events.index(done) > max((talk.events.index(e) for e in late), default=0)


async def test_a_call_of_a_tool_and_the_spoken_answer(server):
    units = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    parameters = {"type": "object", "properties": {"unit": units}, "required": ["unit"], "additionalProperties": False}
    tool = {"type": "function", "name": "temperature", "description": "The temperature now.", "parameters": parameters}
    async with talking(server) as talk:
        await talk.connection.session.update(session={"type": "realtime", "tools": [tool], "max_output_tokens": 60})
        assert (await talk.until("session.updated")).session.tools[0].name == "temperature"
        question = [{"type": "input_text", "text": "How warm is it?"}]
        await talk.connection.conversation.item.create(item={"type": "message", "role": "user", "content": question})
        await talk.connection.response.create(response={"tool_choice": "required", "parallel_tool_calls": False})
        whole = await talk.until("response.function_call_arguments.done")
        assert whole.name == "temperature"
        assert json.loads(whole.arguments)["unit"] in units["enum"]
        (call,) = (await talk.until("response.done")).response.output
        assert (call.type, call.call_id, call.arguments) == ("function_call", whole.call_id, whole.arguments)
        result = {"type": "function_call_output", "call_id": whole.call_id, "output": "It is 21 degrees."}
        await talk.connection.conversation.item.create(item=result)
        await talk.connection.response.create(response={"tool_choice": "none"})
        (answer,) = (await talk.until("response.done")).response.output
        assert answer.content[0].transcript
        assert "response.output_audio.delta" in talk.kinds()


async def test_a_pause_in_the_middle_of_a_sentence_does_not_end_the_turn(server, client):
    def spoken(text: str) -> np.ndarray:
        pcm = client.audio.speech.create(input=text, model="tts-1", voice=HEART.id, response_format="pcm").content
        sound_n = np.frombuffer(pcm, "<i2").astype(np.float32) / 32768
        loud = np.flatnonzero(np.abs(sound_n) > 0.01)
        return sound_n[loud[0] : loud[-1]]

    pause_n, end_n = np.zeros(SPEECH_RATE * 8 // 10), np.zeros(2 * SPEECH_RATE)
    first_n, second_n = spoken("Can you explain to me how the"), spoken("engine of a car works?")
    async with talking(server) as talk:
        detection = {"type": "semantic_vad", "eagerness": "low"}
        await talk.connection.session.update(
            session={"type": "realtime", "audio": {"input": {"turn_detection": detection}}, "max_output_tokens": 20}
        )
        updated = await talk.until("session.updated")
        assert updated.session.audio.input.turn_detection.eagerness == "low"
        await talk.play(np.concatenate([pause_n, first_n, pause_n, second_n, end_n]))
        heard = await talk.until("conversation.item.input_audio_transcription.completed")
        assert "car" in heard.transcript.lower()
        assert talk.kinds().count("input_audio_buffer.speech_started") == 1
        await talk.until("response.done")


async def test_a_turn_that_the_client_commits_and_one_in_writing(server, question):
    async with talking(server) as talk:
        await talk.connection.session.update(
            session={"type": "realtime", "audio": {"input": {"turn_detection": None}}, "max_output_tokens": 20}
        )
        await talk.play(question, speed=20)
        await talk.connection.input_audio_buffer.commit()
        await talk.connection.response.create()
        done = await talk.until("response.done")
        assert done.response.status in ("completed", "incomplete")
        assert "input_audio_buffer.speech_started" not in talk.kinds()
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Thank you."}]}
        await talk.connection.conversation.item.create(item=item)
        await talk.connection.response.create(response={"output_modalities": ["text"]})
        done = await talk.until("response.done")
        assert done.response.output[0].content[0].text.strip()


async def test_a_session_that_only_writes_down(server, clips):
    path, words = clips[0]
    with wave.open(str(path)) as file:
        rate, samples_n = file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), "<i2")
    speech_n = soxr.resample(samples_n.astype(np.float32) / 32768, rate, SPEECH_RATE)
    async with talking(server, extra_query={"intent": "transcription"}) as talk:
        assert talk.events[0].session.type == "transcription"
        await talk.play(np.concatenate([speech_n, np.zeros(SPEECH_RATE)]), speed=4)
        written = ""
        while len(written.split()) < 0.8 * len(words.split()):
            heard = await talk.until("conversation.item.input_audio_transcription.completed")
            written += f" {heard.transcript}"
        plain = jiwer.Compose(
            [jiwer.ToLowerCase(), jiwer.RemovePunctuation(), jiwer.Strip(), jiwer.ReduceToListOfListOfWords()]
        )
        assert jiwer.wer(words, written, reference_transform=plain, hypothesis_transform=plain) < 0.25
        assert "response.created" not in talk.kinds()


async def test_nothing_is_made_up_where_nobody_speaks(server):
    generator = np.random.default_rng(0)
    time_n = np.arange(6 * SPEECH_RATE) / SPEECH_RATE
    tune_n = 220 * 2 ** (np.floor(time_n * 4) % 12 / 12)
    music_n = 0.2 * sum(np.sin(2 * np.pi * np.cumsum(tune_n * k) / SPEECH_RATE) / k for k in (1, 2, 3))
    quiet_n = np.zeros(2 * SPEECH_RATE)
    async with talking(server) as talk:
        for sound_n in (quiet_n, 0.1 * generator.standard_normal(6 * SPEECH_RATE), quiet_n, music_n, quiet_n):
            await talk.play(sound_n, speed=10)
        await talk.connection.session.update(session={"type": "realtime", "audio": {"input": {"turn_detection": None}}})
        await talk.until("session.updated")
        for sound_n in (quiet_n, music_n):  # committed without any look for speech
            await talk.play(sound_n, speed=20)
            await talk.connection.input_audio_buffer.commit()
            heard = await talk.until("conversation.item.input_audio_transcription.completed")
            assert heard.transcript == ""
        said = [e.transcript for e in talk.events if e.type.endswith("input_audio_transcription.completed")]
        assert set(said) == {""}
        assert "response.created" not in talk.kinds()


@pytest.mark.nightly
async def test_ten_minutes_of_reading(service, clips):
    """At six times the speed of a reader: all of it is written down, in bounded memory."""
    plain = jiwer.Compose(
        [jiwer.ToLowerCase(), jiwer.RemovePunctuation(), jiwer.Strip(), jiwer.ReduceToListOfListOfWords()]
    )
    (ingress,) = service.processes("ServeReplica:api:api")
    async with talking(service.url, extra_query={"intent": "transcription"}) as talk:
        reading = asyncio.create_task(talk.read())
        before, told, words = ingress.memory_info().rss, 0.0, []
        while told < 600:
            for path, text in clips:
                with wave.open(str(path)) as file:
                    rate, samples_n = file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), "<i2")
                speech_n = soxr.resample(samples_n.astype(np.float32) / 32768, rate, SPEECH_RATE)
                await talk.play(np.concatenate([speech_n, np.zeros(SPEECH_RATE // 4)]), speed=6)
                told += len(speech_n) / SPEECH_RATE
                words.append(text)
        await talk.play(np.zeros(2 * SPEECH_RATE), speed=6)
        await asyncio.sleep(20)
        reading.cancel()
        written = [e.transcript for e in talk.events if e.type.endswith("input_audio_transcription.completed")]
        error_rate = jiwer.wer(
            " ".join(words), " ".join(written), reference_transform=plain, hypothesis_transform=plain
        )
        assert error_rate < 0.25
        assert ingress.memory_info().rss - before < 200 * 2**20


@asynccontextmanager
async def accepted(uri: str) -> AsyncIterator[Any]:
    """A session, as soon as there is room for one: the server notices within moments that another has left."""
    async with asyncio.timeout(10):
        while True:
            async with websockets.connect(uri) as socket:
                if json.loads(await socket.recv())["type"] == "session.created":
                    yield socket
                    return


async def test_only_so_many_sessions_at_once(services, listening):
    with listening(build(replace(services, realtime_sessions=1))) as address:
        uri = f"{address}/realtime".replace("http", "ws")
        async with websockets.connect(uri) as first:
            assert json.loads(await first.recv())["type"] == "session.created"
            async with websockets.connect(uri) as second:
                error = json.loads(await second.recv())
                EVENT.validate_python(error, strict=True)
                assert error["error"]["code"] == "too_many_sessions"
                with pytest.raises(websockets.ConnectionClosed):
                    await second.recv()
                assert second.close_code == 1013
            await first.send('{"type": "session.update", "session": {}}')
            assert json.loads(await first.recv())["type"] == "session.updated"
        async with accepted(uri) as again:
            await again.send(b"bytes")
            assert json.loads(await again.recv())["error"]["message"] == "events are JSON texts, not bytes"
            with pytest.raises(websockets.ConnectionClosed):
                await again.recv()
            assert again.close_code == 1003


async def test_a_model_that_there_is_not(services, listening):
    with listening(build(services)) as address:
        uri = f"{address}/realtime?model=nobody".replace("http", "ws")
        async with websockets.connect(uri) as socket:
            error = json.loads(await socket.recv())["error"]
            assert (error["code"], error["param"]) == ("model_not_found", "model")
            with pytest.raises(websockets.ConnectionClosed):
                await socket.recv()
            assert socket.close_code == 1008


async def test_a_session_outlives_its_models_process(service):
    replica = f"ServeReplica:api:model {MODEL}"
    async with talking(service.url) as talk:
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Tell me a long story."}]}
        await talk.connection.conversation.item.create(item=item)
        await talk.connection.response.create()
        await talk.until("response.output_audio_transcript.delta")
        (victim,) = service.processes(replica)
        victim.kill()
        done = await talk.until("response.done")
        assert done.response.status == "failed"
        assert done.response.status_details.error.code == "unavailable"
        async with asyncio.timeout(90):
            while done.response.status != "completed":
                await asyncio.sleep(1)
                await talk.connection.response.create(response={"max_output_tokens": 5, "instructions": "Say: yes."})
                done = await talk.until("response.done")
                if done.response.status == "incomplete":  # five tokens are enough
                    break
        assert victim.pid not in [process.pid for process in service.processes(replica)]


async def test_the_ear_is_told_that_nobody_waits_any_more(services):
    asked = asyncio.Event()

    class Response:
        cancelled = False

        def __await__(self):
            asked.set()
            return asyncio.sleep(3600).__await__()

        def cancel(self) -> None:
            self.cancelled = True

    response = Response()
    ear = SimpleNamespace(hear=SimpleNamespace(remote=lambda *sound: response))
    stages = ServiceStages(replace(services, transcription=ear))
    hearing = asyncio.create_task(stages.hear(np.zeros(16000, np.float32), None, None, False))
    await asked.wait()
    await stop(hearing)
    assert response.cancelled


def resident_bytes(service: Service, title: str) -> int:
    processes = service.processes(title)
    assert processes, title
    return sum(process.memory_info().rss for process in processes)


async def until(condition) -> None:
    async with asyncio.timeout(150):
        while not condition():
            await asyncio.sleep(0.2)


async def test_clients_that_stop_reading(service, client):
    """Nothing piles up for them, what they asked for ends, and who reads slowly still gets all of it."""
    text = "x" * 60_000
    item = {"type": "message", "role": "user", "id": "long", "content": [{"type": "input_text", "text": text}]}
    messages = [{"role": "user", "content": "To be"}]
    many = {"model": "shakespeare", "messages": messages, "n": 16, "logprobs": True, "top_logprobs": 20, "stream": True}
    slow, stalled, speech, talker, silent = (StalledClient(service.url) for _ in range(5))
    before = {title: resident_bytes(service, title) for title in PROCESSES}
    for talk in (talker, silent):
        talk.open_websocket(f"/v1/realtime?model={MODEL}")
        talk.send({"type": "conversation.item.create", "item": item})
        for _ in range(2000):
            talk.send({"type": "conversation.item.retrieve", "item_id": "long"})
    slow.post("/v1/chat/completions", many)
    stalled.post("/v1/chat/completions", many)
    words = {"model": "tts-1", "input": "Word by word. " * 290, "response_format": "pcm"}
    speech.post("/v1/audio/speech", words | {"stream_format": "sse"})
    read_slowly = asyncio.create_task(asyncio.to_thread(slow.read_all, lambda: time.sleep(0.002)))

    # They read nothing meanwhile; the talker does before its connection is given up, to see how the server took leave.
    await asyncio.sleep(wire.UNSENT_S + 4)
    for title, size in before.items():
        assert resident_bytes(service, title) < size + 60e6, title
    received = frames(await asyncio.to_thread(talker.read_all))
    assert sum(len(content) for _, content in received) < 20e6
    events = [json.loads(content) for opcode, content in received if opcode == TEXT]
    assert events[-1]["error"]["code"] == "too_slow"
    assert received[-1] == (CLOSE, struct.pack("!H", 1008) + b"too_slow")

    await until(lambda: all(one.is_left() for one in (stalled, speech, silent)))
    whole = await read_slowly
    assert b"[DONE]" in whole
    answer = await asyncio.to_thread(stalled.read_all)
    assert b"[DONE]" not in answer
    assert b"speech.audio.done" not in await asyncio.to_thread(speech.read_all)
    assert client.chat.completions.create(model="shakespeare", messages=messages, max_tokens=5).choices
