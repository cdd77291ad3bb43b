"""The two ends of a session's WebSocket: frames in, within bounds; events out, in order; and how errors are told."""

import asyncio
import difflib
import json
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import BaseModel, ValidationError

from voicechat_serve.realtime.errors import EventError, SessionEndedError
from voicechat_serve.realtime.server_events import error_event
from voicechat_serve.realtime.session_settings import CLIENT_EVENTS, KNOWN_FIELDS, ClientEvent

log = logging.getLogger("ray.serve.voicechat.realtime")

MOST_UNHANDLED_BYTES = 32 * 2**20
"""Of frames that came faster than they can be handled: eight minutes of sound."""

MOST_PARTS = 50_000
"""Commas and brackets in an event: those of a few megabytes take seconds, in which no other session is heard."""

UNSENT_BYTES = 256 * 1024
"""Of events that wait for the client: from here on a reply waits, and what the client asks for next."""

MOST_UNSENT_BYTES = 8 * 2**20
"""What is emitted all the same, by work that is under way, ends the session from here on."""

UNSENT_S = 10.0
"""How long an event may wait for the client; then the session ends."""

FAREWELL_S = 1.0
"""How long the end of a session waits for its client to take what is left."""


class Wire:
    """
    Args:
        receive: the client's next frame, a text; raises when it has left.
        send: sends a frame; waits while the client does not take it.
    """

    def __init__(self, receive: Callable[[], Awaitable[str]], send: Callable[[str], Awaitable[None]]):
        self.receive, self.send = receive, send
        self.inbox: asyncio.Queue[str] = asyncio.Queue()
        self.unhandled_bytes = 0
        self.outbox: asyncio.Queue[tuple[str, float]] = asyncio.Queue()
        """Frames, and when each must be sent; on the event loop's clock."""
        self.unsent_bytes = 0
        self.has_room = asyncio.Event()
        self.has_room.set()
        self.overflowing = asyncio.Event()

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
        """Sends what was emitted, for good.

        Raises: what `send` raises; SessionEndedError, the client does not take it in time.
        """
        while True:
            frame, due = await self.outbox.get()
            try:
                async with asyncio.timeout_at(due):
                    await self.send(frame)
            except TimeoutError:
                raise too_slow() from None
            self._count(-len(frame))

    async def watch(self) -> None:
        """
        Raises:
            SessionEndedError: too much was emitted that the client does not take.
        """
        await self.overflowing.wait()
        raise too_slow()

    async def farewell(self, error: dict[str, Any]) -> None:
        """Sends what is left, as far as the client takes it soon, and at last why the session ends."""

        async def send_rest() -> None:
            while not self.outbox.empty():
                await self.send(self.outbox.get_nowait()[0])

        for sending in (send_rest(), self.send(as_frame(error_event(error)))):
            try:
                async with asyncio.timeout(FAREWELL_S):
                    await sending
            except Exception as failure:  # most often it takes nothing, or has left
                log.info("a client was not told how its session ends: %r", failure)

    def emit(self, event: BaseModel) -> None:
        """Sends an event, in the order of the calls; where too much waits for the client, `watch` ends the session.

        That is not raised here: whoever emits may be a task that nobody waits for.
        """
        frame = as_frame(event)
        if self.unsent_bytes + len(frame) > MOST_UNSENT_BYTES:
            self.overflowing.set()
            return
        self.outbox.put_nowait((frame, asyncio.get_running_loop().time() + UNSENT_S))
        self._count(len(frame))

    async def post(self, event: BaseModel) -> None:
        """Sends an event once there is room for it."""
        await self.has_room.wait()
        self.emit(event)

    def _count(self, num_bytes: int) -> None:
        self.unsent_bytes += num_bytes
        if self.unsent_bytes < UNSENT_BYTES:
            self.has_room.set()
        else:
            self.has_room.clear()

    def emit_error(self, body: dict[str, Any], event_id: str | None = None) -> None:
        """
        Args:
            body: OpenAI's type, code and message.
            event_id: the client's, of its event that is at fault.
        """
        self.emit(error_event(body, event_id))


def too_slow() -> SessionEndedError:
    return SessionEndedError("too_slow", "the client does not take what it is sent: read the events as they come", 1008)


def as_frame(event: BaseModel) -> str:
    """One of `openai.types.realtime` as it is sent: the fields that it was given, null ones too, and no others."""
    return event.model_dump_json(exclude_unset=True)


def parsed(frame: str) -> dict[str, Any]:
    """
    Raises:
        EventError: not JSON, not an object, or one of too many parts.
    """
    if sum(map(frame.count, ",[{")) > MOST_PARTS:
        raise EventError("too_large", f"the event has more than {MOST_PARTS} commas and brackets")
    try:
        event = json.loads(frame)
    except (ValueError, RecursionError):
        raise EventError("invalid_json", "the event is not valid JSON") from None
    if not isinstance(event, dict):
        raise EventError("invalid_event", "an event is an object with a type")
    return event


def kind_of(event: dict[str, Any]) -> str:
    """
    Raises:
        EventError: it has no type, or one that there is not.
    """
    kind = event.get("type")
    if not isinstance(kind, str):
        raise EventError("invalid_event", "an event is an object with a type, and this one has none", "type")
    if kind not in CLIENT_EVENTS:
        message = f"unknown event {kind[:100]!r}; there are {', '.join(CLIENT_EVENTS)}"
        raise EventError("invalid_value", message, "type")
    return kind


def checked(kind: type[ClientEvent], event: dict[str, Any]) -> ClientEvent:
    try:
        return kind.model_validate(event)
    except ValidationError as error:
        raise invalid(error) from None


def invalid(error: ValidationError, prefix: str = "") -> EventError:
    """The first fault of an event or of a session, by OpenAI's codes."""
    first = error.errors(include_url=False, include_input=False)[0]
    param = (prefix + ".".join(str(part) for part in first["loc"]))[:100]
    kind = first["type"]
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), KNOWN_FIELDS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return EventError("unknown_parameter", f"unknown parameter {param!r}{hint}", param)
    if kind == "missing":
        code = "missing_required_parameter"
    else:
        code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return EventError(code, f"{param}: {first['msg'].removeprefix('Value error, ')}"[:1000], param)
