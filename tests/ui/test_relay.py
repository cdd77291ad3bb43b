"""/v1/realtime of a page that stands alone, with a WebSocket client in the browser's place."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from starlette.testclient import TestClient, WebSocketDenialResponse
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from voicechat_serve.api.access import AccessRules, guard
from voicechat_serve.api.front import build_front
from voicechat_ui.page import mount_page
from voicechat_ui.relay import LARGEST_FRAME_BYTES, add_relay, pass_frames


class Api:
    """Echoes; "close" makes it close."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.queries: list[str] = []
        self.gone = threading.Event()

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.websocket("/v1/realtime")
        async def echo(socket: WebSocket) -> None:
            self.keys.append(socket.headers["authorization"])
            self.queries.append(socket.url.query)
            if "forbidden" in socket.url.query:
                await socket.close()  # before it is accepted: HTTP 403
                return
            await socket.accept()
            while (message := await socket.receive())["type"] == "websocket.receive":
                if message.get("text") == "close":
                    await socket.close(1000, "said enough")
                    return
                await socket.send({"type": "websocket.send", **{k: message.get(k) for k in ("text", "bytes")}})
            self.gone.set()

        return app


@pytest.fixture(scope="module")
def api() -> Api:
    return Api()


@pytest.fixture(scope="module")
def address(api: Api, serve: Callable[..., Any], free_port: Callable[[], int]) -> str:
    """Of the relay, guarded as the page is."""
    behind = serve(api.app(), free_port())
    page = FastAPI()
    guard(page, AccessRules(), "Basic")
    add_relay(page, f"{behind.url}/v1", "secret")
    return serve(page, free_port()).url.replace("http", "ws") + "/v1/realtime"


@pytest.fixture
async def browser(address: str) -> AsyncIterator[ClientConnection]:
    async with connect(f"{address}?model=a%2Fb", proxy=None) as socket:
        yield socket


async def test_frames_go_both_ways_with_the_pages_key(browser: ClientConnection, api: Api) -> None:
    for frame in ("hello", b"\x00\x01", "x" * 500_000):
        await browser.send(frame)
        assert await browser.recv() == frame
    assert api.keys[-1] == "Bearer secret"
    assert api.queries[-1] == "model=a%2Fb"


async def test_each_side_closes_the_other(browser: ClientConnection, api: Api, address: str) -> None:
    await browser.send("close")
    with pytest.raises(ConnectionClosed):
        await browser.recv()
    assert (browser.close_code, browser.close_reason) == (1000, "said enough")
    api.gone.clear()
    async with connect(address, proxy=None) as other:
        await other.send("hello")
        await other.recv()
    assert await asyncio.to_thread(api.gone.wait, 5), "the API was not told that the browser had left"


async def test_a_frame_that_is_too_large_is_not_passed_on(browser: ClientConnection) -> None:
    await browser.send("x" * (LARGEST_FRAME_BYTES + 1))
    with pytest.raises(ConnectionClosed):
        await browser.recv()
    assert browser.close_code == 1009


async def test_what_breaks_inside_the_page_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    closed = []

    class Silent:
        def __aiter__(self) -> "Silent":
            return self

        async def __anext__(self) -> str:
            await asyncio.Event().wait()
            raise AssertionError

        async def close(self) -> None:
            closed.append(True)

    async def receive() -> dict[str, Any]:
        raise ValueError("no such frame")

    browser: Any = SimpleNamespace(receive=receive)
    api: Any = Silent()
    await pass_frames(browser, api)
    assert closed
    assert "ValueError: no such frame" in caplog.text


async def test_an_api_that_is_not_there_or_refuses_is_told_as_an_event(
    serve: Callable[..., Any], free_port: Callable[[], int], address: str, caplog: pytest.LogCaptureFixture
) -> None:
    lonely = FastAPI()
    add_relay(lonely, f"http://127.0.0.1:{free_port()}/v1", "secret")
    url = serve(lonely, free_port()).url.replace("http", "ws") + "/v1/realtime"
    for where, words, code in (
        (url, "does not answer. Start it with `voicechat serve`", 1013),
        (f"{address}?model=forbidden", "refused the conversation (HTTP 403)", 1008),
    ):
        async with connect(where, proxy=None) as socket:
            event = json.loads(await socket.recv())
            assert event["type"] == "error"
            assert words in event["error"]["message"]
            with pytest.raises(ConnectionClosed):
                await socket.recv()
            assert socket.close_code == code


async def test_pages_of_other_sites_are_refused(address: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await connect(address, origin="http://elsewhere.test", proxy=None)  # type: ignore[arg-type]
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize(
    "path", ["/nowhere", "/v1/models", "/embeddings", "/config/x", "/theme.css/", "/a%00b", "/%zz"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "TRACE"])
def test_the_page_tells_paths_that_it_does_not_know_in_openais_form(front: TestClient, path: str, method: str) -> None:
    refused = front.request(method, path, follow_redirects=False)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")


def test_the_page_tells_methods_that_it_does_not_know(front: TestClient) -> None:
    for method, path, allowed in (("POST", "/", "GET"), ("DELETE", "/config", "GET"), ("POST", "/health", "GET")):
        refused = front.request(method, path)
        assert (refused.status_code, refused.json()["error"]["code"]) == (405, "method_not_supported")
        assert allowed in refused.headers["allow"]
    assert front.get("/v1/realtime").status_code == 426
    assert "window.gradio_config" in front.get("/").text
    with pytest.raises(WebSocketDenialResponse) as denied, front.websocket_connect("ws://127.0.0.1/nowhere"):
        pass
    assert (denied.value.status_code, denied.value.json()["error"]["code"]) == (404, "not_found")


@pytest.fixture(scope="module")
def front() -> TestClient:
    """What answers at the root under `voicechat up`."""
    page = partial(mount_page, api_base_url="http://127.0.0.1:1/v1", api_key="none")
    return TestClient(build_front(page, AccessRules()), "http://127.0.0.1")
