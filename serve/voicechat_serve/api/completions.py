"""/completions: the continuation of a prompt, whole or as server-sent events."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

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
    whole_answer,
)
from voicechat_serve.api.errors import APIError
from voicechat_serve.api.fields import Text
from voicechat_serve.api.services import Services
from voicechat_serve.api.text_request import MOST_CHOICES, TextRequest, choice_sampling
from voicechat_serve.generation.loaded_model import Delta, GenerationOptions, ScoredToken

DEFAULT_MAX_TOKENS = 16
"""OpenAI's own default."""

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Prompt = str | list[int]


class CompletionRequest(TextRequest):
    prompt: Text | list[Text] | list[TokenId] | list[list[TokenId]]
    max_tokens: int | None = Field(DEFAULT_MAX_TOKENS, ge=0)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=5)

    def prompts(self) -> list[Prompt]:
        """Return the prompts.

        Raises:
            APIError: 400, there is no prompt, an empty one, or too many choices.
        """
        if isinstance(self.prompt, str):
            prompts: list[Any] = [self.prompt]
        elif self.prompt and isinstance(self.prompt[0], int):
            prompts = [self.prompt]
        else:
            prompts = list(self.prompt)
        if not prompts or not all(prompts):
            raise APIError(400, "the prompt is empty", param="prompt", code="invalid_value")
        if len(prompts) * self.choices > MOST_CHOICES:
            message = f"{len(prompts)} prompts with n={self.choices} make more than {MOST_CHOICES} choices"
            raise APIError(400, message, param="prompt", code="invalid_value")
        return prompts

    def choice_requests(self, model: str, version: int | None) -> list[ChoiceRequest]:
        """Return one request for each choice, prompt by prompt.

        Raises:
            APIError: 400, a field has a value that is not supported.
        """
        if self.max_tokens == 0 and not self.echo:
            raise APIError(400, "max_tokens of 0 needs echo", param="max_tokens", code="invalid_value")
        sampling = self.sampling()
        if self.max_tokens == 0:  # the model generates one token, and the response omits it
            sampling["max_tokens"] = 1
        options = GenerationOptions(
            sampling=sampling,
            top_scores=self.logprobs,
            score_prompt=bool(self.echo) and self.logprobs is not None,
            text=self.text_form(),
            echo=bool(self.echo),
            model=model,
            version=version,
        )
        choices = [choice_sampling(sampling, choice) for choice in range(self.choices)]
        return [
            ChoiceRequest("complete", prompt, replace(options, sampling=each))
            for prompt in self.prompts()
            for each in choices
        ]


def router(services: Services) -> APIRouter:
    routes = APIRouter()

    @routes.post("/completions", responses=STREAM_DOCUMENTED)
    async def create_completion(request: CompletionRequest) -> Any:
        handle, model, version = services.language_model(request.model)
        choice_requests = request.choice_requests(model, version)
        tally = Tally(choices_per_prompt=request.choices, is_silent=request.max_tokens == 0)
        head = heading("cmpl", "text_completion", request.model)
        tell = CompletionWriter(choice_requests, echo=bool(request.echo), silent=tally.is_silent)
        if request.stream:
            chunk = head | {"usage": None} if request.usage_wanted else head

            def chunks(index: int, delta: Delta) -> Iterator[dict[str, Any]]:
                yield chunk | {"choices": [tell(index, delta)], "system_fingerprint": delta.fingerprint}

            last = head | {"choices": []} if request.usage_wanted else None
            return await event_stream(handle, choice_requests, tally, ChunkEvents(tally, chunks, last))
        choices = await whole_answer(handle, choice_requests, tally)
        return head | {
            "choices": [tell(index, choice) for index, choice in enumerate(choices)],
            "usage": tally.usage(),
            "system_fingerprint": tally.fingerprint,
        }

    return routes


class CompletionWriter:
    """Converts choices, or pieces of them, to OpenAI's form.

    Args:
        choice_requests: their requests.
        echo: whether the text begins with the prompt.
        silent: whether it ends there.
    """

    def __init__(self, choice_requests: Sequence[ChoiceRequest], echo: bool, silent: bool):
        self.choice_requests, self.echo, self.silent = choice_requests, echo, silent
        self.begun: set[int] = set()

    def __call__(self, index: int, given: Choice | Delta) -> dict[str, Any]:
        prompt = ""
        if self.echo and index not in self.begun:
            asked = self.choice_requests[index].prompt
            prompt = asked if isinstance(asked, str) else given.prompt_text
        self.begun.add(index)
        text = prompt if self.silent else prompt + given.text
        scores = [*given.prompt_scores, *(() if self.silent else given.scores)]
        finish_reason = "length" if self.silent and given.finish_reason else given.finish_reason
        return {"index": index, "text": text, "finish_reason": finish_reason, "logprobs": self.logprobs(index, scores)}

    def logprobs(self, index: int, scores: Iterable[ScoredToken]) -> dict[str, Any] | None:
        if self.choice_requests[index].options.top_scores is None:
            return None
        columns: dict[str, list] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for score in scores:
            columns["tokens"].append(name(score))
            columns["token_logprobs"].append(score.logprob)
            # The list has the token itself, even if it is not among the likeliest.
            top = None if score.logprob is None else {name(each): each.logprob for each in (*score.top, score)}
            columns["top_logprobs"].append(top)
            columns["text_offset"].append(score.offset)
        return columns


def name(score: ScoredToken) -> str:
    """Return the token's text; for a part of a character its bytes in OpenAI's notation, so that no two are equal."""
    try:
        bytes(score.bytes).decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in score.bytes)
    return score.text
