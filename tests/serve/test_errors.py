"""Whatever a handler or a replica raises, the client gets OpenAI's form and the right status."""

import httpx
import pytest
from fastapi import FastAPI
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError
from starlette.exceptions import HTTPException

from voicechat_platform.errors import InputError
from voicechat_serve.api.errors import answer_errors_in_openai_form
from voicechat_serve.engines.interface import OverloadedError, PromptTooLongError


def from_replica(error: Exception) -> Exception:
    return RayTaskError("generate", "a stack trace", error).as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InputError("wrong"), 400, None),
        (from_replica(InputError("wrong")), 400, None),
        (from_replica(PromptTooLongError("long")), 400, "context_length_exceeded"),
        (from_replica(OverloadedError("busy")), 503, "overloaded"),
        (BackPressureError(num_queued_requests=3, max_queued_requests=2), 503, "overloaded"),
        (ActorDiedError(), 503, "unavailable"),
        (HTTPException(415, "no"), 415, None),
        (from_replica(ValueError("secret")), 500, None),
        (ValueError("secret"), 500, None),
    ],
)
async def test_forms(error, status, code):
    app = FastAPI()
    answer_errors_in_openai_form(app)

    @app.get("/")
    async def fail():
        raise error

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.get("/")
    told = response.json()["error"]
    assert (response.status_code, told["code"]) == (status, code)
    assert told["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert ("retry-after" in response.headers) == (status == 503)
    assert "secret" not in told["message"]
    assert "stack trace" not in told["message"]
