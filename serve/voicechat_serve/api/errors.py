"""All errors in OpenAI's form: {"error": {"message", "type", "param", "code"}}."""

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from voicechat_platform.errors import InputError
from voicechat_serve.api.request_log import current_request
from voicechat_serve.generation.engines.interface import (
    PromptTooLongError,
    UnavailableError,
    UnknownVersionError,
    UnsupportedError,
    UpstreamError,
)
from voicechat_serve.operations.load import OverloadedError

log = logging.getLogger("ray.serve.voicechat.errors")

RETRY_AFTER_S = 1

API_PATHS = (
    *("/chat/", "/completions", "/responses", "/embeddings", "/models", "/audio/", "/realtime"),
    *("/tokenize", "/detokenize", "/tools"),
)
"""The beginnings of paths that a client requests without /v1; inside the API, the path in the message has it."""

LONGEST_MESSAGE = 1000
LONGEST_PARAM = 100
"""In characters: an error may quote the request, but does not return megabytes of it."""


class ErrorDetails(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The form, for the OpenAPI document."""

    error: ErrorDetails


DOCUMENTED: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "The request is wrong, or may not be made now"},
    "5XX": {"model": ErrorAnswer, "description": "The server is busy, or failed"},
}
"""Every route's errors in the OpenAPI document, instead of FastAPI's own 422."""


class APIError(HTTPException):
    """An error with all fields of OpenAI's form.

    Args:
        status: the HTTP status.
        message: for a person: what is wrong, and what would be right.
        param: the wrong field of the request.
        code: for a program.
        headers: of the response; a 503 always has Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        busy = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
        super().__init__(status, message, headers=busy | dict(headers or {}))
        self.param, self.code = param, code

    @property
    def kind(self) -> str:
        if self.status_code == 429:
            return "requests"  # OpenAI's name for the reached limit
        return "invalid_request_error" if self.status_code < 500 else "server_error"

    def body(self) -> dict[str, Any]:
        param = self.param and shortened(self.param, LONGEST_PARAM)
        message = shortened(self.detail, LONGEST_MESSAGE)
        return {"error": {"message": message, "type": self.kind, "param": param, "code": self.code}}


def shortened(text: str, longest: int) -> str:
    """Return a quotation from a request: limited in length, without half of a surrogate pair."""
    text = text[: longest + 1].encode(errors="replace").decode()
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def api_error(error: Exception) -> APIError:
    """Convert any exception to the error for the client."""
    if isinstance(error, RayTaskError):  # raised in a replica; str() of it would be a stack trace
        error = error.cause
    if isinstance(error, APIError):
        return error
    if isinstance(error, RequestValidationError):
        return validation_error(error)
    if isinstance(error, HTTPException):
        return unread_body(error.__cause__) or APIError(error.status_code, str(error.detail))
    if isinstance(error, UnknownVersionError):
        return APIError(404, str(error), param="model", code="model_not_found")
    if isinstance(error, UnsupportedError):
        return APIError(400, str(error), param=error.feature, code="unsupported_parameter")
    if isinstance(error, PromptTooLongError):
        return APIError(400, str(error), code="context_length_exceeded")
    if isinstance(error, InputError):
        return APIError(400, str(error))
    if isinstance(error, OverloadedError | BackPressureError):
        return APIError(503, "the server is busy; try again in a moment", code="overloaded")
    if isinstance(error, UpstreamError):
        headers = {"Retry-After": str(error.retry_after_s)} if error.status == 503 else None
        return APIError(error.status, str(error), code=error.code, headers=headers)
    if isinstance(error, UnavailableError):
        return APIError(503, str(error), code="unavailable")
    if isinstance(error, RayError):
        log.error("a deployment failed", exc_info=error)
        return APIError(503, "a part of the server failed and is being replaced; try again", code="unavailable")
    log.error("unexpected error", exc_info=error)
    return APIError(500, "the server failed unexpectedly; its log says why")


def unread_body(cause: BaseException | None) -> APIError | None:
    """Return why a body cannot be read as JSON, which FastAPI does not say; None if the error is not about JSON."""
    if isinstance(cause, UnicodeDecodeError):
        reason = f"it is not UTF-8 at byte {cause.start}"
    elif isinstance(cause, RecursionError):
        reason = "it is nested too deeply"
    elif isinstance(cause, ValueError):  # Python's own limit, of 4300 digits
        reason = "it has a number of too many digits"
    else:
        return None
    return APIError(400, f"the body is not valid JSON: {reason}", code="invalid_json")


def validation_error(error: RequestValidationError) -> APIError:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return APIError(400, f"the body is not valid JSON: {first['ctx']['error']}", code="invalid_json")
    if first["loc"] == ("body",):  # the whole body, not a field
        wrong = "the body is empty" if first["type"] == "missing" else "the body is no JSON object"
        return APIError(400, f"{wrong}: send an object of the endpoint's fields", code="invalid_value")
    # The first part only says where FastAPI looked: body, query, path. Parts in brackets are pydantic's own, except
    # names of lists in forms, which end in a pair of brackets.
    parts = [str(part) for part in first["loc"][1:]]
    param = ".".join(part for part in parts if "[" not in part or part.endswith("[]")) or None
    where = shortened(param, LONGEST_PARAM) if param else "the request is wrong"
    if first["type"] == "extra_forbidden":
        return APIError(400, f"{where} is not supported", param=param, code="unsupported_parameter")
    message = f"{where}: {first['msg']}"
    return APIError(400, message, param=param, code="invalid_value")


async def refuse(scope: Scope, receive: Receive, send: Send, error: APIError) -> None:
    """Answer a request, or a WebSocket's opening, with an error from a middleware."""
    await JSONResponse(error.body(), error.status_code, headers=error.headers)(scope, receive, send)


def websocket_only() -> APIError:
    """Return the error for a request to /v1/realtime that opens no WebSocket."""
    message = "/v1/realtime is a WebSocket, and this request does not open one"
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    return APIError(426, message, code="websocket_required", headers=headers)


async def no_route(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer an unknown path. Starlette's own answer gives a WebSocket no reason."""
    if scope["type"] == "websocket":
        path = shortened(scope["path"], LONGEST_PARAM)
        error = APIError(404, f"invalid URL: there is no WebSocket at {path}, only at /v1/realtime", code="not_found")
        return await refuse(scope, receive, send, error)
    raise HTTPException(404)


def unrouted(request: Request, error: HTTPException) -> APIError:
    """Return the error for a request with an unknown path or method."""
    path = request.url.path
    hint = f"; the API is at /v1: ask for /v1{path.rstrip('/')}" if path.startswith(API_PATHS) else ""
    if error.status_code == 404:
        return APIError(404, f"invalid URL ({request.method} {path}){hint}", code="not_found")
    allowed = (error.headers or {}).get("Allow", "")
    message = f"{request.method} is not allowed on {path}, only {allowed}{hint}"
    return APIError(405, message, code="method_not_supported", headers=error.headers)


async def answer(request: Request, error: Exception) -> JSONResponse:
    reported = api_error(error)
    if isinstance(error, HTTPException) and error.status_code in (404, 405) and error is not reported:
        reported = unrouted(request, error)
    current_request().error = reported.code or reported.kind
    return JSONResponse(reported.body(), reported.status_code, headers=reported.headers)


def answer_unknown_paths_in_openai_form(app: FastAPI) -> None:
    """Answer unknown paths and methods of `app` in OpenAI's form.

    Never redirect to the path with or without a slash: behind a proxy the redirect would name another host, or http.
    """
    app.router.redirect_slashes = False
    app.router.default = no_route
    for status in (404, 405):
        app.add_exception_handler(status, answer)


def answer_errors_in_openai_form(app: FastAPI) -> None:
    answer_unknown_paths_in_openai_form(app)
    for kind in (HTTPException, RequestValidationError, InputError, OverloadedError, BackPressureError, RayError):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(Exception, answer)
