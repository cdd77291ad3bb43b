"""The interface of all engines: requests in, streams of tokens out, many at once, each one cancellable."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from voicechat_platform.errors import InputError
from voicechat_serve.operations.load import Load

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
"""tool_calls: only from a chat with tools. content_filter: only from a model elsewhere, whose server withholds the
rest."""

LONGEST_CONTEXT = 4096
"""Of any engine. Some models claim a hundred thousand positions, for which a cache has no room."""

CACHE_BYTES = 2**30
"""The size of one model's cache: other replicas and other versions use the same machine."""

MOST_RUNNING, MOST_WAITING = 32, 64
"""The most requests that decode together, and that wait; further ones are refused."""

LEAST_TEMPERATURE = 1e-3
"""A division by less would overflow, and the likeliest token is certain anyway."""


class UnavailableError(RuntimeError):
    """A resource exists, but is not available now. The replica's log has the reason, the message does not."""


class UpstreamError(UnavailableError):
    """The server of a model elsewhere does not answer as it should.

    Args:
        message: for the client; the replica's log has the details.
        status: the HTTP status for the client: 502 if the operator must correct the model's entry, 503, or 504.
        code: for a program.
        retry_after_s: when the client may try again.
    """

    def __init__(self, message: str, status: int = 503, code: str = "unavailable", retry_after_s: int = 1):
        super().__init__(message, status, code, retry_after_s)  # pickle rebuilds an exception from these
        self.status, self.code, self.retry_after_s = status, code, retry_after_s

    def __str__(self) -> str:
        return self.args[0]


class EmptyPromptError(InputError):
    """The prompt has no token: a model needs one to continue from."""


class PromptTooLongError(InputError):
    """The prompt leaves no room for an answer in the model's context."""


class UnknownVersionError(InputError):
    """The model has no such version, or no versions at all."""


class UnsupportedError(InputError):
    """This model's engine does not support a field of the request.

    Args:
        feature: the request's field.
        engine: the engine's name in an application file.
    """

    def __init__(self, feature: str, engine: str):
        super().__init__(feature, engine)  # pickle rebuilds an exception from these in another process
        self.feature, self.engine = feature, engine

    def __str__(self) -> str:
        return f"this model runs on the engine {self.engine}, which has no {self.feature}; the engine torch does"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The rules for the choice of tokens, and for the end."""

    max_tokens: int | None = None
    """The most tokens to generate; None for the rest of the context."""
    temperature: float = 1.0
    """The divisor of the logits; below LEAST_TEMPERATURE the choice is greedy."""
    top_p: float = 1.0
    """Sample from the likeliest tokens with this sum of probabilities (arXiv 1904.09751)."""
    top_k: int = 0
    """Sample from this number of the likeliest tokens; 0 for all."""
    min_p: float = 0.0
    """Sample from tokens with at least this share of the likeliest token's probability (arXiv 2407.01082)."""
    repetition_penalty: float = 1.0
    """Divide logits of tokens in the prompt and the answer by it, or multiply negative ones (arXiv 1909.05858)."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each of its occurrences in the answer."""
    presence_penalty: float = 0.0
    """Subtracted from a token's logit once it occurs in the answer."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, number to add to its logit)."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these."""
    seed: int | None = None
    """The same seed and prompt give the same tokens, independent of other requests (if the engine supports it)."""

    @property
    def greedy(self) -> bool:
        return self.temperature < LEAST_TEMPERATURE


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    prompt_ids: list[int]
    sampling: Sampling = field(default_factory=Sampling)
    top_scores: int | None = None
    """Score every token, and this number of the likeliest tokens at its place; None for no scores."""
    score_prompt: bool = False
    """Score the prompt's tokens as well (with `top_scores`)."""
    adapter: int = 0
    """The number of an adapter that was added to the model; 0 for none."""
    grammar: str | None = None
    """What the answer must be, in llguidance's form: Lark, or JSON; None for any text. `Constraint` says more."""


@dataclass(frozen=True, slots=True)
class Score:
    """The model's own probability of a token, before penalties and temperature."""

    id: int
    logprob: float | None
    """Natural logarithm of the probability; None for a prompt's first token, which has no context."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at this place with their log-probabilities, likeliest first."""


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token. The model's tokens map one to one to these, so their number is the usage."""

    text: str
    """The text that the token adds: empty while a character or a possible stop string is incomplete."""
    id: int
    finish_reason: FinishReason | None = None
    """Set on the last token: "stop" for an end token or a stop string, "length" for a limit."""
    score: Score | None = None
    prompt_scores: tuple[Score, ...] = ()
    """On the first token, if the request asks for them."""


class Engine(Protocol):
    context: int
    """The most tokens of a prompt and its answer together."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Token], None]:
        """Stream the request's tokens: the first one as soon as possible, the others in batches, because a wake-up for
        each would cost more than its generation. The end of the iteration cancels the request within one decoding step.

        Raises (at the first token):
            OverloadedError: too many requests are waiting.
            EmptyPromptError: the prompt has no token.
            PromptTooLongError: the prompt fills the context.
            UnsupportedError: the engine does not support a field of the request.
            GrammarError: the grammar is invalid, or too complex; this may also come later.
        """
        ...

    def load(self) -> Load:
        """Return the load; any thread may call this."""
        ...

    def check(self) -> None:
        """Raise if the engine can no longer serve."""
        ...

    def close(self) -> None:
        """Free the engine's resources after its last request."""
        ...


def slots_within(cache_bytes: int, bytes_per_slot: int) -> int:
    """Return the number of slots that fit into the cache, at least one and at most MOST_RUNNING."""
    return max(1, min(MOST_RUNNING, cache_bytes // bytes_per_slot))


def room_for(request: GenerationRequest, context: int) -> int:
    """Return the number of tokens that the request may generate.

    Raises:
        EmptyPromptError: the prompt has no token.
        PromptTooLongError: the number would be 0.
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
