"""Whatever a handler or a replica raises, the client gets OpenAI's form and the right status."""

import httpx
import pytest
from fastapi import FastAPI
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from voicechat_platform.errors import InputError
from voicechat_serve.api.errors import answer_errors_in_openai_form
from voicechat_serve.engines.interface import OverloadedError, PromptTooLongError
from voicechat_serve.front import refuse_api_paths


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


@pytest.mark.parametrize("path", ["/chat/completions", "/models", "/audio/speech", "/completions"])
async def test_outside_of_v1_an_error_says_where_the_api_is(path):
    app = FastAPI()
    answer_errors_in_openai_form(app)
    refuse_api_paths(app)
    app.mount("/", Starlette())  # as the page is mounted, which has errors of its own
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for method in ("GET", "POST", "DELETE"):
            response = await client.request(method, path)
            assert response.status_code == 404
            told = response.json()["error"]
            assert (told["code"], told["type"]) == ("not_found", "invalid_request_error")
            assert told["message"] == f"invalid URL ({method} {path}); the API is at /v1: ask for /v1{path}"
