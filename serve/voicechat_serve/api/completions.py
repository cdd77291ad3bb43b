"""/completions: text that follows a prompt, whole or as server-sent events."""

from typing import Any

from fastapi import APIRouter
from pydantic import Field

from voicechat_serve.api.errors import APIError
from voicechat_serve.api.fields import Text
from voicechat_serve.api.services import Services
from voicechat_serve.api.text_request import TextRequest, event_stream, heading, usage, whole_answer
from voicechat_serve.language_model import Delta

DEFAULT_MAX_TOKENS = 16
"""OpenAI's own."""


class CompletionRequest(TextRequest):
    prompt: Text | list[Text]
    max_tokens: int | None = Field(DEFAULT_MAX_TOKENS, ge=1)

    def text(self) -> str:
        """
        Raises:
            APIError: 400, more or less than one prompt, or an empty one.
        """
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if len(prompts) != 1:
            raise APIError(400, "give exactly one prompt", param="prompt", code="invalid_value")
        if not prompts[0]:
            raise APIError(400, "the prompt is empty", param="prompt", code="invalid_value")
        return prompts[0]


def router(services: Services) -> APIRouter:
    routes = APIRouter()

    @routes.post("/completions")
    async def create_completion(request: CompletionRequest) -> Any:
        handle = services.language_model(request.model)
        arguments = ("complete", request.text(), request.wishes())
        head = heading("cmpl", "text_completion", request.model)

        def choice(text: str, finish_reason: str | None) -> dict[str, Any]:
            return {"index": 0, "text": text, "finish_reason": finish_reason, "logprobs": None}

        def chunks(delta: Delta, first: bool) -> list[dict[str, Any]]:
            told = [head | {"choices": [choice(delta.text, delta.finish_reason)]}]
            if delta.finish_reason and request.usage_wanted:
                told.append(head | {"choices": [], "usage": usage(delta)})
            return told

        if request.stream:
            return await event_stream(handle, *arguments, chunks=chunks)
        text, last = await whole_answer(handle, *arguments)
        return head | {"choices": [choice(text, last.finish_reason)], "usage": usage(last)}

    return routes
