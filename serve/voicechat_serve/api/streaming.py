"""A streamed response that ends its work when its client disconnects."""

import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from voicechat_serve.api.errors import api_error
from voicechat_serve.api.request_log import current_request


class ClosedStream(StreamingResponse):
    """Closes its content, and then its stack, at any end: before or after its start.

    Starlette leaves this to the garbage collector. The traceback of a cancellation usually holds the cancelled stream
    until the collector runs; until then the deployment continues work that nobody needs.
    """

    def __init__(self, content: AsyncGenerator[Any], media_type: str, stack: AsyncExitStack):
        headers = {"Cache-Control": "no-cache"} if media_type == "text/event-stream" else None
        super().__init__(content, media_type=media_type, headers=headers)
        self.content, self.stack = content, stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.content.aclose()
            await self.stack.aclose()


def event(content: dict[str, Any], name: str = "") -> str:
    """Return one server-sent event, perhaps with a name."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(content, ensure_ascii=False)}\n\n"


def error_event(error: Exception) -> str:
    """Return the last event of a stream that fails after its status was sent."""
    reported = api_error(error)
    current_request().error = reported.code or reported.kind
    return event(reported.body())
