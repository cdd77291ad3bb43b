"""A session's WebSocket: it receives frames, within limits, sends events in order, and reports errors."""

import asyncio
import difflib
import json
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from voicechat_serve.realtime.errors import EventError, SessionEndedError
from voicechat_serve.realtime.server_events import error_event
from voicechat_serve.realtime.session_settings import CLIENT_EVENTS, KNOWN_FIELDS, ClientEvent

log = logging.getLogger("ray.serve.voicechat.realtime")

MOST_UNHANDLED_BYTES = 32 * 2**20
"""The limit of received frames that wait for the session: eight minutes of sound."""

MOST_PARTS = 50_000
"""The most commas and brackets in an event. To parse a few megabytes of them takes seconds, and all other sessions wait
meanwhile."""

UNSENT_BYTES = 256 * 1024
"""With so many bytes of events that wait for the client, replies and the client's next requests wait too."""

MOST_UNSENT_BYTES = 8 * 2**20
"""Active work may still emit events. The session ends when they would exceed this limit."""

UNSENT_S = 10.0
"""The longest time that an event may wait for the client; then the session ends."""

FAREWELL_S = 1.0
"""The longest time that the end of a session waits for the client to take the last events."""


class Wire:
    """The frames between a session and its client.

    Args:
        receive: returns the client's next frame, a text; raises when the client has left.
        send: sends a frame; waits while the client does not take it.
    """

    def __init__(self, receive: Callable[[], Awaitable[str]], send: Callable[[str], Awaitable[None]]):
        self.receive, self.send = receive, send
        self.inbox: asyncio.Queue[str] = asyncio.Queue()
        self.unhandled_bytes = 0
        self.outbox: asyncio.Queue[tuple[str, float]] = asyncio.Queue()
        """Frames, each with the time until which it must be sent; on the event loop's clock."""
        self.unsent_bytes = 0
        self.has_room = asyncio.Event()
        self.has_room.set()
        self.overflowing = asyncio.Event()

    async def read(self) -> None:
        """Receive frames without end. Ray Serve would otherwise keep them, without a limit.

        Raises: what `receive` raises; SessionEndedError, too many frames wait for the session.
        """
        while True:
            frame = await self.receive()
            self.unhandled_bytes += sys.getsizeof(frame)
            if self.unhandled_bytes > MOST_UNHANDLED_BYTES:
                message = f"more than {MOST_UNHANDLED_BYTES // 2**20} MB of events wait to be handled"
                raise SessionEndedError("too_fast", f"{message}: send sound only as fast as it is recorded", 1008)
            self.inbox.put_nowait(frame)

    async def next_frame(self, timeout_s: float) -> str:
        """Return the client's next frame.

        Raises:
            TimeoutError: no frame arrived in time.
        """
        async with asyncio.timeout(timeout_s):  # before Python 3.12, wait_for may swallow a cancellation
            frame = await self.inbox.get()
        self.unhandled_bytes -= sys.getsizeof(frame)
        return frame

    async def write(self) -> None:
        """Send the emitted events without end.

        Raises: what `send` raises; SessionEndedError, the client does not take an event in time.
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
        """Wait until too many events wait for the client.

        Raises:
            SessionEndedError: the client does not take its events.
        """
        await self.overflowing.wait()
        raise too_slow()

    async def farewell(self, error: dict[str, Any]) -> None:
        """Send the last events, if the client takes them soon, and then the reason why the session ends."""

        async def send_rest() -> None:
            while not self.outbox.empty():
                await self.send(self.outbox.get_nowait()[0])

        for sending in (send_rest(), self.send(as_frame(error_event(error)))):
            try:
                async with asyncio.timeout(FAREWELL_S):
                    await sending
            except Exception as failure:  # usually the client takes nothing, or has left
                log.info("the last events of a session could not be sent: %r", failure)

    def emit(self, event: BaseModel) -> None:
        """Send an event, in the order of the calls. If too many events wait for the client, `watch` ends the session.

        This method raises no error for that, because it is possible that no other task waits for the calling task.
        """
        frame = as_frame(event)
        if self.unsent_bytes + len(frame) > MOST_UNSENT_BYTES:
            self.overflowing.set()
            return
        self.outbox.put_nowait((frame, asyncio.get_running_loop().time() + UNSENT_S))
        self._count(len(frame))

    async def post(self, event: BaseModel) -> None:
        """Send an event when there is room for it."""
        await self.has_room.wait()
        self.emit(event)

    def _count(self, num_bytes: int) -> None:
        self.unsent_bytes += num_bytes
        if self.unsent_bytes < UNSENT_BYTES:
            self.has_room.set()
        else:
            self.has_room.clear()

    def emit_error(self, body: dict[str, Any], event_id: str | None = None) -> None:
        """Send an error event.

        Args:
            body: OpenAI's type, code and message.
            event_id: the `event_id` of the client's event that has the error.
        """
        self.emit(error_event(body, event_id))


def too_slow() -> SessionEndedError:
    return SessionEndedError("too_slow", "the client reads its events too slowly: read them as they arrive", 1008)


def as_frame(event: BaseModel) -> str:
    """Return an event of `openai.types.realtime` as JSON, with the fields that were set, null ones too; omit others."""
    return event.model_dump_json(exclude_unset=True)


def parsed(frame: str) -> dict[str, Any]:
    """Parse a frame.

    Raises:
        EventError: the frame is not JSON, is not an object, or has too many parts.
    """
    if sum(map(frame.count, ",[{")) > MOST_PARTS:
        raise EventError("too_large", f"the event has more than {MOST_PARTS} commas and brackets")
    try:
        event = json.loads(frame)
    except (ValueError, RecursionError):
        raise EventError("invalid_json", "the event is not valid JSON") from None
    if not isinstance(event, dict):
        raise EventError("invalid_event", "an event must be a JSON object with a type")
    return event


def kind_of(event: dict[str, Any]) -> str:
    """Return the type of an event.

    Raises:
        EventError: the event has no type, or an unknown one.
    """
    kind = event.get("type")
    if not isinstance(kind, str):
        raise EventError("invalid_event", "an event must have a type, and this one has none", "type")
    if kind not in CLIENT_EVENTS:
        message = f"unknown event {kind[:100]!r}; the known ones are {', '.join(CLIENT_EVENTS)}"
        raise EventError("invalid_value", message, "type")
    return kind


def checked(kind: type[ClientEvent], event: dict[str, Any]) -> ClientEvent:
    """Return a checked event.

    Raises:
        EventError: a field of the event is wrong.
    """
    try:
        return kind.model_validate(event)
    except ValidationError as error:
        raise error_of(error.errors(include_url=False)[0]) from None


def error_of(detail: ErrorDetails, prefix: str = "") -> EventError:
    """Return an error of an event, or of a session's settings, with OpenAI's code.

    Args:
        detail: pydantic's.
        prefix: the path of what was checked in the event, such as "session.".
    """
    steps = [str(step) for step in detail["loc"]]
    param = (prefix + ".".join(step for step in steps if not step.startswith("[")))[:100]  # without the unions' tags
    kind = detail["type"]
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(steps[-1], KNOWN_FIELDS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return EventError("unknown_parameter", f"unknown parameter {param!r}{hint}", param)
    if kind == "missing":
        code = "missing_required_parameter"
    else:
        is_type = kind.endswith("_type")
        if kind == "literal_error":
            is_type = isinstance(detail["input"], str) != detail["ctx"]["expected"].startswith("'")
        code = "invalid_type" if is_type else "invalid_value"
    return EventError(code, f"{param}: {detail['msg'].removeprefix('Value error, ')}"[:1000], param)
