"""A limit on every request's body, as declared and as received."""

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from voicechat_serve.api.errors import APIError


class BodyLimit:
    """ASGI middleware.

    Args:
        app: what it stands before.
        upload_bytes: most bytes of a multipart body, which holds a file.
        json_bytes: most bytes of any other.
    """

    def __init__(self, app: ASGIApp, upload_bytes: int, json_bytes: int):
        self.app = app
        self.upload_bytes, self.json_bytes = upload_bytes, json_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        is_upload = headers.get(b"content-type", b"").startswith(b"multipart/form-data")
        limit = self.upload_bytes if is_upload else self.json_bytes
        too_large = APIError(413, f"the request's body has more than {limit // 2**20} MB", code="too_large")
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > limit:
            return await JSONResponse(too_large.body(), 413)(scope, receive, send)
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise too_large
            return message

        await self.app(scope, receive_limited, send)
