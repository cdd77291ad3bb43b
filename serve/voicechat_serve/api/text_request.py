"""What chat completions and completions share: sampling fields, what is not supported, and answering as SSE."""

import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from ray.serve.handle import DeploymentHandle

from voicechat_serve.api.errors import APIError, api_error
from voicechat_serve.api.fields import Text
from voicechat_serve.api.request_log import current_request
from voicechat_serve.api.services import streamed
from voicechat_serve.language_model import Delta

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
}
"""OpenAI's fields that are not supported -> the values with which they mean nothing, as null always does."""


class StreamOptions(BaseModel):
    include_usage: bool = False


class TextRequest(BaseModel):
    """Fields of both endpoints. Fields that OpenAI does not know are ignored."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: Text
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    stop: Text | list[Text] | None = Field(None, max_length=256)
    seed: int | None = None

    def wishes(self) -> dict[str, Any]:
        """The fields of `Sampling` that the client has set.

        Raises:
            APIError: 400, a field that is not supported has a value that matters.
        """
        for name, value in (self.model_extra or {}).items():
            if name in NEUTRAL and value is not None and value not in NEUTRAL[name]:
                allowed = f" beyond {json.dumps(NEUTRAL[name][0])}" if NEUTRAL[name] else ""
                message = f"{name} is not supported{allowed}"
                raise APIError(400, message, param=name, code="unsupported_parameter")
        given = {name: getattr(self, name) for name in ("max_tokens", "temperature", "top_p", "top_k", "seed")}
        if self.stop is not None:
            given["stop"] = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        return {name: value for name, value in given.items() if value is not None}

    @property
    def usage_wanted(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


def heading(prefix: str, kind: str, model: str) -> dict[str, Any]:
    """The fields that begin every object of one answer."""
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def usage(last: Delta) -> dict[str, int]:
    return {
        "prompt_tokens": last.prompt_tokens,
        "completion_tokens": last.completion_tokens,
        "total_tokens": last.prompt_tokens + last.completion_tokens,
    }


async def whole_answer(handle: DeploymentHandle, method: str, *arguments: Any) -> tuple[str, Delta]:
    """The whole text, and the last piece of it."""
    parts = []
    async with streamed(handle, method, *arguments) as deltas:
        async for delta in deltas:
            parts.append(delta.text)
            current_request().count(delta.prompt_tokens, delta.completion_tokens)
    return "".join(parts), delta


async def event_stream(
    handle: DeploymentHandle,
    method: str,
    *arguments: Any,
    chunks: Callable[[Delta, bool], list[dict[str, Any]]],
) -> StreamingResponse:
    """Server-sent events, one JSON object each; an error before the first piece is an error of the request.

    Args:
        handle: the language model.
        method: its method.
        arguments: of the method.
        chunks: (a piece of the answer, whether it is the first) -> the objects that tell it.
    """
    stack = AsyncExitStack()
    try:
        deltas = await stack.enter_async_context(streamed(handle, method, *arguments))
        first = await anext(deltas)
    except BaseException:
        await stack.aclose()
        raise

    async def events() -> AsyncIterator[str]:
        async with stack:
            try:
                current_request().count(first.prompt_tokens, first.completion_tokens)
                for chunk in chunks(first, True):
                    yield event(chunk)
                async for delta in deltas:
                    current_request().count(delta.prompt_tokens, delta.completion_tokens)
                    for chunk in chunks(delta, False):
                        yield event(chunk)
            except Exception as error:
                told = api_error(error)
                current_request().error = told.code or told.kind
                yield event(told.body())
                return
            yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
