"""/chat/completions: the next turn of a conversation, whole or as server-sent events."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter
from pydantic import Discriminator, Field, Tag, model_validator

from voicechat_serve.api.answers import STREAM_DOCUMENTED, ChoiceRequest, Tally, event_stream, heading, whole_answer
from voicechat_serve.api.errors import APIError
from voicechat_serve.api.fields import Part, Text
from voicechat_serve.api.services import Services
from voicechat_serve.api.text_request import TextRequest, choice_sampling
from voicechat_serve.generation.answer_form import Message
from voicechat_serve.generation.loaded_model import Delta, GenerationOptions, ScoredToken, Truncation


class ContentPart(Part):
    type: str
    text: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def type_alone_of_others(cls, part: Any) -> Any:
        """Refuse every part except text by its type, with any fields."""
        return part if not isinstance(part, dict) or part.get("type") == "text" else {"type": part.get("type")}


Content = Annotated[
    Annotated[Text, Tag("[text]")] | Annotated[list[ContentPart], Tag("[parts]")],
    Discriminator(lambda content: "[parts]" if isinstance(content, list) else "[text]"),
]


class ChatMessage(Part):
    neutral: ClassVar = {"tool_calls": ([],), "annotations": ([],), "refusal": ("",)}  # as in OpenAI's responses

    role: Literal["system", "developer", "user", "assistant"]
    content: Content | None = None
    name: Text | None = None
    """The speaker, if several share one role: chat templates have no place for it."""

    def as_prompt(self, position: int) -> Message:
        """Return the message for the chat template.

        Raises:
            APIError: 400, the content is not text, or is missing.
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
        # The same field under OpenAI's newer name.
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatRequest(TextRequest):
    messages: list[ChatMessage] = Field(min_length=1, max_length=2048)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    truncation: Truncation = "disabled"
    """As in OpenAI's responses: "auto" omits the oldest messages of a conversation that is longer than the context."""

    def choice_requests(self, model: str, version: int | None) -> list[ChoiceRequest]:
        """Return one request for each choice.

        Raises:
            APIError: 400, a field has a value that is not supported.
        """
        messages = [message.as_prompt(position) for position, message in enumerate(self.messages)]
        if self.top_logprobs and not self.logprobs:
            message = "top_logprobs needs logprobs to be true"
            raise APIError(400, message, param="top_logprobs", code="invalid_value")
        sampling = self.sampling()
        if self.max_completion_tokens is not None:
            sampling["max_tokens"] = self.max_completion_tokens
        options = GenerationOptions(
            sampling=sampling,
            top_scores=(self.top_logprobs or 0) if self.logprobs else None,
            truncation=self.truncation,
            model=model,
            version=version,
        )
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
            chunks = ChunkWriter(head, request.usage_wanted)
            last = head | {"choices": []} if request.usage_wanted else None
            return await event_stream(handle, choice_requests, tally, chunks, last)
        choices = await whole_answer(handle, choice_requests, tally)
        return heading("chatcmpl", "chat.completion", request.model) | {
            "choices": [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": choice.text, "refusal": None},
                    "finish_reason": choice.finish_reason,
                    "logprobs": openai_logprobs(choice.scores),
                }
                for index, choice in enumerate(choices)
            ],
            "usage": tally.usage(),
            "system_fingerprint": tally.fingerprint,
        }

    return routes


class ChunkWriter:
    """Converts pieces of an answer to OpenAI's chunks: for each choice the role, the text, and the reason for its
    end."""

    def __init__(self, head: dict[str, Any], usage_wanted: bool):
        self.head = head | {"usage": None} if usage_wanted else head
        self.begun: set[int] = set()

    def __call__(self, index: int, delta: Delta) -> Iterator[dict[str, Any]]:
        if index not in self.begun:
            self.begun.add(index)
            yield self.chunk(index, delta, {"role": "assistant", "content": ""})
        if delta.text or delta.scores:
            yield self.chunk(index, delta, {"content": delta.text}, logprobs=openai_logprobs(delta.scores))
        if delta.finish_reason:
            yield self.chunk(index, delta, {}, delta.finish_reason)

    def chunk(
        self,
        index: int,
        delta: Delta,
        content: dict[str, str],
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
