"""The page in headless Chromium, against a made-up API: fixed words, a sine for a voice, an ear for loudness only."""

import asyncio
import io
import json
import math
import shutil
import socket
import struct
import threading
import time
import wave
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import playwright.sync_api
import pytest
import uvicorn
from fastapi import FastAPI, HTTPException, Request, UploadFile
from fastapi.responses import JSONResponse, StreamingResponse
from playwright.sync_api import Browser, Page, expect, sync_playwright

from voicechat_ui.page import mount_page

# A name that is not loopback to the browser, so that plain HTTP is no secure context there.
PLAIN_HTTP_HOST = "voice.test"

CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    f"--host-resolver-rules=MAP {PLAIN_HTTP_HOST} 127.0.0.1",
]

REPLY = "Good morrow to thee. " + " ".join(f"word{number}" for number in range(20)) + "."
WORD_S = 0.1
TONE_S_PER_CHARACTER = 0.015


class MadeUpApi:
    """As much of OpenAI's API as the page uses; its behaviour can be changed from the test."""

    def __init__(self) -> None:
        self.hears = True
        self.refusal = ""
        """What the chat endpoint answers instead of a reply, if anything."""
        self.requests: list[dict[str, Any]] = []
        self.num_open_replies = 0

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.exception_handler(HTTPException)
        async def refuse(request: Request, error: HTTPException) -> JSONResponse:
            body = {"message": error.detail, "type": "invalid_request_error", "param": None, "code": None}
            return JSONResponse({"error": body}, status_code=error.status_code)

        @app.get("/health")
        async def health() -> dict[str, str]:
            return {"status": "ok"}

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            kinds = {"bard": "language", "whisper-1": "transcription", "parrot": "language", "tts-1": "speech"}
            return {
                "object": "list",
                "data": [
                    {"id": name, "object": "model", "created": 0, "owned_by": "test", "type": kind}
                    for name, kind in kinds.items()
                ],
            }

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> StreamingResponse:
            self.requests.append(body := await request.json())
            if self.refusal:
                raise HTTPException(400, self.refusal)
            return StreamingResponse(self.reply(body["model"]), media_type="text/event-stream")

        @app.post("/v1/audio/transcriptions")
        async def transcriptions(file: UploadFile) -> dict[str, str]:
            samples = samples_of(await file.read())
            return {"text": "Testing the microphone" if max(map(abs, samples), default=0) > 300 and self.hears else ""}

        @app.post("/v1/audio/speech")
        async def speech(request: Request) -> StreamingResponse:
            return StreamingResponse(tone(len((await request.json())["input"])), media_type="audio/pcm")

        return app

    async def reply(self, model: str) -> AsyncGenerator[str, None]:
        self.num_open_replies += 1
        try:
            for piece in [word + " " for word in REPLY.split()]:
                await asyncio.sleep(WORD_S)
                choice = {"index": 0, "delta": {"content": piece}, "finish_reason": None}
                chunk = {
                    "id": "c",
                    "object": "chat.completion.chunk",
                    "created": 0,
                    "model": model,
                    "choices": [choice],
                }
                yield f"data: {json.dumps(chunk)}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            self.num_open_replies -= 1


async def tone(num_characters: int) -> AsyncGenerator[bytes, None]:
    """A sine of 440 Hz, half loud, in chunks of an odd number of bytes."""
    num_samples = int(num_characters * TONE_S_PER_CHARACTER * 24000)
    pcm = b"".join(struct.pack("<h", int(16000 * math.sin(2 * math.pi * 440 * n / 24000))) for n in range(num_samples))
    for start in range(0, len(pcm), 4801):
        yield pcm[start : start + 4801]


def samples_of(recording: bytes) -> list[int]:
    with wave.open(io.BytesIO(recording)) as file:
        frames = file.readframes(file.getnframes())
    return list(struct.unpack(f"<{len(frames) // 2}h", frames))


class Server:
    """An app under uvicorn, in a thread of this process."""

    def __init__(self, app: FastAPI, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
        self._thread = threading.Thread(target=self._server.run)

    def start(self) -> None:
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the test's server did not start"
            time.sleep(0.02)

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def api() -> MadeUpApi:
    return MadeUpApi()


@pytest.fixture(scope="module")
def url(api: MadeUpApi) -> Iterator[str]:
    port = free_port()
    server = Server(mount_page(api.app(), f"http://127.0.0.1:{port}/v1"), port)
    server.start()
    yield server.url
    server.stop()


# Not pytest-playwright's own fixture: that one keeps its event loop in this thread until the session ends, and the
# asynchronous tests of other modules could not start theirs.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium, "Chromium is not installed: `make test` installs it"
    with sync_playwright() as api:
        browser = api.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, url: str, api: MadeUpApi) -> Iterator[Page]:
    """The loaded page; afterwards it must have asked nobody else for anything and reported no error."""
    api.hears, api.refusal = True, ""
    api.requests.clear()
    context = browser.new_context(permissions=["microphone"])
    page = context.new_page()
    complaints: list[str] = []

    def note_request(request: playwright.sync_api.Request) -> None:
        if not request.url.startswith((url, f"blob:{url}", "data:")):
            complaints.append(request.url)

    def note_message(message: playwright.sync_api.ConsoleMessage) -> None:
        if message.type == "error":
            complaints.append(message.text)

    page.on("request", note_request)
    page.on("console", note_message)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(url)
    wait_for_status(page, "ready")
    yield page
    context.close()
    assert complaints == []


def wait_for_status(page: Page, *statuses: str) -> None:
    page.wait_for_function(
        "statuses => statuses.includes(window.voicechat?.status)", arg=list(statuses), timeout=20_000
    )


def type_message(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def record(page: Page, seconds: float = 1) -> None:
    page.get_by_role("button", name="Record").click()
    wait_for_status(page, "listening")
    page.wait_for_timeout(seconds * 1000)
    page.get_by_role("button", name="Stop", exact=True).click()


def wait_until_nobody_writes(api: MadeUpApi) -> None:
    deadline = time.monotonic() + 1
    while api.num_open_replies and time.monotonic() < deadline:
        time.sleep(0.01)
    assert api.num_open_replies == 0, "the model still writes"


def sound(page: Page) -> dict[str, Any]:
    meter = page.evaluate("({...window.voicechat})")
    assert isinstance(meter, dict)
    return meter


def said(page: Page, role: str) -> list[str]:
    return [text.strip() for text in page.locator(f"#chat [data-testid={role}]").all_inner_texts()]


def test_typing_shows_the_reply_word_by_word_and_speaks_it_meanwhile(page: Page) -> None:
    type_message(page, "Who art thou?")
    page.wait_for_function("window.voicechat.rms > 0.1")
    part = said(page, "bot")[-1]
    assert part, "there was sound before the first word"
    assert len(part) < len(REPLY), "the sound started only when the text was whole"
    assert REPLY.startswith(part)
    wait_for_status(page, "done")
    assert said(page, "user") == ["Who art thou?"]
    assert said(page, "bot") == [REPLY]
    heard = sound(page)
    assert 0.3 < heard["peak"] < 0.6
    # Every sample was played: the reply without the spaces between its two sentences.
    assert heard["playedSeconds"] == pytest.approx((len(REPLY) - 1) * TONE_S_PER_CHARACTER, abs=0.05)
    expect(page.locator("#latency")).to_contain_text("first sound")
    expect(page.get_by_label("Your message")).to_have_value("")


def test_markup_is_shown_as_words_and_fetches_nothing(page: Page) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    message = "if a<b & c>d then <img src=picture> <b>bold</b>"
    type_message(page, message)
    wait_for_status(page, "done")
    assert said(page, "user")[-1] == message
    assert not any("picture" in url for url in requests)


def test_speaking_shows_what_was_heard_and_is_answered(page: Page) -> None:
    record(page)
    wait_for_status(page, "speaking")
    assert said(page, "user") == ["Testing the microphone"]
    wait_for_status(page, "done")
    assert said(page, "bot") == [REPLY]
    assert sound(page)["rms"] > 0.1
    expect(page.locator("#latency")).to_contain_text("heard")
    expect(page.get_by_role("button", name="Record")).to_be_visible()


def test_nothing_heard_is_said_and_no_reply_is_made_up(page: Page, api: MadeUpApi) -> None:
    api.hears = False
    record(page)
    wait_for_status(page, "nothing heard")
    expect(page.get_by_role("status").filter(has_text="I heard nothing")).to_be_visible()
    assert said(page, "user") == said(page, "bot") == []
    assert api.requests == []
    api.hears = True
    record(page)
    wait_for_status(page, "speaking")


def test_a_recording_that_ends_at_once_is_answered_too(page: Page) -> None:
    record(page, seconds=0)
    wait_for_status(page, "nothing heard", "speaking")


def test_stop_ends_reply_and_sound_at_once(page: Page, api: MadeUpApi) -> None:
    type_message(page, "Go on.")
    page.wait_for_function("window.voicechat.rms > 0.1")
    page.get_by_role("button", name="Stop reply").click()
    wait_for_status(page, "stopped")
    assert not sound(page)["playing"]
    wait_until_nobody_writes(api)
    part = said(page, "bot")[-1]
    assert len(part) < len(REPLY)
    played = sound(page)["playedSeconds"]
    page.wait_for_timeout(500)
    assert sound(page)["playedSeconds"] == played
    assert said(page, "bot")[-1] == part
    type_message(page, "And now?")
    wait_for_status(page, "done")
    assert said(page, "bot") == [part, REPLY]


def test_recording_interrupts_the_reply(page: Page, api: MadeUpApi) -> None:
    type_message(page, "Go on.")
    wait_for_status(page, "speaking")
    page.get_by_role("button", name="Record").click()
    wait_for_status(page, "listening")
    assert not sound(page)["playing"]
    wait_until_nobody_writes(api)
    page.wait_for_timeout(1000)
    page.get_by_role("button", name="Stop", exact=True).click()
    wait_for_status(page, "done")
    assert said(page, "user") == ["Go on.", "Testing the microphone"]


def test_closing_the_page_ends_its_turn(page: Page, api: MadeUpApi) -> None:
    type_message(page, "Go on.")
    wait_for_status(page, "speaking")
    page.close()
    wait_until_nobody_writes(api)


def test_a_new_message_interrupts_the_reply(page: Page, api: MadeUpApi) -> None:
    type_message(page, "First.")
    wait_for_status(page, "speaking")
    type_message(page, "Second.")
    page.wait_for_function("document.querySelectorAll('#chat [data-testid=user]').length == 2")
    wait_for_status(page, "done")
    assert said(page, "user") == ["First.", "Second."]
    first, second = said(page, "bot")
    assert len(first) < len(second) == len(REPLY)
    roles = [message["role"] for message in api.requests[-1]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]


def test_clearing_empties_the_page_and_the_memory(page: Page, api: MadeUpApi) -> None:
    type_message(page, "Remember me.")
    wait_for_status(page, "speaking")
    page.get_by_role("button", name="Clear conversation").click()
    wait_for_status(page, "ready")
    assert said(page, "user") == said(page, "bot") == []
    type_message(page, "Who am I?")
    wait_for_status(page, "speaking")
    assert [message["content"] for message in api.requests[-1]["messages"][1:]] == ["Who am I?"]


def test_two_pages_are_two_conversations(page: Page, url: str, api: MadeUpApi) -> None:
    other = page.context.new_page()
    other.goto(url)
    wait_for_status(other, "ready")
    type_message(page, "I am the first.")
    type_message(other, "I am the second.")
    wait_for_status(page, "done")
    wait_for_status(other, "done")
    assert said(page, "user") == ["I am the first."]
    assert said(other, "user") == ["I am the second."]
    assert all(len(request["messages"]) == 2 for request in api.requests)


def test_the_picker_lists_language_models_and_the_pick_replies(page: Page, api: MadeUpApi) -> None:
    page.get_by_label("Model").click()
    options = page.get_by_label("Model").locator("xpath=ancestor::*[@id='model']").get_by_role("option")
    assert [option.inner_text().split()[-1] for option in options.all()] == ["bard", "parrot"]
    page.get_by_role("option", name="parrot").click()
    type_message(page, "Hello?")
    wait_for_status(page, "speaking")
    assert api.requests[-1]["model"] == "parrot"


def test_a_refusal_is_shown_and_the_next_turn_works(page: Page, api: MadeUpApi) -> None:
    api.refusal = "the conversation is too long for this model"
    type_message(page, "Hello?")
    wait_for_status(page, "failed")
    expect(page.locator("#status")).to_contain_text("the conversation is too long for this model")
    api.refusal = ""
    type_message(page, "Hello again?")
    wait_for_status(page, "done")


def test_without_an_api_the_page_says_so_and_what_to_do(browser: Browser) -> None:
    server = Server(mount_page(FastAPI(), f"http://127.0.0.1:{free_port()}/v1"), free_port())
    server.start()
    page = browser.new_page()
    page.goto(server.url)
    wait_for_status(page, "failed")
    expect(page.locator("#status")).to_contain_text("does not answer. Start it with `voicechat serve`")
    page.close()
    server.stop()


def test_a_server_that_goes_away_in_mid_reply_is_noticed(browser: Browser) -> None:
    port = free_port()
    server = Server(mount_page(MadeUpApi().app(), f"http://127.0.0.1:{port}/v1"), port)
    server.start()
    page = browser.new_page()
    page.goto(server.url)
    wait_for_status(page, "ready")
    type_message(page, "Hello?")
    wait_for_status(page, "speaking")
    server.stop()
    wait_for_status(page, "failed")
    expect(page.locator("#status")).to_contain_text("Check that it runs")
    page.close()


def test_plain_http_says_why_there_is_no_microphone(browser: Browser, url: str) -> None:
    page = browser.new_page()
    page.goto(url.replace("127.0.0.1", PLAIN_HTTP_HOST))
    expect(
        page.get_by_role("alert").filter(has_text="No microphone: browsers allow it only over HTTPS")
    ).to_be_visible()
    page.close()


def test_a_phone_shows_everything_without_scrolling_sideways(browser: Browser, url: str) -> None:
    page = browser.new_page(viewport={"width": 375, "height": 667})
    page.goto(url)
    wait_for_status(page, "ready")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    for name in ("Record", "Clear conversation"):
        expect(page.get_by_role("button", name=name)).to_be_in_viewport()
    expect(page.get_by_label("Your message")).to_be_in_viewport()
    page.close()


def test_the_apps_own_routes_stay(url: str) -> None:
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{url}/speech/guess").status_code == 404
