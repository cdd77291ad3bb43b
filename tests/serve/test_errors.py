"""Whatever a handler or a replica raises, the client gets OpenAI's form and the right status."""

import httpx
import pytest
from fastapi import FastAPI
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient, WebSocketDenialResponse

from voicechat_platform.errors import InputError
from voicechat_serve.api.access import AccessRules
from voicechat_serve.api.errors import answer_errors_in_openai_form
from voicechat_serve.api.front import build_front
from voicechat_serve.generation.engines.interface import PromptTooLongError
from voicechat_serve.operations.load import OverloadedError


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
    async with httpx.AsyncClient(transport=httpx.ASGITransport(front()), base_url="http://127.0.0.1") as client:
        for method in ("GET", "POST", "DELETE", "OPTIONS", "TRACE"):
            response = await client.request(method, path)
            assert response.status_code == 404
            told = response.json()["error"]
            assert (told["code"], told["type"]) == ("not_found", "invalid_request_error")
            assert told["message"] == f"invalid URL ({method} {path}); the API is at /v1: ask for /v1{path}"


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
async def test_a_probe_asked_with_another_method_names_its_own(path):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(front()), base_url="http://127.0.0.1") as client:
        for method in ("POST", "OPTIONS", "DELETE"):
            response = await client.request(method, path)
            assert (response.status_code, response.json()["error"]["code"]) == (405, "method_not_supported")
            assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD"}
            assert response.json()["error"]["message"].startswith(f"{method} is not allowed on {path}, only")


@pytest.mark.parametrize("path", ["/nowhere", "/health", "/v1/models", "/"])
def test_a_websocket_where_there_is_none(path):
    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        TestClient(front()).websocket_connect(f"ws://127.0.0.1{path}"),
    ):
        pass
    assert refused.value.status_code == 404
    assert "only at /v1/realtime" in refused.value.json()["error"]["message"]


def front() -> FastAPI:
    return build_front(None, AccessRules())
