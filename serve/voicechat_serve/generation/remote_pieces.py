"""The objects of another server's stream, checked: a server may send anything."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat

from voicechat_serve.generation.engines.interface import FinishReason
from voicechat_serve.generation.loaded_model import ScoredToken
from voicechat_serve.generation.tool_calls import MOST_CALLS

FINISH_REASONS: dict[str, FinishReason] = {"length": "length", "content_filter": "content_filter"}
"""Every other reason is "stop": whether an answer has calls is seen in them."""

Plain = Annotated[str, AfterValidator(lambda text: text.encode(errors="replace").decode())]
"""JSON can hold half of a surrogate pair, which no answer of ours can."""


@dataclass(frozen=True, slots=True)
class RemoteCall:
    """A piece of a call; servers differ in which of these they repeat after its first piece."""

    index: int | None
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    finish_reason: FinishReason | None
    scores: tuple[ScoredToken, ...]
    usage: dict[str, Any] | None
    """As the server gives it, unchecked."""
    calls: tuple[RemoteCall, ...] = ()


class Lenient(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class Score(Lenient):
    token: Plain
    logprob: FiniteFloat
    bytes: list[Annotated[int, Field(ge=0, le=255)]] | None = None

    def scored(self, top: tuple[ScoredToken, ...] = ()) -> ScoredToken:
        data = list(self.token.encode()) if self.bytes is None else self.bytes
        return ScoredToken(self.token, data, self.logprob, top)


class TokenScores(Score):
    top_logprobs: list[Score] | None = None


class Logprobs(Lenient):
    """Those of chat completions (`content`), or those of completions (columns)."""

    content: list[TokenScores] | None = None
    tokens: list[Plain] | None = None
    token_logprobs: list[FiniteFloat] | None = None
    top_logprobs: list[dict[Plain, FiniteFloat] | None] | None = None

    def scores(self, most: int) -> tuple[ScoredToken, ...]:
        """Return the score of each token, with those of the `most` likeliest ones.

        Raises:
            ValueError: the columns have different lengths.
        """
        if self.content is not None:
            return tuple(
                each.scored(tuple(top.scored() for top in (each.top_logprobs or [])[:most])) for each in self.content
            )
        tokens = self.tokens or []
        columns = zip(tokens, self.token_logprobs or [], self.top_logprobs or [None] * len(tokens), strict=True)
        return tuple(
            Score(token=token, logprob=logprob).scored(
                tuple(Score(token=other, logprob=number).scored() for other, number in likeliest(top or {}, most))
            )
            for token, logprob, top in columns
        )


class CalledFunction(Lenient):
    name: str | None = None
    arguments: Plain | None = None


class CallDelta(Lenient):
    index: int | None = None
    id: str | None = None
    function: CalledFunction

    def call(self) -> RemoteCall:
        return RemoteCall(self.index, self.id or "", self.function.name or "", self.function.arguments or "")


class Text(Lenient):
    content: Plain | None = None
    refusal: Plain | None = None
    tool_calls: list[CallDelta] | None = Field(None, max_length=MOST_CALLS)


class Choice(Lenient):
    delta: Text | None = None
    """Of chat completions."""
    text: Plain | None = None
    """Of completions."""
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class Chunk(Lenient):
    choices: list[Choice] | None = Field(None, max_length=1)
    usage: Any = None


def piece_of(found: object, most_scores: int) -> Piece:
    """Return a checked piece.

    Args:
        found: a JSON value from the stream.
        most_scores: the most likeliest tokens at each place.

    Raises:
        ValueError: it is no piece of a chat completion or completion with one choice.
    """
    chunk = Chunk.model_validate(found)
    usage = chunk.usage if isinstance(chunk.usage, dict) else None
    if not chunk.choices:
        return Piece("", None, (), usage)
    choice = chunk.choices[0]
    text = (choice.delta.content or choice.delta.refusal or "") if choice.delta else choice.text or ""
    reason = FINISH_REASONS.get(choice.finish_reason, "stop") if choice.finish_reason else None
    scores = choice.logprobs.scores(most_scores) if choice.logprobs else ()
    calls = tuple(delta.call() for delta in (choice.delta.tool_calls or ())) if choice.delta else ()
    return Piece(text, reason, scores, usage, calls)


def likeliest(top: dict[str, float], most: int) -> list[tuple[str, float]]:
    return sorted(top.items(), key=lambda pair: -pair[1])[:most]
