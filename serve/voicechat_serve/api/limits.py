"""Limits of a request: the size of its address, its headers and its uncompressed body, and the time of the body's
arrival."""

import asyncio

from python_multipart.multipart import parse_options_header
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from voicechat_serve.api.errors import APIError, refuse, shortened
from voicechat_serve.audio import DecodingLimits

FORM_BYTES = 64 * 1024
"""Bytes of a multipart body in addition to its file."""

JSON_BYTES = 2 * 1024 * 1024
HEADER_BYTES = 64 * 1024
BODY_SECONDS = 60.0


class RequestLimits:
    """ASGI middleware.

    Args:
        app: the application behind it.
        upload_bytes: the most bytes of a multipart body, which holds a file.
        json_bytes: the most bytes of any other body.
        header_bytes: the most bytes of all headers, and of the address.
        body_seconds: the longest arrival of a body: a slow client holds a place that others need.
    """

    def __init__(
        self,
        app: ASGIApp,
        upload_bytes: int = DecodingLimits().upload_bytes + FORM_BYTES,
        json_bytes: int = JSON_BYTES,
        header_bytes: int = HEADER_BYTES,
        body_seconds: float = BODY_SECONDS,
    ):
        self.app = app
        self.upload_bytes, self.json_bytes, self.header_bytes = upload_bytes, json_bytes, header_bytes
        self.body_seconds = body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        if len(scope["path"]) + len(scope["query_string"]) > self.header_bytes:
            message = f"the request's address has more than {self.header_bytes // 1024} KB"
            return await refuse(scope, receive, send, APIError(414, message, code="too_large"))
        if sum(len(name) + len(value) for name, value in scope["headers"]) > self.header_bytes:
            message = f"the request's headers have more than {self.header_bytes // 1024} KB"
            return await refuse(scope, receive, send, APIError(431, message, code="too_large"))
        if scope["type"] == "websocket":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        if wrong := foreign_encoding(headers):
            return await refuse(scope, receive, send, wrong)
        is_upload = headers.get(b"content-type", b"").lower().startswith(b"multipart/form-data")
        limit = self.upload_bytes if is_upload else self.json_bytes
        too_large = APIError(413, f"the request's body has more than {limit // 2**20} MB", code="too_large")
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit():
            return await refuse(scope, receive, send, APIError(400, "content-length must be a number of bytes"))
        # The length first: Python refuses to parse very long numbers.
        if len(declared) > 18 or int(declared) > limit:
            return await refuse(scope, receive, send, too_large)
        too_slow = APIError(
            408, f"the body took more than {self.body_seconds:g} s to arrive", headers={"Connection": "close"}
        )
        deadline: float | None = None
        received, is_whole = 0, False

        async def receive_limited() -> Message:
            nonlocal deadline, received, is_whole
            if is_whole:  # the next message says that the client has left
                return await receive()
            if deadline is None:
                deadline = asyncio.get_running_loop().time() + self.body_seconds
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise too_slow from None
            received += len(message.get("body", b""))
            if received > limit:
                raise too_large
            is_whole = not message.get("more_body", False)
            return message

        await self.app(scope, receive_limited, send)


def foreign_encoding(headers: dict[bytes, bytes]) -> APIError | None:
    """Return the error for a compressed body, or for JSON with another declared character set."""
    encoding = headers.get(b"content-encoding", b"").strip().lower()
    if encoding not in (b"identity", b""):
        message = f"Content-Encoding: {quoted(encoding)} is not supported: send the body uncompressed"
        return APIError(415, message, code="unsupported_encoding", headers={"Accept-Encoding": "identity"})
    kind, options = parse_options_header(headers.get(b"content-type"))
    charset = options.get(b"charset", b"utf-8").lower()
    if kind.endswith(b"json") and charset not in (b"utf-8", b"utf8", b"us-ascii"):
        return APIError(415, f"charset={quoted(charset)} is not supported: JSON is UTF-8", code="unsupported_encoding")
    return None


def quoted(value: bytes) -> str:
    return shortened(value.decode("latin-1"), 40)
