"""Who may ask: programs of this machine and the page itself, not the other pages of a person's browser.

A service on loopback is still within reach of every web page that the browser has open: by a name that is made to
resolve to 127.0.0.1 (DNS rebinding), or by a plain cross-origin POST. The first gives itself away by its Host header,
the second by its Origin.
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from voicechat_serve.api.errors import APIError

LOOPBACK_NAMES = {"127.0.0.1", "localhost", "::1"}


class LoopbackOnly:
    """ASGI middleware: refuses requests that name another host, or come from another host's page."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            named = [f"//{headers.get('host', '')}", *headers.getlist("origin")]
            if any(urlsplit(name).hostname not in LOOPBACK_NAMES for name in named):
                refusal = APIError(403, "only this machine may ask: use http://127.0.0.1", code="forbidden_origin")
                return await JSONResponse(refusal.body(), 403)(scope, receive, send)
        await self.app(scope, receive, send)
