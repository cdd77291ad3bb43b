"""A model elsewhere: messages go to another server with OpenAI's API, and its streamed text comes back."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from voicechat_platform.errors import InputError
from voicechat_serve.generation.answer_form import CallPiece, Message
from voicechat_serve.generation.engines.interface import (
    FinishReason,
    PromptTooLongError,
    UnsupportedError,
    UpstreamError,
)
from voicechat_serve.generation.engines.text_stream import StopStrings
from voicechat_serve.generation.loaded_model import AnswerScores, Delta, GenerationOptions, TokenizedText
from voicechat_serve.generation.remote_pieces import Piece, piece_of
from voicechat_serve.generation.remote_tools import RemoteCalls, form_fields, sent_message, tool_fields
from voicechat_serve.generation.served_model import MAX_TOKENS, Remote
from voicechat_serve.generation.upstream import WHO, Upstream

FORWARDED = (
    *("temperature", "top_p", "top_k", "min_p", "seed"),
    *("repetition_penalty", "frequency_penalty", "presence_penalty"),
)
"""The fields of a request that go on as they are, if the client has set them."""

MOST_STOPS = 4
"""The most stop strings that OpenAI's own API takes; all of them are enforced here as well."""

TOKEN_CHARACTERS, LONGEST_TOKEN = 4, 32
"""Characters of a usual token, and the most on average: a server that ignores the limit of tokens is cut off after so
many pieces of usual length, or so many characters."""

MOST_CHARACTERS = 400_000
"""Of any answer."""

MOST_ATTEMPTS = 6
"""Attempts at a conversation that is longer than the context, each with half of the messages."""

USAGE_S = 2.0
"""The longest wait for the usage after the answer's end."""

TEMPLATE_TOKENS, END_TOKENS = 32_768, 16
"""The most tokens that another server may add to a prompt, and to an answer, before we do not believe its usage."""


NO_TOKENIZER = "this model runs on another server, which has its tokenizer: ask that server"


class RemoteModel:
    """A model elsewhere, with the methods of `LoadedModel`.

    Args:
        remote: where it is.
        fingerprint: names it.
        defaults: the fields of `Sampling` that apply if a request does not set them.
        max_tokens: the most tokens of an answer in a chat whose request sets no limit.

    Raises:
        InputError: the key is not in the environment.
    """

    def __init__(
        self, remote: Remote, fingerprint: str, defaults: Mapping[str, Any] | None = None, max_tokens: int = MAX_TOKENS
    ):
        self.engine, self.fingerprint = Upstream(remote), fingerprint
        self.defaults, self.max_tokens = dict(defaults or {}), max_tokens
        self.users = 0

    async def warm_up(self) -> None:
        """Log a warning if the other server does not answer. It may answer later, so this is no error."""
        await self.engine.look()

    async def chat(self, messages: Sequence[Message], options: GenerationOptions) -> AsyncGenerator[Delta, None]:
        """Yield the assistant's next turn.

        Its context is unknown. So `truncation="auto"` sends the whole conversation, and the newer half of it after each
        refusal as too long, but always the system's message and the last one.

        Raises (at the first piece, the last one later too): the errors of `Upstream.objects`; UnsupportedError: the
        other server gives no scores, or takes no such form of the text; UpstreamError: what it sends is no answer.
        """
        system = [message for message in messages[:1] if message["role"] == "system"]
        rest = list(messages[len(system) :])
        asked = tool_fields(options.tools) | form_fields(options.text)
        if options.top_scores is not None:
            asked |= {"logprobs": True, "top_logprobs": options.top_scores}
        attempts = MOST_ATTEMPTS if options.truncation == "auto" else 1
        while True:
            attempts -= 1
            has_begun = False
            try:
                fields = asked | {"messages": [sent_message(message) for message in (*system, *rest)]}
                async with aclosing(self.write("/chat/completions", fields, options)) as deltas:
                    async for delta in deltas:
                        has_begun = True
                        yield delta
                return
            except PromptTooLongError:
                if has_begun or not attempts or len(rest) < 2:
                    raise
            rest = rest[(len(rest) + 1) // 2 :] if attempts > 1 else rest[-1:]
            while (
                rest[0]["role"] in ("assistant", "tool") and len(rest) > 1
            ):  # some templates begin with the user's turn
                rest = rest[1:]

    async def complete(self, prompt: str | list[int], options: GenerationOptions) -> AsyncGenerator[Delta, None]:
        """Yield the continuation of the prompt, a text or token ids of the other model; errors as in `chat`."""
        if options.score_prompt:
            raise UnsupportedError("logprobs of the prompt", "openai")
        if options.text is not None:
            raise UnsupportedError(options.text.field, "openai")
        if options.echo and not isinstance(prompt, str):
            raise InputError("echo needs a prompt that is text, because the model runs on another server")
        if options.top_scores is not None and not isinstance(prompt, str):
            raise InputError("logprobs need a prompt that is text, because the model runs on another server")
        scored = {} if options.top_scores is None else {"logprobs": options.top_scores}
        text = prompt if isinstance(prompt, str) else ""
        async with aclosing(self.write("/completions", scored | {"prompt": prompt}, options, text)) as deltas:
            async for delta in deltas:
                yield delta

    async def tokenize(
        self, text: str | Sequence[Message], add_special: bool, with_names: bool, options: GenerationOptions
    ) -> TokenizedText:
        raise InputError(NO_TOKENIZER)

    async def detokenize(self, token_ids: list[int], options: GenerationOptions) -> str:
        raise InputError(NO_TOKENIZER)

    async def tokenizer_info(self, options: GenerationOptions) -> dict[str, Any]:
        raise InputError(NO_TOKENIZER)

    async def write(
        self, path: str, fields: dict[str, Any], options: GenerationOptions, prompt: str = ""
    ) -> AsyncGenerator[Delta, None]:
        sampling = {"max_tokens": self.max_tokens} | self.defaults | options.sampling
        stop: tuple[str, ...] = sampling.get("stop", ())
        fields = fields | {name: sampling[name] for name in FORWARDED if name in sampling}
        if stop:
            fields["stop"] = list(stop[:MOST_STOPS])
        if bias := sampling.get("logit_bias"):
            fields["logit_bias"] = {str(token_id): number for token_id, number in bias}
        callable_names = frozenset(tool.name for tool in options.tools.allowed)
        answer = Answer(sampling["max_tokens"], stop, RemoteCalls(callable_names))
        scores = None if options.top_scores is None else AnswerScores(prompt)
        async with aclosing(self.engine.objects(path, fields, answer.max_tokens)) as objects:
            async for found in objects:
                piece = self.read(found, options)
                answer.usage = piece.usage or answer.usage
                calls = self.calls_of(answer, piece)
                text = answer.take(piece)
                scored = scores.settled(text, piece.scores, answer.finish_reason) if scores else ()
                if text or scored or calls:
                    yield Delta(text, 0, answer.pieces, None, scored, fingerprint=self.fingerprint, calls=calls)
                if answer.finish_reason:
                    break
            if not answer.finish_reason:
                raise UpstreamError(f"{WHO} broke its answer off")
            if not answer.is_cut:
                answer.usage = await self.last_usage(objects, options) or answer.usage
        size = len(repr(fields.get("messages") or fields["prompt"]).encode(errors="replace"))
        size += len(repr(fields["tools"])) if "tools" in fields else 0
        prompt_tokens, completion_tokens = answer.count(size)
        calls = tuple(answer.calls.end_of_last())
        reason = answer.finish_reason
        yield Delta("", prompt_tokens, completion_tokens, reason, fingerprint=self.fingerprint, calls=calls)

    def calls_of(self, answer: "Answer", piece: Piece) -> tuple[CallPiece, ...]:
        """Return the pieces of calls in a piece of an answer.

        Raises:
            UpstreamError: they are none.
        """
        try:
            return answer.take_calls(piece)
        except ValueError:
            raise UpstreamError(f"{WHO} sent a call of a tool that cannot be read") from None

    def read(self, found: object, options: GenerationOptions) -> Piece:
        """Return a checked piece.

        Raises:
            UpstreamError: it is none.
            UnsupportedError: it has no scores, but the request asks for them.
        """
        try:
            piece = piece_of(found, options.top_scores or 0)
        except ValueError:
            raise UpstreamError(f"{WHO} sent an answer that cannot be read") from None
        if options.top_scores is not None and piece.text and not piece.scores:
            raise UnsupportedError("logprobs", "openai")
        return piece

    async def last_usage(
        self, objects: AsyncGenerator[object, None], options: GenerationOptions
    ) -> dict[str, Any] | None:
        """Return the usage, which follows the end of the text; None if there is none soon. A connection whose stream is
        read to its end serves the next request."""
        usage = None
        with suppress(TimeoutError, UpstreamError, InputError):
            async with asyncio.timeout(USAGE_S):
                async for found in objects:
                    usage = self.read(found, options).usage or usage
        return usage


@dataclass
class Answer:
    """An answer so far, within its limits whatever the other server sends."""

    max_tokens: int
    stop: tuple[str, ...]
    calls: RemoteCalls = field(default_factory=lambda: RemoteCalls(frozenset()))
    pieces: int = 0
    characters: int = 0
    has_cut_call: bool = False
    usage: dict[str, Any] | None = None
    finish_reason: FinishReason | None = None
    is_cut: bool = False
    """Whether it ends here, and not at the other server."""

    def __post_init__(self) -> None:
        self.ending = StopStrings(self.stop)

    @property
    def room(self) -> int:
        """The number of characters that may follow."""
        return max(0, min(self.max_tokens * LONGEST_TOKEN, MOST_CHARACTERS) - self.characters)

    def take_calls(self, piece: Piece) -> tuple[CallPiece, ...]:
        """Return the pieces of calls, before the text is taken.

        Raises:
            ValueError: they are none.
        """
        given: list[CallPiece] = []
        for call in self.calls.take(piece.calls):
            arguments = call.arguments[: self.room]
            self.has_cut_call = self.has_cut_call or len(arguments) < len(call.arguments)
            self.characters += len(call.name) + len(arguments)
            given.append(replace(call, arguments=arguments))
        self.pieces += bool(given)
        return tuple(given)

    def take(self, piece: Piece) -> str:
        """Return the text that is certain now; set the reason for the end."""
        text = piece.text[: self.room]
        if self.pieces >= self.max_tokens and self.characters >= self.max_tokens * TOKEN_CHARACTERS:
            text = ""
        is_over = len(text) < len(piece.text)
        self.pieces += bool(text)
        self.characters += len(text)
        given, has_stopped = self.ending.release(text)
        self.is_cut = has_stopped or self.has_cut_call or (is_over and not piece.finish_reason)
        self.finish_reason = "stop" if has_stopped else "length" if self.is_cut else piece.finish_reason
        if self.finish_reason == "stop" and self.calls.count:
            self.finish_reason = "tool_calls"
        return given + self.ending.finish() if self.finish_reason and not has_stopped else given

    def count(self, size: int) -> tuple[int, int]:
        """Return the tokens of the prompt and of the answer: the other server's numbers if they are possible, otherwise
        the usual number for the prompt's size, and the number of pieces.

        Args:
            size: bytes of the prompt.
        """
        usage = self.usage or {}
        prompt = count_of(usage.get("prompt_tokens"), 0, size + TEMPLATE_TOKENS)
        completion = count_of(usage.get("completion_tokens"), bool(self.pieces), self.max_tokens + END_TOKENS)
        return (
            -(-size // TOKEN_CHARACTERS) if prompt is None else prompt,
            self.pieces if completion is None else completion,
        )


def count_of(number: object, least: int, most: int) -> int | None:
    """Return the number if it is a possible one."""
    if not isinstance(number, int) or isinstance(number, bool):
        return None
    return number if least <= number <= most else None
