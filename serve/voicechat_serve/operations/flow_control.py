"""Flow control between an application and its client across Serve, where `send` never waits for the client.

Serve passes an application's messages to its proxy through unbounded queues. With a client that does not read, they
would grow without limit. Only the proxy knows what it has sent. So the application marks a message about every
MARK_BYTES. When `send` has accepted that message, the proxy acknowledges the mark among the client's own messages.
Until then, the next `send` of the application waits, and with it the producer of the response.

A proxy without `Acknowledgements` (see proxy.py) acknowledges nothing, and nothing waits. Nothing waits without Serve
either, where `send` itself waits for the client.
"""

import asyncio
import logging
from typing import Any

from starlette.status import WS_1008_POLICY_VIOLATION
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("ray.serve.voicechat.flow_control")

MOST_UNSENT_BYTES = 256 * 1024
"""The most bytes of one response on their way to the proxy and in it: four seconds of a conversation's audio."""

MARK_BYTES = 64 * 1024

UNSENT_S = 20.0
"""The longest time without progress while this much waits; then the connection is closed and the work ends."""

EXTENSION = "voicechat.acknowledgements"
"""The key in the scope's extensions if the proxy acknowledges."""

MARK = "voicechat.mark"
"""The field of a message that needs an acknowledgement: the bytes of the response up to its end."""

ACKNOWLEDGED = "voicechat.acknowledged"
"""Type of the acknowledgement."""


class Acknowledgements:
    """ASGI middleware of the proxy: acknowledges the application's messages when they are sent."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        marks: asyncio.Queue[int] = asyncio.Queue()
        incoming: asyncio.Future[Message] | None = None

        async def receive_either() -> Message:
            """Return the client's next message, or an acknowledgement."""
            nonlocal incoming
            incoming = incoming or asyncio.ensure_future(receive())
            mark = asyncio.ensure_future(marks.get())
            either: tuple[asyncio.Future[Any], ...] = (incoming, mark)
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if mark.done():
                    return {"type": ACKNOWLEDGED, "bytes": mark.result()}
            finally:
                mark.cancel()
            message, incoming = incoming.result(), None
            return message

        async def send_on(message: Message) -> None:
            mark = message.pop(MARK, None)
            await send(message)
            if mark is not None:
                marks.put_nowait(mark)

        try:
            extensions = {**scope.get("extensions", {}), EXTENSION: {}}
            await self.app({**scope, "extensions": extensions}, receive_either, send_on)
        finally:
            if incoming:
                incoming.cancel()


class FlowControl:
    """ASGI middleware of an application, outside of all others: `send` waits while too much is unsent.

    If a client reads nothing for UNSENT_S, the request is cancelled, as when the client disconnects.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if EXTENSION not in scope.get("extensions", {}):
            return await self.app(scope, receive, send)
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[Message | Exception] = asyncio.Queue()
        sent = marked = gone_out = 0
        has_room, has_left = asyncio.Event(), False
        has_room.set()

        def expect_progress() -> None:
            """Extend the deadline after a message was sent or acknowledged."""
            if patience.expired():
                return
            if has_left or sent - gone_out <= MOST_UNSENT_BYTES:
                has_room.set()
                patience.reschedule(None)
            else:
                has_room.clear()
                patience.reschedule(loop.time() + UNSENT_S)

        async def listen() -> None:
            """Receive messages continuously: an application that only sends would see no acknowledgement."""
            nonlocal gone_out, has_left
            try:
                while not has_left:
                    message = await receive()
                    if message["type"] == ACKNOWLEDGED:
                        gone_out = message["bytes"]
                    else:
                        has_left = message["type"] in ("http.disconnect", "websocket.disconnect")
                        inbox.put_nowait(message)
                    if has_left or not has_room.is_set():
                        expect_progress()
            except Exception as error:  # the receiver gets the error
                inbox.put_nowait(error)

        async def receive_on() -> Message:
            message = await inbox.get()
            if isinstance(message, Exception) or (has_left and inbox.empty()):
                inbox.put_nowait(message)  # the last one, which every later call returns
            if isinstance(message, Exception):
                raise message
            return message

        async def send_on(message: Message) -> None:
            nonlocal sent, marked
            sent += len(message.get("body") or message.get("bytes") or message.get("text") or "")
            if sent - marked >= MARK_BYTES:
                marked = sent
                message = {**message, MARK: sent}
            await send(message)
            goes_on = message["type"] == "websocket.send" or message.get("more_body", False)
            if goes_on and sent - gone_out > MOST_UNSENT_BYTES:
                if has_room.is_set():
                    expect_progress()
                await has_room.wait()

        try:
            async with asyncio.timeout(None) as patience:
                listening = asyncio.create_task(listen())
                try:
                    await self.app(scope, receive_on, send_on)
                finally:
                    listening.cancel()
        except TimeoutError:
            if not patience.expired():
                raise
            log.warning("a client read nothing for %g s: its connection is closed", UNSENT_S)
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": WS_1008_POLICY_VIOLATION, "reason": "too_slow"})
