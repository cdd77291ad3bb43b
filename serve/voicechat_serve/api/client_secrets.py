"""/realtime/client_secrets: short-lived keys with which browsers open spoken conversations."""

import time
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from voicechat_platform.errors import InputError
from voicechat_serve.api.errors import APIError
from voicechat_serve.api.fields import Body, Part
from voicechat_serve.api.realtime import ServiceStages, opening_settings
from voicechat_serve.api.services import Services
from voicechat_serve.operations.client_secrets import make_client_secret
from voicechat_serve.realtime.errors import EventError
from voicechat_serve.realtime.items import new_id
from voicechat_serve.realtime.session import resource_of

DEFAULT_SECONDS = 600
"""OpenAI's own default."""


class ExpiresAfter(Part):
    anchor: Literal["created_at"] | None = None
    seconds: int | None = Field(default=None, ge=10, le=7200)


class ClientSecretRequest(Body):
    expires_after: ExpiresAfter = ExpiresAfter()
    session: dict[str, Any] = Field(default_factory=dict)


def router(services: Services) -> APIRouter:
    routes = APIRouter()
    stages = ServiceStages(services)

    @routes.post("/realtime/client_secrets")
    async def create_client_secret(http: Request, request: ClientSecretRequest) -> dict[str, Any]:
        """Create a client secret with the limits of the request's key."""
        key = http.state.key
        if key is None and not http.state.is_operator:  # the key of the page, which knows the user's
            raise APIError(403, "the page's own key creates no client secrets", code="invalid_api_key")
        try:
            settings = opening_settings(stages, request.session)
        except EventError as error:
            raise APIError(400, str(error), param=error.body["param"], code=error.body["code"]) from None
        expires_at = int(time.time()) + (request.expires_after.seconds or DEFAULT_SECONDS)
        try:
            secret = make_client_secret(key, expires_at, request.session)
        except InputError as error:
            raise APIError(400, str(error), param="session", code="invalid_value") from None
        session = resource_of(settings, new_id("sess"), stages) | {"expires_at": expires_at}
        return {"value": secret, "expires_at": expires_at, "session": session}

    return routes
