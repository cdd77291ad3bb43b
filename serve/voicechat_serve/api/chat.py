"""/chat/completions: the next turn of a conversation, whole or as server-sent events."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from pydantic import Field

from voicechat_serve.api.answers import (
    STREAM_DOCUMENTED,
    Choice,
    ChoiceRequest,
    ChunkEvents,
    Tally,
    event_stream,
    heading,
    new_call_id,
    whole_answer,
)
from voicechat_serve.api.chat_messages import ChatMessage, conversation_of
from voicechat_serve.api.errors import APIError
from voicechat_serve.api.services import Services
from voicechat_serve.api.text_request import TextRequest, choice_sampling
from voicechat_serve.api.tool_fields import ToolChoice, ToolFields, chosen, tool_use, tools_of
from voicechat_serve.generation.answer_form import MOST_TOOLS
from voicechat_serve.generation.loaded_model import Delta, GenerationOptions, ScoredToken, Truncation


class ChatRequest(TextRequest):
    messages: list[ChatMessage] = Field(min_length=1, max_length=2048)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[ToolFields] | None = Field(None, max_length=MOST_TOOLS)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    truncation: Truncation = "disabled"
    """As in OpenAI's responses: "auto" omits the oldest messages of a conversation that is longer than the context."""

    def choice_requests(self, model: str, version: int | None) -> list[ChoiceRequest]:
        """Return one request for each choice.

        Raises:
            APIError: 400, a field has a value that is not supported.
        """
        messages = conversation_of(self.messages)
        if self.top_logprobs and not self.logprobs:
            message = "top_logprobs needs logprobs to be true"
            raise APIError(400, message, param="top_logprobs", code="invalid_value")
        sampling = self.sampling()
        if self.max_completion_tokens is not None:
            sampling["max_tokens"] = self.max_completion_tokens
        options = GenerationOptions(
            sampling=sampling,
            top_scores=(self.top_logprobs or 0) if self.logprobs else None,
            tools=tool_use(tools_of(self.tools or []), chosen(self.tool_choice), self.parallel_tool_calls is not False),
            text=self.text_form(),
            truncation=self.truncation,
            model=model,
            version=version,
        )
        if options.text and options.text.kind == "grammar" and options.tools.allowed:
            message = f"{options.text.field} is not supported together with tools"
            raise APIError(400, message, param=options.text.field, code="unsupported_parameter")
        choices = [choice_sampling(sampling, choice) for choice in range(self.choices)]
        return [ChoiceRequest("chat", messages, replace(options, sampling=each)) for each in choices]


def router(services: Services) -> APIRouter:
    routes = APIRouter()

    @routes.post("/chat/completions", responses=STREAM_DOCUMENTED)
    async def create_chat_completion(request: ChatRequest) -> Any:
        handle, model, version = services.language_model(request.model)
        choice_requests = request.choice_requests(model, version)
        tally = Tally(choices_per_prompt=len(choice_requests))
        if request.stream:
            head = heading("chatcmpl", "chat.completion.chunk", request.model)
            may_call = bool(choice_requests[0].options.tools.allowed)
            chunks = ChunkWriter(head, request.usage_wanted, may_call)
            last = head | {"choices": []} if request.usage_wanted else None
            return await event_stream(handle, choice_requests, tally, ChunkEvents(tally, chunks, last))
        choices = await whole_answer(handle, choice_requests, tally)
        return heading("chatcmpl", "chat.completion", request.model) | {
            "choices": [
                {
                    "index": index,
                    "message": message_of(choice),
                    "finish_reason": choice.finish_reason,
                    "logprobs": openai_logprobs(choice.scores),
                }
                for index, choice in enumerate(choices)
            ],
            "usage": tally.usage(),
            "system_fingerprint": tally.fingerprint,
        }

    return routes


def message_of(choice: Choice) -> dict[str, Any]:
    """Return a whole message in OpenAI's form."""
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if not choice.calls:
        return message
    calls = [call_fields(call.id, call.name, call.arguments) for call in choice.calls]
    return message | {"content": choice.text or None, "tool_calls": calls}


def call_fields(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


class ChunkWriter:
    """Converts pieces of an answer to OpenAI's chunks: for each choice the role, the text, the calls of tools, and the
    reason for its end.

    Args:
        head: the fields of every chunk.
        usage_wanted: whether the client wants the usage.
        may_call: whether an answer may have calls: then it may have no text, and begins with null.
    """

    def __init__(self, head: dict[str, Any], usage_wanted: bool, may_call: bool):
        self.head = head | {"usage": None} if usage_wanted else head
        self.first_text = None if may_call else ""
        self.begun: set[int] = set()

    def __call__(self, index: int, delta: Delta) -> Iterator[dict[str, Any]]:
        if index not in self.begun:
            self.begun.add(index)
            yield self.chunk(index, delta, {"role": "assistant", "content": self.first_text})
        if delta.text or delta.scores:
            yield self.chunk(
                index, delta, {"content": delta.text or self.first_text}, logprobs=openai_logprobs(delta.scores)
            )
        for piece in delta.calls:
            if piece.name:
                call = {"index": piece.index} | call_fields(new_call_id(), piece.name, "")
                yield self.chunk(index, delta, {"tool_calls": [call]})
            if piece.arguments:
                call = {"index": piece.index, "function": {"arguments": piece.arguments}}
                yield self.chunk(index, delta, {"tool_calls": [call]})
        if delta.finish_reason:
            yield self.chunk(index, delta, {}, delta.finish_reason)

    def chunk(
        self,
        index: int,
        delta: Delta,
        content: dict[str, Any],
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": content, "finish_reason": finish_reason, "logprobs": logprobs}
        return self.head | {"choices": [choice], "system_fingerprint": delta.fingerprint}


def openai_logprobs(scores: Sequence[ScoredToken]) -> dict[str, Any] | None:
    """Return the scores in the form of chat completions; None if there are none."""
    if not scores:
        return None
    content = [score_fields(score) | {"top_logprobs": [score_fields(top) for top in score.top]} for score in scores]
    return {"content": content, "refusal": None}


def score_fields(score: ScoredToken) -> dict[str, Any]:
    return {"token": score.text, "logprob": score.logprob, "bytes": score.bytes}
