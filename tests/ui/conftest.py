"""Chromium, and a made-up server of /v1/realtime for the page: fixed words, a sine for a voice, an ear for loudness.

It sends its events in the order of OpenAI's server, and notes what it was sent.
"""

import asyncio
import base64
import contextlib
import shutil
import socket
import threading
import time
import wave
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, Literal

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse
from playwright.sync_api import Browser, BrowserContext, Page, TimeoutError, ViewportSize, sync_playwright

from command_line import run_command
from voicechat_platform.settings import settings
from voicechat_ui.page import mount_page

RATE_HZ = 24000
LOUD_RMS = 500
"""Of 16-bit samples."""
WORD_S = 0.04
TONE_S_PER_WORD = 0.12
TONE_HZ = 440
BUZZ_HZ = 200

# A name that is not loopback to the browser, so that plain HTTP is no secure context there.
PLAIN_HTTP_HOST = "voice.test"

CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    f"--host-resolver-rules=MAP {PLAIN_HTTP_HOST} 127.0.0.1",
]


def model_card(name: str, kind: str, origin: str = "") -> dict[str, Any]:
    """As GET /v1/models tells it."""
    card = {"id": name, "object": "model", "created": 0, "owned_by": "test", "type": kind}
    return card | {"origin": origin} if origin else card


class MadeUpServer:
    """Its behaviour can be changed from the test."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.hears = "testing the microphone"
        """What every utterance is."""
        self.replies: list[str] = []
        """One for each turn; then always the same."""
        self.calls: list[dict[str, Any]] = []
        """Of tools, before the next reply: name, arguments, and output or error."""
        self.calls_allowed = threading.Event()
        self.calls_allowed.set()
        self.language = "en"
        self.failure = ""
        """Why the next reply breaks off, if it does."""
        self.refusal: dict[str, str] | None = None
        """The error with which a session is refused at its start."""
        self.models = [
            model_card("bard", "language", "tuned"),
            model_card("whisper-1", "transcription"),
            model_card("parrot", "language", "elsewhere"),
            model_card("tts-1", "synthesis"),
        ]
        self.idle = False
        """End the session at the next event, as if nothing had been said for long."""
        self.revoked = False
        """End the session at the next event, as where the key was revoked."""
        self.sessions: list[Session] = []

    @property
    def session(self) -> "Session":
        return self.sessions[-1]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """All of the kind that the pages have sent, in every session."""
        return [event for session in self.sessions for event in session.received if event["type"] == kind]

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/health")
        async def health() -> dict[str, str]:
            return {"status": "ok"}

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            return {"object": "list", "data": self.models}

        @app.get("/v1/models/{name}")
        async def model(name: str) -> Any:
            if name.partition("@")[0] in [card["id"] for card in self.models]:
                return model_card(name, "language", "tuned") | {"title": name.partition("@")[0]}
            error = {"message": f"the model {name!r} does not exist here", "code": "model_not_found"}
            return JSONResponse({"error": error}, 404)

        @app.get("/v1/audio/voices")
        async def voices() -> dict[str, Any]:
            languages = {"heart": "en", "amelie": "fr"}
            return {"object": "list", "data": [{"id": name, "language": languages[name]} for name in languages]}

        @app.websocket("/v1/realtime")
        async def realtime(socket: WebSocket, model: str) -> None:
            await socket.accept()
            if self.refusal:
                await socket.send_json({"type": "error", "event_id": "e", "error": self.refusal})
                await socket.close(1013)
                return
            session = Session(self, socket, model)
            self.sessions.append(session)
            await session.run()

        return app


class Session:
    """One connection. Speech is what is loud, and ends after `silence_duration_ms` of quiet."""

    def __init__(self, server: MadeUpServer, socket: WebSocket, model: str) -> None:
        self.server, self.socket, self.model = server, socket, model
        self.received: list[dict[str, Any]] = []
        self.config: dict[str, Any] = {}
        self.items: dict[str, dict[str, Any]] = {}
        self.sound = np.zeros(0, np.int16)
        """All that was appended."""
        self.committed = 0
        self.quiet_ms = 0.0
        self.loud_ms = 0.0
        self.speech = ""
        """The item of the utterance that goes on."""
        self.reply: asyncio.Task[None] | None = None
        self.numbers = count()

    async def run(self) -> None:
        await self.send("session.created", session={"type": "realtime", "model": self.model})
        try:
            while True:
                event = await self.socket.receive_json()
                self.received.append(event)
                await self.answer(event)
        except (WebSocketDisconnect, RuntimeError):
            await self.cancel("client_cancelled")

    async def send(self, kind: str, **fields: Any) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await self.socket.send_json({"type": kind, "event_id": f"event_{next(self.numbers)}", **fields})

    async def answer(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case _ if self.server.idle:
                self.server.idle = False
                error = {"type": "invalid_request_error", "code": "session_idle", "message": "nothing was said"}
                await self.send("error", error=error)
                await self.socket.close(1000, "session_idle")
            case _ if self.server.revoked:
                self.server.revoked = False
                await self.socket.close(1008, "the API key was revoked")
            case "session.update":
                self.config = event["session"]
                await self.send("session.updated", session=self.config)
            case "input_audio_buffer.append":
                await self.hear(np.frombuffer(base64.b64decode(event["audio"]), np.int16))
            case "input_audio_buffer.clear":
                self.committed = len(self.sound)
            case "input_audio_buffer.commit":
                item = f"item_{next(self.numbers)}"
                await self.commit(item)
                await self.transcribe(item)
            case "conversation.item.create":
                self.items[event["item"]["id"]] = event["item"]
                await self.send("conversation.item.added", item=event["item"])
            case "conversation.item.truncate":
                item = self.items[event["item_id"]]
                words = item["content"][0]["transcript"].split()
                kept = int(event["audio_end_ms"] / 1000 / TONE_S_PER_WORD)
                item["content"][0]["transcript"] = " ".join(words[:kept])
                fields = {name: event[name] for name in ("item_id", "content_index", "audio_end_ms")}
                await self.send("conversation.item.truncated", **fields)
            case "conversation.item.retrieve":
                await self.send("conversation.item.retrieved", item=self.items[event["item_id"]])
            case "response.create":
                if self.reply and not self.reply.done():
                    error = {"type": "invalid_request_error", "message": "a reply is under way"}
                    await self.send("error", error=error | {"event_id": event.get("event_id")})
                else:
                    self.reply = asyncio.create_task(self.respond())
            case "response.cancel":
                await self.cancel("client_cancelled")

    async def hear(self, samples: np.ndarray) -> None:
        self.sound = np.concatenate([self.sound, samples])
        detection = self.config["audio"]["input"]["turn_detection"]
        if detection is None:
            return
        at_ms = 1000 * len(self.sound) // RATE_HZ
        length_ms = 1000 * len(samples) / RATE_HZ
        if np.sqrt(np.mean(samples.astype(np.float32) ** 2)) > LOUD_RMS:
            self.loud_ms += length_ms
            self.quiet_ms = 0
            if self.loud_ms >= 120 and not self.speech:
                self.speech = f"item_{next(self.numbers)}"
                start_ms = max(0, at_ms - 420)
                await self.send("input_audio_buffer.speech_started", audio_start_ms=start_ms, item_id=self.speech)
                await self.cancel("turn_detected")
                words = self.server.hears.split()
                if len(words) > 1:
                    kind = "conversation.item.input_audio_transcription.delta"
                    await self.send(kind, item_id=self.speech, content_index=0, delta=f"{words[0]} ")
        else:
            self.quiet_ms += length_ms
            self.loud_ms = 0
            if self.speech and self.quiet_ms >= detection.get("silence_duration_ms", 500):
                item, self.speech = self.speech, ""
                end_ms = int(at_ms - self.quiet_ms)
                await self.send("input_audio_buffer.speech_stopped", audio_end_ms=end_ms, item_id=item)
                await self.commit(item)
                if await self.transcribe(item):
                    self.reply = asyncio.create_task(self.respond())

    async def commit(self, item: str) -> None:
        self.committed = len(self.sound)
        self.items[item] = {"id": item, "type": "message", "role": "user", "content": []}
        await self.send("input_audio_buffer.committed", item_id=item, previous_item_id=None)
        await self.send("conversation.item.added", item=self.items[item])

    async def transcribe(self, item: str) -> str:
        words = self.server.hears
        await asyncio.sleep(0.05)
        kind = "conversation.item.input_audio_transcription.completed"
        usage = {"type": "duration", "seconds": 1.0}
        languages = [{"code": self.server.language}]
        await self.send(kind, item_id=item, content_index=0, transcript=words, languages=languages, usage=usage)
        return words

    async def respond(self) -> None:
        """Half a sentence of speech for every few words, faster than it is heard."""
        while self.server.calls:
            await self.call(self.server.calls.pop(0))
        spoken = self.server.language == "en"
        text = self.server.replies.pop(0) if self.server.replies else "Good morrow to thee."
        item = {"id": f"item_{next(self.numbers)}", "type": "message", "role": "assistant"}
        item["content"] = [
            {"type": "output_audio", "transcript": ""} if spoken else {"type": "output_text", "text": ""}
        ]
        self.items[item["id"]] = item
        metadata = None if spoken else {"spoken": "false", "reason": f"no voice speaks {self.server.language}"}
        response = {"id": f"response_{next(self.numbers)}", "output": [], "metadata": metadata}
        where = {"response_id": response["id"], "item_id": item["id"], "output_index": 0, "content_index": 0}
        await self.send("response.created", response=response | {"status": "in_progress"})
        try:
            await self.send("response.output_item.added", item=item, output_index=0, response_id=response["id"])
            await self.send("conversation.item.added", item=item)
            for number, word in enumerate(text.split()):
                await asyncio.sleep(WORD_S)
                delta = word if number == 0 else f" {word}"
                if not spoken:
                    item["content"][0]["text"] += delta
                    await self.send("response.output_text.delta", delta=delta, **where)
                    continue
                item["content"][0]["transcript"] += delta
                await self.send("response.output_audio_transcript.delta", delta=delta, **where)
                tone = np.arange(int(TONE_S_PER_WORD * RATE_HZ)) + number * int(TONE_S_PER_WORD * RATE_HZ)
                pcm = (16000 * np.sin(2 * np.pi * TONE_HZ * tone / RATE_HZ)).astype("<i2").tobytes()
                await self.send("response.output_audio.delta", delta=base64.b64encode(pcm).decode(), **where)
            await self.send("response.output_audio.done", **where)
            status: dict[str, Any] = {"status": "completed"}
            if self.server.failure:
                details = {"type": "failed", "error": {"type": "server_error", "message": self.server.failure}}
                status, self.server.failure = {"status": "failed", "status_details": details}, ""
        except asyncio.CancelledError as cancelled:
            status = {"status": "cancelled", "status_details": {"type": "cancelled", "reason": str(cancelled)}}
        await self.send("response.output_item.done", item=item, output_index=0, response_id=response["id"])
        await self.send("response.done", response=response | {"output": [item]} | status)

    async def call(self, call: dict[str, Any]) -> None:
        """A response that calls a tool."""
        response = {"id": f"response_{next(self.numbers)}", "metadata": None}
        item = {"id": f"item_{next(self.numbers)}", "type": "mcp_call", "server_label": "desk", "name": call["name"]}
        where = {"response_id": response["id"], "output_index": 0}
        await self.send("response.created", response=response | {"status": "in_progress", "output": []})
        await self.send("response.output_item.added", item=item | {"arguments": ""}, **where)
        await asyncio.to_thread(self.server.calls_allowed.wait)
        await self.send("response.output_item.done", item=item | call, **where)
        await self.send("response.done", response=response | {"status": "completed", "output": [item | call]})

    async def cancel(self, reason: str) -> None:
        if self.reply and not self.reply.done():
            self.reply.cancel(reason)
            await asyncio.wait([self.reply])


class Served:
    """An app under uvicorn, in a thread of this process."""

    def __init__(self, app: FastAPI, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the test's server did not start"
            time.sleep(0.02)

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()


class Talk:
    """The page in a browser, as a person uses it."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def wait_for(self, *statuses: str) -> None:
        script = "statuses => statuses.includes(window.voicechat?.status)"
        try:
            self.page.wait_for_function(script, arg=list(statuses), timeout=30_000)
        except TimeoutError:
            pytest.fail(f"the status is {self.meter()['status']!r} ({self.status}), and not one of {statuses}")

    def wait_until(self, script: str, arg: Any = None) -> None:
        self.page.wait_for_function(script, arg=arg, timeout=30_000)

    def wait_for_server(self, condition: Callable[[], object]) -> None:
        """Until what the page has sent fulfils the condition."""
        deadline = time.monotonic() + 15
        while not condition():
            assert time.monotonic() < deadline, "the page has not sent it"
            self.page.wait_for_timeout(20)

    def wait_for_said(self, role: str, number: int) -> None:
        """Until there are so many messages of the role, the last one whole."""
        script = """([role, number]) => {
            const said = [...document.querySelectorAll(`.said.${role}`)];
            return said.length === number && !said.at(-1).classList.contains("growing");
        }"""
        try:
            self.wait_until(script, [role, number])
        except TimeoutError:
            pytest.fail(f"{role}: {self.said(role)}, and not {number} whole messages; {self.said('note')}")

    def type(self, text: str) -> None:
        self.page.get_by_label("Your message").fill(text)
        self.page.keyboard.press("Enter")

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def meter(self) -> dict[str, Any]:
        meter = self.page.evaluate("({...window.voicechat})")
        assert isinstance(meter, dict)
        return meter

    @property
    def status(self) -> str:
        return self.page.locator("#status").inner_text().strip()

    def said(self, role: str) -> list[str]:
        """Role: user, assistant or note."""
        return [text.strip() for text in self.page.locator(f".said.{role} .words").all_inner_texts()]


@pytest.fixture
def voicechat(tmp_path: Path) -> Callable[..., CompletedProcess[str]]:
    """The command, with a home of its own that shares the prepared models."""
    home, models = tmp_path / "home", settings().folder("models")
    home.mkdir()
    (home / "models").symlink_to(models)
    return partial(run_command, home)


@pytest.fixture(scope="module")
def in_one_home(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., CompletedProcess[str]]:
    """The command, with a home that the module's tests share: a new registry takes seconds to make."""
    return partial(run_command, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[FastAPI, int], Served]]:
    """Serves an app at a port, at the latest until the module's tests are over."""
    servers: list[Served] = []

    def start(app: FastAPI, port: int) -> Served:
        servers.append(Served(app, port))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def realtime() -> MadeUpServer:
    return MadeUpServer()


@pytest.fixture(scope="session")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Chromium's microphone hears, again and again: 1.2 s of a buzzing voice, then 2.4 s of quiet."""
    rate = 48000
    time_s = np.arange(int(1.2 * rate)) / rate
    syllables = 0.55 - 0.45 * np.cos(2 * np.pi * 4 * time_s)
    voice = syllables * sum(np.sin(2 * np.pi * BUZZ_HZ * k * time_s) / k for k in range(1, 15))
    samples = np.concatenate([np.zeros(int(0.4 * rate)), 7000 * voice, np.zeros(int(2 * rate))]).astype("<i2")
    path = tmp_path_factory.mktemp("microphone") / "microphone.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return path


# Not pytest-playwright's own fixture: that one keeps its event loop in this thread until the session ends, and the
# asynchronous tests of other modules could not start theirs.
@pytest.fixture(scope="module")
def browser(microphone: Path) -> Iterator[Browser]:
    """Headless Chromium, whose microphone plays the file."""
    chromium = shutil.which("chromium")
    assert chromium, "Chromium is not installed: `make test` installs it"
    with sync_playwright() as api:
        flags = [*CHROMIUM_FLAGS, f"--use-file-for-fake-audio-capture={microphone}"]
        browser = api.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(realtime: MadeUpServer, serve: Callable[[FastAPI, int], Served], free_port: Callable[[], int]) -> str:
    """The page on the made-up server's own port, as under `voicechat up`."""
    port = free_port()
    return serve(mount_page(realtime.app(), f"http://127.0.0.1:{port}/v1"), port).url


@pytest.fixture(scope="module")
def profile(browser: Browser) -> Callable[..., BrowserContext]:
    """A context with these options, which keeps Gradio's 60 files for the module's other tests."""
    contexts: dict[str, BrowserContext] = {}

    def find(**options: Any) -> BrowserContext:
        name = repr(options)
        if name not in contexts:
            contexts[name] = browser.new_context(**{"permissions": ["microphone"]} | options)
        return contexts[name]

    return find


@pytest.fixture
def open_page(profile: Callable[..., BrowserContext], realtime: MadeUpServer) -> Iterator[Callable[..., Talk]]:
    """Opens the page in a tab of its own, in a context that `options` describe (as for Browser.new_context).

    Afterwards no page may have asked anybody else for anything, or have reported an error on its console, but for those
    that hold one of the words `errors`.
    """
    realtime.reset()
    complaints: list[str] = []
    pages = []

    def start(
        url: str,
        wait_for: str | None = "ready",
        errors: Sequence[str] = (),
        script: str = "",
        viewport: ViewportSize | None = None,
        color_scheme: Literal["light", "dark"] = "light",
        **options: Any,
    ) -> Talk:
        page = profile(**options).new_page()
        pages.append(page)
        page.add_init_script(script)
        page.emulate_media(color_scheme=color_scheme)
        if viewport:
            page.set_viewport_size(viewport)

        def note(complaint: str) -> None:
            if not any(word in complaint for word in errors):
                complaints.append(complaint)

        own = (url, f"blob:{url}", "data:", url.replace("http", "ws", 1))
        page.on("request", lambda request: request.url.startswith(own) or note(request.url))
        page.on("websocket", lambda socket: socket.url.startswith(own) or note(socket.url))
        page.on("console", lambda message: message.type == "error" and note(message.text))
        page.on("pageerror", lambda error: note(str(error)))
        page.goto(url)
        talk = Talk(page)
        if wait_for:
            talk.wait_for(wait_for)
        return talk

    yield start
    for page in pages:
        page.close()
    assert complaints == []
