"""From a language model's replicas to the client: several choices side by side, whole or as server-sent events."""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve.handle import DeploymentHandle

from voicechat_serve.api.request_log import current_request
from voicechat_serve.api.services import streamed
from voicechat_serve.api.streaming import ClosedStream, error_event, event
from voicechat_serve.generation.engines.interface import FinishReason
from voicechat_serve.generation.loaded_model import Delta, GenerationOptions, ScoredToken
from voicechat_serve.realtime.conversation import stop

log = logging.getLogger("ray.serve.voicechat.answers")

STREAM_DOCUMENTED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
"""The second content type in the OpenAPI document, beside JSON."""

MOST_ATTEMPTS = 3
"""Attempts at a whole answer if replicas die."""

PAUSE_S = 1.0
"""The time before the next attempt: until then Serve may still send requests to the dead replica."""
CANCELLATION_S = 15.0
"""The time in which Serve ends a request after it has ended its calls, even on a busy machine. An answer that ends
earlier would count as complete, though its client has left."""

PIECES_AHEAD = 64
"""Pieces of several streams that may wait for a slow reader; then the streams wait."""


class BrokenOffError(RuntimeError):
    """A stream of an answer ended before the answer did."""


@dataclass(frozen=True)
class ChoiceRequest:
    """The call of a `LanguageModel` for one choice of an answer."""

    method: str
    """"chat" or "complete"."""
    prompt: Any
    options: GenerationOptions


@dataclass
class Call:
    """One call of a tool."""

    id: str
    name: str
    arguments: str = ""
    """A JSON object, unless the answer was cut off."""


@dataclass
class Choice:
    """One complete choice of an answer."""

    text: str = ""
    calls: list[Call] = field(default_factory=list)
    scores: list[ScoredToken] = field(default_factory=list)
    prompt_scores: tuple[ScoredToken, ...] = ()
    prompt_text: str = ""
    finish_reason: FinishReason | None = None

    def add(self, delta: Delta) -> None:
        """Append a piece."""
        self.text += delta.text
        for piece in delta.calls:
            if piece.name:
                self.calls.append(Call(new_call_id(), piece.name))
            self.calls[piece.index].arguments += piece.arguments
        self.scores += delta.scores
        self.prompt_scores = self.prompt_scores or delta.prompt_scores
        self.prompt_text = self.prompt_text or delta.prompt_text
        self.finish_reason = delta.finish_reason


def new_call_id() -> str:
    return f"call_{uuid.uuid4().hex}"


@dataclass
class Tally:
    """Counts the tokens of an answer: those of a prompt once, for any number of choices."""

    choices_per_prompt: int
    is_silent: bool = False
    """Whether the client asked for no tokens: the response omits the one that the model generates."""
    prompts: dict[int, int] = field(default_factory=dict)
    completions: dict[int, int] = field(default_factory=dict)
    fingerprint: str = ""

    def count(self, index: int, delta: Delta) -> None:
        self.prompts[index // self.choices_per_prompt] = delta.prompt_tokens
        self.completions[index] = delta.completion_tokens
        self.fingerprint = delta.fingerprint
        current_request().count(sum(self.prompts.values()), sum(self.completions.values()))

    def usage(self) -> dict[str, int]:
        prompt = sum(self.prompts.values())
        completion = 0 if self.is_silent else sum(self.completions.values())
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def heading(prefix: str, kind: str, model: str) -> dict[str, Any]:
    """Return the fields at the beginning of every object of one answer."""
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


async def whole_answer(
    handle: DeploymentHandle, choice_requests: Sequence[ChoiceRequest], tally: Tally
) -> list[Choice]:
    """Return all choices, complete; start again if a replica dies, because the client has received nothing yet."""
    for attempt in range(1, MOST_ATTEMPTS + 1):
        choices = [Choice() for _ in choice_requests]
        try:
            async with pieces(handle, choice_requests) as numbered_pieces:
                async for index, delta in numbered_pieces:
                    tally.count(index, delta)
                    choices[index].add(delta)
            return choices
        except (ActorDiedError, ActorUnavailableError):
            if attempt == MOST_ATTEMPTS:
                raise
            log.warning("a replica died under a request, which is tried again")
            await asyncio.sleep(PAUSE_S * attempt)
    raise AssertionError


@contextlib.asynccontextmanager
async def pieces(
    handle: DeploymentHandle, choice_requests: Sequence[ChoiceRequest]
) -> AsyncIterator[AsyncIterator[tuple[int, Delta]]]:
    """Yield (choice, piece) of all choices as they arrive; if the caller leaves the block, the rest is cancelled."""
    async with AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(
                streamed(handle, choice_request.method, choice_request.prompt, choice_request.options)
            )
            for choice_request in choice_requests
        ]
        merged = numbered(streams[0]) if len(streams) == 1 else interleaved(streams)
        yield await stack.enter_async_context(contextlib.aclosing(late_if_cancelled(merged)))


async def late_if_cancelled(merged: AsyncGenerator[tuple[int, Delta], None]) -> AsyncGenerator[tuple[int, Delta], None]:
    """Pass pieces on; if the client has left, Serve cancels the calls of the request, and then the request: wait for
    that here."""
    async with contextlib.aclosing(merged):
        try:
            async for piece in merged:
                yield piece
        except BrokenOffError:
            await asyncio.sleep(CANCELLATION_S)
            raise


async def numbered(stream: AsyncIterator[Delta]) -> AsyncGenerator[tuple[int, Delta], None]:
    async for delta in to_its_end(stream):
        yield 0, delta


async def to_its_end(stream: AsyncIterator[Delta]) -> AsyncGenerator[Delta, None]:
    """Pass a stream on, and check its end.

    Raises:
        BrokenOffError: the stream ends without its last piece, as a stream does that Serve cancels.
    """
    finish_reason = None
    async for delta in stream:
        finish_reason = delta.finish_reason
        yield delta
    if finish_reason is None:
        raise BrokenOffError("an answer broke off before its end")


async def interleaved(streams: Sequence[AsyncIterator[Delta]]) -> AsyncGenerator[tuple[int, Delta], None]:
    """Yield the items of all streams as they arrive; the first error ends all."""
    queue: asyncio.Queue[tuple[int, Delta | Exception | None]] = asyncio.Queue()
    room = asyncio.Semaphore(PIECES_AHEAD)  # a stream's end needs no room, however slow the reader is

    async def pass_on(index: int, stream: AsyncIterator[Delta]) -> None:
        try:
            async for delta in to_its_end(stream):
                await room.acquire()
                queue.put_nowait((index, delta))
            queue.put_nowait((index, None))
        except Exception as error:
            queue.put_nowait((index, error))
        except asyncio.CancelledError:  # by Serve, or by this function's own end, when the client has left
            queue.put_nowait((index, BrokenOffError("an answer was cancelled inside the server")))
            raise

    tasks = [asyncio.create_task(pass_on(index, stream)) for index, stream in enumerate(streams)]
    try:
        open_streams = len(streams)
        while open_streams:
            index, given = await queue.get()
            if given is None:
                open_streams -= 1
            elif isinstance(given, Exception):
                raise given
            else:
                room.release()
                yield index, given
    finally:
        await stop(*tasks)


class EventWriter(Protocol):
    """Writes the server-sent events of one answer."""

    def piece(self, index: int, delta: Delta) -> str:
        """Return the events of a piece of a choice, which the tally has counted."""

    def end(self) -> str:
        """Return the events after the last piece."""

    def error(self, error: Exception) -> str:
        """Return the last events of an answer that fails after its first piece."""


@dataclass(frozen=True)
class ChunkEvents:
    """Writes one JSON object an event, and [DONE].

    Args:
        tally: counts the tokens.
        tell: (choice, a piece of it) -> its objects.
        last: an object to complete with the usage and send at the end, if the client wants it.
    """

    tally: Tally
    tell: Callable[[int, Delta], Iterable[dict[str, Any]]]
    last: dict[str, Any] | None

    def piece(self, index: int, delta: Delta) -> str:
        return "".join(event(chunk) for chunk in self.tell(index, delta))

    def end(self) -> str:
        end = event(self.last | {"usage": self.tally.usage()}) if self.last else ""
        return f"{end}data: [DONE]\n\n"

    def error(self, error: Exception) -> str:
        return error_event(error)


async def event_stream(
    handle: DeploymentHandle, choice_requests: Sequence[ChoiceRequest], tally: Tally, writer: EventWriter
) -> ClosedStream:
    """Return server-sent events; an error before the first piece is an error of the request.

    Args:
        handle: the language model.
        choice_requests: one for each choice.
        tally: counts the tokens.
        writer: writes the events.
    """
    async with AsyncExitStack() as opening:
        numbered_pieces = await opening.enter_async_context(pieces(handle, choice_requests))
        first = await anext(numbered_pieces)
        stack = opening.pop_all()

    def events_of(index: int, delta: Delta) -> str:
        tally.count(index, delta)
        return writer.piece(index, delta)

    async def events() -> AsyncGenerator[str, None]:
        try:
            yield events_of(*first)
            async for index, delta in numbered_pieces:
                yield events_of(index, delta)
        except Exception as error:
            yield writer.error(error)
            return
        end = writer.end()
        current_request().is_at_end = True
        yield end

    return ClosedStream(events(), "text/event-stream", stack)
