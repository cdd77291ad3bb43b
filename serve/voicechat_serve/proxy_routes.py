"""Keeps the two routes that Serve's proxy answers itself, before any application, to this machine.

/-/healthz is what Kubernetes' probes ask from inside the pod, without a key; /-/routes lists the applications. Serve
has no switch for them, but takes middlewares for its proxy from the function that an environment variable names
(voicechat_serve/__init__.py). On a cluster that was started without that variable they answer anybody.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from voicechat_serve.api.errors import APIError, refuse

THIS_MACHINE = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


class ProxyRoutesForThisMachine:
    """ASGI middleware of the proxy; a client that comes through another proxy on this machine counts by its own
    address, if that proxy tells it."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/-/"):
            client, _ = scope.get("client") or ("", 0)
            if client not in THIS_MACHINE:
                message = f"invalid URL ({scope['method']} {scope['path']})"
                return await refuse(scope, receive, send, APIError(404, message, code="not_found"))
        await self.app(scope, receive, send)


def middlewares() -> list[Middleware]:
    return [Middleware(ProxyRoutesForThisMachine)]
