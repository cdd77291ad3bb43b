"""The two ends of a session's WebSocket: frames in, within bounds; events out, in order; and how errors are told."""

import asyncio
import contextlib
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import ValidationError

from voicechat_serve.conversation import new_id
from voicechat_serve.realtime.session_settings import CLIENT_EVENTS, Checked

MOST_UNHANDLED_BYTES = 32 * 2**20
"""Of frames that came faster than they can be handled: eight minutes of sound."""

MOST_PARTS = 50_000
"""Commas and brackets in an event: those of a few megabytes take seconds, in which no other session is heard."""

MOST_UNSENT = 2048
"""Events that the client has not taken yet."""


class EventError(Exception):
    """An event of the client's cannot be done; the session goes on."""

    def __init__(self, code: str, message: str, param: str | None = None, kind: str = "invalid_request_error"):
        super().__init__(message)
        self.body = {"type": kind, "code": code, "message": message, "param": param}


class SessionEndedError(Exception):
    """The session is over; the client is told why."""

    def __init__(self, code: str, message: str, close_code: int = 1000):
        super().__init__(message)
        self.code, self.close_code = code, close_code


class Wire:
    """
    Args:
        receive: the client's next frame, a text; raises when it has left.
        send: sends a frame.
    """

    def __init__(self, receive: Callable[[], Awaitable[str]], send: Callable[[str], Awaitable[None]]):
        self.receive, self.send = receive, send
        self.inbox: asyncio.Queue[str] = asyncio.Queue()
        self.unhandled_bytes = 0
        self.outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue(MOST_UNSENT)

    async def read(self) -> None:
        """Takes in what comes, for good: Serve would keep it without bound.

        Raises: what `receive` raises; SessionEndedError, too much came.
        """
        while True:
            frame = await self.receive()
            self.unhandled_bytes += sys.getsizeof(frame)
            if self.unhandled_bytes > MOST_UNHANDLED_BYTES:
                message = f"more than {MOST_UNHANDLED_BYTES // 2**20} MB came faster than they can be handled"
                raise SessionEndedError("too_fast", f"{message}: send sound as it is recorded", 1008)
            self.inbox.put_nowait(frame)

    async def next_frame(self, timeout_s: float) -> str:
        """
        Raises:
            TimeoutError: none has come.
        """
        async with asyncio.timeout(timeout_s):  # before Python 3.12, wait_for may swallow a cancellation
            frame = await self.inbox.get()
        self.unhandled_bytes -= sys.getsizeof(frame)
        return frame

    async def write(self) -> None:
        """Sends what was emitted, for good."""
        while True:
            await self.send(as_frame(await self.outbox.get()))

    async def write_rest(self) -> None:
        """Sends what is left, as far as the client takes it."""
        with contextlib.suppress(Exception):
            while not self.outbox.empty():
                await self.send(as_frame(self.outbox.get_nowait()))

    def emit(self, event: dict[str, Any]) -> None:
        """Sends an event, in the order of the calls.

        Raises:
            SessionEndedError: too many wait for the client.
        """
        try:
            self.outbox.put_nowait(event)
        except asyncio.QueueFull:
            raise SessionEndedError("too_slow", "the client does not take what it is sent", 1008) from None

    async def post(self, event: dict[str, Any]) -> None:
        """Sends an event once there is room for it."""
        await self.outbox.put(event)

    def emit_error(self, body: dict[str, Any], event_id: str | None = None) -> None:
        """
        Args:
            body: OpenAI's type, code and message.
            event_id: the client's, of its event that is at fault.
        """
        self.emit({"type": "error", "error": {"param": None, **body, "event_id": event_id}})


def as_frame(event: dict[str, Any]) -> str:
    frame = json.dumps({"event_id": new_id("event"), **event}, ensure_ascii=False)
    return frame.encode(errors="replace").decode()  # JSON can hold halves of characters, which no frame can


def parsed(frame: str) -> dict[str, Any]:
    """
    Raises:
        EventError: not an event that there is, or one of too many parts.
    """
    if sum(map(frame.count, ",[{")) > MOST_PARTS:
        raise EventError("too_large", f"the event has more than {MOST_PARTS} commas and brackets")
    try:
        event = json.loads(frame)
    except (ValueError, RecursionError):
        raise EventError("invalid_json", "the event is not valid JSON") from None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise EventError("invalid_value", "an event is an object with a type", "type")
    if event["type"] not in CLIENT_EVENTS:
        message = f"unknown event {event['type'][:100]!r}; there are {', '.join(CLIENT_EVENTS)}"
        raise EventError("invalid_value", message, "type")
    return event


def checked(kind: type[Checked], event: dict[str, Any]) -> Checked:
    try:
        return kind.model_validate(event)
    except ValidationError as error:
        raise invalid(error) from None


def invalid(error: ValidationError, prefix: str = "") -> EventError:
    first = error.errors(include_url=False, include_input=False)[0]
    param = (prefix + ".".join(str(part) for part in first["loc"]))[:100]
    return EventError("invalid_value", f"{param}: {first['msg'].removeprefix('Value error, ')}"[:1000], param)
