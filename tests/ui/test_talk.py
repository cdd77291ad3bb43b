"""`voicechat talk` against a made-up realtime server: an ear for loudness only, fixed words, a tone for a voice."""

import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI, WebSocket
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from typer.testing import CliRunner

from voicechat_ui.cli import app
from voicechat_ui.talk import conversation as talking
from voicechat_ui.talk import sound_device
from voicechat_ui.talk.turns import Talk, TurnRecord

RATE = 24_000
STRICT = TypeAdapter(RealtimeServerEvent)
SPEECH = (np.sin(np.arange(RATE) * 0.1) * 12000).astype("<i2").tobytes()
"""A second of it."""
SILENCE = bytes(2 * RATE)


class MadeUpServer:
    """As much of the protocol as one client sees; its behaviour can be changed from the test."""

    def __init__(self) -> None:
        self.sessions: list[dict[str, Any]] = []
        self.truncated: list[int] = []
        self.keys: list[str | None] = []
        self.words = ["What is love?", "Who is there?", "And then?"]
        self.failure = ""
        """What a reply fails with, if anything."""
        self.call: dict[str, Any] | None = None
        """Of a tool, before each reply."""
        self.refuses = False
        self.is_full = False
        self.is_revoked = False

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            kinds = {"bard": "language", "whisper-1": "transcription"}
            cards = [{"id": n, "object": "model", "created": 0, "owned_by": "t", "type": k} for n, k in kinds.items()]
            return {"object": "list", "data": cards}

        @app.get("/v1/models/{name}")
        async def model(name: str) -> dict[str, Any]:
            card = {"id": name, "object": "model", "created": 0, "owned_by": "t", "type": "language"}
            known = {"title": "Bard of Avon", "origin": "packaged", "about": "Old.", "system_prompt": "Rhyme."}
            return card | known | {"tools": ["desk"]}

        @app.websocket("/v1/realtime")
        async def realtime(socket: WebSocket, model: str) -> None:
            if self.refuses:
                await socket.close(1008)  # before it is accepted: 403
                return
            await socket.accept()
            self.keys.append(socket.headers.get("authorization"))
            session = Session(self, socket)
            if self.is_revoked:
                return await socket.close(1008, "the API key was revoked")
            if not self.is_full:
                await session.serve()
                return
            error = {"type": "server_error", "code": "too_many_sessions", "message": "8 conversations are going on"}
            await session.send("error", error=error)
            await socket.close(1013)

        return app


class Session:
    def __init__(self, server: MadeUpServer, socket: WebSocket) -> None:
        self.server, self.socket = server, socket
        self.num_sent = self.num_turns = 0
        self.ms = self.quiet_ms = 0.0
        self.is_hearing = False

    async def send(self, kind: str, **fields: Any) -> None:
        self.num_sent += 1
        event = {"type": kind, "event_id": f"e{self.num_sent}", **fields}
        STRICT.validate_python(event)
        await self.socket.send_json(event)

    async def serve(self) -> None:
        async for event in self.socket.iter_json():
            match event["type"]:
                case "session.update" if event["session"]["audio"]["output"].get("voice") == "nobody":
                    error = {"type": "invalid_request_error", "message": "no such voice", "event_id": event["event_id"]}
                    await self.send("error", error=error)
                case "session.update":
                    self.server.sessions.append(event["session"])
                    await self.send("session.updated", session={"type": "realtime"})
                case "input_audio_buffer.append":
                    await self.hear(np.frombuffer(base64.b64decode(event["audio"]), "<i2"))
                case "conversation.item.truncate":
                    self.server.truncated.append(event["audio_end_ms"])
                case "response.create":
                    await self.reply()

    async def hear(self, samples_n: np.ndarray) -> None:
        self.ms += len(samples_n) * 1000 / RATE
        is_loud = np.abs(samples_n.astype(int)).max() > 1000
        self.quiet_ms = 0 if is_loud else self.quiet_ms + len(samples_n) * 1000 / RATE
        item = f"item{self.num_turns}"
        if is_loud and not self.is_hearing:
            self.is_hearing = True
            await self.send("input_audio_buffer.speech_started", audio_start_ms=int(self.ms), item_id=item)
        elif self.is_hearing and self.quiet_ms >= 500:
            self.is_hearing = False
            await self.send("input_audio_buffer.speech_stopped", audio_end_ms=int(self.ms), item_id=item)
            words = self.server.words[self.num_turns]
            self.num_turns += 1
            await self.send(
                "conversation.item.input_audio_transcription.completed",
                item_id=item,
                content_index=0,
                transcript=words,
                usage={"type": "duration", "seconds": 1.0},
                languages=[{"code": "en"}] if words else None,
            )
            if words:
                await self.reply()

    async def reply(self) -> None:
        if self.server.call:
            item = {"id": "call", "type": "mcp_call", "server_label": "desk"} | self.server.call
            await self.send("response.output_item.done", item=item, response_id="c", output_index=0)
            response = {"id": "c", "object": "realtime.response", "status": "completed", "output": [item]}
            await self.send("response.done", response=response)
        response = f"r{self.num_sent}"
        where = {"response_id": response, "item_id": f"{response}-item", "output_index": 0, "content_index": 0}
        status: dict[str, Any] = {"status": "completed"}
        if self.server.failure:
            error = {"type": "server_error", "code": "model_gone", "message": self.server.failure}
            status = {"status": "failed", "status_details": {"type": "failed", "error": error}}
        else:
            for piece in ("Good ", "morrow."):
                await self.send("response.output_audio_transcript.delta", delta=piece, **where)
            sound = base64.b64encode(SPEECH[:RATE]).decode()
            await self.send("response.output_audio.delta", delta=sound, **where)
        await self.send("response.done", response={"id": response, "object": "realtime.response", **status})


@pytest.fixture(scope="module")
def made_up() -> MadeUpServer:
    return MadeUpServer()


@pytest.fixture(scope="module")
def address(made_up: MadeUpServer) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(made_up.app(), host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the test's server did not start"
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}/v1"
    server.should_exit = server.force_exit = True
    thread.join()


@pytest.fixture
def server(made_up: MadeUpServer, monkeypatch) -> MadeUpServer:
    """As new; files are said at twenty times a person's pace."""
    made_up.__dict__.update(MadeUpServer().__dict__)
    monkeypatch.setattr(talking, "PACE", 20)
    return made_up


def write_wav(path: Path, pcm: bytes, rate: int = RATE) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(pcm)
    return path


def seconds_of(path: Path) -> float:
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        return file.getnframes() / RATE


def run(*arguments: Any, typed: str | None = None) -> Any:
    return CliRunner().invoke(app, ["talk", *map(str, arguments)], input=typed)


def test_each_utterance_of_a_file_is_a_turn(server, address, tmp_path):
    question = write_wav(tmp_path / "question.wav", SILENCE + SPEECH + SILENCE + SPEECH)
    out = tmp_path / "reply.wav"
    more = ("--voice", "heart", "--speed", 1.5, "--instructions", "Be brief.", "--language", "en", "--key", "k")
    result = run(question, "--out", out, "--url", address, "--json", *more)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["model"], facts["sound"]) == ("bard", str(out))
    assert [(turn["heard"], turn["reply"], turn["status"]) for turn in facts["turns"]] == [
        ("What is love?", "Good morrow.", "completed"),
        ("Who is there?", "Good morrow.", "completed"),
    ]
    for turn in facts["turns"]:
        assert turn["language"] == "en"
        assert turn["sound_s"] == 0.5
        assert 0 <= turn["seconds"]["endpoint"] < 1
        order = [turn["seconds"][what] for what in ("transcription", "first_token", "first_sound", "total")]
        assert order == sorted(order)
    assert seconds_of(out) == 1.0
    assert server.keys == ["Bearer k"]
    (session,) = server.sessions
    assert session["instructions"] == "Be brief."
    assert session["output_modalities"] == ["audio"]
    assert session["audio"]["output"] == {"voice": "heart", "speed": 1.5}
    assert session["audio"]["input"]["transcription"]["language"] == "en"


def test_people_read_words_and_times(server, address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    question = write_wav(tmp_path / "question.wav", SPEECH[: 16000 * 2], rate=16000)
    result = run(question, "--url", address)
    assert result.exit_code == 0, result.output
    assert "You (en): What is love?\nbard: Good morrow.\n  [end detected after 0." in result.stdout
    assert "The speech of the replies is in question-reply.wav." in result.stderr
    assert seconds_of(tmp_path / "question-reply.wav") == 0.5


def test_typed_turns(server, address, tmp_path):
    out = tmp_path / "reply.wav"
    result = run("--text", "--out", out, "--url", address, "--model", "bard", typed="Hello\n\nAnd now?\n")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("You talk with Bard of Avon, packaged. Old.\n")
    assert server.sessions[0]["instructions"] == "Rhyme."
    assert result.stdout.count("Bard of Avon: Good morrow.") == 2
    assert seconds_of(out) == 1.0


def test_without_sound_typed_turns_are_written(server, address, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    result = run("--text", "--url", address, typed="Hello\n")
    assert result.exit_code == 0, result.output
    assert "replies are only text" in result.stdout
    assert server.sessions[0]["output_modalities"] == ["text"]
    assert server.sessions[0]["instructions"] == "Answer in one or two short sentences.", "the server names none"


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        ({"output": "17 times 23\nis 391."}, "→ 17 times 23 is 391."),
        ({"error": {"type": "tool_execution_error", "message": "too late"}}, "→ failed: too late"),
    ],
)
def test_calls_of_tools_are_shown(server, address, tmp_path, result, shown):
    server.call = {"name": "calculate", "arguments": '{"first": 17}'} | result
    out = tmp_path / "reply.wav"
    done = run("--text", "--out", out, "--url", address, "--model", "bard", typed="Hello\n")
    assert done.exit_code == 0, done.output
    assert server.sessions[0]["tools"] == [{"type": "mcp", "server_label": "desk", "require_approval": "never"}]
    line = f'  calculate({{"first": 17}}) {shown}\n'
    assert f"{line}Bard of Avon: Good morrow.\n" in done.stdout


def test_a_failed_turn_is_told(server, address, tmp_path):
    server.failure = "the model is starting anew"
    question = write_wav(tmp_path / "question.wav", SPEECH)
    result = run(question, "--out", tmp_path / "reply.wav", "--url", address)
    assert result.exit_code == 1
    assert "(the model is starting anew)" in result.stdout


def test_a_noise_is_no_turn(server, address, tmp_path):
    server.words = ["", "Who is there?"]
    question = write_wav(tmp_path / "question.wav", SPEECH + SILENCE + SPEECH)
    result = run(question, "--out", tmp_path / "reply.wav", "--url", address, "--json")
    assert result.exit_code == 0, result.output
    assert [turn["status"] for turn in json.loads(result.stdout)["turns"]] == ["nothing heard", "completed"]


def test_a_conversation_that_the_server_ends_says_why(server, address, tmp_path):
    server.is_full = True
    question = write_wav(tmp_path / "question.wav", SPEECH)
    result = run(question, "--out", tmp_path / "reply.wav", "--url", address, "--json")
    assert result.exit_code == 1
    assert "8 conversations are going on" in json.loads(result.stdout)["problem"]
    assert "error: 8 conversations are going on" in result.stderr


def test_a_key_that_is_revoked_meanwhile(server, address, tmp_path):
    server.is_revoked = True
    question = write_wav(tmp_path / "question.wav", SPEECH)
    result = run(question, "--out", tmp_path / "reply.wav", "--url", address, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["problem"].startswith("the API key was revoked or has expired: set VOICECHAT_API")


def failure_of(*arguments: Any) -> str:
    result = run(*arguments)
    assert result.exception is not None
    return str(result.exception)


def test_bad_input_says_what_to_do(server, address, tmp_path, monkeypatch):
    sound = write_wav(tmp_path / "a.wav", SPEECH)
    (tmp_path / "text.wav").write_text("no sound")
    closed = "http://127.0.0.1:9/v1"
    assert "cannot be read" in failure_of(tmp_path / "none.wav", "--url", address)
    assert "text.wav: the audio file cannot be decoded" in failure_of(tmp_path / "text.wav", "--url", address)
    assert "voicechat serve" in failure_of(sound, "--out", tmp_path / "o.wav", "--url", closed)
    assert "voicechat serve" in failure_of(sound, "--out", tmp_path / "o.wav", "--url", closed, "--model", "m")
    assert "is not a folder" in failure_of(sound, "--out", sound / "o.wav", "--url", address)
    assert not (tmp_path / "o.wav").exists()
    assert "a file and --text exclude each other" in failure_of(sound, "--text")
    assert failure_of(sound, "--out", tmp_path / "o.wav", "--url", address, "--voice", "nobody") == "no such voice"
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert "pip install 'llm-voice-chat[talk]'" in failure_of("--url", address)
    server.refuses = True
    assert "VOICECHAT_API_KEY" in failure_of(sound, "--out", tmp_path / "o.wav", "--url", address)


def test_a_reply_takes_the_place_of_an_earlier_one_only_when_there_is_one(server, address, tmp_path):
    sound, out = write_wav(tmp_path / "a.wav", SPEECH), write_wav(tmp_path / "reply.wav", SPEECH)
    before = out.read_bytes()
    assert "voicechat serve" in failure_of(sound, "--out", out, "--url", "http://127.0.0.1:9/v1")
    assert "cannot be decoded" in failure_of(__file__, "--out", out, "--url", address)
    server.refuses = True
    assert "VOICECHAT_API_KEY" in failure_of(sound, "--out", out, "--url", address)
    assert out.read_bytes() == before
    server.refuses = False
    assert run(sound, "--out", tmp_path / "new" / "reply.wav", "--url", address).exit_code == 0
    assert seconds_of(tmp_path / "new" / "reply.wav") == 0.5


def test_no_microphone(server, address, monkeypatch):
    library = ModuleType("sounddevice")
    library.PortAudioError = OSError
    library.RawInputStream = lambda **options: (_ for _ in ()).throw(OSError("no default input device"))
    monkeypatch.setitem(sys.modules, "sounddevice", library)
    assert "no microphone can be opened (no default input device): give a WAV file" in failure_of()


async def test_speaking_over_the_reply_stops_it_and_tells_what_was_heard(server, address, monkeypatch):
    """With streams that the test moves by hand in the place of PortAudio's."""
    streams: dict[str, Any] = {}

    def stream(name: str):
        def opened(**options: Any) -> SimpleNamespace:
            streams[name] = options["callback"]
            return SimpleNamespace(start=lambda: None, close=lambda: None)

        return opened

    library = ModuleType("sounddevice")
    library.PortAudioError = OSError
    library.RawInputStream, library.RawOutputStream = stream("in"), stream("out")
    monkeypatch.setitem(sys.modules, "sounddevice", library)
    turns: list[TurnRecord] = []
    wanted = talking.Wanted(url=address, key="")
    said: list[str] = []
    holding = asyncio.create_task(talking.hold(wanted, lambda words, end: said.append(words), turns))

    async def until(condition) -> None:
        while not condition():
            assert not holding.done(), holding.result()
            await asyncio.sleep(0.01)

    def speak(pcm: bytes) -> None:
        for start in range(0, len(pcm), 1920):
            streams["in"](pcm[start : start + 1920], 960, None, None)

    await until(lambda: any("Ctrl-C" in words for words in said))
    speak(SPEECH + SILENCE)
    await until(lambda: turns and turns[0].status == "completed")
    played = bytearray(2 * RATE // 5)
    view = memoryview(played)
    streams["out"](view, RATE // 5, None, None)
    assert bytes(played) == SPEECH[: len(played)]
    speak(SPEECH)
    await until(lambda: server.truncated)
    assert server.truncated == [200]
    streams["out"](view, RATE // 5, None, None)
    assert bytes(played) == bytes(len(played)), "silent at once"
    holding.cancel()
    await asyncio.gather(holding, return_exceptions=True)


def test_ctrl_c_keeps_what_was_said(server, address, tmp_path):
    question = write_wav(tmp_path / "question.wav", SPEECH + SILENCE + SILENCE * 20)
    out = tmp_path / "reply.wav"
    process = subprocess.Popen(
        [sys.executable, "-m", "voicechat_ui.cli", "talk", str(question), "--out", str(out), "--url", address],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "[end detected after" in line:
            break
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert seconds_of(out) == 0.5


def test_the_loudspeaker_plays_without_gaps(monkeypatch):
    library = ModuleType("sounddevice")
    library.PortAudioError = OSError
    library.RawOutputStream = lambda **options: SimpleNamespace(start=lambda: None, close=lambda: None)
    monkeypatch.setitem(sys.modules, "sounddevice", library)
    speaker = sound_device.Loudspeaker()
    for start in range(0, 3000, 500):
        speaker.write(SPEECH[start : start + 500])
    out = bytearray(2000)
    speaker._give(memoryview(out), 1000)
    assert bytes(out) == SPEECH[:2000]
    speaker._give(memoryview(out), 1000)
    assert bytes(out) == SPEECH[2000:3000] + bytes(1000)
    assert speaker.num_played == 3000


def test_the_loudspeaker_stands_still_and_goes_on(monkeypatch):
    library = ModuleType("sounddevice")
    library.PortAudioError = OSError
    library.RawOutputStream = lambda **options: SimpleNamespace(start=lambda: None, close=lambda: None)
    monkeypatch.setitem(sys.modules, "sounddevice", library)
    speaker, shown = sound_device.Loudspeaker(), []
    talk = Talk(None, lambda text, end: shown.append(text), [], "SmolLM2", loudspeaker=speaker)
    speaker.write(SPEECH[:3000])
    out = bytearray(1000)

    def given() -> bytes:
        speaker._give(memoryview(out), 500)
        return bytes(out)

    assert given() == SPEECH[:1000]
    asyncio.run(talk.follow(SimpleNamespace(type="output_audio_buffer.paused")))
    assert given() == bytes(1000)
    assert speaker.is_playing
    resumed = SimpleNamespace(type="output_audio_buffer.resumed", reason="backchannel", transcript="Mhm.")
    asyncio.run(talk.follow(resumed))
    assert given() == SPEECH[1000:2000]
    assert shown == [" (heard 'Mhm.', going on) "]
    speaker.pause()
    speaker.drop()
    speaker.write(SPEECH[:1000])
    assert given() == SPEECH[:1000]
