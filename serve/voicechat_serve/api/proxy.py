"""Protection of Serve's proxy, which answers before any application.

Serve has no settings for this, but before its proxy listens it calls the function that an environment variable names
(voicechat_serve/__init__.py). A cluster that started without that variable has none of this.
"""

import asyncio
import json
import socket
from typing import cast

import h11
import uvicorn.config
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from voicechat_serve.api.errors import APIError, refuse
from voicechat_serve.api.request_log import CleanRequestId
from voicechat_serve.operations.flow_control import Acknowledgements
from voicechat_serve.operations.serve_private import TIMEOUT_HEADER

UNTAKEN_MS = 30_000
"""How long a client's machine may accept nothing from this machine's network buffers."""

THIS_MACHINE = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


class ProxyRoutesForThisMachine:
    """ASGI middleware: the proxy's own two routes, which need no key, answer only this machine.

    Kubernetes' probes request /-/healthz from inside the pod; /-/routes lists the applications. A client of another
    proxy on this machine counts by its own address, if that proxy forwards it.
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
    """ASGI middleware: a conversation may take longer than Serve's limit for a request; it has its own limit."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            others = [(name, value) for name, value in scope["headers"] if name != TIMEOUT_HEADER]
            scope = {**scope, "headers": [*others, (TIMEOUT_HEADER, b"0")]}
        await self.app(scope, receive, send)


class BoundedConnection(H11Protocol):
    """A connection that the kernel closes when its client reads nothing; otherwise a closed one would wait for it for
    ever. Its errors are in OpenAI's form.

    Uvicorn's other parser, httptools, gathers headers without end in memory, before any key is asked for. What is
    overridden here, and `HTTP_PROTOCOLS` below, is not documented (read in uvicorn 0.54.0).
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux has it
            connection = cast(socket.socket, transport.get_extra_info("socket"))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNTAKEN_MS)

    def send_400_response(self, msg: str) -> None:
        """Answer a request that Uvicorn cannot parse as HTTP, in OpenAI's form."""
        body = json.dumps(APIError(400, f"{msg} Look at its first line and its headers.").body()).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (
            h11.Response(status_code=400, headers=headers, reason="Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _should_upgrade(self) -> bool:
        """Treat an incomplete handshake as a plain request, whose errors are OpenAI's."""
        names = {name for name, _ in self.headers}
        return self.scope["method"] == "GET" and b"sec-websocket-key" in names and super()._should_upgrade()


def middlewares() -> list[Middleware]:
    """Return the middlewares; Serve calls this in the proxy's process, before it listens."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedConnection.__name__}"
    return [
        Middleware(Acknowledgements),
        Middleware(CleanRequestId),
        Middleware(ProxyRoutesForThisMachine),
        Middleware(WebSocketsWithoutTimeout),
    ]
