"""The common part of chat completions and completions: the request's fields, and the unsupported ones."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from voicechat_serve.api.errors import APIError
from voicechat_serve.api.fields import Part, Text
from voicechat_serve.api.text_forms import FormFields

MOST_CHOICES = 16
"""The most answers to one request, over all of its prompts."""

MOST_STOPS = 256
MOST_STOP_CHARACTERS = 4096
"""The most characters of all stop strings together. One thread may compare each with the end of the text at every
token, for all answers."""

SAMPLING_FIELDS = (
    *("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed"),
    *("repetition_penalty", "frequency_penalty", "presence_penalty"),
)


class StreamOptions(Part):
    neutral: ClassVar = {"include_obfuscation": (False,), "continuous_usage_stats": (False,)}

    include_usage: bool | None = None


class TextRequest(FormFields):
    """The fields of both endpoints; top_k, min_p and repetition_penalty are not OpenAI's."""

    model: Text
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    best_of: int | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=1024)
    stop: Text | Annotated[list[Text], Field(max_length=MOST_STOPS)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)

    @model_validator(mode="after")
    def stream_options_have_a_stream(self) -> Self:
        """Check the options of a stream.

        Raises:
            APIError: 400, there are options of a stream, but the response is not streamed.
        """
        if self.stream_options is not None and not self.stream:
            message = "stream_options need stream to be true"
            raise APIError(400, message, param="stream_options", code="invalid_value")
        return self

    def sampling(self) -> dict[str, Any]:
        """Return the fields of `Sampling` that the client has set.

        Raises:
            APIError: 400, best_of differs from n, the stop strings are too long, or a token id is no number.
        """
        if self.best_of not in (None, self.choices):
            raise APIError(400, "best_of must be the same as n", param="best_of", code="unsupported_parameter")
        given = {name: getattr(self, name) for name in SAMPLING_FIELDS}
        if self.stop is not None:
            given["stop"] = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
            if sum(map(len, given["stop"])) > MOST_STOP_CHARACTERS:
                message = f"stop: the strings have more than {MOST_STOP_CHARACTERS} characters together"
                raise APIError(400, message, param="stop", code="invalid_value")
        if self.logit_bias:
            given["logit_bias"] = tuple((token_id_of(key), bias) for key, bias in self.logit_bias.items())
        return {name: value for name, value in given.items() if value is not None}

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def usage_wanted(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


def token_id_of(key: str) -> int:
    """Return the token id.

    Raises:
        APIError: 400, the key is not a token's number.
    """
    if not (key.isascii() and key.isdigit() and len(key) < 10):
        message = f"logit_bias: {key[:20]!r} is not a token id"
        raise APIError(400, message, param="logit_bias", code="invalid_value")
    return int(key)


def choice_sampling(sampling: dict[str, Any], choice: int) -> dict[str, Any]:
    """Return the sampling of one of several choices: each gets its own seed, or all would be equal."""
    return sampling | {"seed": sampling["seed"] + choice} if "seed" in sampling and choice else sampling
