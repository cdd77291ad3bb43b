"""/v1/realtime for a page without an API in its process: forwards frames between the browser and the API.

The relay sends the page's key to the API. Under `voicechat up` it gets no request: Serve routes all of /v1 to the API.
"""

import asyncio
import logging
import secrets
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from starlette.status import (
    WS_1008_POLICY_VIOLATION,
    WS_1009_MESSAGE_TOO_BIG,
    WS_1011_INTERNAL_ERROR,
    WS_1013_TRY_AGAIN_LATER,
)
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from voicechat_serve.api.errors import websocket_only

log = logging.getLogger(__name__)

LARGEST_FRAME_BYTES = 1 << 20
"""From either side: 15 seconds of sound as base64; a client sends a fraction of a second per frame."""

FRAMES_QUEUED = 16

OPEN_TIMEOUT_S = 5

NEVER_SENT = (1005, 1006, 1015)
"""Close codes that a library sets if the other side sent no code."""


def add_relay(app: FastAPI, api_base_url: str, api_key: str) -> None:
    """Add the route /v1/realtime.

    Args:
        api_base_url: http:// or https://, ends in /v1.
        api_key: the page's key for the API.
    """
    address = f"ws{api_base_url.removeprefix('http')}/realtime"

    @app.get("/v1/realtime")
    async def refuse_http() -> None:
        raise websocket_only()

    @app.websocket("/v1/realtime")
    async def realtime(browser: WebSocket) -> None:
        await browser.accept()
        try:
            api = await connect(
                f"{address}?{browser.url.query}",
                additional_headers={"Authorization": f"Bearer {api_key}"},
                max_size=LARGEST_FRAME_BYTES,
                max_queue=FRAMES_QUEUED,
                open_timeout=OPEN_TIMEOUT_S,
                proxy=None,
            )
        except InvalidStatus as error:
            log.warning("%s: %s", address, error)
            message, code = refusal(error.response.status_code)
            await give_up(browser, message, code)
        except (OSError, WebSocketException):
            log.warning("%s does not answer", address, exc_info=True)
            message = f"The server at {api_base_url} does not answer. Start it with `voicechat serve`."
            await give_up(browser, message, WS_1013_TRY_AGAIN_LATER)
        else:
            await pass_frames(browser, api)


def refusal(status: int) -> tuple[str, int]:
    """Return the message and the close code for the browser if the API refuses the connection with an HTTP status."""
    if status == 401:
        return (
            "The server requires a key from this page: start the page with one in VOICECHAT_API_KEY.",
            WS_1008_POLICY_VIOLATION,
        )
    if status == 404:
        return (
            "The server has no /v1/realtime: it is an older version or another kind of server.",
            WS_1008_POLICY_VIOLATION,
        )
    if status == 429 or status >= 500:
        return f"The server is busy (HTTP {status}).", WS_1013_TRY_AGAIN_LATER
    return f"The server refused the conversation (HTTP {status}).", WS_1008_POLICY_VIOLATION


async def give_up(browser: WebSocket, message: str, code: int) -> None:
    """Send the message as an error event of the protocol, and close the connection."""
    error = {"type": "server_error", "code": "api_unavailable", "message": message, "param": None, "event_id": None}
    event: dict[str, Any] = {"type": "error", "event_id": f"event_{secrets.token_hex(8)}", "error": error}
    with suppress(WebSocketDisconnect, RuntimeError):  # the browser has disconnected
        await browser.send_json(event)
        await browser.close(code)


async def pass_frames(browser: WebSocket, api: ClientConnection) -> None:
    """Forward frames both ways until one side closes, then close the other. A slow side slows the other down."""
    directions = [asyncio.create_task(to_api(browser, api)), asyncio.create_task(to_browser(browser, api))]
    try:
        await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for direction in directions:
            direction.cancel()
        for ending in await asyncio.gather(*directions, return_exceptions=True):
            if isinstance(ending, Exception):  # not a cancellation
                log.error("the relay of a conversation failed", exc_info=ending)
        await api.close()


async def to_api(browser: WebSocket, api: ClientConnection) -> None:
    try:
        while (message := await browser.receive())["type"] == "websocket.receive":
            frame = message.get("text") or message.get("bytes") or b""
            if len(frame) > LARGEST_FRAME_BYTES:
                await browser.close(WS_1009_MESSAGE_TOO_BIG)
                return
            await api.send(frame)
    except ConnectionClosed:
        await asyncio.Event().wait()  # the other direction forwards the close code, then cancels this task


async def to_browser(browser: WebSocket, api: ClientConnection) -> None:
    try:
        async for frame in api:
            await (browser.send_text(frame) if isinstance(frame, str) else browser.send_bytes(frame))
    except ConnectionClosed:
        pass
    except (WebSocketDisconnect, RuntimeError):
        return  # the browser has disconnected
    code = api.close_code or WS_1011_INTERNAL_ERROR
    with suppress(WebSocketDisconnect, RuntimeError):
        await browser.close(WS_1011_INTERNAL_ERROR if code in NEVER_SENT else code, api.close_reason)
