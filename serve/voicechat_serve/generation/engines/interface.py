"""What an engine is: requests in, streams of tokens out, many at once, each one cancellable."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from voicechat_platform.errors import InputError

FinishReason = Literal["stop", "length"]

LONGEST_CONTEXT = 4096
"""Some models claim a hundred thousand positions, for which a cache has no room."""

CACHE_BYTES = 2**30
"""What one model's cache may take: other replicas and other versions want theirs on the same machine."""

MOST_RUNNING, MOST_WAITING = 32, 64
"""Requests that are decoded together, and that wait to be; more are refused."""

LEAST_TEMPERATURE = 1e-3
"""Dividing by less would overflow, and the likeliest token is certain anyway."""


class OverloadedError(RuntimeError):
    """The engine's queue is full: the request was not taken, and may be tried again later."""


class UnavailableError(RuntimeError):
    """What was asked for is there, but cannot be had now; the replica's log says why, the message does not."""


class EmptyPromptError(InputError):
    """The prompt has no token: a model needs one to go on from."""


class PromptTooLongError(InputError):
    """The prompt leaves no room for an answer in the model's context."""


class UnknownVersionError(InputError):
    """The model has no such version, or no versions at all."""


class UnsupportedError(InputError):
    """The request asks for what this model's engine cannot do.

    Args:
        feature: the request's field.
        engine: the engine's name in an application file.
    """

    def __init__(self, feature: str, engine: str):
        super().__init__(feature, engine)  # what an exception is made of again when it crosses to another process
        self.feature, self.engine = feature, engine

    def __str__(self) -> str:
        return f"this model runs on the engine {self.engine}, which has no {self.feature}; the engine torch does"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen, and when to stop."""

    max_tokens: int | None = None
    """Most tokens to generate; the rest of the context when not given."""
    temperature: float = 1.0
    """What logits are divided by; below LEAST_TEMPERATURE it is greedy."""
    top_p: float = 1.0
    """Choose among the likeliest tokens whose probabilities add up to this much (arXiv 1904.09751)."""
    top_k: int = 0
    """Choose among so many of the likeliest tokens; 0 for all."""
    min_p: float = 0.0
    """Choose among tokens at least this share as likely as the likeliest (arXiv 2407.01082)."""
    repetition_penalty: float = 1.0
    """Logits of tokens of the prompt and the answer are divided by it, or multiplied where negative (1909.05858).
    CTranslate2 counts the answer's tokens only."""
    frequency_penalty: float = 0.0
    """Taken off a token's logit for every time it stands in the answer."""
    presence_penalty: float = 0.0
    """Taken off a token's logit once it stands in the answer."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit)."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these."""
    seed: int | None = None
    """The same seed and prompt give the same tokens, whatever else is running (where the engine can)."""

    @property
    def greedy(self) -> bool:
        return self.temperature < LEAST_TEMPERATURE

    @property
    def penalises(self) -> bool:
        return self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    prompt_ids: list[int]
    sampling: Sampling = field(default_factory=Sampling)
    top_scores: int | None = None
    """Score every token, and so many of the likeliest ones beside it; None for no scores."""
    score_prompt: bool = False
    """Score the prompt's tokens as well (with `top_scores`)."""


@dataclass(frozen=True, slots=True)
class Score:
    """What the model itself thought of a token, before penalties and temperature."""

    id: int
    logprob: float | None
    """Natural logarithm of its probability; None for a prompt's first token, which nothing precedes."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at this place with their log-probabilities, likeliest first."""


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token. There is one for every token that the model made, so counting them counts usage."""

    text: str
    """What the token adds to the text: empty while a character or a possible stop string is incomplete."""
    id: int
    finish_reason: FinishReason | None = None
    """Set on the last token: "stop" for an end token or a stop string, "length" for a limit."""
    score: Score | None = None
    prompt_scores: tuple[Score, ...] = ()
    """On the first token, where they were asked for."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """How busy an engine is at a moment."""

    running: int
    """Requests that are being read or written."""
    waiting: int
    """Requests that wait for a place."""
    cache_used: float
    """Share of the cache's positions that hold a running request's tokens, 0 to 1."""


class Engine(Protocol):
    context: int
    """Most tokens that a prompt and its answer may have together."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Token], None]:
        """Streams the request's tokens: the first as soon as it is there, the others as they come, several at a time
        where waking up for each would cost more than making it. Closing the iterator cancels the request within one
        decode step.

        Raises (at the first token):
            OverloadedError: too many requests are waiting.
            EmptyPromptError: the prompt has no token.
            PromptTooLongError: the prompt fills the context.
            UnsupportedError: the engine cannot do what the request asks for.
        """
        ...

    def load(self) -> Load:
        """How busy it is; may be called from any thread."""
        ...

    def check(self) -> None:
        """Raises when the engine can no longer serve."""
        ...

    def close(self) -> None:
        """Frees what it holds, once no request is in flight."""
        ...


def room_for(request: GenerationRequest, context: int) -> int:
    """How many tokens the request may generate.

    Raises:
        EmptyPromptError: there is nothing to go on from.
        PromptTooLongError: none.
    """
    prompt = len(request.prompt_ids)
    if not prompt:
        raise EmptyPromptError("the prompt is empty, or the model knows none of its characters")
    if prompt >= context:
        raise PromptTooLongError(
            f"the prompt has {prompt} tokens, but the model's context is {context} tokens and must hold the answer too"
        )
    room = context - prompt
    limit = request.sampling.max_tokens
    return room if limit is None else min(room, limit)
