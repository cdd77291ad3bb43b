"""/chat/completions: the next turn of a conversation, whole or as server-sent events."""

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from voicechat_serve.api.errors import APIError
from voicechat_serve.api.fields import Text
from voicechat_serve.api.services import Services
from voicechat_serve.api.text_request import TextRequest, event_stream, heading, usage, whole_answer
from voicechat_serve.chat_tokenizer import Message
from voicechat_serve.language_model import Delta, Truncation


class ContentPart(BaseModel):
    type: str
    text: Text | None = None


class ChatMessage(BaseModel):
    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[ContentPart] | None = None

    def as_prompt(self, position: int) -> Message:
        """
        Raises:
            APIError: 400, content that is not text, or none where it is needed.
        """
        content = self.content
        if content is None:
            if self.role != "assistant":
                raise APIError(400, f"a {self.role} message needs content", param=f"messages.{position}.content")
            content = ""
        elif not isinstance(content, str):
            if any(part.type != "text" or part.text is None for part in content):
                raise APIError(400, "only text content is supported", param=f"messages.{position}.content")
            content = "".join(part.text or "" for part in content)
        # The same thing under OpenAI's newer name.
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatRequest(TextRequest):
    messages: list[ChatMessage] = Field(min_length=1, max_length=2048)
    max_completion_tokens: int | None = Field(None, ge=1)
    truncation: Truncation = "disabled"
    """As in OpenAI's responses: "auto" lets a conversation that outgrows the context lose its oldest messages."""

    def wishes(self) -> dict[str, Any]:
        given = super().wishes()
        if self.max_completion_tokens is not None:
            given["max_tokens"] = self.max_completion_tokens
        return given


def router(services: Services) -> APIRouter:
    routes = APIRouter()

    @routes.post("/chat/completions")
    async def create_chat_completion(request: ChatRequest) -> Any:
        handle = services.language_model(request.model)
        messages = [message.as_prompt(position) for position, message in enumerate(request.messages)]
        arguments = ("chat", messages, request.wishes(), request.truncation)
        if request.stream:
            head = heading("chatcmpl", "chat.completion.chunk", request.model)
            return await event_stream(handle, *arguments, chunks=ChunkWriter(head, request.usage_wanted))
        text, last = await whole_answer(handle, *arguments)
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": last.finish_reason, "logprobs": None}
        return heading("chatcmpl", "chat.completion", request.model) | {"choices": [choice], "usage": usage(last)}

    return routes


class ChunkWriter:
    """Tells pieces of an answer as OpenAI does: the role, the text, the reason it ended, and the usage if wanted."""

    def __init__(self, head: dict[str, Any], usage_wanted: bool):
        self.head, self.usage_wanted = head, usage_wanted

    def __call__(self, delta: Delta, first: bool) -> list[dict[str, Any]]:
        chunks = []
        if first:
            chunks.append(self.chunk({"role": "assistant", "content": ""}))
        if delta.text:
            chunks.append(self.chunk({"content": delta.text}))
        if delta.finish_reason:
            chunks.append(self.chunk({}, delta.finish_reason))
            if self.usage_wanted:
                chunks.append(self.head | {"choices": [], "usage": usage(delta)})
        return chunks

    def chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        chunk = self.head | {"choices": [choice]}
        return chunk | {"usage": None} if self.usage_wanted else chunk
