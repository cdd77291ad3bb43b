"""A streamed answer that ends its work when its client leaves."""

import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


class ClosedStream(StreamingResponse):
    """Closes what it streams, and what that stands on, however it ends.

    Starlette leaves that to the garbage collector. A cancelled stream is most often held by the traceback of its own
    cancellation, and is found when the collector next runs; until then the deployment goes on working for nobody.
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
            await self.stack.aclose()  # a stream that was not begun has closed nothing


def event(content: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
