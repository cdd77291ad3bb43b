"""Allowed browser pages: the service's own page, and pages that the settings name; not those of other sites.

Every web page in a person's browser can reach a service, even if no other machine can. It can use a name that resolves
to the service's address (DNS rebinding), or a plain cross-origin request, which carries the password that the browser
remembers. The Host header reveals the first, the Origin header the second.
"""

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from voicechat_serve.api.errors import APIError, refuse

LOOPBACK_NAMES = {"127.0.0.1", "localhost", "::1"}


class LoopbackOnly:
    """ASGI middleware of a service on loopback: refuses requests that name another host, or come from such a page.

    Args:
        app: the application behind it.
        allowed_origins: other allowed pages, and names under which a proxy on this machine may publish the service.
    """

    def __init__(self, app: ASGIApp, allowed_origins: Sequence[str] = ()):
        self.app = app
        self.allowed_origins = allowed_origins
        self.hosts = {*LOOPBACK_NAMES, *(hostname(origin) for origin in allowed_origins)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            origins = [origin for origin in headers.getlist("origin") if origin not in self.allowed_origins]
            if hostname(f"//{headers.get('host', '')}") not in self.hosts or any(
                hostname(origin) not in LOOPBACK_NAMES for origin in origins
            ):
                refusal = APIError(403, "only this machine may ask: use http://127.0.0.1", code="forbidden_origin")
                return await refuse(scope, receive, send, refusal)
        await self.app(scope, receive, send)


class SameOriginOnly:
    """ASGI middleware of a service on other addresses, where any name may be its own: it relies on keys.

    A page under a rebound name looks like the service's own, but no browser remembers a key for that name.

    Args:
        app: the application behind it.
        allowed_origins: other allowed pages.
    """

    def __init__(self, app: ASGIApp, allowed_origins: Sequence[str] = ()):
        self.app = app
        self.allowed_origins = allowed_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            own = {f"{scheme}://{headers.get('host', '').lower()}" for scheme in ("http", "https")}
            if any(origin not in own and origin not in self.allowed_origins for origin in headers.getlist("origin")):
                message = "pages of other sites may not ask, unless VOICECHAT_ALLOWED_ORIGINS names them"
                return await refuse(scope, receive, send, APIError(403, message, code="forbidden_origin"))
        await self.app(scope, receive, send)


def hostname(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:  # such as an unclosed [
        return None
