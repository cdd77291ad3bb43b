"""Deadlines for a call through a deployment's handle, and for the pieces of a stream."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, TypeVar

from ray.serve.handle import DeploymentResponse

Piece = TypeVar("Piece")


class LateError(TimeoutError):
    """A replica did not respond in time."""


async def pieces_in_time(
    stream: AsyncIterator[Piece], first_s: float, next_s: float, whole_s: float, late: Callable[[float], Exception]
) -> AsyncGenerator[Piece, None]:
    """Yield the pieces of a stream; the reader's own time counts only for the whole.

    Args:
        stream: the stream; the caller closes it.
        first_s: the longest wait for the first piece.
        next_s: the longest wait for each further piece.
        whole_s: the longest time for the whole.
        late: the seconds without a piece -> the error to raise.
    """
    loop, pieces = asyncio.get_running_loop(), aiter(stream)
    end, patience_s = loop.time() + whole_s, first_s
    while True:
        try:
            async with asyncio.timeout_at(min(end, loop.time() + patience_s)) as patience:
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError:
            if patience.expired():
                raise late(whole_s if loop.time() >= end else patience_s) from None
            raise
        yield piece
        patience_s = next_s


async def answer_in_time(response: DeploymentResponse, within_s: float) -> Any:
    """Return the result of a replica's method; a cancellation also cancels the replica's work.

    Raises: the errors of the method; LateError: it took longer than `within_s`.
    """
    try:
        async with asyncio.timeout(within_s) as patience:
            try:
                return await response
            except asyncio.CancelledError:
                response.cancel()  # otherwise the replica continues work that nobody needs
                raise
    except TimeoutError:
        if patience.expired():
            raise LateError(f"no answer within {within_s:g} s") from None
        raise
