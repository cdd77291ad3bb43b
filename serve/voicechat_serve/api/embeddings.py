"""/embeddings: a vector for each text.

Letters: n input, d dimension of a vector.
"""

import base64
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import Field
from pydantic_core import to_json

from voicechat_serve.api.completions import TokenId
from voicechat_serve.api.errors import APIError
from voicechat_serve.api.fields import Body, Text
from voicechat_serve.api.request_log import current_request
from voicechat_serve.api.services import WHOLE_S, Services, answered

MOST_INPUTS = 2048
"""OpenAI's own limit."""

MOST_CHARACTERS = 1_000_000
"""Of all inputs together: they are split into tokens before anybody knows their number."""

MOST_DIMENSIONS = 65_536
"""More than any model has; the model's own number is the limit."""

OneInput = Text | list[TokenId]


class EmbeddingRequest(Body):
    model: Text
    input: Text | list[Text] | list[TokenId] | list[list[TokenId]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=MOST_DIMENSIONS)] | None = None

    def inputs(self) -> list[OneInput]:
        """Return the inputs.

        Raises:
            APIError: 400, there is none, or an empty one, or there are too many, or too many characters.
        """
        given: list[Any]
        given = [self.input] if isinstance(self.input, str) or is_one_of_tokens(self.input) else list(self.input)
        if not given:
            raise invalid("input has no inputs")
        if not all(given):
            raise invalid(f"input {[bool(each) for each in given].index(False)} is empty")
        if len(given) > MOST_INPUTS:
            raise invalid(f"input has {len(given):,} inputs, more than {MOST_INPUTS:,}")
        characters = sum(len(each) for each in given if isinstance(each, str))
        if characters > MOST_CHARACTERS:
            raise invalid(f"input has {characters:,} characters, more than {MOST_CHARACTERS:,}")
        return given


def is_one_of_tokens(given: Any) -> bool:
    return bool(given) and isinstance(given[0], int)


def invalid(message: str) -> APIError:
    return APIError(400, message, param="input", code="invalid_value")


def router(services: Services) -> APIRouter:
    routes = APIRouter()

    @routes.post("/embeddings")
    async def create_embeddings(request: EmbeddingRequest) -> Any:
        handle = services.embedding_model(request.model)
        embedded = await answered(handle.embed.remote(request.inputs(), request.dimensions), WHOLE_S)
        current_request().count(embedded.num_tokens, 0)
        vectors_nd = embedded.vectors_nd
        if request.encoding_format == "base64":
            embeddings = [base64.b64encode(vector_d.astype("<f4").tobytes()).decode() for vector_d in vectors_nd]
        else:
            embeddings = vectors_nd.tolist()
        body = {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": embedding}
                for index, embedding in enumerate(embeddings)
            ],
            "model": request.model,
            "usage": {"prompt_tokens": embedded.num_tokens, "total_tokens": embedded.num_tokens},
        }
        # FastAPI's own conversion would take seconds for a million numbers, and hold up all other requests.
        return Response(to_json(body), media_type="application/json")

    return routes
