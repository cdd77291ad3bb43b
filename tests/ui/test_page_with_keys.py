"""The page where keys are needed, in headless Chromium: a person's key is a password, the page has one of its own."""

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Response
from playwright.sync_api import Browser, sync_playwright

from voicechat_serve.api.access import AccessRules, guard
from voicechat_serve.keys import create_key, fingerprint, make_secret
from voicechat_ui.page import mount_page

CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required", "--no-first-run"]


def made_up_api(rules: AccessRules) -> FastAPI:
    """Says "Good morrow." and gives half a second of silence."""
    app = FastAPI()
    guard(app, rules, "Bearer")

    @app.get("/v1/models")
    async def models() -> dict:
        return {"object": "list", "data": [{"id": "bard", "object": "model", "created": 0, "owned_by": "test"}]}

    @app.post("/v1/chat/completions")
    async def chat() -> Response:
        choice = {"index": 0, "delta": {"role": "assistant", "content": "Good morrow."}, "finish_reason": "stop"}
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "bard", "choices": [choice]}
        return Response(f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n", media_type="text/event-stream")

    @app.post("/v1/audio/speech")
    async def speech() -> Response:
        return Response(bytes(24_000), media_type="audio/pcm")

    return app


class Server:
    """An app under uvicorn, in a thread of this process."""

    def __init__(self, app: FastAPI, port: int) -> None:
        self._server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
        self._thread = threading.Thread(target=self._server.run)
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
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home") / "keys.json"


@pytest.fixture(scope="module")
def secret(keys_file: Path) -> str:
    """Of a person who may send few requests: enough for a turn, and not for the files of a page."""
    return create_key(keys_file, "anna", requests_per_minute=20, concurrent_requests=4)[1]


@pytest.fixture(scope="module")
def url(keys_file: Path, secret: str) -> Iterator[str]:
    page_key = make_secret()
    rules = AccessRules(keys_file=keys_file, keys_required=True, page_key_sha256=fingerprint(page_key))
    api_port, page_port = free_port(), free_port()
    front = FastAPI()
    guard(front, rules, "Basic")
    servers = [
        Server(made_up_api(rules), api_port),
        Server(mount_page(front, f"http://127.0.0.1:{api_port}/v1", page_key), page_port),
    ]
    yield f"http://127.0.0.1:{page_port}"
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as api:
        browser = api.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


def test_a_person_with_a_key_talks(browser: Browser, url: str, secret: str) -> None:
    context = browser.new_context(http_credentials={"username": "anybody", "password": secret})
    page = context.new_page()
    refused: list[tuple[int, str]] = []
    page.on("response", lambda answer: answer.status >= 400 and refused.append((answer.status, answer.url)))
    page.goto(url)
    page.wait_for_function("window.voicechat?.status === 'ready'", timeout=20_000)
    for _ in range(2):
        page.get_by_label("Your message").fill("Who art thou?")
        page.keyboard.press("Enter")
        page.wait_for_function("window.voicechat.status === 'done'", timeout=20_000)
        page.wait_for_function("window.voicechat.playedSeconds > 0.4")
    assert page.locator("#chat [data-testid=bot]").last.inner_text().strip() == "Good morrow."
    assert refused == []
    context.close()


def test_without_a_key_a_browser_is_asked_for_one_and_shown_nothing(browser: Browser, url: str) -> None:
    context = browser.new_context()
    answer = context.request.get(url)
    assert answer.status == 401
    assert answer.headers["www-authenticate"].startswith("Basic realm=")
    context.close()
    for path in (
        "/",
        "/config",
        "/gradio_api/info",
        "/speech/x",
        "/gradio_api/queue/data?session_hash=x",
        "/theme.css",
    ):
        for auth in (None, ("anybody", "wrong")):
            assert httpx.get(url + path, auth=auth).status_code == 401
    assert httpx.post(f"{url}/gradio_api/queue/join", json={}).status_code == 401
    assert httpx.post(f"{url}/gradio_api/upload", files={"files": b"x"}).status_code == 401
