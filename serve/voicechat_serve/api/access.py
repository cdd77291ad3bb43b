"""The access check before every route of the API and the front: keys and their limits.

A client sends its key as `Authorization: Bearer KEY`. A browser sends it in HTTP Basic as the password. A script in a
browser that opens a WebSocket cannot set a header, and sends OpenAI's subprotocol `openai-insecure-api-key.KEY`; such a
KEY should be a client secret, which opens a conversation and nothing else. If keys are needed, every route needs one:
also a probe of /health or a scraper of /metrics.
"""

import asyncio
import base64
import hmac
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Literal

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.status import WS_1008_POLICY_VIOLATION
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from voicechat_platform.errors import InputError
from voicechat_platform.settings import Settings
from voicechat_serve.api.errors import APIError, refuse
from voicechat_serve.api.key_limits import KeyLimits
from voicechat_serve.api.limits import RequestLimits
from voicechat_serve.api.origins import LOOPBACK_NAMES, LoopbackOnly, SameOriginOnly
from voicechat_serve.api.request_log import current_request
from voicechat_serve.api.streaming import event
from voicechat_serve.operations.client_secrets import PREFIX, InvalidSecretError, read_client_secret
from voicechat_serve.operations.keys import (
    Key,
    KeysFollowed,
    KeysUnreadableError,
    find_key,
    fingerprint,
    keys_path,
    read_keys,
)

SUBPROTOCOL = "openai-insecure-api-key."

Challenge = Literal["Bearer", "Basic"]
"""The scheme of a 401: a token for the API's clients, a password for a browser. Both are accepted in both places."""

RATE_HEADERS = [f"x-ratelimit-{what}-requests" for what in ("limit", "remaining", "reset")]


@dataclass(frozen=True, kw_only=True)
class AccessRules:
    """The address of the service and its rules for keys, for the replicas.

    Raises:
        InputError: the service would listen beyond this machine without keys.
    """

    host: str = "127.0.0.1"
    keys_file: Path | None = None
    """Absolute, and on a cluster in a folder that its machines share."""
    keys_required: bool = False
    """False: requests need a key only after a keys file exists."""
    page_key_sha256: str = ""
    """The hash of the page's own key, which has no limits: the page counts its user's key."""
    allowed_origins: tuple[str, ...] = ()
    requests_per_minute: int = 600
    concurrent_requests: int = 16

    def __post_init__(self) -> None:
        if self.keys_required and self.keys_file is None:
            raise ValueError("keys are required, and no file of them is named")
        if self.host not in LOOPBACK_NAMES and not self.keys_required:
            raise InputError(
                f"{self.host} can be reached from other machines, and there is no key: create one with `voicechat "
                "keys create NAME`, or listen on 127.0.0.1"
            )


def access_rules(settings: Settings, page_key: str = "") -> AccessRules:
    """Return the rules for these settings.

    Args:
        settings: the address, the keys file and the limits.
        page_key: a new secret for the page; "" if there is no page.

    Raises:
        InputError: the keys file cannot be read, or the service would listen beyond this machine without a key.
    """
    path = keys_path()
    try:
        keys = read_keys(path)
    except FileNotFoundError:
        keys = None
    if settings.host not in LOOPBACK_NAMES and not any(not key.is_expired() for key in keys or ()):
        keys = None  # nobody could get access
    return AccessRules(
        host=settings.host,
        keys_file=path,
        keys_required=keys is not None,
        page_key_sha256=fingerprint(page_key) if page_key else "",
        allowed_origins=settings.allowed_origins,
        requests_per_minute=settings.requests_per_minute,
        concurrent_requests=settings.concurrent_requests,
    )


def guard(app: FastAPI, rules: AccessRules, challenge: Challenge) -> None:
    """Add all access checks before `app`'s routes."""
    app.add_middleware(RequestLimits)
    app.add_middleware(KeyCheck, rules=rules, challenge=challenge)
    if rules.allowed_origins and challenge == "Bearer":
        # Outside of the key check: a browser sends its preflight without a key, and shows a refusal only to allowed
        # pages.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=rules.allowed_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["retry-after", "x-request-id", *RATE_HEADERS],
        )
    origins = LoopbackOnly if rules.host in LOOPBACK_NAMES else SameOriginOnly
    app.add_middleware(origins, allowed_origins=rules.allowed_origins)


class KeyCheck:
    """ASGI middleware: admits a request only with a key, if keys are needed, and within the key's limits.

    On the front, reads of a browser do not count: a page consists of a hundred files, and of open streams. Without
    keys, nothing counts: the queues of the models limit the work.
    """

    def __init__(self, app: ASGIApp, rules: AccessRules, challenge: Challenge, clock: Callable[[], float] = monotonic):
        self.app, self.rules, self.challenge = app, rules, challenge
        self.followed = KeysFollowed(rules.keys_file, rules.keys_required, clock) if rules.keys_file else None
        self.limits = KeyLimits(rules.requests_per_minute, rules.concurrent_requests, clock)
        self.asks_for = 'Basic realm="llm-voice-chat", charset="UTF-8"' if challenge == "Basic" else "Bearer"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):  # the server's start and end
            return await self.app(scope, receive, send)
        headers: dict[str, str] = {}
        is_counted = not (self.challenge == "Basic" and scope.get("method") in ("GET", "HEAD"))
        try:
            key, is_operator = self._admitted(scope)
            scope.setdefault("state", {})["is_operator"] = is_operator  # for the page, which does not receive the key
            scope["state"]["key"] = key
            if key and is_counted:
                headers = self.limits.begin(key)
                scope["state"]["key_id"] = key.id  # for the log
        except APIError as refusal:
            return await refuse(scope, receive, send, refusal)

        begun: Message | None = None
        is_over = False

        async def send_on(message: Message) -> None:
            nonlocal begun, is_over
            begun = begun or message
            is_body = message["type"].endswith("response.body")
            is_over = message["type"] == "websocket.close" or (is_body and not message.get("more_body", False))
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                MutableHeaders(scope=message).update(headers)
            elif message["type"] == "websocket.accept" and "realtime" in scope.get("subprotocols", ()):
                # A browser that offers subprotocols, if only to send a key, closes the connection unless one is
                # accepted.
                message = {**message, "subprotocol": message.get("subprotocol") or "realtime"}
            await send(message)

        hide_keys(scope)
        try:
            async with asyncio.timeout(None) as admission:
                watching = asyncio.create_task(self._watch(key, admission)) if key else None
                try:
                    await self.app(scope, receive, send_on)
                finally:
                    if watching:
                        watching.cancel()
        except TimeoutError:
            if not admission.expired():
                raise
            if not is_over:
                await end_revoked(scope, receive, send, begun)
        finally:
            if key and is_counted:
                self.limits.end(key)

    def _admitted(self, scope: Scope) -> tuple[Key | None, bool]:
        """Return the request's key (None if none is needed, and for the page's own) and whether the client may promote
        models: with an operator's key, or on this machine if no key is needed.

        Raises:
            APIError: 401, the key is missing or wrong; 503, the keys cannot be read.
        """
        try:
            keys = self.followed.keys() if self.followed else None
        except KeysUnreadableError:
            message = "the server cannot read its keys, so it lets nobody in; its log says why"
            raise APIError(503, message, code="unavailable") from None
        offered = list(offered_keys(scope))
        client_secret = next((each for each in offered if each.startswith(PREFIX)), None)
        if client_secret is not None and self.challenge == "Bearer" and scope["type"] == "websocket":
            try:
                read = read_client_secret(client_secret, keys)
            except InvalidSecretError as error:
                raise APIError(401, f"{error}: create another one", code="invalid_api_key") from None
            scope.setdefault("state", {})["session"] = read.session
            return read.key, False
        if keys is None:
            return None, True
        for secret in offered:
            if hmac.compare_digest(self.rules.page_key_sha256, fingerprint(secret)):
                return None, False
            if key := find_key(keys, secret):
                return key, key.operator
        message = (
            "a client secret opens a conversation at /v1/realtime alone"
            if client_secret is not None
            else "the API key is wrong, or was revoked"
            if offered
            else "this server needs an API key, and none was sent"
        )
        hint = "send it as 'Authorization: Bearer KEY', or as the password of HTTP Basic"
        raise APIError(401, f"{message}: {hint}", code="invalid_api_key", headers={"WWW-Authenticate": self.asks_for})

    async def _watch(self, key: Key, admission: asyncio.Timeout) -> None:
        """End a key's running work, such as a stream or a conversation of an hour, soon after the key is revoked."""
        assert self.followed is not None  # the key came from there
        await self.followed.until_gone(key)
        admission.reschedule(asyncio.get_running_loop().time())


async def end_revoked(scope: Scope, receive: Receive, send: Send, begun: Message | None) -> None:
    """Send the client the reason for the early end, if that is still possible.

    Args:
        begun: the message that began the response, if one did. A file that has begun only breaks off.
    """
    current_request().error = "invalid_api_key"
    revoked = APIError(401, "the API key was revoked, or has expired", code="invalid_api_key")
    if begun is None:
        await refuse(scope, receive, send, revoked)
    elif scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": WS_1008_POLICY_VIOLATION, "reason": "the API key was revoked"})
    elif Headers(raw=begun.get("headers", [])).get("content-type", "").startswith("text/event-stream"):
        await send({"type": "http.response.body", "body": event(revoked.body()).encode()})


def offered_keys(scope: Scope) -> Iterator[str]:
    """Yield everything in a request that could be a key."""
    for value in Headers(scope=scope).getlist("authorization"):
        kind, _, credentials = value.strip().partition(" ")
        if kind.lower() == "bearer":
            yield credentials.strip()
        elif kind.lower() == "basic":
            try:
                yield base64.b64decode(credentials.strip(), validate=True).decode().partition(":")[2]
            except ValueError:  # invalid base64, or invalid UTF-8 in it
                continue
    for protocol in scope.get("subprotocols", ()):
        if protocol.startswith(SUBPROTOCOL):
            yield protocol.removeprefix(SUBPROTOCOL)


def hide_keys(scope: Scope) -> None:
    """Remove the keys from the scope, so that the routes cannot log them.

    This changes the scope in place, because the log, outside of this middleware, reads the route from the same scope.
    """
    hidden = (b"authorization", b"sec-websocket-protocol")
    scope["headers"] = [(name, value) for name, value in scope["headers"] if name not in hidden]
    if "subprotocols" in scope:
        scope["subprotocols"] = [name for name in scope["subprotocols"] if not name.startswith(SUBPROTOCOL)]
