"""One model in memory, its engine and its tokenizer: messages in, text out as it is written."""

import asyncio
import re
from bisect import bisect_left
from codecs import getincrementaldecoder
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from voicechat_platform.errors import InputError
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer, Message
from voicechat_serve.generation.engines.interface import Engine, FinishReason, GenerationRequest, Score

Truncation = Literal["disabled", "auto"]
"""Whether a conversation that outgrows the context is refused, or loses its oldest messages."""

ANSWER_SHARE = 0.25
"""How much of the context `truncation="auto"` keeps free for the answer."""

ANSWER_TOKENS = 128
"""How many it keeps free at least, of a short context half: of a model of characters that is a sentence or two."""

SENTENCE_ENDS = ".?!"
CLAUSE_END = re.compile(r"[.?!,;:]|(?=\n)")


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """What a client asks for besides its prompt."""

    sampling: dict[str, Any] = field(default_factory=dict)
    """Fields of `Sampling` that the client has set; the model's own defaults stand for the others."""
    top_scores: int | None = None
    """Score every token, and so many of the likeliest beside it."""
    score_prompt: bool = False
    truncation: Truncation = "disabled"
    version: int | None = None
    """A version of the model in the registry; the champion when not given."""


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token as OpenAI's logprobs tell it."""

    text: str
    bytes: list[int]
    """What it adds to the text: perhaps a part of a character; nothing where it is a special token."""
    logprob: float | None
    top: tuple["ScoredToken", ...] = ()
    offset: int = 0
    """Characters between the prompt's beginning and where its text begins."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    """Generated so far."""
    finish_reason: FinishReason | None
    """Set on the last piece."""
    scores: tuple[ScoredToken, ...] = ()
    """Of the piece's tokens, where they were asked for."""
    prompt_scores: tuple[ScoredToken, ...] = ()
    """On the first piece, where they were asked for."""
    fingerprint: str = ""
    """Which version of the model writes, such as "shakespeare@3"."""


class LoadedModel:
    """
    Args:
        tokenizer: the model's.
        engine: runs it.
        fingerprint: names the version.
    """

    def __init__(self, tokenizer: ChatTokenizer, engine: Engine, fingerprint: str):
        self.tokenizer, self.engine, self.fingerprint = tokenizer, engine, fingerprint
        self.users = 0
        """Answers under way; counted by whoever may close the engine."""
        self.encoding: dict[tuple[str, str], asyncio.Task[list[int]]] = {}
        """Prompts that are being encoded."""
        self.defaults = tokenizer.sampling
        """What stands for the fields of `Sampling` that a client does not set."""

    async def warm_up(self) -> None:
        """Raises UnsupportedError where the engine cannot do what the model's own sampling asks for."""
        # A token, not a text: a model of characters may know none of the text's.
        request = GenerationRequest(prompt_ids=[0], sampling=replace(self.defaults, max_tokens=2))
        async for _ in self.engine.generate(request):
            pass

    async def chat(self, messages: Sequence[Message], options: GenerationOptions) -> AsyncGenerator[Delta, None]:
        """The assistant's next turn.

        Args:
            messages: the conversation so far.
            options: how.

        Raises (at the first piece): what `Engine.generate` raises, and InputError where the messages do not fit
        the model's template or a token id is not one of the model's.
        """
        prompt_ids = await self.encoded(self.chat_prompt, messages, options.truncation)
        async with aclosing(self.write(prompt_ids, options, self.tokenizer.chat_stop)) as deltas:
            num_before = 0
            async for delta in deltas:
                if self.tokenizer.chat_stop and delta.finish_reason != "stop" and not delta.scores:
                    delta = ended_in_time(delta, num_before, self.engine.context - len(prompt_ids))
                num_before = delta.completion_tokens
                yield delta
                if delta.finish_reason:
                    return

    async def encoded(self, encode: Callable[..., list[int]], *prompt: Any) -> list[int]:
        """Token ids of a prompt: encoded once for all the choices that wait for it, as they may be many.

        Not on the event loop: a long conversation takes seconds, and the others' answers would wait.
        """
        key = (encode.__name__, repr(prompt))
        if key not in self.encoding:
            self.encoding[key] = asyncio.create_task(asyncio.to_thread(encode, *prompt))
            self.encoding[key].add_done_callback(lambda _: self.encoding.pop(key))
        return await asyncio.shield(self.encoding[key])  # the others still wait when one leaves

    def chat_prompt(self, messages: Sequence[Message], truncation: Truncation) -> list[int]:
        """The conversation's, within the context where `truncation` allows it."""
        prompt_ids = self.tokenizer.encode_chat(messages)
        context = self.engine.context
        limit = context - max(int(context * ANSWER_SHARE), min(context // 2, ANSWER_TOKENS))
        return self.shortened(messages, limit) if truncation == "auto" and len(prompt_ids) > limit else prompt_ids

    def shortened(self, messages: Sequence[Message], limit: int) -> list[int]:
        """The longest prompt within the limit that leaves out the oldest messages, but never the system's.

        Where the last message alone is too long, its first words are left out too.
        """
        system = [message for message in messages[:1] if message["role"] == "system"]
        rest = messages[len(system) :]

        def prompt_of(num_left_out: int) -> list[int]:
            return self.tokenizer.encode_chat([*system, *rest[num_left_out:]])

        num_left_out = bisect_left(range(len(rest) - 1), True, key=lambda number: len(prompt_of(number)) <= limit)
        prompt_ids = prompt_of(num_left_out)
        if len(prompt_ids) <= limit or not rest:
            return prompt_ids[-limit:]
        words = rest[-1]["content"].split()

        def prompt_without(num_words: int) -> list[int]:
            return self.tokenizer.encode_chat([*system, {**rest[-1], "content": " ".join(words[num_words:])}])

        num_words = bisect_left(range(len(words) - 1), True, key=lambda number: len(prompt_without(number)) <= limit)
        return prompt_without(num_words)[-limit:]

    async def complete(self, prompt: str | list[int], options: GenerationOptions) -> AsyncGenerator[Delta, None]:
        """What follows the prompt, a text or token ids; errors as in `chat`."""
        prompt_ids = await self.encoded(self.tokenizer.encode, prompt) if isinstance(prompt, str) else prompt
        async with aclosing(self.write(prompt_ids, options, prompt=prompt)) as deltas:
            async for delta in deltas:
                yield delta

    async def write(
        self,
        prompt_ids: list[int],
        options: GenerationOptions,
        more_stops: tuple[str, ...] = (),
        prompt: str | list[int] = "",
    ) -> AsyncGenerator[Delta, None]:
        sampling = replace(self.defaults, **options.sampling)
        sampling = replace(sampling, stop=(*sampling.stop, *more_stops))
        self.require_known([*prompt_ids, *(token_id for token_id, _ in sampling.logit_bias)])
        request = GenerationRequest(
            prompt_ids=prompt_ids,
            sampling=sampling,
            top_scores=options.top_scores,
            score_prompt=options.score_prompt,
        )
        count = 0
        scores = None
        if options.top_scores is not None:
            scores = AnswerScores(prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt))
        async with aclosing(self.engine.generate(request)) as batches:
            async for tokens in batches:
                count += len(tokens)
                text = "".join(token.text for token in tokens)
                told = [self.told(token.score) for token in tokens if token.score]
                yield Delta(
                    text=text,
                    prompt_tokens=len(prompt_ids),
                    completion_tokens=count,
                    finish_reason=tokens[-1].finish_reason,
                    scores=scores.settled(text, told, tokens[-1].finish_reason) if scores else (),
                    prompt_scores=self.told_prompt(prompt, tokens[0].prompt_scores),
                    fingerprint=self.fingerprint,
                )

    def require_known(self, token_ids: Sequence[int]) -> None:
        size = self.tokenizer.size
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < size:
            raise InputError(f"a token id is not one of the model's, which are 0 to {size - 1}")

    def told(self, score: Score) -> ScoredToken:
        top = tuple(self.named(token_id, logprob) for token_id, logprob in score.top)
        return replace(self.named(score.id, score.logprob), top=top)

    def told_prompt(self, prompt: str | list[int], scores: Sequence[Score]) -> tuple[ScoredToken, ...]:
        """Scores of a prompt's tokens where they stand in it, which holds perhaps what the model has no token for."""
        if not scores or not isinstance(prompt, str):
            return tuple(self.told(score) for score in scores)
        places = self.tokenizer.places(prompt)
        return tuple(replace(self.told(score), offset=place) for score, place in zip(scores, places, strict=True))

    def named(self, token_id: int, logprob: float | None) -> ScoredToken:
        data = self.tokenizer.token_bytes(token_id)
        text = data.decode(errors="replace") if data else self.tokenizer.name(token_id)
        return ScoredToken(text, list(data), logprob)


class AnswerScores:
    """Gives the scores of an answer's tokens their places, and gives them out together with their text.

    Args:
        prompt: the text before the answer.
    """

    def __init__(self, prompt: str):
        self.decoder = getincrementaldecoder("utf-8")("replace")
        self.written = self.given = len(prompt)
        """Characters that the tokens so far make, and that were given out."""
        self.held: list[ScoredToken] = []

    def settled(
        self, text: str, scores: Sequence[ScoredToken], finish_reason: FinishReason | None
    ) -> tuple[ScoredToken, ...]:
        """Scores of the tokens whose text, or the beginning of it, is given out by now.

        Args:
            text: what is given out.
            scores: of the tokens that were made, whose text may have to wait.
            finish_reason: where the answer ends here: a stop string is no part of it, and neither are its tokens.
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
    """The same piece, or the last one of its answer: a speech of a play may go on for longer than anybody listens. One
    that has used half of its room ends with its sentence, one that has used three quarters with its clause or its
    line, and not in the middle of a word, where the context happens to end.

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
