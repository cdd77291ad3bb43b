"""One JSON line and one count for every request when it ends, and the request id for client and log.

The line goes to the replica's log, which is JSON (application.py). It holds no text of the client: no body, no query
string, only the route's template as the path, and only names of served models.
"""

import logging
import re
import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from voicechat_serve.operations.metrics import UNKNOWN, observe_request

# A child of Serve's own logger, whose handlers write to the replica's file.
log = logging.getLogger("ray.serve.voicechat.requests")

REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

CLIENT_LEFT = 499
"""The logged status if a client disconnects before there is one; no client receives it (nginx's convention)."""


@dataclass
class RequestRecord:
    """The facts about a request. The routers fill in what only they know."""

    id: str = ""
    began: float = field(default_factory=time.monotonic)
    model: str | None = None
    """A served model; never the client's own text."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    audio_seconds: float | None = None
    """Length of the transcribed or synthesized audio."""
    error: str | None = None
    """The code of the error that the client received, or its type; also for an error after the status."""
    status: int | None = None
    first_byte: float | None = None
    is_at_end: bool = False
    """Whether the next part of the body is the last one of a stream."""
    complete: bool = False
    """Whether the whole response was sent."""

    def count(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Record the counts so far, for each piece of a text."""
        self.prompt_tokens, self.completion_tokens = prompt_tokens, completion_tokens

    def observe(self, message: Message) -> None:
        """Record a message to the client."""
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
        elif kind == "websocket.accept":
            self.status = 101
        elif kind == "websocket.close":
            self.status = self.status or 403
        if kind == "websocket.send" or message.get("body"):
            self.first_byte = self.first_byte or time.monotonic()
        if kind in ("http.response.body", "websocket.http.response.body"):
            # Clients disconnect after the last event, usually before the stream itself ends.
            self.complete = not message.get("more_body", False) or self.is_at_end


current: ContextVar[RequestRecord] = ContextVar("current")


def current_request() -> RequestRecord:
    """Return the record of the current request; outside of a request, a record that nobody reads."""
    return current.get(None) or RequestRecord()


class RequestLog:
    """ASGI middleware; the outermost, so that it also logs refusals of the others."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        given = valid_id(headers.get("x-request-id"))
        record = RequestRecord(id=given or uuid.uuid4().hex)
        scope.setdefault("state", {})  # for inner middlewares, which find the key of the request

        async def send_observed(message: Message) -> None:
            record.observe(message)
            # If the request has an id, the response already has it: Serve's proxy set it, or passed it on.
            if given is None and message["type"] in ("http.response.start", "websocket.accept"):
                MutableHeaders(scope=message)["x-request-id"] = record.id
            await send(message)

        token = current.set(record)
        try:
            await self.app(scope, receive, send_observed)
        except Exception:
            record.status, record.complete = record.status or 500, True  # the server ended it, not the client
            raise
        finally:
            current.reset(token)
            finish(record, scope, valid_id(headers.get("x-client-request-id")))


def finish(record: RequestRecord, scope: Scope, client_request_id: str | None) -> None:
    """Write the line and the counts."""
    cancelled = scope["type"] == "http" and not record.complete
    status = record.status or CLIENT_LEFT
    seconds = time.monotonic() - record.began
    first_byte = None if record.first_byte is None else record.first_byte - record.began
    route = scope.get("route")
    endpoint = scope.get("root_path", "") + route.path if route else UNKNOWN
    observe_request(endpoint, record.model or UNKNOWN, status, seconds, first_byte, cancelled)
    facts: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "request_id": record.id,
        "client_request_id": client_request_id,
        "key_id": scope["state"].get("key_id"),
        "method": scope.get("method", "WEBSOCKET"),
        "path": endpoint,
        "model": record.model,
        "status": status,
        "error": record.error,
        "seconds": round(seconds, 4),
        "first_byte_seconds": None if first_byte is None else round(first_byte, 4),
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "audio_seconds": record.audio_seconds,
        "cancelled": cancelled,
    }
    known = {name: value for name, value in facts.items() if value is not None}
    # Serve would put its own fields here, among them the client's request id without a check.
    log.info("%s %s %d", known["method"], endpoint, status, extra=known | {"skip_context_filter": True})


def valid_id(text: str | None) -> str | None:
    return text if text and REQUEST_ID.fullmatch(text) else None


class CleanRequestId:
    """ASGI middleware of Serve's proxy, which returns every X-Request-Id that it receives: this removes invalid
    ones."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = [
                (name, value)
                for name, value in scope["headers"]
                if name != b"x-request-id" or valid_id(value.decode("latin-1"))
            ]
            scope = {**scope, "headers": headers}
        await self.app(scope, receive, send)
