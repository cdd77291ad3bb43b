"""One model in memory with its engine and its tokenizer: messages in, streamed text out."""

import asyncio
import re
from bisect import bisect_left
from codecs import getincrementaldecoder
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from voicechat_platform.errors import InputError
from voicechat_platform.tool_text import HERMES, CallForm
from voicechat_serve.generation.answer_form import NO_TOOLS, CallPiece, Message, TextForm, Tool, ToolUse
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer
from voicechat_serve.generation.engines.interface import (
    Engine,
    FinishReason,
    GenerationRequest,
    Sampling,
    Score,
    Token,
    UnsupportedError,
)
from voicechat_serve.generation.served_model import MAX_TOKENS
from voicechat_serve.generation.tool_calls import CallReader, answer_grammar

Truncation = Literal["disabled", "auto"]
"""Whether a conversation longer than the context is refused, or loses its oldest messages."""

ANSWER_SHARE = 0.25
"""The share of the context that `truncation="auto"` reserves for the answer."""

ANSWER_TOKENS = 128
"""The fewest tokens that it reserves; half of a short context. For a model of characters this is a sentence or two."""

SENTENCE_ENDS = ".?!"
CLAUSE_END = re.compile(r"[.?!,;:]|(?=\n)")


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """The options of a request, in addition to its prompt."""

    sampling: dict[str, Any] = field(default_factory=dict)
    """Fields of `Sampling` that the client has set; the model's defaults apply to the others."""
    top_scores: int | None = None
    """Score every token, and this number of the likeliest tokens at its place."""
    score_prompt: bool = False
    echo: bool = False
    """Give the text of a prompt of token ids on the first piece."""
    tools: ToolUse = NO_TOOLS
    text: TextForm | None = None
    """What the text must be; None for any text."""
    truncation: Truncation = "disabled"
    model: str = ""
    """The model's id, for a deployment that serves adapters with it."""
    version: int | None = None
    """A version of the model in the registry; None means the champion."""


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token in the form of OpenAI's logprobs."""

    text: str
    bytes: list[int]
    """The bytes that it adds to the text, perhaps a part of a character; empty for a special token."""
    logprob: float | None
    top: tuple["ScoredToken", ...] = ()
    offset: int = 0
    """Characters between the beginning of the prompt and the beginning of its text."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    """The number of tokens generated so far."""
    finish_reason: FinishReason | None
    """Set on the last piece."""
    scores: tuple[ScoredToken, ...] = ()
    """Scores of the piece's tokens, if the request asks for them."""
    prompt_scores: tuple[ScoredToken, ...] = ()
    """On the first piece, if the request asks for them."""
    prompt_text: str = ""
    """On the first piece, with the option `echo`: the text of a prompt of token ids, without special tokens."""
    fingerprint: str = ""
    """The version that generates, such as "shakespeare@3"."""
    calls: tuple[CallPiece, ...] = ()
    """Pieces of calls of tools, which follow the text."""


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """The tokens of a text."""

    ids: list[int]
    names: list[str] | None
    """In the vocabulary's spelling, if the request asks for them."""
    context: int
    """The most tokens of a prompt and its answer together."""


class LoadedModel:
    """A model in memory.

    Args:
        tokenizer: the model's tokenizer.
        engine: runs the model.
        fingerprint: names the version.
        defaults: for the fields of `Sampling` that a client does not set; None for those of the model's files.
        max_tokens: the most tokens of an answer in a chat whose request sets no limit.
    """

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        engine: Engine,
        fingerprint: str,
        defaults: Sampling | None = None,
        max_tokens: int = MAX_TOKENS,
    ):
        self.tokenizer, self.engine, self.fingerprint = tokenizer, engine, fingerprint
        self.defaults, self.max_tokens = defaults or tokenizer.sampling, max_tokens
        self.users = 0
        """The number of running answers; the owner that may close the engine counts them."""
        self.encoding: dict[tuple[str, str], asyncio.Task[list[int]]] = {}
        """Prompts in encoding."""

    async def warm_up(self) -> None:
        """Generate one token. Raises UnsupportedError if the engine does not support the model's own sampling
        defaults."""
        # A token, not a text: a model of characters may have no token for the text's characters.
        request = GenerationRequest(prompt_ids=[0], sampling=replace(self.defaults, max_tokens=2))
        async for _ in self.engine.generate(request):
            pass

    async def chat(self, messages: Sequence[Message], options: GenerationOptions) -> AsyncGenerator[Delta, None]:
        """Yield the assistant's next turn.

        Args:
            messages: the conversation so far.
            options: the options of the request.

        Raises (at the first piece): the errors of `Engine.generate`, and InputError if the messages do not fit the
        model's template or the model has no such token id.
        """
        form = self.tokenizer.form_for(options.text)
        prompt_ids = await self.encoded(self.chat_prompt, messages, options.tools.allowed, form, options.truncation)
        options = replace(options, sampling={"max_tokens": self.max_tokens} | options.sampling)
        grammar = await self.grammar(options, form)
        reader = CallReader(form) if options.tools.allowed else None
        # A text with a form ends where its grammar ends, and may hold what ends a turn otherwise.
        stop = () if options.text else self.tokenizer.chat_stop
        may_be_cut = grammar is None and bool(stop)
        async with aclosing(self.write(prompt_ids, options, stop, grammar=grammar)) as deltas:
            num_before = 0
            async for delta in deltas:
                if reader is not None:
                    delta = with_calls(delta, reader)
                elif may_be_cut and delta.finish_reason != "stop" and not delta.scores:
                    delta = ended_in_time(delta, num_before, self.engine.context - len(prompt_ids))
                num_before = delta.completion_tokens
                yield delta
                if delta.finish_reason:
                    return

    async def encoded(self, encode: Callable[..., list[int]], *prompt: Any) -> list[int]:
        """Return the token ids of a prompt, encoded once for all the choices that wait for it.

        This runs outside of the event loop, because a long conversation takes seconds and would delay all other
        answers.
        """
        key = (encode.__name__, repr(prompt))
        if key not in self.encoding:
            self.encoding[key] = asyncio.create_task(asyncio.to_thread(encode, *prompt))
            self.encoding[key].add_done_callback(lambda _: self.encoding.pop(key))
        return await asyncio.shield(self.encoding[key])  # if one choice is cancelled, the others still wait

    async def grammar(self, options: GenerationOptions, form: CallForm) -> str | None:
        """Return the grammar of an answer; None for any text. Errors as in `answer_grammar`."""
        if not options.tools.allowed and options.text is None:
            return None
        # A schema or a grammar may be long.
        return await asyncio.to_thread(answer_grammar, options.tools, options.text, form, bool(self.tokenizer.end_ids))

    def chat_prompt(
        self, messages: Sequence[Message], tools: Sequence[Tool], form: CallForm, truncation: Truncation
    ) -> list[int]:
        """Return the prompt of a conversation, within the context if `truncation` allows it."""
        prompt_ids = self.tokenizer.encode_chat(messages, tools, form)
        context = self.engine.context
        limit = context - max(int(context * ANSWER_SHARE), min(context // 2, ANSWER_TOKENS))
        is_long = truncation == "auto" and len(prompt_ids) > limit
        return self.shortened(messages, tools, form, limit) if is_long else prompt_ids

    def shortened(self, messages: Sequence[Message], tools: Sequence[Tool], form: CallForm, limit: int) -> list[int]:
        """Return the longest prompt within the limit that omits the oldest messages, but never the system's.

        If the last message alone is too long, omit its first words, too.
        """
        system = [message for message in messages[:1] if message["role"] == "system"]
        rest = messages[len(system) :]

        def prompt_of(num_left_out: int) -> list[int]:
            left = list(rest[num_left_out:])
            while len(left) > 1 and left[0]["role"] == "tool":  # the result of a call that is left out
                left.pop(0)
            return self.tokenizer.encode_chat([*system, *left], tools, form)

        num_left_out = bisect_left(range(len(rest) - 1), True, key=lambda number: len(prompt_of(number)) <= limit)
        prompt_ids = prompt_of(num_left_out)
        if len(prompt_ids) <= limit or not rest:
            return prompt_ids[-limit:]
        words = (rest[-1].get("content") or "").split()

        def prompt_without(num_words: int) -> list[int]:
            last = {**rest[-1], "content": " ".join(words[num_words:])}
            return self.tokenizer.encode_chat([*system, last], tools, form)

        num_words = bisect_left(range(len(words) - 1), True, key=lambda number: len(prompt_without(number)) <= limit)
        return prompt_without(num_words)[-limit:]

    async def complete(self, prompt: str | list[int], options: GenerationOptions) -> AsyncGenerator[Delta, None]:
        """Yield the continuation of the prompt, a text or token ids; errors as in `chat`."""
        prompt_ids = await self.encoded(self.tokenizer.vocabulary.encode, prompt) if isinstance(prompt, str) else prompt
        grammar = await self.grammar(options, HERMES)
        async with aclosing(self.write(prompt_ids, options, prompt=prompt, grammar=grammar)) as deltas:
            async for delta in deltas:
                yield delta

    async def tokenize(
        self, text: str | Sequence[Message], add_special: bool, with_names: bool, options: GenerationOptions
    ) -> TokenizedText:
        """Return the tokens of a text, or of a conversation as a prompt for the next turn.

        Args:
            text: the text, or the messages.
            add_special: whether the model's first token (BOS) is added to a text.
            with_names: whether the tokens' names are wanted, too.
            options: the tools that the prompt of a conversation shows.

        Raises:
            InputError: the messages do not fit the model's template.
        """
        if isinstance(text, str):
            ids = await self.encoded(self.tokenizer.vocabulary.encode, text, add_special)
        else:
            ids = await self.encoded(self.tokenizer.encode_chat, text, options.tools.allowed)
        names = [self.tokenizer.vocabulary.name(token_id) for token_id in ids] if with_names else None
        return TokenizedText(ids, names, self.engine.context)

    async def detokenize(self, token_ids: list[int], options: GenerationOptions) -> str:
        """Return the text of tokens, with the texts of special ones. Raises InputError if the model has no such
        token."""
        self.require_known(token_ids)
        return await asyncio.to_thread(self.tokenizer.vocabulary.decode, token_ids, True)

    async def tokenizer_info(self, options: GenerationOptions) -> dict[str, Any]:
        """Describe the tokenizer with the names of tokenizer_config.json."""
        special = {name: text or None for name, text in self.tokenizer.special.items()}
        return special | {
            "tokenizer_class": type(self.tokenizer.vocabulary).__name__,
            "model_max_length": self.engine.context,
            "chat_template": self.tokenizer.template_source,
        }

    async def write(
        self,
        prompt_ids: list[int],
        options: GenerationOptions,
        more_stops: tuple[str, ...] = (),
        prompt: str | list[int] = "",
        grammar: str | None = None,
    ) -> AsyncGenerator[Delta, None]:
        sampling = replace(self.defaults, **options.sampling)
        sampling = replace(sampling, stop=(*sampling.stop, *more_stops))
        self.require_known([*prompt_ids, *(token_id for token_id, _ in sampling.logit_bias)])
        request = GenerationRequest(
            prompt_ids=prompt_ids,
            sampling=sampling,
            top_scores=options.top_scores,
            score_prompt=options.score_prompt,
            grammar=grammar,
        )
        prompt_text = self.tokenizer.vocabulary.decode(prompt) if options.echo and not isinstance(prompt, str) else ""
        count = 0
        scores = None
        if options.top_scores is not None:
            scores = AnswerScores(prompt if isinstance(prompt, str) else self.tokenizer.vocabulary.decode(prompt))
        async with aclosing(self.generate(request, options)) as batches:
            async for tokens in batches:
                is_first = not count
                count += len(tokens)
                text = "".join(token.text for token in tokens)
                scored = [self.scored(token.score) for token in tokens if token.score]
                yield Delta(
                    text=text,
                    prompt_tokens=len(prompt_ids),
                    completion_tokens=count,
                    finish_reason=tokens[-1].finish_reason,
                    scores=scores.settled(text, scored, tokens[-1].finish_reason) if scores else (),
                    prompt_scores=self.scored_prompt(prompt, tokens[0].prompt_scores),
                    prompt_text=prompt_text if is_first else "",
                    fingerprint=self.fingerprint,
                )

    async def generate(
        self, request: GenerationRequest, options: GenerationOptions
    ) -> AsyncGenerator[list[Token], None]:
        """Yield the engine's tokens; an engine that takes no grammar is an error that names the client's own field."""
        try:
            async with aclosing(self.engine.generate(request)) as batches:
                async for tokens in batches:
                    yield tokens
        except UnsupportedError as error:
            if error.feature != "grammar":
                raise
            field = options.text.field if options.text and not options.tools.allowed else "tools"
            raise UnsupportedError(field, error.engine) from error

    def require_known(self, token_ids: Sequence[int]) -> None:
        size = self.tokenizer.vocabulary.size
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < size:
            raise InputError(f"a token id is not one of the model's, which are 0 to {size - 1}")

    def scored(self, score: Score) -> ScoredToken:
        top = tuple(self.named(token_id, logprob) for token_id, logprob in score.top)
        return replace(self.named(score.id, score.logprob), top=top)

    def scored_prompt(self, prompt: str | list[int], scores: Sequence[Score]) -> tuple[ScoredToken, ...]:
        """Return scores of a prompt's tokens with their positions; the prompt may contain characters without a
        token."""
        if not scores or not isinstance(prompt, str):
            return AnswerScores("").settled("", [self.scored(score) for score in scores], "length")
        places = self.tokenizer.vocabulary.places(prompt)
        return tuple(replace(self.scored(score), offset=place) for score, place in zip(scores, places, strict=True))

    def named(self, token_id: int, logprob: float | None) -> ScoredToken:
        data = self.tokenizer.vocabulary.token_bytes(token_id)
        text = data.decode(errors="replace") if data else self.tokenizer.vocabulary.name(token_id)
        return ScoredToken(text, list(data), logprob)


def with_calls(delta: Delta, reader: CallReader) -> Delta:
    """Return the same piece, with calls of tools instead of the text of these."""
    text, calls = reader.push(delta.text, is_last=delta.finish_reason is not None)
    finish_reason = delta.finish_reason
    if finish_reason and reader.is_whole:
        finish_reason = "tool_calls"
    elif finish_reason and reader.is_cut:  # perhaps by a stop string, which leaves no whole call
        finish_reason = "length"
    return replace(delta, text=text, calls=tuple(calls), finish_reason=finish_reason)


class AnswerScores:
    """Computes the positions of an answer's tokens, and releases their scores together with their text.

    Args:
        prompt: the text before the answer.
    """

    def __init__(self, prompt: str):
        self.decoder = getincrementaldecoder("utf-8")("replace")
        self.written = self.given = len(prompt)
        """Numbers of characters: generated so far, and released."""
        self.held: list[ScoredToken] = []

    def settled(
        self, text: str, scores: Sequence[ScoredToken], finish_reason: FinishReason | None
    ) -> tuple[ScoredToken, ...]:
        """Return the scores of tokens whose text, or its beginning, is released.

        Args:
            text: the released text.
            scores: scores of the generated tokens; their text may have to wait.
            finish_reason: set if the answer ends here: a stop string and its tokens are not part of the answer.
        """
        for score in scores:
            # The character that holds the token's first byte may have begun in the token before.
            beginning = self.decoder.getstate()[0] + bytes(score.bytes[:1])
            offset = self.written + max(0, len(beginning.decode(errors="replace")) - 1)
            self.held.append(replace(score, offset=offset))
            self.written += len(self.decoder.decode(bytes(score.bytes)))
        self.given += len(text)
        settled = [score for score in self.held if finish_reason == "length" or score.offset < self.given]
        self.held = self.held[len(settled) :]
        return tuple(settled)


def ended_in_time(delta: Delta, num_before: int, room: int) -> Delta:
    """Return the same piece, or the last one of its answer, because a speech of a play may be too long for a listener.

    An answer that has used half of its room ends with its sentence, and one that has used three quarters with its
    clause or its line. Otherwise it would end in the middle of a word, at the end of the context.

    Args:
        num_before: tokens of the answer's earlier pieces.
        room: tokens between the prompt and the end of the context.
    """
    for found in CLAUSE_END.finditer(delta.text):
        share = found.end() / len(delta.text)
        used = (num_before + share * (delta.completion_tokens - num_before)) / room
        if used > 0.75 or (used > 0.5 and found[0] and found[0] in SENTENCE_ENDS):
            return replace(delta, text=delta.text[: found.end()], finish_reason="stop")
    return delta
