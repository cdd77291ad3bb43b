"""/tokenize, /detokenize and /tokenizer_info: a model's tokens, in vLLM's form, for tools that measure language models.

Such tools do not always name a model: then it is the first one that makes text.
"""

from typing import Annotated, Any, Self

from fastapi import APIRouter, Response
from pydantic import Field, model_validator
from pydantic_core import to_json

from voicechat_serve.api.chat_messages import ChatMessage, conversation_of
from voicechat_serve.api.completions import TokenId
from voicechat_serve.api.errors import APIError
from voicechat_serve.api.fields import Body, Text
from voicechat_serve.api.services import BRIEF_S, Services, answered
from voicechat_serve.generation.loaded_model import GenerationOptions

MOST_CHARACTERS = 1_000_000
"""Of a prompt. The size of the body limits the tokens that become a text."""


class TokenizeRequest(Body):
    model: Text | None = None
    prompt: Text | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2048)] | None = None
    add_special_tokens: bool | None = None
    """Whether the model's first token (BOS) is added, if it has one; by default for a prompt, and never for messages,
    whose template writes it."""
    return_token_strs: bool = False

    @model_validator(mode="after")
    def is_one_of_two(self) -> Self:
        """Check the text.

        Raises:
            APIError: 400, there are a prompt and messages, or neither; the prompt is too long; or special tokens are
                wanted for messages.
        """
        if (self.prompt is None) == (self.messages is None):
            raise APIError(400, "give a prompt or messages, one of the two", param="prompt", code="invalid_value")
        if self.prompt is not None and len(self.prompt) > MOST_CHARACTERS:
            message = f"prompt has {len(self.prompt):,} characters, more than {MOST_CHARACTERS:,}"
            raise APIError(400, message, param="prompt", code="invalid_value")
        if self.messages is not None and self.add_special_tokens:
            message = "add_special_tokens is not supported for messages: the chat template writes the special tokens"
            raise APIError(400, message, param="add_special_tokens", code="unsupported_parameter")
        return self


class DetokenizeRequest(Body):
    model: Text | None = None
    tokens: list[TokenId]


def router(services: Services) -> APIRouter:
    routes = APIRouter()

    def asked(name: str | None) -> tuple[Any, GenerationOptions]:
        """Return the deployment of a language model, by default the first one, and the options that name the model."""
        handle, model, version = services.language_model(name or next(iter(services.language_models)))
        return handle, GenerationOptions(model=model, version=version)

    @routes.post("/tokenize")
    async def tokenize(request: TokenizeRequest) -> Any:
        """Return the tokens of a text, or of a conversation with the beginning of the answer."""
        handle, options = asked(request.model)
        text: Any = request.prompt
        if request.messages is not None:
            text = conversation_of(request.messages)
        add_special = request.add_special_tokens is not False
        found = await answered(handle.tokenize.remote(text, add_special, request.return_token_strs, options), BRIEF_S)
        body = {"count": len(found.ids), "max_model_len": found.context, "tokens": found.ids, "token_strs": found.names}
        # FastAPI's own conversion would take seconds for a million tokens, and hold up all other requests.
        return Response(to_json(body), media_type="application/json")

    @routes.post("/detokenize")
    async def detokenize(request: DetokenizeRequest) -> dict[str, str]:
        """Return the text of tokens, with the texts of special ones."""
        handle, options = asked(request.model)
        return {"prompt": await answered(handle.detokenize.remote(request.tokens, options), BRIEF_S)}

    @routes.get("/tokenizer_info")
    async def tokenizer_info(model: str | None = None) -> dict[str, Any]:
        """Describe the tokenizer of a language model, with the names of tokenizer_config.json."""
        handle, options = asked(model)
        return await answered(handle.tokenizer_info.remote(options), BRIEF_S)

    return routes
