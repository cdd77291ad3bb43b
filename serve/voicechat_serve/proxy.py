"""What Serve's proxy, which answers before any application, must not leave open to everybody.

Serve has no settings for this, but calls the function that an environment variable names (voicechat_serve/__init__.py)
before its proxy listens. On a cluster that was started without that variable none of this holds.
"""

import uvicorn.config
from ray.serve._private.constants import SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from voicechat_serve.api.errors import APIError, refuse
from voicechat_serve.api.request_log import CleanRequestId

TIMEOUT_HEADER = SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER.encode()
"""Of one request; 0: none."""

THIS_MACHINE = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


class ProxyRoutesForThisMachine:
    """ASGI middleware: the proxy's own two routes, which need no key, answer to this machine only.

    /-/healthz is what Kubernetes' probes ask from inside the pod, /-/routes lists the applications. A client that comes
    through another proxy on this machine counts by its own address, where that proxy tells it.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/-/"):
            client, _ = scope.get("client") or ("", 0)
            if client not in THIS_MACHINE:
                message = f"invalid URL ({scope['method']} {scope['path']})"
                return await refuse(scope, receive, send, APIError(404, message, code="not_found"))
        await self.app(scope, receive, send)


class WebSocketsWithoutTimeout:
    """ASGI middleware: a conversation may take longer than Serve's limit for a request; its own ends it."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            others = [(name, value) for name, value in scope["headers"] if name != TIMEOUT_HEADER]
            scope = {**scope, "headers": [*others, (TIMEOUT_HEADER, b"0")]}
        await self.app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """Called in the proxy's process, before it listens."""
    # Uvicorn's other parser, httptools, gathers headers without end in memory, before any key is asked for.
    uvicorn.config.HTTP_PROTOCOLS["auto"] = uvicorn.config.HTTP_PROTOCOLS["h11"]
    return [Middleware(CleanRequestId), Middleware(ProxyRoutesForThisMachine), Middleware(WebSocketsWithoutTimeout)]
